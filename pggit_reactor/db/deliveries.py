"""Looks deliveries up: lists of them, and one with its log, by delivery id or by the uid of the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from pggit_reactor.core.delivery_uid import delivery_uid, split_delivery_uid
from pggit_reactor.core.model import FailedReason, State
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.statements import statements
from pggit_reactor.errors import NotFoundError

PAGE_ROWS_MAX: Final = 1000
LOG_ROWS_MAX: Final = 1000

_DELIVERY_ID: Final = re.compile(r"-?[0-9]{1,19}")
_BIGINT: Final = range(-(1 << 63), 1 << 63)
_SQL = statements("deliveries")


@attrs.frozen(kw_only=True)
class DeliveryFilter:
    """Which deliveries to list; None: any."""

    webhook_id: int | None = None
    status: State | None = None
    reason: FailedReason | None = None
    before: int | None = None
    """Only ids below this one: where the page before ended."""


@attrs.frozen(kw_only=True)
class DeliveryRow:
    """A line of a list. Times are PostgreSQL's text: they may be infinite."""

    delivery_id: int
    uid: str
    alert_id: int
    webhook_id: int
    webhook_name: str | None
    """None: nothing is registered under the id."""
    delivery_status: str
    failed_reason: str | None
    attempt_count: int
    last_status: int | None
    last_error: str | None
    event_type: str | None
    created_at: str
    next_retry_at: str | None
    delivered_at: str | None


@attrs.frozen(kw_only=True)
class LogEntry:
    """One event of a delivery."""

    log_id: int
    at: str
    event: str
    details: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class DeliveryRecord:
    """All that people may see of a delivery; not its payload."""

    delivery_id: int
    uid: str
    alert_id: int
    webhook_id: int
    webhook_name: str | None
    webhook_state: str | None
    delivery_status: str
    failed_reason: str | None
    attempt_count: int
    retry_count: int
    max_retries: int
    crash_count: int
    last_status: int | None
    last_error: str | None
    event_type: str | None
    priority: int
    ordering_key: str | None
    idempotency_key: str | None
    traceparent: str | None
    body_bytes: int
    created_at: str
    ready_at: str | None
    """When it may be claimed; None when it is done, ``infinity`` when never."""
    next_retry_at: str | None
    attempted_at: str | None
    delivered_at: str | None
    expires_at: str | None
    replayed_at: str | None
    leased_by: str | None
    """The worker that sends it now."""
    lease_expires_at: str | None
    log: tuple[LogEntry, ...]


async def list_deliveries(
    connection: TrioConnection, wanted: DeliveryFilter, *, rows_max: int
) -> tuple[DeliveryRow, ...]:
    """Return at most *rows_max* deliveries, the newest first."""
    assert 1 <= rows_max <= PAGE_ROWS_MAX
    cursor = await connection.execute(_SQL["list"], {**attrs.asdict(wanted), "rows_max": rows_max})
    names = [column.name for column in cursor.description or ()]
    return tuple(
        DeliveryRow(**_with_uid(dict(zip(names, row, strict=True)))) for row in await cursor.fetchall()
    )


async def read_delivery(connection: TrioConnection, which: str) -> DeliveryRecord:
    """Return the delivery of an id or a uid, with its log; `NotFoundError`.

    A uid whose salt is another row's is not found: in a restored database an id may come again, a uid not.
    """
    delivery_id, salt_bits = parse_which(which)
    bound = {"delivery_id": delivery_id, "salt_bits": salt_bits}
    cursor = await connection.execute(_SQL["show"], bound)
    row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(_missing(delivery_id, salt_bits))
    names = [column.name for column in cursor.description or ()]
    fields = _with_uid(dict(zip(names, row, strict=True)))
    return DeliveryRecord(**fields, log=await _read_log(connection, delivery_id))


async def read_body(connection: TrioConnection, delivery_id: int) -> str:
    """Return the payload of a delivery, as its text is sent; `NotFoundError`."""
    row = await (await connection.execute(_SQL["body"], {"delivery_id": delivery_id})).fetchone()
    if row is None:
        raise NotFoundError(_missing(delivery_id, None))
    return str(row[0])


def parse_which(which: str) -> tuple[int, int | None]:
    """Return the delivery id that an id or a uid means, and the uid's 58 bits of salt."""
    if _DELIVERY_ID.fullmatch(which) and int(which) in _BIGINT:
        return int(which), None
    return split_delivery_uid(which)


async def _read_log(connection: TrioConnection, delivery_id: int) -> tuple[LogEntry, ...]:
    bound = {"delivery_id": delivery_id, "rows_max": LOG_ROWS_MAX}
    cursor = await connection.execute(_SQL["log"], bound)
    return tuple(
        LogEntry(log_id=row[0], at=row[1], event=row[2], details=row[3]) for row in await cursor.fetchall()
    )


def _with_uid(fields: dict[str, Any]) -> dict[str, Any]:
    fields["uid"] = delivery_uid(fields["delivery_id"], fields.pop("uid_salt"))
    return fields


def _missing(delivery_id: int, salt_bits: int | None) -> str:
    if salt_bits is None:
        return f"there is no delivery {delivery_id}; it may have been pruned"
    return "there is no delivery of this uid; it may have been pruned, or be of another database"
