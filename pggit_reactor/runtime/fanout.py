"""Claimed deliveries in, settlements out: one task an attempt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import trio

from pggit_reactor.core.backoff import Backoff
from pggit_reactor.core.model import ClaimedDelivery, DeliveryId, LeaseToken, Webhook, WebhookId
from pggit_reactor.db.claims import fetch_body, release, take_token
from pggit_reactor.db.lane import Lane
from pggit_reactor.db.settle import Settlement
from pggit_reactor.errors import DatabaseError
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.attempt import Attempt, Send, attempt, crashed, unsent
from pggit_reactor.runtime.body_budget import BodyBudget
from pggit_reactor.runtime.claimer import Capacity, ClaimTimes
from pggit_reactor.runtime.clock import Clock
from pggit_reactor.runtime.concurrency import LearnedConcurrency
from pggit_reactor.runtime.fleet_limit import FleetLimit
from pggit_reactor.runtime.webhook_book import WebhookBook

START_SECONDS_MAX: Final = 2.0
"""A claim that has not started by then goes back: its lease covers the attempt and 3 s, no more."""
START_LIMITED_SECONDS_MAX: Final = 0.25
"""One that took a token goes back sooner: the windows of its receiver's rate are those of the claims, and this much."""
LOAD_RETRY_SECONDS: Final = 1.0

_log = get_logger("fanout")


@attrs.frozen(kw_only=True)
class Finished:
    """An attempt with what a timeline needs; times are Trio's."""

    delivery: ClaimedDelivery
    attempt: Attempt
    times: ClaimTimes
    started_at: float


