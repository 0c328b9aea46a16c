"""Signing secrets: new ones beside the old, by command and by schedule, and the end of the old.

What becomes of each is decided in `core/secret_rotation.py`, by the database's time. A change of a secret is a change
of its webhook, so workers take it up with their next claim.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import attrs

from pggit_reactor.core.model import SignatureAlgorithm, SignatureScope, WebhookId
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.secret_rotation import (
    Rotation,
    Term,
    ended_by_finish,
    plan_rotation,
    scheduled_grace,
)
from pggit_reactor.core.signing_keys import (
    ED25519_OCTETS,
    algorithm_of,
    new_private_key,
    new_secret,
    public_key_of,
)
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.registry import By, add_secret, audit, locked_webhook
from pggit_reactor.db.statements import statements
from pggit_reactor.db.webhooks import secret_place
from pggit_reactor.errors import ConfigurationError, RotationError
from pggit_reactor.security.sealing import Sealer

NEW_SECRET_OCTETS: Final = 32
DUE_MAX: Final = 20
"""Webhooks whose secrets one round of the chore rotates."""
OLD_NAMED_MAX: Final = 20
"""Webhooks with old secrets that are named."""

_SQL = statements("secrets")


@attrs.frozen(kw_only=True)
class Rotated:
    """What a rotation did."""

    webhook_id: WebhookId
    version: int
    algorithm: SignatureAlgorithm
    public_key: str | None
    signs_on: dict[int, datetime]
    """Older versions that sign too, and until when."""
    ended: tuple[int, ...]
    """Versions that are gone."""


@attrs.frozen(kw_only=True)
class OldSecrets:
    """Webhooks whose newest secret is older than the reminder."""

    count: int
    oldest: tuple[WebhookId, ...]
    """The first `OLD_NAMED_MAX` of them."""


def draw_secret(
    algorithm: SignatureAlgorithm, *, random_octets: Callable[[int], bytes] = os.urandom
) -> Secret[str]:
    """Return a new secret of that kind."""
    if algorithm is SignatureAlgorithm.ED25519:
        return Secret(new_private_key(random_octets(ED25519_OCTETS)))
    return Secret(new_secret(random_octets(NEW_SECRET_OCTETS)))


async def rotate_secret(
    connection: TrioConnection,
    sealer: Sealer,
    which: int | str,
    *,
    secret: Secret[str] | None = None,
    algorithm: SignatureAlgorithm | None = None,
    grace_seconds: float,
    by: By,
) -> tuple[Rotated, Secret[str]]:
    """Put *secret*, or a new one of *algorithm* (else of the newest's kind), first; return what was done, and it.

    What signs now signs on for *grace_seconds*; 0 ends it at once. `NotFoundError`; `RotationError` where too many
    would sign; `ConfigurationError` where the webhook's signature_scope cannot be kept.
    """
    async with connection.transaction():
        webhook_id, scope = await locked_webhook(connection, which)
        terms, newest, now = await _terms(connection, webhook_id)
        if secret is None:
            secret = draw_secret(algorithm or newest)
        kind, public = algorithm_of(secret.reveal()), public_key_of(secret.reveal())
        if kind is SignatureAlgorithm.ED25519 and scope == SignatureScope.BODY_ONLY:
            raise ConfigurationError(
                f"webhook {webhook_id} has signature_scope=body-only, which is an HMAC, and an Ed25519 key makes none; "
                "right is signature_scope=full first"
            )
        plan = plan_rotation(terms, now, grace=timedelta(seconds=grace_seconds))
        await _carry_out(
            connection, webhook_id, plan, by=by, why="no grace" if not grace_seconds else "expired"
        )
        await add_secret(connection, sealer, webhook_id, plan.version, secret, by=by)
        signs_on = {
            term.version: plan.expiries.get(term.version, term.expires_at)
            for term in terms
            if term.version not in plan.ended
        }
        older = {version: moment.isoformat() for version, moment in signs_on.items() if moment is not None}
        details = {"version": plan.version, "algorithm": kind, "scheduled": False, "older_until": older}
        await audit(connection, "secret_rotated", webhook_id=webhook_id, by=by, details=details)
    return Rotated(
        webhook_id=webhook_id,
        version=plan.version,
        algorithm=kind,
        public_key=public,
        signs_on={version: moment for version, moment in signs_on.items() if moment is not None},
        ended=plan.ended,
    ), secret


async def finish_rotation(
    connection: TrioConnection, which: int | str, *, by: By
) -> tuple[WebhookId, tuple[int, ...]]:
    """End the grace of a webhook now: only its newest secret is left. Return the versions that are gone."""
    async with connection.transaction():
        webhook_id, _ = await locked_webhook(connection, which)
        terms, _, now = await _terms(connection, webhook_id)
        ended = ended_by_finish(terms, now)
        if not ended:
            raise RotationError(
                f"webhook {webhook_id} has one secret that signs: no rotation is to be finished"
            )
        await _end(connection, webhook_id, ended, by=by, why="finished")
    return webhook_id, ended


async def rotate_due(
    connection: TrioConnection, sealer: Sealer, *, grace_seconds: float, by: str
) -> tuple[WebhookId, ...]:
    """Rotate the secrets whose schedule says so, some in a call; return of which webhooks.

    With the rights of a worker. *sealer*'s active key must be in use in the database.
    """
    rows = await (await connection.execute(_SQL["due"], {"rows_max": DUE_MAX})).fetchall()
    rotated = []
    for webhook_id, version, algorithm, every_seconds in rows:
        secret = draw_secret(SignatureAlgorithm(algorithm)).reveal()
        grace = scheduled_grace(timedelta(seconds=grace_seconds), timedelta(seconds=every_seconds))
        bound = {
            "webhook_id": webhook_id,
            "version": version + 1,
            "sealed_secret": await sealer.seal_async(
                secret.encode(), place=secret_place(webhook_id, version + 1)
            ),
            "algorithm": algorithm,
            "public_key": public_key_of(secret),
            "grace_seconds": grace.total_seconds(),
            "by": by,
        }
        row = await (await connection.execute(_SQL["rotate_due"], bound)).fetchone()
        if row is not None and row[0]:
            rotated.append(WebhookId(webhook_id))
    return tuple(rotated)


async def retire_expired(connection: TrioConnection, *, by: str) -> int:
    """Remove secrets whose grace is over; return how many. With the rights of a worker."""
    row = await (await connection.execute(_SQL["retire_expired"], {"by": by})).fetchone()
    assert row is not None
    return int(row[0])


async def read_old_secrets(connection: TrioConnection, *, reminder_seconds: float) -> OldSecrets:
    """Return which webhooks have no secret younger than that; none for 0."""
    rows = []
    if reminder_seconds:
        bound = {"reminder_seconds": reminder_seconds, "rows_max": OLD_NAMED_MAX}
        rows = await (await connection.execute(_SQL["old"], bound)).fetchall()
    return OldSecrets(
        count=rows[0][1] if rows else 0, oldest=tuple(WebhookId(webhook_id) for webhook_id, _ in rows)
    )


async def _terms(
    connection: TrioConnection, webhook_id: WebhookId
) -> tuple[list[Term], SignatureAlgorithm, datetime]:
    """Return all versions, what the newest signs with, and the database's time."""
    rows = await (await connection.execute(_SQL["terms"], {"webhook_id": webhook_id})).fetchall()
    if not rows:
        raise RotationError(f"webhook {webhook_id} has no secret to rotate; register it anew")
    terms = [Term(version=row[0], not_before=row[1], expires_at=row[2]) for row in rows]
    return terms, SignatureAlgorithm(rows[-1][3]), rows[-1][4]


async def _carry_out(
    connection: TrioConnection, webhook_id: WebhookId, plan: Rotation, *, by: By, why: str
) -> None:
    if plan.expiries:
        bound = {
            "webhook_id": webhook_id,
            "versions": [*plan.expiries],
            "moments": [*plan.expiries.values()],
        }
        await connection.execute(_SQL["expire"], bound)
    if plan.ended:
        await _end(connection, webhook_id, plan.ended, by=by, why=why)


async def _end(
    connection: TrioConnection, webhook_id: WebhookId, versions: Sequence[int], *, by: By, why: str
) -> None:
    await connection.execute(_SQL["end"], {"webhook_id": webhook_id, "versions": list(versions)})
    for version in versions:
        await audit(
            connection,
            "secret_retired",
            webhook_id=webhook_id,
            by=by,
            details={"version": version, "why": why},
        )
