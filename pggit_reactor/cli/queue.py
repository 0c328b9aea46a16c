"""`queue stats` and `queue prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from pggit_reactor.cli.moments import AGE
from pggit_reactor.cli.output import json_option, print_json, print_table
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.errors import ConfigurationError

if TYPE_CHECKING:
    from pggit_reactor.db.queue_care import Ages, QueueCount

PRUNE_SECONDS_MAX: Final = 86_400.0
STATS_SECONDS_MAX: Final = 3600.0
_DAY_SECONDS: Final = 86_400.0


@click.group()
def queue() -> None:
    """Count the queue, and remove what is over and old.

    \b
    Example: pggit-reactor queue stats
    """


@queue.command()
@json_option
@pass_session
def stats(session: Session, as_json: bool) -> None:
    """Count all deliveries, by status and by why they failed.

    Reads the whole queue: half a second for a million rows.

    \b
    Example: pggit-reactor queue stats --json
    """

    async def read() -> tuple[QueueCount, ...]:
        from pggit_reactor.db.queue_care import read_stats

        async with session.open_database(seconds=STATS_SECONDS_MAX) as connection:
            return await read_stats(connection)

    counts = session.run(read)
    if as_json:
        print_json(counts)
        return
    rows = [
        {
            "status": count.delivery_status,
            "reason": count.failed_reason,
            "rows": count.rows,
            "due": count.due,
            "being_sent": count.being_sent,
            "oldest": count.oldest,
            "newest": count.newest,
        }
        for count in counts
    ]
    print_table(rows, when_empty="the queue is empty")


@queue.command()
@click.option(
    "--delivered", type=AGE, metavar="AGE", help="Remove what was delivered so long ago, such as 30d."
)
@click.option("--failed", type=AGE, metavar="AGE", help="Remove what failed so long ago, such as 90d.")
@click.option("--dry-run", is_flag=True, help="Count, and remove nothing.")
@pass_session
def prune(session: Session, delivered: float | None, failed: float | None, dry_run: bool) -> None:
    """Remove old deliveries that are over, with their log.

    In batches, so that it may be interrupted and started again; workers go on meanwhile. Their idempotency
    keys are forgotten with them. What is not over is never removed. Without an age, those of the settings
    retention.delivered_days and retention.failed_days are used.

    \b
    Example: pggit-reactor queue prune --delivered 30d --failed 90d
    """
    ages = _ages(session, delivered, failed)

    async def work() -> str:
        from pggit_reactor.db import queue_care
        from pggit_reactor.db.acting import acting

        deliveries = log_rows = 0
        async with session.open_database(seconds=PRUNE_SECONDS_MAX) as connection:
            if dry_run:
                old_delivered, old_failed = await queue_care.count_prunable(connection, ages)
                return f"would remove {old_delivered} delivered and {old_failed} failed deliveries"
            after_id: int | None = -(1 << 63)
            while after_id is not None:
                async with acting(connection, session.actor):
                    batch = await queue_care.prune(connection, ages, after_id=after_id)
                deliveries, log_rows = deliveries + batch.deliveries, log_rows + batch.log_rows
                after_id = batch.next_id
        return f"removed {deliveries} deliveries and {log_rows} log rows"

    click.echo(session.run(work))


def _ages(session: Session, delivered: float | None, failed: float | None) -> Ages:
    from pggit_reactor.db.queue_care import Ages

    if delivered is None and failed is None:
        retention = session.settings.retention
        delivered = retention.delivered_days * _DAY_SECONDS or None
        failed = retention.failed_days * _DAY_SECONDS or None
    ages = Ages(delivered_seconds=delivered, failed_seconds=failed)
    if not ages.prunes:
        raise ConfigurationError(
            "nothing says how old is old; give --delivered AGE or --failed AGE, or set retention.delivered_days"
        )
    return ages
