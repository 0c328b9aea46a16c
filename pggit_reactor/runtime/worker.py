"""A worker: one nursery of loops around one queue.

Listener, claimer, fan-out, settler, heartbeat, chores and the HTTP port each run under `supervise`, so a bug in
one restarts that one. Stopping is a drain: claim nothing more, finish what runs, write it, give back what was
not sent.

All connections of a worker are direct ones (`database.listen_url`): LISTEN, prepared statements and the planner
settings of the hot statements are state of a session, which a pooler in transaction mode does not keep.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import attrs
import trio

from pggit_reactor.config.settings import Settings
from pggit_reactor.core.backoff import Backoff
from pggit_reactor.core.model import AttemptResult, ClaimedDelivery, State, Webhook
from pggit_reactor.core.risk import RiskModel
from pggit_reactor.core.secret import Secret
from pggit_reactor.db import claims, settle
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.lane import CLAIM_OPTIONS, HOT_OPTIONS, SIDE_OPTIONS, Lane
from pggit_reactor.db.listener import open_listener
from pggit_reactor.db.migrate import newest_version
from pggit_reactor.db.settle import SettleReport
from pggit_reactor.db.webhooks import WebhookDefaults
from pggit_reactor.db.workers import (
    WorkerIdentity,
)
from pggit_reactor.delivery.sender import WebhookTransport, open_transport, send_attempt
from pggit_reactor.delivery.tls import MakeContext, client_context
from pggit_reactor.errors import ConfigurationError, DatabaseError, MigrationError
from pggit_reactor.observability.health import Health
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.audit_keeper import AuditKeeper
from pggit_reactor.runtime.body_budget import BodyBudget
from pggit_reactor.runtime.claimer import Brakes, Capacity, Claimer, ClaimTimes
from pggit_reactor.runtime.clock import Clock
from pggit_reactor.runtime.concurrency import LearnedConcurrency
from pggit_reactor.runtime.fanout import FanOut
from pggit_reactor.runtime.fleet_limit import FleetLimit
from pggit_reactor.runtime.gatekeeper import tell_others
from pggit_reactor.runtime.http_port import WorkerProbes, serve_http_port
from pggit_reactor.runtime.key_watch import KeyWatch
from pggit_reactor.runtime.retention import Retention
from pggit_reactor.runtime.settler import Settler
from pggit_reactor.runtime.signals import Command, Commands
from pggit_reactor.runtime.supervisor import supervise
from pggit_reactor.runtime.timeline import Timeline
from pggit_reactor.runtime.upkeep import Upkeep
from pggit_reactor.runtime.webhook_book import WebhookBook
from pggit_reactor.security.audit_seal import AuditSealer
from pggit_reactor.security.sealing import Sealer

ABORT_SECONDS_MAX: Final = 2.0
LISTEN_RETRY_SECONDS: Final = 0.1
LISTEN_RETRY_SECONDS_MAX: Final = 5.0
LISTEN_PATIENCE_SECONDS: Final = 5.0
SETTLE_BACKLOG_MAX: Final = 2048
"""Outcomes kept in memory before claiming stops, also while the database answers."""
LOOP_SILENT_SECONDS_MAX: Final = 60.0
SCHEMA_TOO_NEW_STATUS: Final = 4
"""The exit status of `SchemaTooNewError`."""

_log = get_logger("worker")


@attrs.define(eq=False, kw_only=True)
class Worker:
    """The parts of one worker, wired; `run` is all that a caller needs."""

    settings: Settings
    identity: WorkerIdentity
    sealer: Sealer
    clock: Clock
    metrics: Metrics
    health: Health
    debug: bool = False
    tells_deliveries: bool = False
    reload: Callable[[], Awaitable[Sealer]] | None = None
    before_work: Callable[[Commands], Awaitable[bool]] | None = None
    """Runs before anything is claimed, while the probes answer; False: stop. Its errors end the worker."""
    make_context: MakeContext = client_context
    """TLS settings that trust others than the system's authorities (or those of SSL_CERT_FILE)."""
    claimer: Claimer = attrs.field(init=False)
    _settler: Settler = attrs.field(init=False)
    _fanout: FanOut = attrs.field(init=False)
    _capacity: Capacity = attrs.field(init=False)
    _book: WebhookBook = attrs.field(init=False)
    _bodies: BodyBudget = attrs.field(init=False)
    _fleet: FleetLimit = attrs.field(init=False)
    _timeline: Timeline = attrs.field(init=False)
    _upkeep: Upkeep = attrs.field(init=False)
    _audit_keeper: AuditKeeper = attrs.field(init=False)
    _learned: LearnedConcurrency = attrs.field(init=False)
    _side: Lane = attrs.field(init=False)
    """For what can wait: heartbeat, chores, figures."""
    _load: Lane = attrs.field(init=False)
    """For what a delivery waits for: webhooks, large bodies, leases given back."""
    _lanes: list[Lane] = attrs.field(factory=list, init=False)
    _listening: trio.Event = attrs.field(factory=trio.Event, init=False)
    _stopped_claiming: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._capacity = Capacity(self.settings.worker.attempts_max)
        self._bodies = BodyBudget(self.settings.worker.body_bytes_max)
        self._side = self._lane("side", SIDE_OPTIONS)
        self._load = self._lane("load", SIDE_OPTIONS)
        self._learned = LearnedConcurrency(
            metrics=self.metrics,
            now=trio.current_time,
            risks=RiskModel() if self.settings.delivery.health_prediction else None,
            wall=self.clock.wall,
        )
        self._upkeep = Upkeep(
            lane=self._side,
            identity=self.identity,
            keys=KeyWatch(self.sealer.keyring),
            settings=self.settings,
            clock=self.clock,
            metrics=self.metrics,
            health=self.health,
            in_flight=lambda: self._capacity.in_flight,
            schema_version=newest_version(),
            learned=self._learned,
        )
        self._timeline = Timeline(
            metrics=self.metrics, debug=self.debug, tells_deliveries=self.tells_deliveries
        )
        self._fleet = FleetLimit.of(self.settings.delivery, metrics=self.metrics)
        self._book = WebhookBook(
            lane=self._load,
            sealer=self.sealer,
            defaults=WebhookDefaults(
                attempt_timeout_seconds=self.settings.delivery.timeout_seconds,
                max_body_bytes=self.settings.delivery.max_body_bytes,
            ),
            worker_id=self.identity.worker_id,
        )
        self._audit_keeper = AuditKeeper(
            lane=self._side,
            sealer=lambda: AuditSealer(self._book.sealer.keyring),
            metrics=self.metrics,
        )
        self._settler = Settler(
            self._lane("settle", HOT_OPTIONS, settle.warm_up),
            worker_id=self.identity.worker_id,
            metrics=self.metrics,
            on_report=self._settled,
        )
        self.claimer = Claimer(
            lane=self._lane("claim", CLAIM_OPTIONS, claims.warm_up),
            instance=self.identity.instance,
            lease_seconds=self.settings.worker.lease_seconds,
            silence_seconds=self._upkeep.silence_seconds,
            poll_seconds=self.settings.worker.poll_seconds,
            capacity=self._capacity,
            brakes=Brakes(
                stopped=self._must_not_claim,
                suspended=lambda: self._settler.suspended,
            ),
            dispatch=self._dispatch,
            metrics=self.metrics,
            clock=self.clock,
            fleet=self._fleet,
            learned=self._learned,
            webhook_share=self.settings.worker.webhook_share,
        )
        self.metrics.observe_load(
            attempts_in_flight=lambda: self._capacity.in_flight,
            body_bytes_in_memory=lambda: self._bodies.held_bytes,
            settle_backlog=lambda: self._settler.backlog,
        )

    async def run(self, commands: Commands) -> int:
        """Work until a command says stop; return the exit status: 0 after a clean drain, 1 after an abort.

        `SchemaTooNewError` where a contract step of a newer version was applied meanwhile: it is noticed at a
        heartbeat, and the worker drains first.
        """
        async with (
            open_transport(self.settings.egress.rules(), make_context=self.make_context) as transport,
            self._closing_lanes(),
            trio.open_nursery() as services,
        ):
            await self._serve_probes(services)
            status = await self._work(commands, services, transport) if await self._may_work(commands) else 0
            services.cancel_scope.cancel()
        _log.info("worker_stopped", exit_status=status)
        if status == SCHEMA_TOO_NEW_STATUS:
            assert self._upkeep.outdated is not None
            raise self._upkeep.outdated
        return status

    async def _may_work(self, commands: Commands) -> bool:
        if self.before_work is None:
            return True
        self.health.set_check("database", ok=False, reason="not reached yet")
        return await self.before_work(commands)

    async def _work(self, commands: Commands, services: trio.Nursery, transport: WebhookTransport) -> int:
        async with trio.open_nursery() as attempts:
            self._fanout = self._open_fanout(attempts, transport)
            await self._start(services)
            status = await self._obey(commands)
            attempts.cancel_scope.cancel()
        return status

    @asynccontextmanager
    async def _closing_lanes(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for lane in self._lanes:
                lane.close()

    def _lane(
        self,
        name: str,
        options: Mapping[str, str],
        warm_up: Callable[[TrioConnection], Awaitable[None]] | None = None,
    ) -> Lane:
        lane = Lane(
            name=name,
            dsn=self._dsn(),
            application_name=f"pggit-reactor {name} {self.identity.worker_id}"[:63],
            options=options,
            draw=self.clock.draw,
            warm_up=warm_up,
            on_reconnect=self._reconnected,
            on_lost=self._lost,
        )
        self._lanes.append(lane)
        return lane

    def _dsn(self) -> Secret[str]:
        dsn = self.settings.database.listen_url or self.settings.database.url
        if dsn is None:
            raise ConfigurationError("no database is set; set PGGIT_REACTOR_DATABASE_URL")
        return dsn

    def _reconnected(self, name: str) -> None:
        self.metrics.reconnected(name)
        _log.info("database_reconnected", connection=name)

    def _lost(self, name: str, reason: str) -> None:
        # Not ready from the first sign on; the next heartbeat that is written says otherwise.
        self.health.set_check("database", ok=False, reason=f"{name} connection: {reason}")

    def _must_not_claim(self) -> bool:
        return self._settler.failing or self._settler.backlog > SETTLE_BACKLOG_MAX or self._bodies.is_full

    def _open_fanout(self, attempts: trio.Nursery, transport: WebhookTransport) -> FanOut:
        async def send(webhook: Webhook, delivery: ClaimedDelivery, body: bytes) -> AttemptResult:
            return await send_attempt(
                transport,
                webhook,
                uid=delivery.uid,
                body=body,
                extra_headers=delivery.headers_json,
                event_type=delivery.event_type,
                traceparent=delivery.traceparent,
                wall_now=self.clock.wall(),
            )

        return FanOut(
            nursery=attempts,
            send=send,
            book=self._book,
            load_lane=self._load,
            capacity=self._capacity,
            bodies=self._bodies,
            backoff=Backoff(base_seconds=self.settings.delivery.backoff_base_seconds),
            clock=self.clock,
            metrics=self.metrics,
            fleet=self._fleet,
            learned=self._learned,
            settle=self._settler.put,
            slot_freed=self.claimer.slot_freed,
            on_finished=self._timeline.finished,
        )

    def _dispatch(self, deliveries: Sequence[ClaimedDelivery], times: ClaimTimes) -> None:
        self._fanout.dispatch(deliveries, times)

    async def _serve_probes(self, services: trio.Nursery) -> None:
        probes = WorkerProbes(metrics=self.metrics, health=self.health, refresh=self._upkeep.refresh)
        await services.start(
            partial(
                serve_http_port,
                probes,
                host=self.settings.metrics.host,
                port=self.settings.metrics.port,
                clock=self.clock,
            )
        )

    async def _start(self, services: trio.Nursery) -> None:
        await self._upkeep.beat("running")
        for name, run in {
            "settler": self._settler.run,
            "listener": self._listen,
            "claimer": self._claim,
            "heartbeat": self._upkeep.run_heartbeat,
            "chores": self._upkeep.run_chores,
            "audit": self._audit_keeper.run,
            "retention": Retention(lane=self._side, settings=self.settings.retention).run,
        }.items():
            services.start_soon(partial(supervise, name, run, clock=self.clock, metrics=self.metrics))
        with trio.move_on_after(LISTEN_PATIENCE_SECONDS):  # Without LISTEN, polling carries on.
            await self._listening.wait()
        self.health.mark_started()
        _log.info("worker_started", instance=self.identity.instance, version=self.identity.version)

    # -- loops

    async def _claim(self) -> None:
        progress = self.health.watch(
            "claimer", within_seconds=LOOP_SILENT_SECONDS_MAX + self.claimer.poll_seconds
        )
        await self.claimer.run(progress)
        self.health.unwatch("claimer")
        self._stopped_claiming.set()

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                async with open_listener(
                    self._dsn(),
                    application_name=f"pggit-reactor listen {self.identity.worker_id}"[:63],
                    token=self.clock.random_token(),
                    on_round_trip=self._heard_canary,
                ) as listener:
                    # Listening first, looking second: nothing can fall in between.
                    self.claimer.look_around()
                    self._listening.set()
                    if failures:
                        self._reconnected("listener")
                    failures = 0
                    while True:
                        heard = await listener.hear()
                        self.metrics.woken("notify")
                        if heard.look_yourself:
                            self.claimer.look_around()
                        else:
                            self.claimer.hint(heard.webhook_ids)
            except DatabaseError as error:
                _log.warning("listener_lost", reason=str(error))
                self.health.set_check("listener", ok=False, reason=str(error), required=False)
                ceiling = min(LISTEN_RETRY_SECONDS_MAX, LISTEN_RETRY_SECONDS * 2 ** min(failures, 16))
                failures += 1
                await trio.sleep(max(LISTEN_RETRY_SECONDS, ceiling * self.clock.draw()))

    def _heard_canary(self, seconds: float) -> None:
        self.metrics.set_notify_lag(seconds)
        self.health.set_check("listener", ok=True, required=False)

    def _settled(self, report: SettleReport) -> None:
        self._timeline.settled(report)
        closed = [change.webhook_id for change in report.breakers if change.open_seconds is None]
        if closed:
            self.claimer.hint(closed)  # Others are notified.
        for item in report.settled:
            if item.decision.state is State.RETRYING and item.decision.delay_seconds is not None:
                self.claimer.schedule(item.webhook_id, item.decision.delay_seconds)
        self.claimer.ended(
            item.webhook_id
            for item in (*report.settled, *report.fenced)
            if item.decision.state is not State.RETRYING
        )
        self.claimer.slot_freed()

    # -- stopping

    async def _obey(self, commands: Commands) -> int:
        told = await self._until_told_to_stop(commands)
        reason = "schema_too_new" if told is None else told.value
        _log.info("draining", in_flight=self._capacity.in_flight, command=reason)
        self.health.mark_draining()
        self._upkeep.draining = True
        self.claimer.stop()
        self._fanout.draining = True
        drained = False
        with trio.move_on_after(self.settings.worker.drain_seconds) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._abort_at_second_signal, commands, patience)
                await self._stopped_claiming.wait()
                await self._fanout.wait_idle()
                await self._settler.wait_empty()
                await self._hand_over()
                drained = True
                nursery.cancel_scope.cancel()
        if not drained:
            await self._abort()
        else:
            with trio.move_on_after(ABORT_SECONDS_MAX, shield=True):
                await self._upkeep.beat("stopped")
        return SCHEMA_TOO_NEW_STATUS if told is None else int(not drained)

    async def _until_told_to_stop(self, commands: Commands) -> Command | None:
        """Obey until it is time to stop; return the command that said so, None where the schema did."""
        told: Command | None = None

        async def obey() -> None:
            nonlocal told
            while (command := await commands.receive()) is Command.RELOAD:
                await self._reload()
            told = command
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey)
            await self._upkeep.wait_outdated()
            nursery.cancel_scope.cancel()
        return told

    async def _hand_over(self) -> None:
        """Tell others of followers whose heads were done during the drain; what this misses, a poll finds."""
        if not self.claimer.owes_hint:
            return
        try:
            async with self._load.use() as connection:
                await tell_others(connection)
        except DatabaseError as error:
            _log.warning("followers_left_to_poll", reason=str(error))

    async def _abort_at_second_signal(self, commands: Commands, patience: trio.CancelScope) -> None:
        async for command in commands:
            if command is not Command.RELOAD:
                patience.cancel()

    async def _abort(self) -> None:
        """Cut what runs, write what is known, give back the rest, all within `ABORT_SECONDS_MAX`."""
        _log.warning("aborting", in_flight=self._capacity.in_flight, unwritten=self._settler.backlog)
        self._fanout.nursery.cancel_scope.cancel()
        with trio.move_on_after(ABORT_SECONDS_MAX, shield=True) as scope:
            try:
                given_back = await self._fanout.give_back_unfinished()
                _log.info("leases_given_back", count=given_back)
            except DatabaseError as error:
                _log.warning("leases_not_given_back", reason=str(error))
            await self._settler.wait_empty()
            await self._upkeep.beat("stopped")
        if scope.cancelled_caught:
            _log.warning("abort_unfinished", unwritten=self._settler.backlog)

    async def _reload(self) -> None:
        if self.reload is None:
            return
        try:
            self.sealer = await self.reload()
        except (ConfigurationError, DatabaseError, MigrationError) as error:
            _log.error("reload_refused", reason=str(error))
            return
        self._book.sealer = self.sealer
        self._book.forget()
        self._upkeep.keys.replace(self.sealer.keyring)
        # At once, for `key rotate` may wait to hear that this worker has the new key.
        await self._upkeep.beat(self._upkeep.state)
        _log.info("reloaded", key_ids=list(self.sealer.keyring.ids))
