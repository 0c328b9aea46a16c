"""Removes what is over and old: audit rows, and deliveries where that is set. Of all workers, one at a time does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from pggit_reactor.config.settings import RetentionSettings
from pggit_reactor.db.audit_log import drop_audit_partitions, prune_audit
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.lane import Lane
from pggit_reactor.db.queue_care import Ages, prune
from pggit_reactor.db.workers import try_chores_lock
from pggit_reactor.errors import DatabaseError
from pggit_reactor.observability.logs import get_logger

PAUSE_SECONDS: Final = 10.0
AUDIT_ROWS_A_BATCH: Final = 10_000
BATCHES_A_PASS_MAX: Final = 50
IDLE_BATCHES_A_PASS_MAX: Final = 10
"""Batches of the queue that are looked at in vain."""
DAY_SECONDS: Final = 86_400.0

_log = get_logger("retention")


def pruned_ages(settings: RetentionSettings) -> Ages:
    """Return from which age the settings prune deliveries."""
    return Ages(
        delivered_seconds=settings.delivered_days * DAY_SECONDS or None,
        failed_seconds=settings.failed_days * DAY_SECONDS or None,
    )


@attrs.define(eq=False, kw_only=True)
class Retention:
    """The loop of one worker, on a lane where nobody's delivery waits; each batch is a transaction of its own."""

    lane: Lane
    settings: RetentionSettings
    _after_id: int = attrs.field(default=-(1 << 63), init=False)
    """Where in the queue the last pass ended."""

    async def run(self) -> None:
        """Remove what is old, for ever."""
        while True:
            try:
                await self.prune_once()
            except DatabaseError as error:
                _log.warning("retention_failed", reason=str(error))
            await trio.sleep(PAUSE_SECONDS)

    async def prune_once(self) -> None:
        """Remove a bounded part of what is old."""
        audit_rows = await self._prune_audit()
        deliveries = await self._prune_queue()
        if audit_rows or deliveries:
            _log.info("pruned", audit_rows=audit_rows, deliveries=deliveries)

    async def _prune_audit(self) -> int:
        rows = 0
        for _ in range(BATCHES_A_PASS_MAX):
            async with self._alone() as connection:
                if connection is None:
                    return rows
                dropped = await prune_audit(
                    connection, days=self.settings.audit_days, rows_max=AUDIT_ROWS_A_BATCH
                )
            rows += dropped
            if not dropped:
                break
        async with self._alone() as connection:
            if connection is not None:
                await drop_audit_partitions(connection)
        return rows

    async def _prune_queue(self) -> int:
        ages = pruned_ages(self.settings)
        deliveries = idle = 0
        for _ in range(BATCHES_A_PASS_MAX if ages.prunes else 0):
            async with self._alone() as connection:
                if connection is None:
                    return deliveries
                batch = await prune(connection, ages, after_id=self._after_id)
            deliveries += batch.deliveries
            self._after_id = -(1 << 63) if batch.next_id is None else batch.next_id
            idle += not batch.deliveries
            if batch.next_id is None or idle == IDLE_BATCHES_A_PASS_MAX:
                break
        return deliveries

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[TrioConnection | None]:
        """Lend the lane in a transaction; None where another worker is at the chores."""
        async with self.lane.use() as connection, connection.transaction():
            yield connection if await try_chores_lock(connection) else None
