"""What a worker does beside delivering: say that it lives, keep house for all, read figures for its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs
import trio

from pggit_reactor.config.settings import Settings
from pggit_reactor.core.model import WebhookId
from pggit_reactor.db.claims import end_unknown, prune_limits
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.lane import Lane
from pggit_reactor.db.migrate import refuse_newer
from pggit_reactor.db.secrets import read_old_secrets
from pggit_reactor.db.workers import (
    Heard,
    WorkerIdentity,
    add_audit_partitions,
    forget_silent_workers,
    heartbeat,
    read_figures,
    try_chores_lock,
    write_learned,
)
from pggit_reactor.errors import DatabaseError, SchemaTooNewError
from pggit_reactor.observability.health import Health
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.clock import Clock
from pggit_reactor.runtime.concurrency import LearnedConcurrency
from pggit_reactor.runtime.key_watch import KeyWatch
from pggit_reactor.runtime.secret_chores import SecretChores

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
    keys: KeyWatch
    settings: Settings
    clock: Clock
    metrics: Metrics
    health: Health
    in_flight: Callable[[], int]
    schema_version: int
    """The last migration that this program knows."""
    learned: LearnedConcurrency
    draining: bool = False
    outdated: SchemaTooNewError | None = None
    """A contract step was applied that this program does not know: it must end."""
    _is_outdated: trio.Event = attrs.field(factory=trio.Event, init=False)
    secret_chores: SecretChores = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.secret_chores = SecretChores(
            settings=self.settings.secrets, keys=self.keys, worker_id=self.identity.worker_id
        )

    @property
    def heartbeat_seconds(self) -> float:
        """How often the worker says that it lives."""
        return min(HEARTBEAT_SECONDS_MAX, self.settings.worker.lease_seconds / HEARTBEATS_A_LEASE)

    @property
    def silence_seconds(self) -> float:
        """After how long a silence a worker counts as dead."""
        return self.heartbeat_seconds * HEARTBEATS_MISSED_MAX

    @property
    def state(self) -> str:
        """What the worker is doing."""
        return "draining" if self.draining else "running"

    async def run_heartbeat(self) -> None:
        """Beat for ever; sooner while the database is thought lost: `/ready` says no until a beat is written."""
        due_at = trio.current_time() + self.heartbeat_seconds
        while True:
            await trio.sleep(min(HEARTBEAT_RETRY_SECONDS, self.heartbeat_seconds))
            database = self.health.ready().checks.get("database")
            if trio.current_time() >= due_at or database is None or not database.ok:
                due_at = trio.current_time() + self.heartbeat_seconds
                await self.beat(self.state)

    async def beat(self, state: str) -> None:
        """Say once that the worker lives, measure the clocks' difference, and say whether the database answers."""
        try:
            async with self.lane.use() as connection:
                if self.outdated is None:
                    # First: what was taken away may be what the heartbeat needs.
                    await refuse_newer(connection, self.schema_version)
                before = self.clock.wall()
                heard = await self._say(connection, state)
                skew = heard.time - (before + self.clock.wall()) / 2
                if await self.keys.judge(connection, heard.keys_in_use):
                    await self._say(connection, state)
                await self._write_learned(connection)
        except SchemaTooNewError as error:
            _log.critical("schema_too_new", reason=str(error))
            self.outdated = error
            self._is_outdated.set()
            return
        except DatabaseError as error:
            _log.warning("heartbeat_failed", reason=str(error))
            return
        self.health.set_check("database", ok=True)
        self.metrics.set_clock_skew(skew)
        if abs(skew) > CLOCK_SKEW_SECONDS_MAX:
            _log.warning("clock_skew", seconds=round(skew, 3), allowed_seconds=CLOCK_SKEW_SECONDS_MAX)

    async def wait_outdated(self) -> None:
        """Wait until the schema is too new for this program."""
        await self._is_outdated.wait()

    async def _say(self, connection: TrioConnection, state: str) -> Heard:
        return await heartbeat(
            connection,
            self.identity,
            state=state,
            in_flight=self.in_flight(),
            silence_seconds=self.silence_seconds,
            key_ids=self.keys.keyring.ids,
            proved_key_ids=self.keys.proved_ids,
        )

    async def _write_learned(self, connection: TrioConnection) -> None:
        levels = self.learned.take_unwritten()
        if not levels:
            return
        unwritten: Mapping[WebhookId, int | None] = levels
        try:
            locked = await write_learned(connection, levels)
            unwritten = {webhook_id: levels[webhook_id] for webhook_id in locked}
        finally:
            self.learned.put_back(unwritten)

    async def run_chores(self) -> None:
        """Keep house for ever; of all workers of a database, one at a time does it."""
        hold = self.settings.delivery.unknown_webhook_hold_seconds
        while True:
            # A transaction each: what one of them cannot do shall not undo the other.
            for chores in (self._keep_house, self.secret_chores.run):
                try:
                    async with self.lane.use() as connection, connection.transaction():
                        if await try_chores_lock(connection):
                            await chores(connection)
                except DatabaseError as error:
                    _log.warning("chores_failed", reason=str(error))
            await trio.sleep(min(CHORES_SECONDS_MAX, max(1.0, hold)))

    async def _keep_house(self, connection: TrioConnection) -> None:
        ended = await end_unknown(
            connection, hold_seconds=self.settings.delivery.unknown_webhook_hold_seconds
        )
        if ended:
            _log.warning("unknown_webhook_rows_ended", count=ended)
        await prune_limits(connection)
        await add_audit_partitions(connection)
        await forget_silent_workers(connection)

    async def refresh(self) -> None:
        """Read the figures that come from the database; for a scrape."""
        async with self.lane.use() as connection:
            figures = await read_figures(connection)
            old = await read_old_secrets(connection, reminder_seconds=self.settings.secrets.reminder_seconds)
        self.metrics.set_queue(depth=figures.depth, oldest_age_seconds=figures.oldest_age_seconds)
        self.metrics.set_notification_queue_usage(figures.notification_queue_usage)
        self.metrics.set_webhooks_paused_unopenable(figures.paused_unopenable)
        self.metrics.set_secrets_old(old.count)
        self.metrics.set_unknown_webhook_rows(figures.unknown_webhook_rows)
        self.metrics.set_breakers(figures.breakers)
