"""Claims what can be sent now, and nothing else.

One loop owns the claim connection: it wakes at a notification, at the time of a known retry, when a slot gets free, and
at each poll. After a new connection (a lost one, a failover, a restart of the database) it looks at the whole queue
before anything else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs
import trio

from pggit_reactor.core.breaker import Phase
from pggit_reactor.core.model import ClaimedDelivery, LeaseToken, WebhookId
from pggit_reactor.db.claims import (
    Claim,
    ClaimedWebhook,
    HeldBy,
    adopt_unknown,
    claim,
    discover,
)
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.lane import Lane
from pggit_reactor.db.workers import read_learned
from pggit_reactor.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    ReadOnlyDatabaseError,
    RowLockedError,
)
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.clock import Clock
from pggit_reactor.runtime.concurrency import LearnedConcurrency
from pggit_reactor.runtime.fleet_limit import FleetLimit
from pggit_reactor.runtime.gatekeeper import GateKeeper, tell_others
from pggit_reactor.runtime.holds import Holds
from pggit_reactor.runtime.hotset import HotSet, Want
from pggit_reactor.runtime.refusals import Suspects, is_about_rows
from pggit_reactor.runtime.wake import Wake

GATHER_SECONDS: Final = 0.002
"""Under load, a claim waits this long for company: 10 to 30 rows a statement instead of 2."""
GATHER_IN_FLIGHT_MIN: Final = 24
"""How many attempts in flight are load."""
CLAIM_ROWS_MAX: Final = 128
"""A claim takes no more, however many slots are free: so others are being sent while the next claim is under way, and
no pass of the event loop is as long as sending a whole worker's worth."""
LOOK_SECONDS: Final = 0.02
"""How long silent rows of other webhooks may wait while hot ones fill every claim."""
FULL_SECONDS_MAX: Final = 0.05
"""All slots taken for so long is no room: siblings may have some, and producers are to tell them. Under load each claim
fills the slots for a moment, which is none of anybody's business."""
ADOPT_EVERY_SECONDS: Final = 60.0
ADOPT_CHEAP_SECONDS: Final = 0.02
TIMER_SLACK_SECONDS: Final = 0.002
"""A timer fires a little late rather than a little early, when its row would not yet be ready."""
FAILED_RETRY_SECONDS: Final = 0.25
STOPPED_PAUSE_SECONDS: Final = 0.25
"""While the brakes are on nothing is claimed or polled, however overdue."""
CONCURRENCY_GUESS: Final = 32
"""Before a first claim told the true one; the claim statement knows it."""
KNOWN_MAX: Final = 50_000
"""Webhooks whose last claim is remembered."""
WEIGHT_GUESS: Final = 1
GROWTH_SECONDS: Final = 1.0
"""In a slow start the concurrency that a claim told is asked for again after this, though no slot be free by it."""

_NO_SLACK: Final = frozenset({HeldBy.TOKENS, HeldBy.BUSY})

_log = get_logger("claimer")


class Capacity:
    """How much of this worker is in use; written by the fan-out, read by the claimer."""

    def __init__(self, attempts_max: int) -> None:
        self.attempts_max = attempts_max
        self.by_webhook: Counter[WebhookId] = Counter()
        self.in_flight = 0

    @property
    def slots(self) -> int:
        """Attempts that may still begin."""
        return self.attempts_max - self.in_flight

    def begin(self, webhook_id: WebhookId) -> None:
        """Count an attempt in."""
        self.in_flight += 1
        self.by_webhook[webhook_id] += 1

    def end(self, webhook_id: WebhookId) -> None:
        """Count it out."""
        self.in_flight -= 1
        self.by_webhook[webhook_id] -= 1
        if not self.by_webhook[webhook_id]:
            del self.by_webhook[webhook_id]


@attrs.frozen(kw_only=True)
class ClaimTimes:
    """When a claim happened, on Trio's clock."""

    woken_at: float
    """When this worker last heard that something was ready."""
    began_at: float
    claimed_at: float


