"""The waits between attempts stay within their bounds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.backoff import Backoff
from pggit_reactor.errors import ConfigurationError
from pggit_reactor.testing import strategies as our

attempts = st.integers(1, 10**9)


def ceiling_seconds(backoff: Backoff, attempt: int) -> float:
    """What the wait would be without jitter: doubled one by one, and stopped at the cap."""
    seconds = backoff.base_seconds
    for _ in range(attempt - 1):
        if seconds >= backoff.cap_seconds:
            break
        seconds *= 2
    return min(seconds, backoff.cap_seconds)


@given(backoff=our.backoffs(), attempt=attempts, draw=our.draws())
def test_a_wait_lies_between_half_of_its_ceiling_and_the_whole(backoff, attempt, draw):
    ceiling = ceiling_seconds(backoff, attempt)

    delay = backoff.delay_seconds(attempt, draw)

    assert ceiling / 2 <= delay <= ceiling


@given(backoff=our.backoffs(), attempt=attempts, draw=our.draws())
def test_the_same_draw_never_waits_less_after_one_more_attempt(backoff, attempt, draw):
    assert backoff.delay_seconds(attempt, draw) <= backoff.delay_seconds(attempt + 1, draw)


@given(backoff=our.backoffs(), attempt=attempts, draws=st.tuples(our.draws(), our.draws()).map(sorted))
def test_a_higher_draw_never_waits_less(backoff, attempt, draws):
    lower, higher = draws

    assert backoff.delay_seconds(attempt, lower) <= backoff.delay_seconds(attempt, higher)


@pytest.mark.parametrize(
    ("attempt", "draw", "seconds"),
    [
        (1, 0.0, 2.5),
        (1, 0.5, 3.75),
        (2, 0.0, 5.0),
        (3, 0.0, 10.0),
        (9, 0.0, 640.0),
        (10, 0.0, 900.0),
        (10**6, 0.0, 900.0),
    ],
)
def test_the_default_waits_start_at_five_seconds_and_end_at_thirty_minutes(attempt, draw, seconds):
    assert Backoff().delay_seconds(attempt, draw) == seconds


@pytest.mark.parametrize("field", ["base_seconds", "cap_seconds"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_wait_that_is_no_wait_is_refused(field, value):
    with pytest.raises(ConfigurationError, match=field):
        Backoff(**{field: value})
