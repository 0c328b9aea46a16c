"""`delivery list`, `show`, `explain`: the queue, looked at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import click

from pggit_reactor.cli.delivery_changes import cancel, replay, requeue
from pggit_reactor.cli.output import json_option, print_facts, print_json, print_table, text
from pggit_reactor.cli.parameters import BIGINT, WEBHOOK
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.core.model import FailedReason, State

if TYPE_CHECKING:
    from pggit_reactor.db.deliveries import DeliveryFilter, DeliveryRecord, DeliveryRow
    from pggit_reactor.db.operations import Explanation

_LIMIT_DEFAULT = 50
_LIMIT_MAX = 1000


@click.group()
def delivery() -> None:
    """Look at deliveries, and replay, requeue or cancel them.

    \b
    Example: pggit-reactor delivery list --status failed
    """


for _command in (replay, requeue, cancel):
    delivery.add_command(_command)


@delivery.command("list")
@click.option("--webhook", "which", type=WEBHOOK, metavar="ID", help="Of this webhook (id or name).")
@click.option("--status", type=click.Choice([state.value for state in State]), help="In this status.")
@click.option("--reason", type=click.Choice([reason.value for reason in FailedReason]), help="Dead for this.")
@click.option("--before", type=BIGINT, metavar="ID", help="Below this delivery id: the next page.")
@click.option(
    "--limit", type=click.IntRange(1, _LIMIT_MAX), default=_LIMIT_DEFAULT, show_default=True, metavar="N",
    help="At most this many.",
)  # fmt: skip
@json_option
@pass_session
def list_(
    session: Session,
    *,
    which: int | str | None,
    status: str | None,
    reason: str | None,
    before: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List deliveries, the newest first.

    \b
    Example: pggit-reactor delivery list --webhook alerts --status retrying
    """
    from pggit_reactor.db.deliveries import DeliveryFilter

    wanted = DeliveryFilter(
        status=None if status is None else State(status),
        reason=None if reason is None else FailedReason(reason),
        before=before,
    )
    rows = session.run(lambda: _list(session, which, wanted, limit))
    if as_json:
        print_json(rows)
        return
    print_table([_line(row) for row in rows], when_empty="no delivery")
    if len(rows) == limit:
        click.echo(f"there may be more: --before {rows[-1].delivery_id}", err=True)


async def _list(
    session: Session, which: int | str | None, wanted: DeliveryFilter, limit: int
) -> tuple[DeliveryRow, ...]:
    from pggit_reactor.db.deliveries import list_deliveries

    async with session.open_database() as connection:
        webhook_id = None if which is None else await session.webhook_id(connection, which)
        return await list_deliveries(connection, attrs.evolve(wanted, webhook_id=webhook_id), rows_max=limit)


def _line(row: DeliveryRow) -> dict[str, object]:
    return {
        "id": row.delivery_id,
        "uid": row.uid,
        "webhook": f"{row.webhook_id} ({row.webhook_name or 'not registered'})",
        "status": row.delivery_status if row.failed_reason is None else f"failed: {row.failed_reason}",
        "attempts": row.attempt_count,
        "last": row.last_status,
        "created": row.created_at,
    }


@delivery.command()
@click.argument("which", metavar="ID")
@click.option("--body", "with_body", is_flag=True, help="Print the payload too.")
@json_option
@pass_session
def show(session: Session, which: str, with_body: bool, as_json: bool) -> None:
    """Show a delivery and its log.

    ID is a delivery id, or the uid that its receiver saw (webhook-id, X-pgGit-Delivery-ID).

    \b
    Example: pggit-reactor delivery show 7
    """
    record, body = session.run(lambda: _show(session, which, with_body=with_body))
    fields: dict[str, object] = {
        field.name: getattr(record, field.name) for field in attrs.fields(type(record))
    }
    if as_json:
        # The payload as text: reading it as JSON could change its numbers.
        print_json(fields | ({"body": body} if with_body else {}))
        return
    print_facts({name: value for name, value in fields.items() if name != "log" and value is not None})
    click.echo()
    print_table(
        [
            {"at": entry.at, "event": entry.event, "details": json.dumps(entry.details)}
            for entry in record.log
        ],
        when_empty="nothing has happened to it yet",
    )
    if body is not None:
        click.echo()
        click.echo(body)


async def _show(session: Session, which: str, *, with_body: bool) -> tuple[DeliveryRecord, str | None]:
    from pggit_reactor.db.deliveries import read_body, read_delivery

    async with session.open_database() as connection:
        record = await read_delivery(connection, which)
        body = await read_body(connection, record.delivery_id) if with_body else None
        return record, body


@delivery.command()
@click.argument("which", metavar="ID")
@json_option
@pass_session
def explain(session: Session, which: str, as_json: bool) -> None:
    """Say why a delivery has not been sent, and when it will be.

    ID is a delivery id, or the uid that its receiver saw.

    \b
    Example: pggit-reactor delivery explain 7
    """
    explanation = session.run(lambda: _explain(session, which))
    if as_json:
        print_json(explanation)
        return
    webhook = f"webhook {explanation.webhook_id} ({explanation.webhook_name or 'not registered'})"
    click.echo(f"delivery {explanation.delivery_id} for {text(webhook)} is {explanation.delivery_status}:")
    click.echo(text(explanation.explanation))
    if explanation.due_at is not None:
        click.echo(f"due {explanation.due_at}")


async def _explain(session: Session, which: str) -> Explanation:
    from pggit_reactor.db.operations import explain_delivery

    async with session.open_database() as connection:
        return await explain_delivery(connection, which)
