"""Adaptive concurrency: bounded, calm about noise, gentle to the weak, and back at the limit when all is well."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pggit_reactor.core.adaptive_concurrency import (
    FALL_ON_FAULT,
    SLOW_RATIO,
    SLOW_SLACK_SECONDS,
    AdaptiveConcurrency,
    Change,
    Sign,
)

ENDS = st.lists(
    st.tuples(
        st.sampled_from(Sign),
        st.integers(1, 300),  # in flight
        st.floats(0, 30),  # since the last end
        st.floats(0, 30),  # how long it took
        st.none() | st.floats(0, 30),
    ),
    max_size=150,
)


@given(limit=st.integers(1, 256), ends=ENDS, learnt=st.none() | st.integers(1, 256))
def test_the_level_is_between_one_and_the_limit_and_falls_once_a_round_trip(limit, ends, learnt):
    adaptive = AdaptiveConcurrency(level=math.inf if learnt is None else float(learnt))
    now, fell_at = 0.0, -math.inf
    for sign, in_flight, gap, took, answer in ends:
        now += gap
        before, started_at = adaptive.level, now - took
        change = adaptive.ended(
            sign, limit=limit, in_flight=in_flight, started_at=started_at, now=now, answer_seconds=answer
        )

        assert 1 <= adaptive.allowed(limit) <= limit
        assert (change is Change.LOWERED) == (adaptive.level < before)
        assert (change in {Change.RAISED, Change.RECOVERED}) == (adaptive.level > before)
        if change is Change.LOWERED:
            assert started_at >= fell_at
            assert adaptive.level >= min(before, limit) * FALL_ON_FAULT
            fell_at = now


@given(
    baseline=st.floats(0.0005, 3.0),
    noise=st.lists(st.floats(0, 1), min_size=20, max_size=200),
    limit=st.integers(1, 256),
)
def test_noise_lowers_nothing(baseline, noise, limit):
    """Each answer takes up to twice as long as the quickest, and up to the slack more: it never falls."""
    adaptive, now = AdaptiveConcurrency(), 0.0
    for share in noise:
        seconds = baseline * (1 + (SLOW_RATIO - 1) * share) + SLOW_SLACK_SECONDS * share * 0.99
        now += seconds
        change = adaptive.ended(
            Sign.GOOD, limit=limit, in_flight=limit, started_at=now - seconds, now=now, answer_seconds=seconds
        )
        assert change is Change.NONE


def test_one_failure_now_and_then_lowers_nothing_and_two_in_a_row_do():
    adaptive = AdaptiveConcurrency()
    for number in range(400):
        sign = Sign.FAILED if number % 25 == 0 else Sign.GOOD
        adaptive.ended(sign, limit=32, in_flight=32, started_at=float(number), now=float(number))
    assert adaptive.allowed(32) == 32

    for number in (400, 401):
        adaptive.ended(Sign.FAILED, limit=32, in_flight=32, started_at=float(number), now=float(number))
    assert adaptive.allowed(32) == 16


@pytest.mark.parametrize("sign", [Sign.FAILED, Sign.OVERLOADED])
def test_a_receiver_that_only_fails_is_down_to_one_within_a_few_rounds_and_back_within_its_limit_of_them(
    sign,
):
    adaptive, now, rounds = AdaptiveConcurrency(), 0.0, 0
    while adaptive.allowed(32) > 1:
        now, rounds = now + 1, rounds + 1
        for _ in range(adaptive.allowed(32)):
            adaptive.ended(sign, limit=32, in_flight=32, started_at=now - 0.5, now=now)
    assert rounds <= 10

    rounds = 0
    while adaptive.allowed(32) < 32:
        now, rounds = now + 1, rounds + 1
        allowed = adaptive.allowed(32)
        for _ in range(allowed):
            adaptive.ended(Sign.GOOD, limit=32, in_flight=allowed, started_at=now - 0.5, now=now)
    assert rounds <= 40


def test_a_level_that_is_not_used_up_does_not_rise():
    adaptive = AdaptiveConcurrency(level=8.0)
    for now in range(1000):
        adaptive.ended(Sign.GOOD, limit=32, in_flight=5, started_at=float(now), now=float(now))

    assert adaptive.allowed(32) == 8


def test_a_limit_that_is_raised_or_lowered_counts_at_once():
    assert AdaptiveConcurrency().allowed(7) == 7
    assert AdaptiveConcurrency(level=9.5).allowed(7) == 7
    assert AdaptiveConcurrency(level=9.5).allowed(20) == 9


# ---- beside a receiver


@attrs.define
class Simulation:
    """A receiver that serves *capacity* requests at once in *seconds* each; the sender has work without end."""

    capacity: int
    seconds: float
    limit: int = 32
    timeout: float = 5.0
    draw: random.Random = attrs.field(factory=lambda: random.Random(7))
    adaptive: AdaptiveConcurrency = attrs.field(factory=AdaptiveConcurrency)
    now: float = 0.0
    done: int = 0
    timeouts: int = 0
    in_flight: int = 0
    _waiting: deque[float] = attrs.field(factory=deque)
    _serving: list[tuple[float, float]] = attrs.field(factory=list)

    def run(self, seconds: float) -> float:
        """Play so long; return answers a second."""
        end, before = self.now + seconds, self.done
        while self.now < end:
            self._fill()
            finished, started = heapq.heappop(self._serving)
            self.now = finished
            took = self.now - started
            late = took > self.timeout
            self.adaptive.ended(
                Sign.OVERLOADED if late else Sign.GOOD,
                limit=self.limit,
                in_flight=self.in_flight,
                started_at=started,
                now=self.now,
                answer_seconds=None if late else took,
            )
            self.in_flight -= 1
            self.done += not late
            self.timeouts += late
        return (self.done - before) / seconds

    def _fill(self) -> None:
        while self.in_flight < self.adaptive.allowed(self.limit):
            self.in_flight += 1
            self._waiting.append(self.now)
        while self._waiting and len(self._serving) < max(1, self.capacity):
            took = self.seconds * self.draw.uniform(0.8, 1.2)
            heapq.heappush(self._serving, (self.now + took, self._waiting.popleft()))


def test_a_receiver_whose_capacity_drops_is_spared_and_gets_all_again_when_it_returns():
    play = Simulation(capacity=32, seconds=0.2)
    assert play.run(20) == pytest.approx(160, rel=0.1)
    assert play.adaptive.allowed(32) == 32

    play.capacity = 4
    play.run(20)
    spared = play.run(20)
    assert 4 <= play.adaptive.allowed(32) <= 16
    assert spared == pytest.approx(20, rel=0.15)  # all that it can
    assert play.timeouts == 0

    play.capacity = 32
    play.run(20)
    assert play.run(20) == pytest.approx(160, rel=0.1)
    assert play.adaptive.allowed(32) == 32


@settings(deadline=None, max_examples=30)
@given(capacity=st.integers(1, 32), seconds=st.floats(0.002, 1.0), seed=st.integers(0, 1000))
def test_whatever_it_can_serve_it_is_used_and_nothing_times_out_for_long(capacity, seconds, seed):
    """From its full strength down to any other: nine tenths of that are used, and queues stay short."""
    play = Simulation(capacity=32, seconds=seconds, draw=random.Random(seed))
    play.run(50 * seconds + 5)
    play.capacity = capacity
    play.run(100 * seconds + 20)
    before = play.timeouts
    rate = play.run(200 * seconds)

    assert play.timeouts == before
    assert rate >= 0.8 * capacity / seconds


def test_a_receiver_that_is_slow_for_another_reason_keeps_what_it_may_have():
    """Ten times slower, however many requests there are: fewer at once would help nobody."""
    play = Simulation(capacity=32, seconds=0.1)
    play.run(20)
    play.seconds = 1.0
    play.run(120)

    assert play.adaptive.allowed(32) == 32


def test_answers_of_two_kinds_are_no_reason_to_fall():
    """Most are quick, from a cache; the others take their time."""
    adaptive, draw, falls = AdaptiveConcurrency(), random.Random(3), 0
    for number in range(5000):
        seconds = 0.005 if draw.random() < 0.5 else 0.3
        now = number * 0.01
        change = adaptive.ended(
            Sign.GOOD, limit=32, in_flight=32, started_at=now, now=now, answer_seconds=seconds
        )
        falls += change is Change.LOWERED

    assert falls <= 3
