"""Writes outcomes in batches, and keeps them until they are written.

While one batch is being written the next one gathers, so an idle worker settles at once and a busy one in groups.
What cannot be written is kept and tried again for as long as the process lives: nothing is marked dead for it, and
claiming stops meanwhile. A row that an outsider holds locked stops its own webhook only.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from pggit_reactor.core.model import WebhookId
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.lane import Lane
from pggit_reactor.db.settle import Settlement, SettleReport, settle
from pggit_reactor.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    ReadOnlyDatabaseError,
    RowLockedError,
)
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.wake import Wake

BATCH_ROWS_MAX: Final = 500
APART_LOCK_TIMEOUT_MS: Final = 50
HELD_RETRY_SECONDS: Final = 0.5
FAILED_RETRY_SECONDS: Final = 0.25

_log = get_logger("settler")

# What is wrong with one row's values, as opposed to the database's state (SQLSTATE classes).
_ROW_FAULTS: Final = ("21", "22", "23")


class Settler:
    """The one writer of outcomes of a worker. `put` never waits; `run` writes."""

    def __init__(
        self,
        lane: Lane,
        *,
        worker_id: str,
        metrics: Metrics,
        on_report: Callable[[SettleReport], None],
    ) -> None:
        self._lane = lane
        self._worker_id = worker_id
        self._metrics = metrics
        self._on_report = on_report
        self._waiting: deque[Settlement] = deque()
        self._writing: Sequence[Settlement] = ()
        self._held: defaultdict[WebhookId, list[Settlement]] = defaultdict(list)
        self._wake = Wake()
        self._emptied = trio.Event()
        self.failing = False
        """The last attempt to write failed: claim nothing more until one succeeds."""

    @property
    def backlog(self) -> int:
        """Outcomes that are not yet written."""
        return len(self._waiting) + len(self._writing) + sum(map(len, self._held.values()))

    @property
    def suspended(self) -> frozenset[WebhookId]:
        """Webhooks whose outcomes cannot be written because somebody holds their rows."""
        return frozenset(self._held)

    def put(self, settlement: Settlement) -> None:
        """Take an outcome over; from here on it is the settler's to keep."""
        self._waiting.append(settlement)
        self._wake.set()

    async def wait_empty(self) -> None:
        """Wait until everything that was put is written or fenced."""
        while self.backlog:
            self._emptied = trio.Event()
            await self._emptied.wait()
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Write for ever; cancel to stop. What is unwritten then is kept for the next `run`."""
        self._take_back()
        while True:
            await self._wait_for_work()
            self._writing = self._next_batch()
            if self._writing:
                await self._write()
            if self._held:
                await self._retry_held()
            if not self.backlog:
                self._emptied.set()

    def _take_back(self) -> None:
        # A run that was cancelled or crashed in the middle of a write does not know whether it was committed.
        # Writing again is safe: what was committed has another token.
        self._waiting.extendleft(reversed(self._writing))
        self._writing = ()
        if self._waiting:
            self._wake.set()

    async def _wait_for_work(self) -> None:
        if self._waiting:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(HELD_RETRY_SECONDS if self._held else float("inf")):
            await self._wake.wait()

    def _next_batch(self) -> list[Settlement]:
        batch: list[Settlement] = []
        while self._waiting and len(batch) < BATCH_ROWS_MAX:
            item = self._waiting.popleft()
            if item.webhook_id in self._held:
                self._held[item.webhook_id].append(item)
            else:
                batch.append(item)
        return batch

    async def _write(self) -> None:
        try:
            async with self._lane.use() as connection:
                self._done(await self._timed(connection, self._writing))
        except RowLockedError as error:
            _log.warning("settle_locked", rows=len(self._writing), reason=str(error))
            await self._write_apart(self._group(self._writing))
        except DatabaseError as error:
            await self._failed(error)

    async def _timed(self, connection: TrioConnection, batch: Sequence[Settlement]) -> SettleReport:
        began = trio.current_time()
        report = await settle(connection, batch, worker_id=self._worker_id)
        self._metrics.settled(rows=len(batch), seconds=trio.current_time() - began)
        return report

    def _done(self, report: SettleReport) -> None:
        self._writing = ()
        for item in report.locked:
            self._held[item.webhook_id].append(item)
        if report.locked:
            _log.warning(
                "rows_locked_by_others", webhook_ids=sorted({item.webhook_id for item in report.locked})
            )
        self._recovered()
        self._on_report(report)

    def _recovered(self) -> None:
        if self.failing:
            self.failing = False
            _log.info("settle_recovered", backlog=self.backlog)

    async def _failed(self, error: DatabaseError) -> None:
        """Keep the batch; a fault of one row's values is looked for one by one."""
        if (error.sqlstate or "")[:2] in _ROW_FAULTS:
            await self._write_one_by_one()
            return
        if not self.failing:
            _log.error("settle_failed", rows=len(self._writing), reason=str(error), sqlstate=error.sqlstate)
        self.failing = True
        self._metrics.settle_failed()
        self._take_back()
        if not isinstance(error, (DatabaseUnavailableError, ReadOnlyDatabaseError)):  # The lane paces those.
            await trio.sleep(FAILED_RETRY_SECONDS)

    async def _write_one_by_one(self) -> None:
        """Write each row alone. One that the database refuses is dropped, aloud: its lease expires and it is
        attempted again, which is the worst that one bad row may cost."""
        batch, self._writing = self._writing, ()
        for position, item in enumerate(batch):
            self._writing = batch[position:]
            try:
                async with self._lane.use() as connection:
                    report = await self._timed(connection, [item])
            except RowLockedError:
                self._held[item.webhook_id].append(item)
            except DatabaseError as error:
                if (error.sqlstate or "")[:2] not in _ROW_FAULTS:
                    await self._failed(error)
                    return
                self._metrics.settle_failed()
                _log.error(
                    "settlement_refused",
                    delivery_id=item.delivery_id,
                    sqlstate=error.sqlstate,
                    reason=str(error),
                )
            else:
                self._done(report)
        self._writing = ()

    async def _retry_held(self) -> None:
        held, self._held = dict(self._held), defaultdict(list)
        self._writing = [item for items in held.values() for item in items]
        await self._write_apart(held)

    async def _write_apart(self, groups: dict[WebhookId, list[Settlement]]) -> None:
        """Write each webhook in a transaction of its own, with a short wait for locks; hold back what is locked."""
        left = list(groups.items())
        while left:
            self._writing = [item for _, items in left for item in items]
            webhook_id, items = left[0]
            try:
                async with self._lane.use() as connection, connection.transaction():
                    await connection.execute(
                        "SELECT set_config('lock_timeout', %s, true)", (str(APART_LOCK_TIMEOUT_MS),)
                    )
                    report = await self._timed(connection, items[:BATCH_ROWS_MAX])
            except RowLockedError:
                self._held[webhook_id].extend(items)
            except DatabaseError as error:
                await self._failed(error)
                return
            else:
                self._done(report)
                if items[BATCH_ROWS_MAX:]:
                    left[0] = (webhook_id, items[BATCH_ROWS_MAX:])
                    continue
            del left[0]
        self._writing = ()

    @staticmethod
    def _group(batch: Sequence[Settlement]) -> dict[WebhookId, list[Settlement]]:
        groups: defaultdict[WebhookId, list[Settlement]] = defaultdict(list)
        for item in batch:
            groups[item.webhook_id].append(item)
        return dict(groups)
