"""The judge of rates finds what looking at every window finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.testing.windows import assert_within_rate, worst_window


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=40),
    st.floats(0.1, 50),
    st.integers(1, 10),
    st.sampled_from([0.0, 0.25]),
)
def test_the_worst_window_is_the_worst_of_all(moments, rate, burst, slack):
    moments = sorted(moments)
    by_looking = max(
        last - first + 1 - rate * (moments[last] - moments[first] + slack) - burst
        for first in range(len(moments))
        for last in range(first, len(moments))
    )

    worst = worst_window(moments, rate_per_s=rate, burst=burst, slack_seconds=slack)
    assert worst == pytest.approx(by_looking, abs=1e-6)


def test_one_request_too_many_is_said():
    moments = [0.0, 0.0, 0.0, 0.1]
    assert_within_rate(moments, rate_per_s=10, burst=3, slack_seconds=0.0)
    with pytest.raises(AssertionError, match=r"holds 1\.00 requests more than 10 a second and a burst of 2"):
        assert_within_rate(moments, rate_per_s=10, burst=2, slack_seconds=0.0)


def test_no_requests_are_within_any_rate():
    assert_within_rate([], rate_per_s=1, burst=1)
