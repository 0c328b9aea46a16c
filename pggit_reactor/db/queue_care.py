"""What becomes of deliveries that are over: counted, pruned when they are old, erased on request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import attrs

from pggit_reactor.db.acting import acting
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.registry import By
from pggit_reactor.db.statements import statements

BATCH_ROWS: Final = 2_000

_SQL = statements("queue_care")


@attrs.frozen(kw_only=True)
class QueueCount:
    """Deliveries of one status and, where they failed, one reason. Times are PostgreSQL's text."""

    delivery_status: str
    failed_reason: str | None
    rows: int
    due: int
    being_sent: int
    oldest: str | None
    newest: str | None


@attrs.frozen(kw_only=True)
class Ages:
    """From which age deliveries are pruned; None: those are kept."""

    delivered_seconds: float | None
    failed_seconds: float | None

    @property
    def prunes(self) -> bool:
        """Whether anything is pruned at all."""
        return self.delivered_seconds is not None or self.failed_seconds is not None


@attrs.frozen(kw_only=True)
class Pruned:
    """A batch that was pruned."""

    deliveries: int
    log_rows: int
    next_id: int | None
    """Where the next batch begins; None: that was the end of the queue."""


@attrs.frozen(kw_only=True)
class Subject:
    """Whose payloads are erased: all deliveries of a webhook, or all of an alert."""

    webhook_id: int | None = None
    alert_id: int | None = None


@attrs.frozen(kw_only=True)
class Erasable:
    """What erasing would touch."""

    deliveries: int
    undelivered: int
    """Of these, those that would never be delivered then."""
    in_flight: int
    """Of these, those that a worker is sending now."""
    audit_rows: int
    """Of the webhook; those of an alert's deliveries are not counted beforehand."""
    to_delivery_id: int
    to_audit_id: int


@attrs.frozen(kw_only=True)
class Erased:
    """A batch that was erased."""

    deliveries: int = 0
    cancelled: int = 0
    log_rows: int = 0
    audit_rows: int = 0
    in_flight: int = 0

    def __add__(self, other: Erased) -> Erased:
        """Return the sum, field by field."""
        return Erased(
            **{
                field.name: getattr(self, field.name) + getattr(other, field.name)
                for field in attrs.fields(Erased)
            }
        )


async def read_stats(connection: TrioConnection) -> tuple[QueueCount, ...]:
    """Count the whole queue, by status and reason."""
    cursor = await connection.execute(_SQL["stats"])
    names = [column.name for column in cursor.description or ()]
    return tuple(QueueCount(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall())


async def count_prunable(connection: TrioConnection, ages: Ages) -> tuple[int, int]:
    """Return how many delivered and how many failed ones `prune` would remove."""
    delivered, failed = await _one(connection, "count_prunable", attrs.asdict(ages))
    return delivered, failed


async def prune(
    connection: TrioConnection, ages: Ages, *, after_id: int, rows_max: int = BATCH_ROWS
) -> Pruned:
    """Look at the next *rows_max* deliveries by id, and remove those that are old; one statement."""
    bound = {**attrs.asdict(ages), "after_id": after_id, "rows_max": rows_max}
    deliveries, log_rows, next_id = await _one(connection, "prune", bound)
    return Pruned(deliveries=deliveries, log_rows=log_rows, next_id=next_id)


async def count_erasable(connection: TrioConnection, subject: Subject) -> Erasable:
    """Count what `erase` would touch, and up to which ids."""
    deliveries, undelivered, in_flight, to_delivery_id = await _one(
        connection, "count_erasable", attrs.asdict(subject)
    )
    audit_rows, to_audit_id = await _one(
        connection, "count_erasable_audit", {"webhook_id": subject.webhook_id}
    )
    return Erasable(
        deliveries=deliveries,
        undelivered=undelivered,
        in_flight=in_flight,
        audit_rows=audit_rows,
        to_delivery_id=to_delivery_id,
        to_audit_id=to_audit_id,
    )


async def erase(
    connection: TrioConnection, subject: Subject, upto: Erasable, *, by: By, rows_max: int = BATCH_ROWS
) -> AsyncIterator[Erased]:
    """Erase in batches, a transaction each, yielding what each did; what was erased before is passed over.

    Deliveries that a worker is sending are left, and counted: erase again for them.
    """
    after_id: int | None = -(1 << 63)
    while after_id is not None:
        bound = {
            **attrs.asdict(subject),
            "after_id": after_id,
            "to_id": upto.to_delivery_id,
            "rows_max": rows_max,
        }
        async with acting(connection, by):
            *counts, after_id = await _one(connection, "erase_deliveries", bound)
        deliveries, cancelled, log_rows, audit_rows, in_flight = counts
        yield Erased(
            deliveries=deliveries,
            cancelled=cancelled,
            log_rows=log_rows,
            audit_rows=audit_rows,
            in_flight=in_flight,
        )
    after_id = None if subject.webhook_id is None else -(1 << 63)
    while after_id is not None:
        bound = {
            "webhook_id": subject.webhook_id,
            "after_id": after_id,
            "to_id": upto.to_audit_id,
            "rows_max": rows_max,
        }
        async with acting(connection, by):
            audit_rows, after_id = await _one(connection, "erase_audit", bound)
        yield Erased(audit_rows=audit_rows)


async def _one(connection: TrioConnection, name: str, bound: Mapping[str, object]) -> tuple[Any, ...]:
    row = await (await connection.execute(_SQL[name], bound)).fetchone()
    assert row is not None
    return row
