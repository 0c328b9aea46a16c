"""Budgets: what is handed out is what there is, by weight over time, and nobody holds more than its share."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pggit_reactor.core.budget import Demand, most_more, share_of, share_slots
from pggit_reactor.core.model import WebhookId
from pggit_reactor.runtime.hotset import HotSet, Want

SLOTS = st.integers(min_value=0, max_value=300)
SHARES = st.sampled_from((0.01, 0.25, 0.5, 0.9, 1.0))


@st.composite
def crowds(draw: Any) -> tuple[list[Demand], int]:
    """Demands, each of which may hold more than it does; and how many slots are free."""
    free = draw(SLOTS)
    wishes = draw(
        st.lists(st.tuples(st.integers(1, 100), st.integers(0, 40), st.integers(1, 300), SHARES), max_size=40)
    )
    demands = [Demand(WebhookId(number), *wish) for number, wish in enumerate(wishes)]
    return [demand for demand in demands if most_more(demand.held, free=free, share=demand.share)], free


@given(crowds(), SLOTS)
def test_nobody_gets_more_than_its_room_and_all_together_no_more_than_the_slots(crowd, slots):
    demands, free = crowd
    budgets = share_slots(demands, slots=slots, free=free).budgets

    rooms = {demand.webhook_id: demand.room for demand in demands}
    assert all(0 < budget <= rooms[webhook_id] for webhook_id, budget in budgets.items())
    assert sum(budgets.values()) <= min(slots, free)


@given(crowds(), SLOTS)
def test_no_slot_is_left_over_that_somebody_could_use(crowd, slots):
    demands, free = crowd
    budgets = share_slots(demands, slots=slots, free=free).budgets

    given_out = sum(budgets.values())
    if given_out < min(slots, free):
        for demand in demands:
            got = budgets.get(demand.webhook_id, 0)
            more = most_more(demand.held + got, free=free - given_out, share=demand.share)
            assert got == demand.room or more == 0


@given(crowds(), SLOTS)
def test_nobody_holds_more_than_its_share_of_what_was_free_when_it_got_it(crowd, slots):
    demands, free = crowd
    budgets = share_slots(demands, slots=slots, free=free).budgets

    for demand in demands:
        holds = demand.held + budgets.get(demand.webhook_id, 0)
        if demand.webhook_id in budgets:
            assert holds <= max(1, demand.share * (free + demand.held))


@given(crowds(), SLOTS, st.integers(1, 100))
def test_what_is_owed_is_given_first_and_never_more_than_was_owed(crowd, slots, owed):
    demands, free = crowd
    shares = share_slots(demands, slots=slots, free=free, owed=owed)

    if demands and min(slots, free):
        assert demands[0].webhook_id in shares.budgets
    if shares.broken_off is not None:
        weights = {demand.webhook_id: demand.weight for demand in demands}
        assert 0 < shares.owed <= max(owed, weights[shares.broken_off] * (slots + 1))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=30), st.integers(1, 300))
def test_in_one_claim_slots_go_by_weight_to_a_turn(weights, slots):
    demands = [Demand(WebhookId(number), weight, 0, 1000) for number, weight in enumerate(weights)]
    budgets = share_slots(demands, slots=slots, free=slots).budgets

    turns = [budgets.get(demand.webhook_id, 0) / demand.weight for demand in demands]
    assert sum(budgets.values()) == slots
    assert max(turns) - min(turns) <= 1


def test_the_first_in_line_gets_the_odd_slot():
    demands = [Demand(WebhookId(number), 1, 0, 10) for number in (7, 3, 5)]

    assert share_slots(demands, slots=4, free=4).budgets == {7: 2, 3: 1, 5: 1}
    assert share_slots(demands, slots=2, free=2).budgets == {7: 1, 3: 1}


# ---- over many claims, with the ring


@attrs.define
class Hook:
    """A webhook in the play below."""

    weight: int
    concurrency: int
    backlog: int
    served: int = 0
    held: int = 0


class Play:
    """A worker's claims, with time left out: slots get free, claims are made, attempts end."""

    def __init__(self, hooks: list[Hook], *, attempts_max: int, share: float = 1.0) -> None:
        self.hooks = {WebhookId(number): hook for number, hook in enumerate(hooks)}
        self.attempts_max = attempts_max
        self.share = share
        self.hot = HotSet(attempts_max=attempts_max, share=share)
        self.hot.mark(number for number, hook in self.hooks.items() if hook.backlog)

    @property
    def free(self) -> int:
        return self.attempts_max - sum(hook.held for hook in self.hooks.values())

    def arrive(self, number: int, count: int) -> None:
        self.hooks[WebhookId(number)].backlog += count
        self.hot.mark((WebhookId(number),))

    def claim(self, slots: int) -> dict[WebhookId, int]:
        def want(webhook_id: WebhookId) -> Want | None:
            hook = self.hooks[webhook_id]
            room = hook.concurrency - hook.held
            return (hook.weight, hook.held, room) if room > 0 else None

        budgets = self.hot.take(want, slots=slots, free=self.free)
        for webhook_id, budget in budgets.items():
            hook = self.hooks[webhook_id]
            got = min(budget, hook.backlog)
            hook.backlog -= got
            hook.served += got
            hook.held += got
        # As rows come out of a statement: in no order that the ring would know.
        back = [webhook_id for webhook_id in sorted(budgets) if self.hooks[webhook_id].backlog]
        self.hot.put_back(back)
        return budgets

    def end(self, number: int, count: int) -> None:
        hook = self.hooks[WebhookId(number)]
        hook.held -= min(count, hook.held)


