"""Reads the audit log for people and for archives, and drops what is too old to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, LiteralString

import attrs

from pggit_reactor.core.audit_chain import FIRST_ID
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.statements import filled, statements

LIST_ROWS_MAX: Final = 1000
EXPORT_PAGE_ROWS: Final = 1000
NEWEST_ID: Final = (1 << 63) - 1

_SQL = statements("audit")
_LIST: Final = filled(_SQL["list"], entry=_SQL["entry"])
_EXPORT: Final = filled(_SQL["export"], entry=_SQL["entry"])


@attrs.frozen(kw_only=True)
class AuditFilter:
    """Which rows to list; None: any."""

    webhook_id: int | None = None
    delivery_id: int | None = None
    operation: str | None = None
    user_id: str | None = None
    """The database's user, or whom a program named."""
    since: datetime | None = None
    until: datetime | None = None
    before: int | None = None
    """Only ids below this one: where the page before ended."""


@attrs.frozen(kw_only=True)
class AuditEntry:
    """A row of the audit log, for people. Times are ISO 8601 in UTC, or ``infinity``."""

    audit_id: int
    occurred_at: str | None
    operation: str | None
    webhook_id: int | None
    delivery_id: int | None
    user_id: str | None
    ip_address: str | None
    request_id: str | None
    status_code: int | None
    signature_verified: bool | None
    encryption_algorithm: str | None
    error_message: str | None
    details: Any
    erased: bool


async def list_audit(
    connection: TrioConnection, wanted: AuditFilter, *, rows_max: int
) -> tuple[AuditEntry, ...]:
    """Return at most *rows_max* rows, the newest first."""
    assert 1 <= rows_max <= LIST_ROWS_MAX
    return await _entries(connection, _LIST, {**attrs.asdict(wanted), "rows_max": rows_max})


async def settled_up_to(connection: TrioConnection) -> int:
    """Return the id up to which the log is final: no row can appear below it that is not there now."""
    row = await (await connection.execute(_SQL["settled_up_to"])).fetchone()
    assert row is not None
    return FIRST_ID - 1 if row[0] is None else int(row[0])


async def export_page(connection: TrioConnection, *, from_id: int, to_id: int) -> tuple[AuditEntry, ...]:
    """Return the next rows from *from_id* on, by id; fewer than `EXPORT_PAGE_ROWS` at the end."""
    bound = {"from_id": from_id, "to_id": to_id, "rows_max": EXPORT_PAGE_ROWS}
    return await _entries(connection, _EXPORT, bound)


async def prune_audit(connection: TrioConnection, *, days: int, rows_max: int) -> int:
    """Drop rows that were sealed more than *days* ago, a batch of them; return how many."""
    row = await (await connection.execute(_SQL["prune"], {"days": days, "rows_max": rows_max})).fetchone()
    assert row is not None
    return int(row[0])


async def drop_audit_partitions(connection: TrioConnection) -> int:
    """Drop partitions that pruning has emptied, where nobody is at the log now; return how many."""
    row = await (await connection.execute(_SQL["drop_partitions"])).fetchone()
    assert row is not None
    return int(row[0])


async def _entries(
    connection: TrioConnection, statement: LiteralString, bound: Mapping[str, object]
) -> tuple[AuditEntry, ...]:
    cursor = await connection.execute(statement, bound)
    names = [column.name for column in cursor.description or ()]
    return tuple(AuditEntry(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall())
