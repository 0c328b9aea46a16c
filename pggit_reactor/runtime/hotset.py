"""Which webhooks may have ready deliveries, now or at a known time.

A webhook is *hot* after a notification, a discovery, or when its time has come. Planning takes it out of the set: it
comes back if its budget was used up (there may be more), or if somebody marks it again meanwhile. So a notification
that arrives while a claim is under way is never lost to that claim.

Of a webhook with many ordering keys a claim looks at some, and the next goes on where it ended: a *lap*. News of the
webhook during a lap may be about a key that the lap has passed, so another lap follows it.

No I/O and no clock: `now` is Trio's time, given by the caller.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import attrs

from pggit_reactor.core.budget import Demand, plan_budgets
from pggit_reactor.core.model import WebhookId

WEBHOOKS_A_CLAIM: Final = 128
"""More hot webhooks than this are claimed in turns; it bounds the statement, not the fairness."""
TIMERS_MAX: Final = 100_000
"""Due times remembered; those beyond are found by the poll."""


@attrs.define(eq=False)
class _Lap:
    place: str
    has_news: bool


class HotSet:
    """Hot webhooks in the order in which they became hot, and the times at which others will."""

    def __init__(self) -> None:
        self._hot: dict[WebhookId, None] = {}
        self._timers: list[tuple[float, WebhookId]] = []
        self._earliest: dict[WebhookId, float] = {}
        self._laps: dict[WebhookId, _Lap] = {}

    def __len__(self) -> int:
        return len(self._hot)

    def mark(self, webhook_ids: Iterable[WebhookId]) -> None:
        """These may have ready deliveries now."""
        for webhook_id in webhook_ids:
            self._hot.setdefault(webhook_id)
            if webhook_id in self._laps:
                self._laps[webhook_id].has_news = True

    def places(self, webhook_ids: Iterable[WebhookId]) -> dict[WebhookId, str]:
        """Return where claims of these go on, for those that are in a lap."""
        return {key: self._laps[key].place for key in webhook_ids if key in self._laps}

    def keep_place(self, webhook_id: WebhookId, place: str) -> None:
        """A claim of it ended at *place*; it becomes hot by nothing but a mark."""
        lap = self._laps.get(webhook_id)
        has_news = webhook_id in self._hot or (lap is not None and lap.has_news)
        self._laps[webhook_id] = _Lap(place, has_news)

    def go_on(self, webhook_id: WebhookId, place: str) -> None:
        """A claim of it ended at *place*, and there is more behind that."""
        self.keep_place(webhook_id, place)
        self._hot.setdefault(webhook_id)

    def end_lap(self, webhook_id: WebhookId) -> None:
        """A claim of it has looked at the last key, or it may not be claimed any more."""
        lap = self._laps.pop(webhook_id, None)
        if lap is not None and lap.has_news:
            self._hot.setdefault(webhook_id)

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
        self,
        *,
        slots: int,
        in_flight: Mapping[WebhookId, int],
        concurrency: Callable[[WebhookId], int],
        suspended: Collection[WebhookId] = (),
    ) -> dict[WebhookId, int]:
        """Return budgets of hot webhooks that have room, and take them out of the set.

        Webhooks without room or *suspended* stay hot. Those taken go to the end of the order when they come back.
        """
        demands: list[Demand] = []
        for webhook_id in self._hot:
            if webhook_id in suspended:
                continue
            room = concurrency(webhook_id) - in_flight.get(webhook_id, 0)
            if room > 0:
                demands.append(Demand(webhook_id=webhook_id, room=room))
                if len(demands) == WEBHOOKS_A_CLAIM:
                    break
        budgets = plan_budgets(demands, slots=slots)
        for webhook_id in budgets:
            del self._hot[webhook_id]
        return budgets
