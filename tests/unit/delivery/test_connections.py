"""The pool: whose connections are kept, how many, how long, and that each is given once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.delivery.connections import ConnectionPool, PoolLimits


class FakeWire:
    """What the pool needs of a connection. Real ones are in the integration tests."""

    def __init__(self) -> None:
        self.opened_at = trio.current_time()
        self.is_stale = False
        self.closed = False

    def stale(self) -> bool:
        return self.is_stale or self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pool() -> Iterator[ConnectionPool]:
    return ConnectionPool(
        PoolLimits(idle_per_key_max=2, idle_max=3, idle_seconds_max=10, age_seconds_max=100)
    )


async def test_the_connection_used_last_is_taken_first(pool):
    older, newer = FakeWire(), FakeWire()
    pool.give("key", older)
    pool.give("key", newer)

    assert [pool.take("key"), pool.take("key"), pool.take("key")] == [newer, older, None]


async def test_keys_share_nothing(pool):
    pool.give("key", FakeWire())

    assert pool.take("other") is None


async def test_stale_connections_are_closed_and_passed_over(pool):
    fresh, stale = FakeWire(), FakeWire()
    pool.give("key", fresh)
    pool.give("key", stale)
    stale.is_stale = True

    assert pool.take("key") is fresh
    assert stale.closed
    assert pool.idle_count == 0


async def test_the_oldest_of_a_key_goes_when_there_are_too_many(pool):
    wires = [FakeWire() for _ in range(3)]
    for wire in wires:
        pool.give("key", wire)

    assert [wire.closed for wire in wires] == [True, False, False]


async def test_the_oldest_of_all_goes_when_there_are_too_many(pool):
    wires = [FakeWire() for _ in range(4)]
    for number, wire in enumerate(wires):
        pool.give(f"key {number}", wire)

    assert [wire.closed for wire in wires] == [True, False, False, False]
    assert pool.take("key 0") is None


async def test_idle_time_and_age_have_limits(pool, autojump_clock):
    wire = FakeWire()
    pool.give("key", wire)
    await trio.sleep(9)
    assert pool.take("key") is wire
    pool.give("key", wire)
    await trio.sleep(9)
    assert pool.take("key") is wire, "idle time counts from the last use"
    pool.give("key", wire)
    await trio.sleep(11)
    assert pool.take("key") is None
    assert wire.closed

    aged = FakeWire()
    await trio.sleep(100)
    pool.give("key", aged)
    assert aged.closed


async def test_after_its_end_the_pool_keeps_nothing(pool):
    early, late = FakeWire(), FakeWire()
    pool.give("key", early)
    pool.close()
    pool.give("key", late)

    assert early.closed
    assert late.closed
    assert pool.idle_count == 0


async def test_a_key_that_is_replaced_keeps_nothing_and_gets_nothing_back(pool):
    idle, in_use, fresh = FakeWire(), FakeWire(), FakeWire()
    pool.give("old", idle)

    pool.replace("old", "new")
    pool.give("old", in_use)
    pool.give("new", fresh)

    assert [idle.closed, in_use.closed, fresh.closed] == [True, True, False]
    assert pool.take("new") is fresh


async def test_a_key_that_comes_back_is_like_any_other(pool):
    wire = FakeWire()
    pool.replace("old", "new")
    pool.replace("new", "old")
    pool.give("old", wire)

    assert pool.take("old") is wire


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "give", "stale", "wait", "replace"]),
            st.integers(0, 2),
            st.integers(0, 9),
        ),
        max_size=60,
    )
)
def test_whatever_happens_the_limits_hold_and_no_connection_is_given_twice(steps):
    """Against a model that is a plain list of what waits."""

    async def play() -> None:
        pool = ConnectionPool(PoolLimits(idle_per_key_max=2, idle_max=4, idle_seconds_max=10))
        waiting: list[tuple[int, FakeWire, float]] = []
        retired: set[int] = set()
        for step, key, number in steps:
            now = trio.current_time()
            if step == "wait":
                await trio.sleep(number)
            elif step == "stale" and waiting:
                waiting[number % len(waiting)][1].is_stale = True
            elif step == "replace" and key != number % 3:
                pool.replace(key, number % 3)
                waiting = [entry for entry in waiting if entry[0] != key]
                retired = (retired | {key}) - {number % 3}
            elif step == "give" and key in retired:
                refused = FakeWire()
                pool.give(key, refused)
                assert refused.closed
            elif step == "give":
                waiting.append((key, FakeWire(), now))
                pool.give(key, waiting[-1][1])
                mine = [entry for entry in waiting if entry[0] == key]
                if len(mine) > 2:
                    waiting.remove(mine[0])
                del waiting[: max(0, len(waiting) - 4)]
            elif step == "take":
                expected = None
                waiting = [entry for entry in waiting if entry[2] + 10 > now]
                for entry in [entry for entry in reversed(waiting) if entry[0] == key]:
                    waiting.remove(entry)
                    if not entry[1].is_stale:
                        expected = entry[1]
                        break
                assert pool.take(key) is expected
            assert all(not wire.closed for _, wire, since in waiting if since + 10 > trio.current_time())

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))
