"""The hot set beside a model that is too simple to be wrong: nothing that was marked is ever lost."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pggit_reactor.core.model import WebhookId
from pggit_reactor.runtime.hotset import HotSet, Want

IDS = st.integers(min_value=1, max_value=6)


class HotSetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hot = HotSet()
        self.now = 0.0
        self.model_hot: set[int] = set()
        self.model_due: dict[int, set[float]] = {}
        self.laps: dict[int, str] = {}
        self.news_in_lap: set[int] = set()

    @rule(ids=st.lists(IDS, max_size=4))
    def mark(self, ids: list[int]) -> None:
        self.hot.mark(ids)
        self.model_hot.update(ids)
        self.news_in_lap.update(set(ids) & set(self.laps))

    @rule(ids=st.lists(IDS, max_size=4))
    def put_back(self, ids: list[int]) -> None:
        self.hot.put_back(ids)
        self.model_hot.update(ids)

    @rule(webhook_id=IDS, seconds=st.floats(min_value=0, max_value=50))
    def mark_at(self, webhook_id: int, seconds: float) -> None:
        self.hot.mark_at(webhook_id, self.now + seconds)
        self.model_due.setdefault(webhook_id, set()).add(self.now + seconds)

    @rule(seconds=st.floats(min_value=0, max_value=30))
    def promote(self, seconds: float) -> None:
        self.now += seconds
        self.hot.promote(self.now)
        for webhook_id, times in self.model_due.items():
            if any(at <= self.now for at in times):
                self.model_hot.add(webhook_id)
                self.news_in_lap.update({webhook_id} & set(self.laps))
                # Promoting leads to a claim, which tells the next due time anew: later ones need not be remembered.
                times.clear()

    @rule(
        slots=st.integers(min_value=0, max_value=20),
        busy=st.dictionaries(IDS, st.integers(min_value=0, max_value=5)),
        suspended=st.frozensets(IDS, max_size=2),
    )
    def take(self, slots: int, busy: dict[int, int], suspended: frozenset[int]) -> None:
        def want(webhook_id: WebhookId) -> Want | None:
            room = 4 - busy.get(webhook_id, 0)
            if room <= 0 or webhook_id in suspended:
                return None
            return 1 + webhook_id % 3, busy.get(webhook_id, 0), room

        budgets = self.hot.take(want, slots=slots, free=slots)

        assert set(budgets) <= self.model_hot - suspended
        assert all(budget <= 4 - busy.get(webhook_id, 0) for webhook_id, budget in budgets.items())
        able = {webhook_id for webhook_id in self.model_hot - suspended if busy.get(webhook_id, 0) < 4}
        rooms = sum(4 - busy.get(webhook_id, 0) for webhook_id in able)
        assert sum(budgets.values()) == min(rooms, slots)
        self.model_hot -= set(budgets)

    @rule(webhook_id=IDS, place=st.sampled_from(["k1", "k2", "n3"]), more=st.booleans())
    def a_claim_ends_at_a_place(self, webhook_id: int, place: str, more: bool) -> None:
        if webhook_id in self.model_hot:
            self.news_in_lap.add(webhook_id)  # It came while the claim was under way.
        self.laps[webhook_id] = place
        if more:
            self.hot.go_on(webhook_id, place)
            self.model_hot.add(webhook_id)
        else:
            self.hot.keep_place(webhook_id, place)

    @rule(webhook_id=IDS)
    def a_lap_ends(self, webhook_id: int) -> None:
        """News of a key that the lap may have passed makes another lap."""
        self.hot.end_lap(webhook_id)
        if webhook_id in self.news_in_lap:
            self.model_hot.add(webhook_id)
        self.laps.pop(webhook_id, None)
        self.news_in_lap.discard(webhook_id)

    @invariant()
    def places_are_those_of_laps_that_have_not_ended(self) -> None:
        assert self.hot.places(range(10)) == self.laps

    @invariant()
    def what_is_hot_is_what_was_marked_and_not_taken(self) -> None:
        assert len(self.hot) == len(self.model_hot)

    @invariant()
    def the_next_timer_is_not_later_than_the_earliest_that_is_owed(self) -> None:
        owed = [at for times in self.model_due.values() for at in times]
        assert self.hot.next_due() <= min(owed, default=math.inf)


TestHotSet = HotSetMachine.TestCase
