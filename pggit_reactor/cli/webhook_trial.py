"""`webhook test`: one signed request from this process, over the sender that deliveries use."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs
import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.output import json_option, print_json, text
from pggit_reactor.cli.parameters import webhook_argument
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.core.echoes import mask_echoes
from pggit_reactor.core.model import (
    Answer,
    AttemptFailure,
    AttemptResult,
    FailureKind,
    Phases,
    Webhook,
    WebhookId,
)
from pggit_reactor.errors import ConfigurationError, SealError, UrlRefusedError

if TYPE_CHECKING:
    from pggit_reactor.db.connect import TrioConnection

EVENT_TYPE: Final = "pggit_reactor.test"
_PHASES: Final = tuple(field.name for field in attrs.fields(Phases))


@attrs.frozen(kw_only=True)
class Trial:
    """A test request and what came of it."""

    webhook_id: int
    name: str
    url_origin: str
    uid: str
    result: AttemptResult

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it."""
        outcome = self.result.outcome
        return isinstance(outcome, Answer) and 200 <= outcome.status <= 299

    @property
    def in_words(self) -> str:
        """What came of it, in a line."""
        outcome = self.result.outcome
        if isinstance(outcome, AttemptFailure):
            return f"no answer: {outcome.detail} ({outcome.kind})"
        return f"{'delivered' if self.delivered else 'refused'}: the receiver answered {outcome.status}"


@click.command("test")
@webhook_argument
@json_option
@pass_session
def test(session: Session, which: int | str, as_json: bool) -> int:
    """Send a signed test event to a webhook, now.

    The event is made and sent by this command, over the sender that deliveries use: with the same checks and
    signature, but without a row in the queue, without retries and without counting for the webhook's health.
    It is sent to a webhook that is paused or disabled as well. Exit 0 if the receiver answered 2xx, 3 if the
    URL policy refused, else 1.

    \b
    Example: pggit-reactor webhook test alerts
    """
    trial = session.run(lambda: _try(session, which))
    outcome = trial.result.outcome
    if as_json:
        print_json({**_fields(trial), "delivered": trial.delivered})
    else:
        _print(trial)
    if isinstance(outcome, AttemptFailure) and outcome.kind is FailureKind.URL_REFUSED:
        raise UrlRefusedError(outcome.detail)
    return Exit.DONE if trial.delivered else Exit.FAILED


async def _try(session: Session, which: int | str) -> Trial:
    from pggit_reactor.db.registry import audit

    async with session.open_database() as connection:
        webhook = await _load(session, connection, which)
    trial = await _send(session, webhook)
    outcome = trial.result.outcome
    async with session.open_database() as connection:
        await audit(
            connection,
            "webhook_tested",
            by=session.actor,
            webhook_id=trial.webhook_id,
            status_code=outcome.status if isinstance(outcome, Answer) else None,
            error_message=None if isinstance(outcome, Answer) else outcome.detail,
            request_id=trial.uid,
        )
    return trial


async def _load(session: Session, connection: TrioConnection, which: int | str) -> Webhook:
    from pggit_reactor.db.registry import read_record
    from pggit_reactor.db.webhooks import UnopenableWebhook, WebhookDefaults, load_webhooks

    record = await read_record(connection, which)
    sealer = await session.open_sealer(connection)
    delivery = session.settings.delivery
    defaults = WebhookDefaults(
        attempt_timeout_seconds=delivery.timeout_seconds, max_body_bytes=delivery.max_body_bytes
    )
    (webhook,) = await load_webhooks(
        connection, [WebhookId(record.webhook_id)], sealer=sealer, defaults=defaults
    )
    if isinstance(webhook, UnopenableWebhook):
        raise SealError(webhook.reason)
    if not webhook.secrets:
        raise ConfigurationError(f"webhook {webhook.webhook_id} has no signing secret that is valid now")
    return webhook


async def _send(session: Session, webhook: Webhook) -> Trial:
    from pggit_reactor.delivery.sender import open_transport, send_attempt

    uid, now = str(uuid.uuid4()), time.time()
    body = {
        "type": EVENT_TYPE,
        "webhook_id": webhook.webhook_id,
        "sent_at": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "message": "A test of pggit-reactor: nothing has happened.",
    }
    async with open_transport(session.egress.rules()) as transport:
        result = await send_attempt(
            transport,
            webhook,
            uid=uid,
            body=json.dumps(body).encode(),
            event_type=EVENT_TYPE,
            wall_now=now,
        )
    if isinstance(result.outcome, Answer):
        excerpt = mask_echoes(result.outcome.excerpt, webhook)
        result = attrs.evolve(result, outcome=attrs.evolve(result.outcome, excerpt=excerpt))
    return Trial(
        webhook_id=webhook.webhook_id,
        name=webhook.name,
        url_origin=webhook.url_origin,
        uid=uid,
        result=result,
    )


def _print(trial: Trial) -> None:
    result = trial.result
    where = f" ({result.address})" if result.address else ""
    click.echo(f"{trial.name} -> {trial.url_origin}{where}, id {trial.uid}")
    for name in _PHASES:
        seconds = getattr(result.phases, name)
        if seconds is not None:
            click.echo(f"  {name:<10} {seconds * 1000:9.2f} ms")
    click.echo(f"{text(trial.in_words)} after {result.elapsed_seconds * 1000:.2f} ms")
    if isinstance(result.outcome, Answer) and result.outcome.excerpt and not trial.delivered:
        click.echo(f"it said: {text(result.outcome.excerpt)}")


def _fields(trial: Trial) -> dict[str, object]:
    return {field.name: getattr(trial, field.name) for field in attrs.fields(Trial)}
