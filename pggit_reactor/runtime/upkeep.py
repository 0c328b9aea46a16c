"""What a worker does beside delivering: say that it lives, keep house for all, read figures for its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import trio

from pggit_reactor.config.settings import Settings
from pggit_reactor.db.claims import end_unknown, prune_limits
from pggit_reactor.db.lane import Lane
from pggit_reactor.db.workers import (
    WorkerIdentity,
    add_audit_partitions,
    forget_silent_workers,
    heartbeat,
    read_figures,
    try_chores_lock,
)
from pggit_reactor.errors import DatabaseError
from pggit_reactor.observability.health import Health
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.clock import Clock

HEARTBEATS_A_LEASE: Final = 6
HEARTBEAT_SECONDS_MAX: Final = 5.0
HEARTBEAT_RETRY_SECONDS: Final = 1.0
HEARTBEATS_MISSED_MAX: Final = 2
"""A worker that missed more before its lease ran out is taken for dead. An attempt ends 3 s and more before its
lease, so the last heartbeat of one that was killed in an attempt is older than that."""
CHORES_SECONDS_MAX: Final = 10.0
CLOCK_SKEW_SECONDS_MAX: Final = 1.0

_log = get_logger("upkeep")


@attrs.define(eq=False, kw_only=True)
class Upkeep:
    """Heartbeat, chores and figures of one worker, on a lane where nobody's delivery waits."""

    lane: Lane
    identity: WorkerIdentity
    settings: Settings
    clock: Clock
    metrics: Metrics
    health: Health
    in_flight: Callable[[], int]
    draining: bool = False

    @property
    def heartbeat_seconds(self) -> float:
        """How often the worker says that it lives."""
        return min(HEARTBEAT_SECONDS_MAX, self.settings.worker.lease_seconds / HEARTBEATS_A_LEASE)

    @property
    def silence_seconds(self) -> float:
        """After how long a silence a worker counts as dead."""
        return self.heartbeat_seconds * HEARTBEATS_MISSED_MAX

    async def run_heartbeat(self) -> None:
        """Beat for ever; sooner while the database is thought lost: `/ready` says no until a beat is written."""
        due_at = trio.current_time() + self.heartbeat_seconds
        while True:
            await trio.sleep(min(HEARTBEAT_RETRY_SECONDS, self.heartbeat_seconds))
            database = self.health.ready().checks.get("database")
            if trio.current_time() >= due_at or database is None or not database.ok:
                due_at = trio.current_time() + self.heartbeat_seconds
                await self.beat("draining" if self.draining else "running")

    async def beat(self, state: str) -> None:
        """Say once that the worker lives, measure the clocks' difference, and say whether the database answers."""
        try:
            async with self.lane.use() as connection:
                before = self.clock.wall()
                database_time = await heartbeat(
                    connection,
                    self.identity,
                    state=state,
                    in_flight=self.in_flight(),
                    silence_seconds=self.silence_seconds,
                )
                skew = database_time - (before + self.clock.wall()) / 2
        except DatabaseError as error:
            _log.warning("heartbeat_failed", reason=str(error))
            return
        self.health.set_check("database", ok=True)
        self.metrics.set_clock_skew(skew)
        if abs(skew) > CLOCK_SKEW_SECONDS_MAX:
            _log.warning("clock_skew", seconds=round(skew, 3), allowed_seconds=CLOCK_SKEW_SECONDS_MAX)

    async def run_chores(self) -> None:
        """Keep house for ever; of all workers of a database, one at a time does it."""
        hold = self.settings.delivery.unknown_webhook_hold_seconds
        while True:
            try:
                async with self.lane.use() as connection, connection.transaction():
                    if await try_chores_lock(connection):
                        ended = await end_unknown(connection, hold_seconds=hold)
                        if ended:
                            _log.warning("unknown_webhook_rows_ended", count=ended)
                        await prune_limits(connection)
                        await add_audit_partitions(connection)
                        await forget_silent_workers(connection)
            except DatabaseError as error:
                _log.warning("chores_failed", reason=str(error))
            await trio.sleep(min(CHORES_SECONDS_MAX, max(1.0, hold)))

    async def refresh(self) -> None:
        """Read the figures that come from the database; for a scrape."""
        async with self.lane.use() as connection:
            figures = await read_figures(connection)
        self.metrics.set_queue(depth=figures.depth, oldest_age_seconds=figures.oldest_age_seconds)
        self.metrics.set_notification_queue_usage(figures.notification_queue_usage)
        self.metrics.set_webhooks_paused_unopenable(figures.paused_unopenable)
        self.metrics.set_unknown_webhook_rows(figures.unknown_webhook_rows)
        self.metrics.set_breakers(figures.breakers)
