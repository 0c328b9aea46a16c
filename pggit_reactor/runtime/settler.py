"""Writes outcomes in batches, and keeps them until they are written.

While one batch is being written the next one gathers, so an idle worker settles at once and a busy one in groups.
What cannot be written is kept and tried again for as long as the process lives: nothing is marked dead for it.

Whose fault a refusal is decides what waits. A database that is gone, read-only or full: everything waits, and claiming
stops. A row or a health row that somebody holds locked, or a trigger of somebody else's that never ends: that webhook
waits, and is claimed no more meanwhile. A row that the database refuses: that row waits. What waits is tried again by
itself, each for at most a tenth of the time, between the batches of the others.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import attrs
import trio

from pggit_reactor.core.model import DeliveryId, WebhookId
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
from pggit_reactor.runtime.refusals import QUERY_CANCELED, is_about_rows
from pggit_reactor.runtime.wake import Wake

BATCH_ROWS_MAX: Final = 500
APART_LOCK_TIMEOUT_MS: Final = 50
APART_STATEMENT_TIMEOUT_MS: Final = 1000
HELD_RETRY_SECONDS_MIN: Final = 0.5
HELD_RETRY_SECONDS_PER_SECOND: Final = 10
"""A try that took a second is repeated after ten: what hangs must not take the time of the others."""
REFUSED_ROWS_MAX: Final = 8
"""A webhook with so many refused rows is claimed no more: they are kept in memory."""
LEASES_KEPT_MAX: Final = 2
"""Outcomes of one refused row: its lease runs out meanwhile, and it is attempted again."""
FAILED_RETRY_SECONDS: Final = 0.25

_log = get_logger("settler")

_HoldKey = tuple[WebhookId, DeliveryId | None]
"""A webhook, or one row of it."""


@attrs.define(eq=False)
class _Held:
    """Outcomes that wait by themselves."""

    items: list[Settlement]
    retry_at: float = -math.inf
    told: bool = False


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
        self._held: dict[_HoldKey, _Held] = {}
        self._gone: Counter[WebhookId] = Counter()
        self._wake = Wake()
        self._emptied = trio.Event()
        self.failing = False
        """The last attempt to write failed: claim nothing more until one succeeds."""

    @property
    def backlog(self) -> int:
        """Outcomes that are not yet written."""
        return len(self._waiting) + len(self._writing) + sum(len(held.items) for held in self._held.values())

    @property
    def suspended(self) -> frozenset[WebhookId]:
        """Webhooks of which nothing may be claimed now: their outcomes cannot be written, or one that is yet to be
        written disables them."""
        if not self._held and not self._gone:
            return frozenset()
        rows = Counter(webhook_id for webhook_id, row in self._held if row is not None)
        many = {webhook_id for webhook_id, count in rows.items() if count >= REFUSED_ROWS_MAX}
        return frozenset(
            many | {webhook_id for webhook_id, row in self._held if row is None} | self._gone.keys()
        )

    def put(self, settlement: Settlement) -> None:
        """Take an outcome over; from here on it is the settler's to keep."""
        if settlement.decision.disable_webhook:
            self._gone[settlement.webhook_id] += 1
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
        with suppress(DatabaseError):  # The first outcome shall find a warm connection; if not, it says why.
            async with self._lane.use():
                pass
        while True:
            await self._wait_for_work()
            self._writing = self._next_batch()
            if self._writing:
                await self._write()
            due = self._first_due()
            if due is not None:
                await self._retry(due)
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
        with trio.move_on_at(min((held.retry_at for held in self._held.values()), default=math.inf)):
            await self._wake.wait()

    def _next_batch(self) -> list[Settlement]:
        batch: list[Settlement] = []
        while self._waiting and len(batch) < BATCH_ROWS_MAX:
            item = self._waiting.popleft()
            held = self._held.get((item.webhook_id, None))
            if held is None:
                batch.append(item)
            else:
                held.items.append(item)
        return batch

    # -- writing

    async def _write(self) -> None:
        try:
            async with self._lane.use() as connection:
                report = await self._timed(connection, self._writing)
        except DatabaseError as error:
            if not is_about_rows(error):
                await self._failed(error)
                return
            _log.warning(
                "settle_refused", rows=len(self._writing), reason=str(error), sqlstate=error.sqlstate
            )
            self._hold(self._writing, retry_at=-math.inf)  # Each webhook by itself, at once.
            self._writing = ()
            self._recovered()
            return
        self._writing = ()
        if report.locked:
            ids = sorted({item.webhook_id for item in report.locked})
            _log.warning("rows_locked_by_others", webhook_ids=ids)
            self._hold(report.locked, retry_at=trio.current_time() + HELD_RETRY_SECONDS_MIN)
        self._report(report)

    async def _timed(self, connection: TrioConnection, batch: Sequence[Settlement]) -> SettleReport:
        began = trio.current_time()
        report = await settle(connection, batch, worker_id=self._worker_id)
        self._metrics.settled(rows=len(batch), seconds=trio.current_time() - began)
        return report

    def _report(self, report: SettleReport) -> None:
        self._forget_gone(report.settled)
        self._forget_gone(report.fenced)
        self._recovered()
        self._on_report(report)

    def _forget_gone(self, items: Sequence[Settlement]) -> None:
        for item in items:
            if item.decision.disable_webhook:
                self._gone[item.webhook_id] -= 1
                if not self._gone[item.webhook_id]:
                    del self._gone[item.webhook_id]

    def _recovered(self) -> None:
        if self.failing:
            self.failing = False
            _log.info("settle_recovered", backlog=self.backlog)

    async def _failed(self, error: DatabaseError) -> None:
        """Keep the batch for when the database is well again."""
        if not self.failing:
            _log.error("settle_failed", backlog=self.backlog, reason=str(error), sqlstate=error.sqlstate)
        self.failing = True
        self._metrics.settle_failed()
        self._take_back()
        if not isinstance(error, (DatabaseUnavailableError, ReadOnlyDatabaseError)):  # The lane paces those.
            await trio.sleep(FAILED_RETRY_SECONDS)

    # -- what waits by itself

    def _hold(self, items: Sequence[Settlement], *, retry_at: float) -> None:
        by_webhook: defaultdict[WebhookId, list[Settlement]] = defaultdict(list)
        for item in items:
            by_webhook[item.webhook_id].append(item)
        for webhook_id, its_items in by_webhook.items():
            assert (webhook_id, None) not in self._held  # or `_next_batch` would have put them there
            self._held[webhook_id, None] = _Held(its_items, retry_at)

    def _first_due(self) -> _HoldKey | None:
        now = trio.current_time()
        return next((key for key, held in self._held.items() if held.retry_at <= now), None)

    async def _retry(self, key: _HoldKey) -> None:
        """Write what is held under *key* in a transaction of its own, with little patience."""
        held = self._held[key]
        batch = held.items[:BATCH_ROWS_MAX]
        began = trio.current_time()
        try:
            async with self._lane.use() as connection, connection.transaction():
                await connection.execute(
                    "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
                    (str(APART_LOCK_TIMEOUT_MS), str(APART_STATEMENT_TIMEOUT_MS)),
                )
                report = await self._timed(connection, batch)
        except DatabaseError as error:
            self._postpone(held, began)
            if not is_about_rows(error):
                await self._failed(error)
                return
            self._metrics.settle_failed()
            self._recovered()
            if not (isinstance(error, RowLockedError) or error.sqlstate == QUERY_CANCELED):
                self._isolate(key, error)
            return
        held.items[: len(batch)] = report.locked
        if held.items:
            self._postpone(held, began)
        else:
            del self._held[key]
        self._report(report)

    def _postpone(self, held: _Held, began: float) -> None:
        now = trio.current_time()
        held.retry_at = now + max(HELD_RETRY_SECONDS_MIN, (now - began) * HELD_RETRY_SECONDS_PER_SECOND)

    def _isolate(self, key: _HoldKey, error: DatabaseError) -> None:
        """Let rows of a refused webhook wait one by one, so that those which are not to blame are written."""
        webhook_id, row = key
        if row is None:
            for item in self._held.pop(key).items:
                # A row may be here under an old lease and a new one, and the old one cannot be written any more.
                apart = self._held.setdefault((webhook_id, item.delivery_id), _Held([]))
                self._forget_gone(apart.items[: 1 - LEASES_KEPT_MAX])
                apart.items = [*apart.items[1 - LEASES_KEPT_MAX :], item]
        elif not self._held[key].told:
            self._held[key].told = True
            _log.error("settlement_refused", delivery_id=row, sqlstate=error.sqlstate, reason=str(error))