@attrs.define(eq=False, kw_only=True)
class FanOut:
    """Starts attempts in *nursery* and hands their settlements on."""

    nursery: trio.Nursery
    send: Send
    book: WebhookBook
    load_lane: Lane
    capacity: Capacity
    bodies: BodyBudget
    backoff: Backoff
    clock: Clock
    metrics: Metrics
    fleet: FleetLimit
    learned: LearnedConcurrency
    settle: Callable[[Settlement], None]
    slot_freed: Callable[[], None]
    on_finished: Callable[[Finished], None] = lambda _: None
    draining: bool = False
    _idle: trio.Event = attrs.field(factory=trio.Event, init=False)
    _running: dict[tuple[DeliveryId, LeaseToken], ClaimedDelivery] = attrs.field(factory=dict, init=False)
    """By lease: a worker that was stopped for a while may claim a row again while its old attempt still runs."""

    def dispatch(self, deliveries: Sequence[ClaimedDelivery], times: ClaimTimes) -> None:
        """Take claimed deliveries over. Each counts against the capacity from here on until it is settled or back."""
        for delivery in deliveries:
            self.capacity.begin(delivery.webhook_id)
            self._running[delivery.delivery_id, delivery.lease_token] = delivery
        strangers: defaultdict[WebhookId, list[ClaimedDelivery]] = defaultdict(list)
        for delivery in deliveries:
            webhook = self.book.known(delivery.webhook_id, delivery.webhook_revision)
            if webhook is None:
                strangers[delivery.webhook_id].append(delivery)
            else:
                self.nursery.start_soon(self._run, delivery, webhook, times)
        if strangers:
            self.nursery.start_soon(self._introduce, dict(strangers), times)

    async def wait_idle(self) -> None:
        """Wait until nothing that was dispatched is running."""
        while self._running:
            self._idle = trio.Event()
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    async def give_back_unfinished(self) -> int:
        """Give back the leases of what is still running, after its tasks were cancelled; return how many.

        Raises `DatabaseError` where that cannot be written: then they expire by themselves.
        """
        unfinished = list(self._running.values())
        self._running.clear()
        if not unfinished:
            await trio.lowlevel.checkpoint()
            return 0
        async with self.load_lane.use() as connection:
            return await release(connection, unfinished)

    async def _introduce(self, strangers: dict[WebhookId, list[ClaimedDelivery]], times: ClaimTimes) -> None:
        """Load webhooks that are new to this worker or have changed, then start their deliveries."""
        try:
            known = await self.book.current(
                {webhook_id: rows[0].webhook_revision for webhook_id, rows in strangers.items()}
            )
        except DatabaseError as error:
            _log.warning("webhooks_not_loaded", webhook_ids=sorted(strangers), reason=str(error))
            known = {}
        except Exception as error:  # noqa: BLE001  # as in `_run`: no delivery takes down the worker
            _log.error("webhooks_not_loaded", webhook_ids=sorted(strangers), exc_info=error)
            self.metrics.loop_restarted("introduction")
            await trio.sleep(LOAD_RETRY_SECONDS)  # What is given back is claimed again at once.
            known = {}
        orphans: list[ClaimedDelivery] = []
        for webhook_id, rows in strangers.items():
            webhook = known.get(webhook_id)
            if webhook is None:
                orphans += rows
                continue
            for delivery in rows:
                self.nursery.start_soon(self._run, delivery, webhook, times)
        if orphans:
            await self._give_back(orphans)

    async def _run(self, delivery: ClaimedDelivery, webhook: Webhook, times: ClaimTimes) -> None:
        ended = unsent(delivery, webhook)
        if ended is not None:
            await trio.lowlevel.checkpoint()
            self._finish(delivery, webhook, ended, times, times.claimed_at)
            return
        try:
            await self._attempt(delivery, webhook, times)
        except Exception as error:  # noqa: BLE001  # one delivery never takes down the worker; see core/outcomes.py
            _log.error("attempt_crashed", delivery_id=delivery.delivery_id, uid=delivery.uid, exc_info=error)
            broken = crashed(delivery, webhook, error, backoff=self.backoff, clock=self.clock)
            self._finish(delivery, webhook, broken, times, times.claimed_at)

    async def _attempt(self, delivery: ClaimedDelivery, webhook: Webhook, times: ClaimTimes) -> None:
        if delivery.body is None:
            await self.bodies.wait_and_take(delivery.body_bytes)
        else:
            self.bodies.take(delivery.body_bytes)
        try:
            body = await self._body(delivery)
            in_time = body is not None and await self._may_begin(delivery, times)
            started_at = trio.current_time()
            # From when the claim began: the lease was running before its answer came.
            if (
                body is None
                or not in_time
                or self.draining
                or started_at > times.began_at + START_SECONDS_MAX
            ):
                await self._give_back([delivery])
                return
            done = await attempt(
                delivery, webhook, body, send=self.send, backoff=self.backoff, clock=self.clock
            )
        finally:
            self.bodies.give_back(delivery.body_bytes)
        self._finish(delivery, webhook, done, times, started_at)

    async def _may_begin(self, delivery: ClaimedDelivery, times: ClaimTimes) -> bool:
        """Say whether the attempt begins while its token counts. What was late because of its large body, and would be
        so each time, takes a token of the moment instead."""
        began_at = times.began_at
        if not self._is_limited(delivery) or trio.current_time() <= began_at + START_LIMITED_SECONDS_MAX:
            return True
        if delivery.body is not None:
            return False
        try:
            async with self.load_lane.use() as connection:
                began_at = trio.current_time()
                has_token = await self.fleet.take_one(connection) and (
                    not delivery.is_limited or await take_token(connection, delivery.webhook_id)
                )
        except DatabaseError as error:
            _log.warning("token_not_taken", delivery_id=delivery.delivery_id, reason=str(error))
            return False
        self.metrics.tokens_lost()
        return has_token and trio.current_time() <= began_at + START_LIMITED_SECONDS_MAX

    def _is_limited(self, delivery: ClaimedDelivery) -> bool:
        return delivery.is_limited or self.fleet.bucket is not None

    async def _body(self, delivery: ClaimedDelivery) -> bytes | None:
        if delivery.body is not None:
            return delivery.body
        try:
            async with self.load_lane.use() as connection:
                return await fetch_body(connection, delivery)
        except DatabaseError as error:
            _log.warning("body_not_loaded", delivery_id=delivery.delivery_id, reason=str(error))
            return None

    def _finish(
        self,
        delivery: ClaimedDelivery,
        webhook: Webhook,
        done: Attempt,
        times: ClaimTimes,
        started_at: float,
    ) -> None:
        self.metrics.attempt_ended(done.verdict)
        self.learned.ended(
            webhook.webhook_id,
            done.result,
            done.verdict,
            limit=webhook.concurrency,
            in_flight=self.capacity.by_webhook[webhook.webhook_id],
            started_at=started_at,
        )
        sent = None if done.result is None else done.result.phases.sent
        if sent is not None:
            self.metrics.attempt_sent(delivery.waited_seconds + (started_at - times.claimed_at) + sent)
        self.on_finished(Finished(delivery=delivery, attempt=done, times=times, started_at=started_at))
        self.settle(done.settlement)
        self._out(delivery)

    async def _give_back(self, deliveries: Sequence[ClaimedDelivery]) -> None:
        self.metrics.tokens_lost(sum(map(self._is_limited, deliveries)))
        try:
            async with self.load_lane.use() as connection:
                await release(connection, deliveries)
        except DatabaseError as error:
            # Their leases expire by themselves.
            _log.warning("leases_not_given_back", count=len(deliveries), reason=str(error))
        for delivery in deliveries:
            self._out(delivery)

    def _out(self, delivery: ClaimedDelivery) -> None:
        if self._running.pop((delivery.delivery_id, delivery.lease_token), None) is not None:
            self.capacity.end(delivery.webhook_id)
        self.slot_freed()
        if not self._running:
            self._idle.set()
