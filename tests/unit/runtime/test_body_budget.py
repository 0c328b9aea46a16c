"""Octets of bodies in memory are bounded, and whoever waits gets its turn."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from pggit_reactor.runtime.body_budget import BodyBudget


async def test_a_large_body_waits_for_room(nursery: trio.Nursery):
    budget = BodyBudget(100)
    budget.take(60)
    nursery.start_soon(budget.wait_and_take, 50)
    await wait_all_tasks_blocked()
    assert (budget.held_bytes, budget.is_full) == (60, True)

    budget.give_back(60)
    await wait_all_tasks_blocked()

    assert (budget.held_bytes, budget.is_full) == (50, False)


async def test_a_body_larger_than_the_bound_goes_alone():
    budget = BodyBudget(100)

    await budget.wait_and_take(500)

    assert budget.is_full


async def test_a_cancelled_wait_holds_nothing():
    budget = BodyBudget(100)
    budget.take(100)
    with trio.move_on_after(0):
        await budget.wait_and_take(1)

    budget.give_back(100)

    assert (budget.held_bytes, budget.is_full) == (0, False)
