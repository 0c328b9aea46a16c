"""The circuit breaker: what opens it, what does not, and that nothing but a probe closes it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.breaker import (
    FAILURES_IN_A_ROW,
    OPEN_SECONDS_MAX,
    OPEN_SECONDS_MIN,
    RECOVERY_SECONDS,
    RECOVERY_SHARE_MIN,
    WINDOW_ATTEMPTS_MIN,
    WINDOW_SECONDS,
    Breaker,
    Phase,
    Vote,
    open_seconds,
    vote_of,
)
from pggit_reactor.core.outcomes import Verdict

NOW = 1_000_000.0
WORDS = st.text("fa", max_size=30)
BATCHES = st.lists(st.tuples(st.floats(0, 20), WORDS), max_size=30)


def closed(batches, breaker=None):
    """Return the breaker after *batches* and what it was before each, until it opens."""
    now, breaker = NOW, breaker or Breaker()
    for passed, votes in batches:
        now += passed
        before, breaker = breaker, breaker.after(votes, now=now)
        yield now, votes, before, breaker
        if breaker.opened_at is not None:
            return


@given(BATCHES)
def test_it_opens_exactly_at_five_failures_in_a_row_or_at_a_share_of_failures(batches):
    word, window = "", (NOW - WINDOW_SECONDS, "")
    for now, votes, _, breaker in closed(batches):
        word += votes
        window = (window[0], window[1] + votes) if now - window[0] < WINDOW_SECONDS else (now, votes)
        in_a_row = "f" * FAILURES_IN_A_ROW in word[max(0, len(word) - len(votes) - FAILURES_IN_A_ROW + 1) :]
        failures = window[1].count("f")
        too_many = len(window[1]) >= WINDOW_ATTEMPTS_MIN and failures > len(window[1]) / 2

        assert (breaker.opened_at is not None) == ("f" in votes and (in_a_row or too_many))
        assert breaker.failures == len(re.search("f*$", word)[0])


@given(st.text("fa", max_size=60).map(lambda votes: votes + "f"))
def test_outcomes_one_by_one_open_it_no_later_than_in_one_batch(votes):
    together = Breaker().after(votes, now=NOW)
    one_by_one = Breaker()
    for vote in votes:
        one_by_one = one_by_one.after(vote, now=NOW)

    assert together.opened_at is None or one_by_one.opened_at is not None


@given(WORDS, st.floats(0, 10_000), st.integers(1, 8))
def test_what_is_no_probe_neither_closes_an_open_breaker_nor_keeps_it_open_for_longer(votes, passed, opens):
    breaker = Breaker(failures=5, opened_at=NOW, opens=opens)

    assert breaker.after(votes, now=NOW + passed) == breaker
    assert breaker.after(votes, now=NOW + passed, probe=Vote.NEITHER) == breaker


@given(st.integers(1, 40))
def test_it_is_open_for_sixty_seconds_and_then_twice_as_long_each_time_to_ten_minutes(opens):
    assert open_seconds(opens + 1) == min(2 * open_seconds(opens), OPEN_SECONDS_MAX)
    assert open_seconds(1) == OPEN_SECONDS_MIN


def test_a_probe_that_fails_opens_it_for_twice_as_long():
    breaker = Breaker().after("fffff", now=NOW)
    lengths = []
    for _ in range(6):
        lengths.append(breaker.until - breaker.opened_at)
        breaker = breaker.after("f", now=breaker.until, probe=Vote.FAILURE)

    assert lengths == [60, 120, 240, 480, 600, 600]


def test_a_probe_that_succeeds_closes_it_and_its_counts_begin_anew():
    breaker = Breaker().after("fffff", now=NOW).after("a", now=NOW + 60, probe=Vote.ANSWER)

    assert breaker == Breaker(opens=1, closed_at=NOW + 60)
    assert breaker.after("ffff", now=NOW + 61).opened_at is None


@pytest.mark.parametrize(
    ("seconds", "opens"), [(0.0, 2), (RECOVERY_SECONDS - 0.1, 2), (RECOVERY_SECONDS, 1), (3600.0, 1)]
)
def test_the_doubling_ends_with_a_whole_recovery(seconds, opens):
    breaker = Breaker(opens=1, closed_at=NOW).after("fffff", now=NOW + seconds)

    assert breaker.opens == opens


@given(st.lists(st.floats(-10, 40), min_size=2).map(sorted))
def test_the_share_grows_from_a_tenth_to_the_whole_and_never_shrinks(moments):
    breaker = Breaker(closed_at=NOW)
    shares = [breaker.share(NOW + moment) for moment in moments]

    assert all(RECOVERY_SHARE_MIN <= share <= 1.0 for share in shares)
    assert all(one <= other for one, other in pairwise(shares))
    assert breaker.share(NOW) == RECOVERY_SHARE_MIN
    assert breaker.share(NOW + RECOVERY_SECONDS) == 1.0


def test_a_clock_that_was_set_back_far_leaves_no_slow_start_behind():
    assert Breaker(closed_at=NOW).share(NOW - 3600) == 1.0


def test_each_state_has_a_name():
    opened = Breaker().after("fffff", now=NOW)
    recovering = opened.after("a", now=NOW + 60, probe=Vote.ANSWER)

    assert Breaker().phase(NOW) is Phase.CLOSED
    assert opened.phase(NOW + 59.9) is Phase.OPEN
    assert opened.phase(NOW + 60) is Phase.HALF_OPEN
    assert recovering.phase(NOW + 61) is Phase.RECOVERING
    assert recovering.phase(NOW + 90) is Phase.CLOSED


def test_every_verdict_has_a_vote():
    votes = {verdict: vote_of(verdict) for verdict in Verdict}

    assert {verdict for verdict, vote in votes.items() if vote is Vote.FAILURE} == {Verdict.TRANSIENT}
    assert {verdict for verdict, vote in votes.items() if vote is Vote.ANSWER} == {
        Verdict.DELIVERED,
        Verdict.PERMANENT,
        Verdict.GONE,
    }
