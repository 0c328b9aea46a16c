"""Budgets: what is handed out is what there is, and nobody holds more than a fair share while another waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.budget import Demand, plan_budgets

DEMANDS = st.lists(st.integers(min_value=-3, max_value=300), max_size=40).map(
    lambda rooms: [Demand(webhook_id=number, room=room) for number, room in enumerate(rooms)]
)
SLOTS = st.integers(min_value=-5, max_value=600)


@given(DEMANDS, SLOTS)
def test_nobody_gets_more_than_its_room_and_all_together_no_more_than_the_slots(demands, slots):
    budgets = plan_budgets(demands, slots=slots)

    rooms = {demand.webhook_id: demand.room for demand in demands}
    assert all(0 < budget <= rooms[webhook_id] for webhook_id, budget in budgets.items())
    assert sum(budgets.values()) <= max(slots, 0)


@given(DEMANDS, SLOTS)
def test_no_slot_is_left_over_that_somebody_could_use(demands, slots):
    budgets = plan_budgets(demands, slots=slots)

    wanted = sum(max(demand.room, 0) for demand in demands)
    assert sum(budgets.values()) == min(wanted, max(slots, 0))


@given(DEMANDS, SLOTS)
def test_whoever_gets_less_than_its_room_gets_at_most_one_slot_less_than_anybody_else(demands, slots):
    budgets = plan_budgets(demands, slots=slots)

    short = [
        budgets.get(demand.webhook_id, 0)
        for demand in demands
        if demand.room > budgets.get(demand.webhook_id, 0)
    ]
    assert not short or min(short) >= max(budgets.values(), default=0) - 1


def test_the_first_in_line_gets_the_odd_slot():
    demands = [Demand(webhook_id=number, room=10) for number in (7, 3, 5)]

    assert plan_budgets(demands, slots=4) == {7: 2, 3: 1, 5: 1}
    assert plan_budgets(demands, slots=2) == {7: 1, 3: 1}
