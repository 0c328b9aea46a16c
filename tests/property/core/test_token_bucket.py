"""The token bucket: no window holds more than its rate and one burst, whatever the clock does and whoever takes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.token_bucket import (
    DISORDER_SECONDS_MAX,
    TOLERANCE,
    WAKE_SECONDS_MIN,
    Bucket,
    debt_at_new_rate,
    ration,
)

START = 1_700_000_000_000_000
RATES = st.one_of(st.floats(0.001, 5_000), st.sampled_from([0.1, 1 / 3, 1.0, 3.0, 100.0, 1_000.0, 1e6]))
BUCKETS = st.builds(Bucket, rate_per_s=RATES, burst=st.integers(1, 200))
STEPS = st.lists(
    st.tuples(st.one_of(st.integers(0, 2_000), st.integers(0, 3_000_000)), st.integers(0, 250)),
    min_size=1,
    max_size=60,
)
"""Microseconds since the step before, and how many are wanted."""


def takes(bucket, moments, tat=None):
    """Take as many as are wanted and there; return (moment, count) of each."""
    taken = []
    for now, wanted in moments:
        count = min(wanted, bucket.available(tat, now))
        tat = bucket.take(tat, now, count)
        taken.append((now, count))
    return taken


def assert_no_window_over(taken, *, rate, burst):
    """Judge each window that begins and ends with a take; any other holds no more than one of these."""
    taken = sorted(taken)
    for first in range(len(taken)):
        total = 0
        for moment, count in taken[first:]:
            total += count
            seconds = (moment - taken[first][0]) / 1e6
            assert total <= rate * seconds * (1 + 1e-9) + burst + TOLERANCE


def clock(steps, *, start=START):
    now, moments = start, []
    for passed, wanted in steps:
        now += passed
        moments.append((now, wanted))
    return moments


@given(BUCKETS, STEPS)
def test_no_window_holds_more_than_its_rate_and_one_burst(bucket, steps):
    assert_no_window_over(takes(bucket, clock(steps)), rate=bucket.rate_per_s, burst=bucket.burst)


@given(BUCKETS, STEPS, st.randoms(use_true_random=False))
def test_takers_that_read_the_clock_in_another_order_than_they_take_make_no_difference(bucket, steps, luck):
    moments = clock(steps)
    for index in range(len(moments) - 1):
        if luck.random() < 0.5 and moments[index + 1][0] - moments[index][0] < 300_000:
            moments[index], moments[index + 1] = moments[index + 1], moments[index]

    assert_no_window_over(takes(bucket, moments), rate=bucket.rate_per_s, burst=bucket.burst)


@given(BUCKETS, STEPS, st.lists(st.integers(0, 5_000_000), min_size=60, max_size=60))
def test_a_clock_that_steps_back_gives_no_more_than_real_time_would(bucket, steps, setbacks):
    moments = clock(steps)
    behind, tat, taken = 0, None, []
    for (real, wanted), setback in zip(moments, setbacks, strict=False):
        behind += setback if wanted % 3 == 0 else 0
        now = real - behind
        count = min(wanted, bucket.available(tat, now))
        tat = bucket.take(tat, now, count)
        taken.append((real, count))

    assert_no_window_over(taken, rate=bucket.rate_per_s, burst=bucket.burst)


@given(BUCKETS, st.integers(0, 10**15))
def test_after_a_clock_that_stepped_back_nobody_waits_longer_than_for_an_empty_bucket(bucket, setback):
    tat = bucket.take(None, START, bucket.size)

    assert bucket.wait_seconds(tat, START - setback) <= (
        max(1 / bucket.rate + 1e-6, WAKE_SECONDS_MIN) + DISORDER_SECONDS_MAX
    )


@given(BUCKETS, STEPS, RATES, STEPS)
def test_a_rate_that_was_changed_holds_by_pieces(bucket, before, rate, after):
    changed = Bucket(rate_per_s=rate, burst=bucket.burst)
    first = clock(before)
    tat, taken = None, []
    for now, wanted in first:
        count = min(wanted, bucket.available(tat, now))
        tat = bucket.take(tat, now, count)
        taken.append((now, count))
    moment = first[-1][0]
    tat = debt_at_new_rate(tat, moment, old_rate_per_s=bucket.rate_per_s, new_rate_per_s=rate)
    later = takes(changed, clock(after, start=moment), tat)

    for now, _ in taken:
        until_change = bucket.rate_per_s * (moment - now) / 1e6
        before_change = sum(count for at, count in taken if at >= now)
        for end, _ in later:
            total = before_change + sum(count for at, count in later if at <= end)
            allowed = until_change + changed.rate_per_s * (end - moment) / 1e6
            assert total <= allowed * (1 + 1e-9) + bucket.burst + 3 * TOLERANCE


@given(BUCKETS, st.integers(1, 200), STEPS)
def test_a_burst_that_was_lowered_holds_for_every_window_after_the_change(bucket, burst, steps):
    lowered = Bucket(rate_per_s=bucket.rate_per_s, burst=min(burst, bucket.burst))
    tat = bucket.take(None, START, bucket.size)

    assert_no_window_over(takes(lowered, clock(steps), tat), rate=lowered.rate_per_s, burst=lowered.burst)


@given(BUCKETS)
def test_a_full_bucket_gives_all_that_it_holds_one_by_one_and_then_nothing(bucket):
    tat = None
    for left in range(bucket.size, 0, -1):
        if bucket.rate_per_s <= 5_000:  # Above, a microsecond is more than the tolerance.
            assert bucket.available(tat, START) in {left, left - 1}
        if not bucket.available(tat, START):
            break
        tat = bucket.take(tat, START, 1)

    assert bucket.available(tat, START) == 0


@given(BUCKETS, st.integers(1, 10**9))
def test_whoever_waited_as_long_as_it_was_told_finds_a_token(bucket, passed):
    tat = bucket.take(None, START, bucket.size)
    now = START + passed
    wait = bucket.wait_seconds(tat, now)

    assert bucket.available(tat, now + int(wait * 1e6) + 1) >= 1


@given(st.floats(0.1, 5_000), st.integers(1, 500))
def test_a_steady_taker_that_comes_when_it_is_told_gets_the_whole_rate(rate, burst):
    bucket = Bucket(rate_per_s=rate, burst=burst)
    tat, now, got = bucket.take(None, START, bucket.size), START, 0
    for _ in range(200):
        now += math.ceil(bucket.wait_seconds(tat, now) * 1e6)
        count = bucket.available(tat, now)
        tat = bucket.take(tat, now, count)
        got += count

    assert got >= rate * (now - START) / 1e6 * 0.995 - 1


@pytest.mark.parametrize("rate", [0.0, 1e-300, 1e300, float("inf")])
@pytest.mark.parametrize("burst", [1, 2**31 - 1])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_no_rate_leads_out_of_the_bounds_of_time(rate, burst, share):
    bucket = Bucket(rate_per_s=rate, burst=burst, share=share)
    tat = bucket.take(None, START, bucket.size)

    assert START < tat < START + 4e8 * 1e6 / share
    assert bucket.available(tat, tat) == bucket.size


@given(st.floats(0.1, 1_000), st.integers(1, 500), st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_a_larger_share_is_never_slower(rate, burst, one, other):
    small, large = (Bucket(rate_per_s=rate, burst=burst, share=share) for share in sorted((one, other)))

    assert small.size <= large.size
    assert small.rate <= large.rate


def test_a_bucket_that_fills_slowly_tells_when_the_next_token_comes():
    bucket = Bucket(rate_per_s=0.1, burst=1)
    tat = bucket.take(None, START, 1)
    waits = [bucket.wait_seconds(tat, START + seconds * 1_000_000) for seconds in range(11)]

    assert waits[0] == pytest.approx(10.0)
    assert all(later == pytest.approx(earlier - 1) for earlier, later in pairwise(waits[:10]))


@given(st.dictionaries(st.integers(), st.integers(1, 40), max_size=20), st.integers(0, 300))
def test_a_ration_hands_out_what_is_there_and_nobody_gets_a_second_before_all_had_one(budgets, tokens):
    rationed = ration(budgets, tokens)

    assert sum(rationed.values()) == min(tokens, sum(budgets.values()))
    assert all(0 < count <= budgets[key] for key, count in rationed.items())
    short = [rationed.get(key, 0) for key in budgets if rationed.get(key, 0) < budgets[key]]
    assert not short or max(rationed.values(), default=0) <= min(short) + 1
