"""Loads registered webhooks and opens what is sealed in them."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

import attrs

from pggit_reactor.core.model import SignatureScope, Webhook, WebhookId, WebhookState
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.status_policy import StatusPolicy
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.statements import statements
from pggit_reactor.errors import SealError
from pggit_reactor.security.sealing import Place, Sealer

UNOPENABLE: Final = "no key opens"
"""How the reason of a webhook that was paused for it begins; the metric and `doctor` look for it."""

_SQL = statements("webhooks")


def url_place(webhook_id: int) -> Place:
    """Where a webhook's sealed URL belongs."""
    return Place(schema="pggit", table="webhook", column="sealed_url", row=str(webhook_id))


def headers_place(webhook_id: int) -> Place:
    """Where a webhook's sealed headers belong."""
    return Place(schema="pggit", table="webhook", column="sealed_headers", row=str(webhook_id))


def ca_place(webhook_id: int) -> Place:
    """Where a webhook's sealed private authorities belong."""
    return Place(schema="pggit", table="webhook", column="sealed_ca", row=str(webhook_id))


def client_certificate_place(webhook_id: int) -> Place:
    """Where a webhook's sealed client certificate belongs."""
    return Place(schema="pggit", table="webhook", column="sealed_client_certificate", row=str(webhook_id))


def secret_place(webhook_id: int, version: int) -> Place:
    """Where a version of a webhook's signing secret belongs."""
    return Place(
        schema="pggit", table="webhook_secret", column="sealed_secret", row=f"{webhook_id}:{version}"
    )


@attrs.frozen(kw_only=True)
class UnopenableWebhook:
    """A registration that the key ring does not open."""

    webhook_id: WebhookId
    revision: int
    reason: str


@attrs.frozen(kw_only=True)
class WebhookDefaults:
    """What a registration that sets no value of its own gets."""

    attempt_timeout_seconds: float
    max_body_bytes: int


async def load_webhooks(
    connection: TrioConnection,
    webhook_ids: Collection[WebhookId],
    *,
    sealer: Sealer,
    defaults: WebhookDefaults,
) -> list[Webhook | UnopenableWebhook]:
    """Return those of *webhook_ids* that are registered, opened for sending."""
    cursor = await connection.execute(_SQL["load"], {"webhook_ids": list(webhook_ids)})
    return [await _opened(row, sealer, defaults) for row in await cursor.fetchall()]


async def pause_unopenable(connection: TrioConnection, webhook: UnopenableWebhook, *, worker_id: str) -> None:
    """Pause a webhook that no key opens, unless its registration has changed meanwhile."""
    await connection.execute(
        _SQL["pause_unopenable"],
        {
            "webhook_id": webhook.webhook_id,
            "revision": webhook.revision,
            "reason": webhook.reason,
            "worker_id": worker_id,
        },
    )


async def _opened(
    row: tuple[Any, ...], sealer: Sealer, defaults: WebhookDefaults
) -> Webhook | UnopenableWebhook:
    (webhook_id, name, revision, state, sealed_url, url_origin, concurrency, attempt_timeout, max_attempts,
     give_up_after, sealed_headers, scope, max_body_bytes, pins, sealed_ca, sealed_client_certificate,
     versions, sealed_secrets, secrets_change_in, status_policy) = row  # fmt: skip
    try:
        url = (await sealer.open_async(sealed_url, place=url_place(webhook_id))).decode()
        headers = (
            ()
            if sealed_headers is None
            else _headers_of(await sealer.open_async(sealed_headers, place=headers_place(webhook_id)))
        )
        secrets = [
            (await sealer.open_async(sealed, place=secret_place(webhook_id, version))).decode()
            for version, sealed in zip(versions or (), sealed_secrets or (), strict=True)
        ]
        ca = await _open_text(sealer, sealed_ca, ca_place(webhook_id))
        client_certificate = await _open_text(
            sealer, sealed_client_certificate, client_certificate_place(webhook_id)
        )
    except (SealError, ValueError) as error:
        # Of a ValueError the message may quote what was opened.
        why = str(error) if isinstance(error, SealError) else "what was sealed is not what belongs there"
        return UnopenableWebhook(
            webhook_id=webhook_id, revision=revision, reason=f"{UNOPENABLE} it: {why}"[:500]
        )
    return Webhook(
        webhook_id=webhook_id,
        name=name,
        revision=revision,
        state=WebhookState(state),
        url=Secret(url),
        url_origin=url_origin,
        secrets=tuple(Secret(secret) for secret in secrets),
        concurrency=concurrency,
        attempt_timeout_seconds=attempt_timeout or defaults.attempt_timeout_seconds,
        max_attempts=max_attempts,
        give_up_after_seconds=give_up_after,
        headers=headers,
        signature_scope=SignatureScope(scope),
        max_body_bytes=max_body_bytes or defaults.max_body_bytes,
        pins=tuple(pins or ()),
        ca=ca,
        client_certificate=client_certificate,
        secrets_change_in_seconds=secrets_change_in,
        status_policy=StatusPolicy.read(status_policy),
    )


async def _open_text(sealer: Sealer, sealed: bytes | None, place: Place) -> Secret[str] | None:
    if sealed is None:
        return None
    return Secret((await sealer.open_async(sealed, place=place)).decode())


def _headers_of(octets: bytes) -> tuple[tuple[str, str], ...]:
    headers = json.loads(octets)
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ValueError("headers are a JSON object of strings")
    return tuple(headers.items())