@attrs.frozen(kw_only=True)
class Brakes:
    """What others say about claiming."""

    stopped: Callable[[], bool]
    """Something is wrong that claiming would make worse: outcomes that cannot be written, bodies over budget."""
    suspended: Callable[[], frozenset[WebhookId]]


@attrs.define(eq=False, kw_only=True)
class Claimer:
    """The claiming loop; `hint`, `look_around` and `schedule` may be called by any task of the worker."""

    lane: Lane
    instance: str
    lease_seconds: float
    silence_seconds: float
    poll_seconds: float
    capacity: Capacity
    brakes: Brakes
    dispatch: Callable[[Sequence[ClaimedDelivery], ClaimTimes], None]
    """Takes the claimed deliveries over; must not wait."""
    metrics: Metrics
    clock: Clock
    fleet: FleetLimit
    learned: LearnedConcurrency
    webhook_share: float = 1.0
    """Of the slots that are free or its own, a webhook may hold this share; see `core.budget`."""
    draining: bool = False
    owes_hint: bool = False
    """Heads were done that this worker follows up no more: others are to be told."""
    _woken_at: float = attrs.field(default=0.0, init=False)
    _known: dict[WebhookId, ClaimedWebhook] = attrs.field(factory=dict, init=False)
    """What the last claim said of a webhook."""
    _growing: dict[WebhookId, float] = attrs.field(factory=dict, init=False)
    """Until when their concurrency may be believed."""
    gate: GateKeeper = attrs.field(
        default=attrs.Factory(lambda self: GateKeeper(on_open=self.metrics.gate_opened), takes_self=True),
        init=False,
    )
    _hot: HotSet = attrs.field(
        default=attrs.Factory(
            lambda self: HotSet(attempts_max=self.capacity.attempts_max, share=self.webhook_share),
            takes_self=True,
        ),
        init=False,
    )
    _holds: Holds = attrs.field(
        default=attrs.Factory(
            lambda self: Holds(metrics=self.metrics, draw=self.clock.draw), takes_self=True
        ),
        init=False,
    )
    _suspects: Suspects = attrs.field(factory=Suspects, init=False)
    _wake: Wake = attrs.field(factory=Wake, init=False)
    _generation: int = attrs.field(default=0, init=False)
    _next_poll_at: float = attrs.field(default=-math.inf, init=False)
    _next_adopt_at: float = attrs.field(default=-math.inf, init=False)
    _looked_at: float = attrs.field(default=-math.inf, init=False)
    _filled: bool = attrs.field(default=False, init=False)
    """The last plan was as large as a claim may be: looking for more would be in vain."""
    _full_since: float = attrs.field(default=math.inf, init=False)

    def hint(self, webhook_ids: Iterable[WebhookId]) -> None:
        """These may have ready deliveries now."""
        self._hot.mark(webhook_ids)
        self._woken_at = trio.current_time()
        self._wake.set()

    def ended(self, webhook_ids: Iterable[WebhookId]) -> None:
        """Deliveries of these are done: where there is an order, the next of it may go, and nobody else tells."""
        ordered = {webhook_id for webhook_id in webhook_ids if self._is_ordered(webhook_id)}
        if not ordered:
            return
        if self.draining:
            self.owes_hint = True
        else:
            self.hint(ordered)

    def _is_ordered(self, webhook_id: WebhookId) -> bool:
        known = self._known.get(webhook_id)
        return known is not None and known.place is not None

    def look_around(self) -> None:
        """Anything may have become ready: look at the whole queue now."""
        self._next_poll_at = self._next_adopt_at = -math.inf
        self._wake.set()

    def schedule(self, webhook_id: WebhookId, seconds: float) -> None:
        """This webhook will have a ready delivery in *seconds*."""
        at = trio.current_time() + seconds + TIMER_SLACK_SECONDS
        earlier = at < self._hot.next_due()
        self._hot.mark_at(webhook_id, at)
        if earlier:
            self._wake.set()

    def slot_freed(self) -> None:
        """An attempt has ended: if somebody waited for its slot, claim."""
        if len(self._hot):
            self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; `run` returns after the statement that may be under way."""
        self.draining = True
        self._wake.set()

    async def run(self, progress: Callable[[], None] = lambda: None) -> None:
        """Claim until `stop`. Database trouble is waited out; other errors pass."""
        while not self.draining:
            progress()
            try:
                await (self._turn_answering() if self.gate.answers else self._turn())
            except (DatabaseUnavailableError, ReadOnlyDatabaseError) as error:
                _log.warning("claim_failed", reason=str(error))
            except RowLockedError as error:
                _log.warning("claim_locked", reason=str(error))
            except DatabaseError as error:
                _log.error("claim_failed", reason=str(error), sqlstate=error.sqlstate)
                await trio.sleep(FAILED_RETRY_SECONDS)
        await self._leave()

    async def _turn(self) -> None:
        now = trio.current_time()
        if self._hot.promote(now):
            self.metrics.woken("timer")
        if now >= self._next_poll_at and not self.brakes.stopped():
            await self._poll()
        budgets = self._plan()
        if budgets:
            await self._claim(budgets)
            return
        until = min(self._next_poll_at, self._hot.next_due())
        if self.fleet.is_short(trio.current_time()):
            until = min(until, self.fleet.short_until)
        if self.brakes.stopped():
            until = max(until, trio.current_time() + STOPPED_PAUSE_SECONDS)
        with trio.move_on_at(until):
            await self._wake.wait()
            await self._gather()

    async def _turn_answering(self) -> None:
        """Claim while producers are silent on our account, and until nothing of that is left."""
        now = trio.current_time()
        self._hot.promote(now)
        has_room = self._has_room(now)
        async with self.lane.use() as connection:
            if self.gate.is_busy(now) and has_room:
                await self.gate.open(connection, self.lane.generation)
            elif not self.gate.draining:
                await self.gate.close(connection, self.lane.generation)
                if not has_room:
                    await tell_others(connection)
            else:  # Begun anew where the connection is another one.
                await self.gate.close(connection, self.lane.generation)
            drained = await self.gate.drained(connection)
            if self.gate.draining or self._must_look(now):
                await self._look(connection)
        budgets = self._plan()
        if budgets:
            await self._claim(budgets)
        if drained:
            # What the last look found is hot, or has a timer: it needs no notification.
            self.gate.sleep()
            return
        if self._filled and len(self._hot) and self.capacity.slots > 0:
            return  # The next claim is under way while what this one brought is sent.
        with trio.move_on_after(self.gate.pause_seconds(now)):
            await self._wake.wait()
            await self._gather()

    def _must_look(self, now: float) -> bool:
        """Say whether silent rows may be of webhooks that nothing made hot; in vain where nothing can be claimed."""
        return self.capacity.slots > 0 and (not self._filled or now >= self._looked_at + LOOK_SECONDS)

    def _has_room(self, now: float) -> bool:
        if self.capacity.slots > 0:
            self._full_since = math.inf
        else:
            self._full_since = min(self._full_since, now)
        return not self.brakes.stopped() and now < self._full_since + FULL_SECONDS_MAX

    async def _leave(self) -> None:
        if not self.gate.answers:
            return
        try:
            async with self.lane.use() as connection:
                await self.gate.leave(connection, self.lane.generation)
        except DatabaseError as error:
            _log.warning("gate_left_to_lapse", reason=str(error))

    async def _gather(self) -> None:
        if self.capacity.in_flight >= GATHER_IN_FLIGHT_MIN:
            await trio.sleep(GATHER_SECONDS)

    def _plan(self) -> dict[WebhookId, int]:
        self._filled = False
        if self.draining or self.brakes.stopped() or not len(self._hot):
            return {}
        if self.fleet.is_short(trio.current_time()):
            return {}
        free = self.capacity.slots
        slots = min(free, CLAIM_ROWS_MAX)
        budgets = self._hot.take(self._wants(), slots=slots, free=free)
        narrowed = self._suspects.narrowed(budgets)
        self._hot.mark(budgets.keys() - narrowed.keys())
        budgets = narrowed
        self._filled = sum(budgets.values()) == slots
        return budgets

    def _wants(self) -> Callable[[WebhookId], Want | None]:
        """Return what tells how much a webhook could take now."""
        suspended = self.brakes.suspended() | self._suspects.barred(trio.current_time())
        in_flight, known = self.capacity.by_webhook, self._known

        def want(webhook_id: WebhookId) -> Want | None:
            found = known.get(webhook_id)
            held = in_flight.get(webhook_id, 0)
            room = self._concurrency_of(webhook_id, found) - held
            if room <= 0 or webhook_id in suspended:
                return None
            return WEIGHT_GUESS if found is None else found.weight, held, room

        return want

    def _concurrency_of(self, webhook_id: WebhookId, found: ClaimedWebhook | None) -> int:
        limit = CONCURRENCY_GUESS if found is None else found.concurrency
        if self._growing and self._growing.get(webhook_id, math.inf) <= trio.current_time():
            limit = CONCURRENCY_GUESS
        return self.learned.allowed(webhook_id, limit)

    async def _poll(self) -> None:
        self._next_poll_at = trio.current_time() + self.poll_seconds
        async with self.lane.use() as connection:
            await self._look(connection)

    async def _look(self, connection: TrioConnection) -> None:
        began = trio.current_time()
        if began >= self._next_adopt_at or self.lane.generation != self._generation:
            adopted = await adopt_unknown(connection)
            self.learned.start_from(await read_learned(connection))
            now = trio.current_time()
            # Cheap with few webhooks, then at each poll (but not at every look of one who answers for producers);
            # seldom where it has many ids to walk.
            cheap = now - began < ADOPT_CHEAP_SECONDS
            self._next_adopt_at = began + (self.poll_seconds / 2 if cheap else ADOPT_EVERY_SECONDS)
            self._generation = self.lane.generation
            if adopted:
                _log.info("webhook_ids_adopted", count=adopted)
        self._looked_at = trio.current_time()
        found = await discover(connection, horizon_seconds=self.poll_seconds)
        now = trio.current_time()
        for webhook_id, seconds in found.items():
            if (
                seconds > 0
            ):  # Retries of other workers, and of those that are gone: at their time, not at a poll.
                self._hot.mark_at(webhook_id, now + seconds + TIMER_SLACK_SECONDS)
        ready = [webhook_id for webhook_id, seconds in found.items() if seconds <= 0]
        if ready:
            self.metrics.woken("poll")
        self._hot.mark(ready)

    async def _claim(self, budgets: dict[WebhookId, int]) -> None:
        token = LeaseToken(self.clock.random_token())
        began = trio.current_time()
        try:
            async with self.lane.use() as connection:
                if self.lane.generation != self._generation:
                    await self._look(connection)
                if not self.gate.answers and self.gate.is_busy(trio.current_time()):
                    await self.gate.open(connection, self.lane.generation)
                began = trio.current_time()
                allowed = await self.fleet.allow(connection, budgets)
                self._hot.mark(budgets.keys() - allowed.keys())
                budgets = allowed
                if not budgets:
                    return
                claimed = await claim(
                    connection,
                    budgets,
                    in_flight=self.capacity.by_webhook,
                    lease_token=token,
                    lease_seconds=self.lease_seconds,
                    silence_seconds=self.silence_seconds,
                    instance=self.instance,
                    places=self._hot.places(budgets),
                    plain=self._holds.none_limited(budgets),
                )
        except BaseException as error:
            # Whether it was committed is unknown: then its rows come back when their lease has run out.
            self._hot.mark(budgets)
            if isinstance(error, DatabaseError):
                self._refused(budgets, error, trio.current_time() - began)
            raise
        self._suspects.cleared(budgets)
        self._after(claimed, budgets, began)
        await self._give_back(sum(budgets.values()) - len(claimed.deliveries))

    async def _give_back(self, fleet_tokens: int) -> None:
        if not fleet_tokens or self.fleet.bucket is None:
            return
        try:
            async with self.lane.use() as connection:
                await self.fleet.give_back(connection, fleet_tokens)
        except DatabaseError as error:
            _log.warning("fleet_tokens_lost", count=fleet_tokens, reason=str(error))

    def _refused(self, budgets: dict[WebhookId, int], error: DatabaseError, took_seconds: float) -> None:
        if isinstance(error, RowLockedError) or not is_about_rows(error):
            return
        guilty = self._suspects.refused(budgets, now=trio.current_time(), took_seconds=took_seconds)
        if guilty is not None:
            webhook_id, retry_at = guilty
            self._hot.mark_at(webhook_id, retry_at)
            _log.error("claim_refused", webhook_id=webhook_id, reason=str(error), sqlstate=error.sqlstate)

    def _after(self, claimed: Claim, budgets: dict[WebhookId, int], began: float) -> None:
        now = trio.current_time()
        self.metrics.claimed(rows=len(claimed.deliveries), seconds=now - began)
        self.gate.record(len(claimed.deliveries), now)
        if claimed.taken_over:
            self.metrics.lease_expired(claimed.taken_over)
            _log.warning("expired_leases_taken_over", count=claimed.taken_over)
        if len(self._known) > KNOWN_MAX:
            self._known.clear()
            self._growing.clear()
        got = Counter(delivery.webhook_id for delivery in claimed.deliveries)
        for webhook_id, budget in budgets.items():
            found = claimed.webhooks.get(webhook_id)
            if found is None:
                self._known.pop(webhook_id, None)
                self._hot.end_lap(webhook_id)
                continue
            if found.held_by is not HeldBy.LIMITS:  # A plain claim knows of no order.
                self._known[webhook_id] = found
                self._note_place(webhook_id, found)
            asked = min(budget, found.concurrency - self.capacity.by_webhook[webhook_id])
            self._ask_again(webhook_id, found, asked=asked, got=got[webhook_id], now=now)
        if claimed.deliveries:
            self.dispatch(
                claimed.deliveries, ClaimTimes(woken_at=self._woken_at, began_at=began, claimed_at=now)
            )

    def _note_place(self, webhook_id: WebhookId, found: ClaimedWebhook) -> None:
        """Keep where the next claim of a webhook with an order goes on."""
        if not found.place:
            self._hot.end_lap(webhook_id)
        elif not found.has_said_all or found.held_by is HeldBy.TOKENS:
            self._hot.keep_place(webhook_id, found.place)
        else:
            self._hot.go_on(webhook_id, found.place)

    def _ask_again(
        self, webhook_id: WebhookId, found: ClaimedWebhook, *, asked: int, got: int, now: float
    ) -> None:
        at = self._holds.ask_again_at(webhook_id, found, asked=asked, got=got, now=now)
        if found.held_by is HeldBy.MISSING:
            self.look_around()  # Which gives it one.
        elif found.held_by is HeldBy.LIMITS:
            self._hot.put_back([webhook_id])  # At once, by the other form of the claim.
        elif found.held_by is None and got >= asked and not found.has_said_all:
            self._hot.put_back([webhook_id])  # It gave all that was asked for, and so may have more.
        if found.held_by is HeldBy.PROBE and got:
            self.metrics.breaker_turned(Phase.HALF_OPEN)
            _log.info("breaker_half_open", webhook_id=webhook_id)
        if found.grows:
            self._growing[webhook_id] = now + GROWTH_SECONDS
            self._hot.mark_at(webhook_id, now + GROWTH_SECONDS)
        else:
            self._growing.pop(webhook_id, None)
        if at is not None:
            slack = 0.0 if found.held_by in _NO_SLACK else TIMER_SLACK_SECONDS
            self._hot.mark_at(webhook_id, at + slack)
