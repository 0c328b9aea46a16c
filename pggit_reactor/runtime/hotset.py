"""Which webhooks may have ready deliveries, now or at a known time.

A webhook is *hot* after a notification, a discovery, or when its time has come. Planning takes it out of the set: it
comes back if its budget was used up (there may be more), or if somebody marks it again meanwhile. So a notification
that arrives while a claim is under way is never lost to that claim.

The set is a ring (see `core.budget`): whoever had its turn goes to the end, and what comes back to the set keeps its
place in it. Whoever has not come back by the next plan is not hot: it loses its place, and what was owed to it.

Of a webhook with many ordering keys a claim looks at some, and the next goes on where it ended: a *lap*. News of the
webhook during a lap may be about a key that the lap has passed, so another lap follows it.

No I/O and no clock: `now` is Trio's time, given by the caller.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Final

import attrs

from pggit_reactor.core.budget import Demand, Shares, share_of, share_slots
from pggit_reactor.core.model import WebhookId

WEBHOOKS_A_CLAIM: Final = 128
"""More hot webhooks than this are claimed in turns; it bounds the statement, not the fairness."""
TIMERS_MAX: Final = 100_000
"""Due times remembered; those beyond are found by the poll."""

_TAKEN: Final = 0
"""By the last plan, and not back."""
_HOT: Final = 1
_HUNGRY: Final = 2
"""Hot, and used up what it got before."""

Want = tuple[int, int, int]
"""What a hot webhook could take as far as it is for itself to say: its weight, the slots that it has, and how many it
has room for, above 0. A plain tuple, as a plan asks many."""


@attrs.define(eq=False)
class _Lap:
    place: str
    has_news: bool


class HotSet:
    """Hot webhooks in the order of their turns, and the times at which others will be hot."""

    def __init__(self, *, attempts_max: int = 1 << 31, share: float = 1.0) -> None:
        """Of the slots that are free or its own, of *attempts_max* in all, a webhook may hold *share*."""
        self._share = share
        self._hold_max = max(1, int(share * attempts_max))
        self._mean_weight = 0.0
        """Of those that want more than they get; 0 where nobody does."""
        self._ring: dict[WebhookId, int] = {}
        self._hot_count = 0
        self._taken: Collection[WebhookId] = ()
        self._broken_off: WebhookId | None = None
        self._owed = 0
        self._timers: list[tuple[float, WebhookId]] = []
        self._earliest: dict[WebhookId, float] = {}
        self._laps: dict[WebhookId, _Lap] = {}

    def __len__(self) -> int:
        return self._hot_count

    def mark(self, webhook_ids: Iterable[WebhookId]) -> None:
        """These may have ready deliveries now."""
        for webhook_id in webhook_ids:
            if not self._ring.get(webhook_id):
                self._ring[webhook_id] = _HOT
                self._hot_count += 1
            if webhook_id in self._laps:
                self._laps[webhook_id].has_news = True

    def places(self, webhook_ids: Iterable[WebhookId]) -> dict[WebhookId, str]:
        """Return where claims of these go on, for those that are in a lap."""
        return {key: self._laps[key].place for key in webhook_ids if key in self._laps}

    def keep_place(self, webhook_id: WebhookId, place: str) -> None:
        """A claim of it ended at *place*; it becomes hot by nothing but a mark."""
        lap = self._laps.get(webhook_id)
        has_news = bool(self._ring.get(webhook_id)) or (lap is not None and lap.has_news)
        self._laps[webhook_id] = _Lap(place, has_news)

    def go_on(self, webhook_id: WebhookId, place: str) -> None:
        """A claim of it ended at *place*, and there is more behind that."""
        self.keep_place(webhook_id, place)
        self.put_back((webhook_id,))

    def end_lap(self, webhook_id: WebhookId) -> None:
        """A claim of it has looked at the last key, or it may not be claimed any more."""
        lap = self._laps.pop(webhook_id, None)
        if lap is not None and lap.has_news:
            self.mark((webhook_id,))

    def put_back(self, webhook_ids: Iterable[WebhookId]) -> None:
        """These gave all that was asked for, and so may have more."""
        for webhook_id in webhook_ids:
            if not self._ring.get(webhook_id):
                self._hot_count += 1
            self._ring[webhook_id] = _HUNGRY

    def mark_at(self, webhook_id: WebhookId, at: float) -> None:
        """This one will have a ready delivery at *at*."""
        if self._earliest.get(webhook_id, math.inf) <= at or len(self._timers) >= TIMERS_MAX:
            return
        self._earliest[webhook_id] = at
        heapq.heappush(self._timers, (at, webhook_id))

    def next_due(self) -> float:
        """Return when the next timer is due; infinity where there is none."""
        return self._timers[0][0] if self._timers else math.inf

    def promote(self, now: float) -> bool:
        """Make hot what is due at *now*; tell whether anything was.

        Only a webhook's earliest time counts: the claim that follows it tells the next one.
        """
        promoted = False
        while self._timers and self._timers[0][0] <= now:
            at, webhook_id = heapq.heappop(self._timers)
            if self._earliest.get(webhook_id) == at:
                del self._earliest[webhook_id]
                self.mark((webhook_id,))
                promoted = True
        return promoted

    def take(
        self, want: Callable[[WebhookId], Want | None], *, slots: int, free: int
    ) -> dict[WebhookId, int]:
        """Return budgets of hot webhooks and take them out of the set; at most *slots* in all, of *free* ones.

        *want* tells of a webhook, or says None where it can take nothing. Those that get nothing stay hot.
        """
        self._forget_cold()
        slots = min(slots, free)
        if slots <= 0:
            return {}
        count_max = min(slots, WEBHOOKS_A_CLAIM)  # No more than can get anything.
        demands = self._demands(want, free=free, count_max=count_max)
        owed = self._owed if demands and demands[0].webhook_id == self._broken_off else 0
        shares = share_slots(demands, slots=slots, free=free, owed=owed)
        self._turn(shares, is_whole=len(demands) < count_max)
        return shares.budgets

    def _forget_cold(self) -> None:
        """Whoever was taken and has not come back loses its place and what is owed to it."""
        for webhook_id in self._taken:
            if not self._ring[webhook_id]:
                del self._ring[webhook_id]
                if webhook_id == self._broken_off:
                    self._broken_off = None
        self._taken = ()

    def _demands(
        self, want: Callable[[WebhookId], Want | None], *, free: int, count_max: int
    ) -> list[Demand]:
        """Return the demands of those whose turn is next."""
        share, hold_max, mean_weight = self._share, self._hold_max, self._mean_weight
        ring = self._ring
        found: list[Demand] = []
        count = weights = 0
        for webhook_id in self._in_turn():
            wanted = want(webhook_id)
            if wanted is None:
                continue
            weight, held, room = wanted
            is_hungry = ring[webhook_id] == _HUNGRY
            if is_hungry:
                count += 1
                weights += weight
            own = share
            if mean_weight and weight != mean_weight:
                own = share_of(share, weight=weight, mean_weight=mean_weight)
            room = min(room, hold_max - held)
            if room > 0 and (not held or int(own * (free + held)) > held):
                found.append(Demand(webhook_id, weight, held, room, own, not is_hungry))
                if len(found) >= count_max:
                    break
        # For the next plan, since this one is through with them.
        self._mean_weight = weights / count if count else 0.0
        return found

    def _in_turn(self) -> Iterable[WebhookId]:
        first = self._broken_off
        if first is None:
            return self._ring
        return chain((first,), (webhook_id for webhook_id in self._ring if webhook_id != first))

    def _turn(self, shares: Shares, *, is_whole: bool) -> None:
        """Take out of the set whoever got something, and send to the end whose turn is over."""
        budgets = shares.budgets
        for webhook_id in budgets:
            self._ring[webhook_id] = _TAKEN
        served = shares.served
        if not is_whole and len(self._ring) > 1:
            # There may be others behind them.
            served = [webhook_id for webhook_id in budgets if webhook_id != shares.broken_off]
        for webhook_id in served:
            self._ring[webhook_id] = self._ring.pop(webhook_id)
        self._hot_count -= len(budgets)
        self._taken = budgets
        self._broken_off, self._owed = shares.broken_off, shares.owed
