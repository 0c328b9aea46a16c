"""`erase`: payloads and personal data go, the chain and the counts stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.output import json_option, print_facts, print_json
from pggit_reactor.cli.session import Session, pass_session

if TYPE_CHECKING:
    from pggit_reactor.db.connect import TrioConnection
    from pggit_reactor.db.queue_care import Erasable, Erased, Subject

ERASE_SECONDS_MAX: Final = 86_400.0
WAIT_SECONDS_DEFAULT: Final = 30.0
RETRY_SECONDS: Final = 0.5


@click.command()
@click.option("--webhook", "webhook_id", type=int, metavar="ID", help="All deliveries to this webhook.")
@click.option("--alert", "alert_id", type=int, metavar="ID", help="All deliveries of this alert.")
@click.option("--yes", is_flag=True, help="Do it; without, it is only said what would be erased.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0, 3600),
    default=WAIT_SECONDS_DEFAULT,
    show_default=True,
    help="Seconds to wait for deliveries that a worker is sending.",
)
@json_option
@pass_session
def erase(
    session: Session,
    *,
    webhook_id: int | None,
    alert_id: int | None,
    yes: bool,
    wait_seconds: float,
    as_json: bool,
) -> int:
    """Erase payloads and texts of a webhook or of an alert.

    Of each delivery: body, headers, idempotency and ordering key, trace context, last error, the texts of its
    log and of its audit rows. Ids, times, statuses and counts stay, and the audit chain verifies as before.
    What was not delivered yet never will be: it is cancelled. An erased delivery cannot be replayed.

    Without --yes nothing is changed. It may be interrupted and run again. Deliveries that a worker is sending
    are waited for; where some are left, exit 1. Each batch is audited.

    \b
    Example: pggit-reactor erase --alert 4711 --yes
    """
    if (webhook_id is None) == (alert_id is None):
        raise click.UsageError("give either --webhook ID or --alert ID")

    async def work() -> tuple[Erasable, Erased | None]:
        from pggit_reactor.db.queue_care import Subject, count_erasable

        subject = Subject(webhook_id=webhook_id, alert_id=alert_id)
        async with session.open_database(seconds=ERASE_SECONDS_MAX) as connection:
            found = await count_erasable(connection, subject)
            done = await _erase(session, connection, subject, found, wait_seconds) if yes else None
            return found, done

    found, done = session.run(work)
    if done is None:
        _tell_found(found, as_json=as_json)
        return Exit.DONE
    if as_json:
        print_json(done)
    else:
        print_facts(
            {
                "erased_deliveries": done.deliveries,
                "of_these_cancelled": done.cancelled,
                "log_rows": done.log_rows,
                "audit_rows": done.audit_rows,
            }
        )
    if done.in_flight:
        click.echo(f"error: {done.in_flight} deliveries are being sent and were left; run it again", err=True)
    return Exit.FAILED if done.in_flight else Exit.DONE


async def _erase(
    session: Session, connection: TrioConnection, subject: Subject, found: Erasable, wait_seconds: float
) -> Erased:
    """Erase, and go over it again for what was in flight until there is none, or the patience ends."""
    import trio

    from pggit_reactor.db import queue_care

    done = queue_care.Erased()
    deadline = trio.current_time() + wait_seconds
    while True:
        in_flight = 0
        async for batch in queue_care.erase(connection, subject, found, by=session.actor):
            done += batch
            in_flight += batch.in_flight
        if not in_flight or trio.current_time() >= deadline:
            break
        await trio.sleep(RETRY_SECONDS)
    return queue_care.Erased(
        deliveries=done.deliveries,
        cancelled=done.cancelled,
        log_rows=done.log_rows,
        audit_rows=done.audit_rows,
        in_flight=in_flight,
    )


def _tell_found(found: Erasable, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_facts(
        {
            "would_erase_deliveries": found.deliveries,
            "of_these_never_delivered_then": found.undelivered,
            "of_these_being_sent_now": found.in_flight,
            "audit_rows": found.audit_rows,
        }
    )
    click.echo("nothing was changed; --yes does it")