@given(
    weights=st.lists(st.integers(1, 8), min_size=2, max_size=20),
    claims=st.lists(st.integers(1, 40), min_size=1, max_size=60),
)
def test_over_many_claims_of_any_size_slots_are_shared_by_weight(weights, claims):
    """Nobody of those that are known to have rows is ever more than two turns ahead of another, however slots come."""
    play = Play([Hook(weight, 10**6, 10**6) for weight in weights], attempts_max=10**6)
    play.hot.put_back([*play.hooks])

    for slots in claims:
        play.claim(slots)

        turns = [hook.served / hook.weight for hook in play.hooks.values()]
        assert max(turns) - min(turns) <= 2
    assert sum(hook.served for hook in play.hooks.values()) == sum(claims)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.integers(1, 40), st.just(0)),
        st.tuples(st.just("arrive"), st.integers(1, 30), st.integers(1, 50)),
        st.tuples(st.just("end"), st.integers(1, 30), st.integers(1, 20)),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(
    hooks=st.lists(
        st.builds(Hook, st.integers(1, 10), st.sampled_from((1, 4, 32, 256)), st.sampled_from((0, 3, 10**6))),
        min_size=1,
        max_size=30,
    ),
    attempts_max=st.integers(2, 256),
    share=SHARES,
    steps=STEPS,
)
def test_whatever_the_others_do_a_webhook_that_holds_nothing_is_served_after_one_turn_of_each(
    hooks, attempts_max, share, steps
):
    """An adversarial mix: greedy ones, hanging ones, such as come and go at every step, in any order.

    One alert arrives for a webhook that holds nothing. From then on no other gets more than the rest of the turn that
    it is in, and one more, before that alert is sent.
    """
    play = Play([*hooks, Hook(1, 1, 0)], attempts_max=attempts_max, share=share)
    newcomer = len(hooks)
    for kind, number, count in steps[: len(steps) // 2]:
        _step(play, kind, number, count)
    play.arrive(newcomer, 1)
    before = {number: hook.served for number, hook in play.hooks.items()}
    for kind, number, count in [*steps[len(steps) // 2 :], *[("claim", 1, 0)] * 400]:
        if play.hooks[WebhookId(newcomer)].served:
            break
        _step(play, kind, number, count)
        if kind == "claim" and not play.free:
            for other in range(newcomer):
                play.end(other, 256)

    assert play.hooks[WebhookId(newcomer)].served == 1
    for number, hook in play.hooks.items():
        # In one claim, turns may be worth several times the weight: then the newcomer had one in the same claim.
        assert hook.served - before[number] <= 2 * hook.weight + 40


def _step(play: Play, kind: str, number: int, count: int) -> None:
    number %= len(play.hooks) - 1
    if kind == "claim":
        for webhook_id in play.claim(max(1, number)):
            assert play.hooks[webhook_id].held <= max(1, play.share * play.attempts_max)
        assert play.free >= 0
    elif kind == "arrive":
        play.arrive(number, count)
    else:
        play.end(number, count)


@pytest.mark.parametrize(("count", "leaves"), [(1, 128), (2, 80), (10, 15), (100, 1)])
def test_of_an_idle_worker_one_takes_half_two_leave_a_third_and_even_a_hundred_leave_some(count, leaves):
    play = Play([Hook(1, 256, 10**6) for _ in range(count)], attempts_max=256, share=0.5)
    for _ in range(50):
        play.claim(128)

    assert play.free >= leaves
    assert min(hook.held for hook in play.hooks.values()) >= 0.5 * 256 / (count + 1)


def test_of_those_that_hold_all_they_may_the_heavier_hold_more():
    """Slow receivers, none of which has enough: attempts end here and there, and what is free is claimed."""
    hooks = [Hook(1, 256, 10**6), Hook(1, 256, 10**6), Hook(2, 256, 10**6), Hook(4, 256, 10**6)]
    play = Play(hooks, attempts_max=256, share=0.5)
    for number in range(4000):
        play.claim(128)
        play.end(number % 4, 1)

    ones, twos, fours = hooks[0].held + hooks[1].held, hooks[2].held, hooks[3].held
    assert 0.8 < twos / ones < 1.25
    assert 1.6 < fours / twos < 2.5
    assert 256 / 6 < play.free < 256 / 3.5  # As with four of one weight.


def test_weights_that_nobody_of_them_needs_cost_the_lighter_one_nothing():
    """A heavy webhook that always gets what it wants is no reason to let slots lie idle."""
    play = Play([Hook(1, 256, 10**6), Hook(100, 256, 0)], attempts_max=256, share=0.5)
    for _ in range(100):
        play.arrive(1, 1)
        play.claim(128)
        play.end(1, 1)

    assert play.hooks[WebhookId(0)].held >= 120


@given(weight=st.integers(1, 100), mean_weight=st.floats(1, 100), share=st.floats(0.01, 1))
def test_the_mean_has_the_share_itself_and_the_heavier_more_but_never_all(weight, mean_weight, share):
    own = share_of(share, weight=weight, mean_weight=mean_weight)

    assert 0 < own <= 1
    assert (own >= share - 1e-9) == (weight >= mean_weight - 1e-9) or share > 1 - 1e-6


def test_ten_thousand_hot_webhooks_are_served_in_turn():
    play = Play([Hook(1, 32, 3) for _ in range(10_000)], attempts_max=256, share=0.5)

    for _ in range(79):  # 128 a claim
        for number in play.claim(128):
            play.end(number, 256)

    served = [hook.served for hook in play.hooks.values()]
    assert (min(served), max(served)) == (1, 2)
