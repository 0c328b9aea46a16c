"""The circuit breaker of a webhook: closed, open, half-open; value in, value out.

One breaker serves all workers of a database. Its counts are columns of webhook_health_metrics, written by whoever
settles an outcome; whether a claim may be made is in webhook_limit, which claims read. ``pggit.breaker_after`` does in
SQL what `Breaker.after` does here, and a test holds the two together.

    closed      5 transient failures in a row, or a failure share of over 50 % of 20 and more attempts within 30 s,
                open it: for 60 s the first time, then for twice as long each time, to 10 min.
    half-open   the time is over. One attempt in the whole fleet is let through, the probe. An answer closes the
                breaker, a failure opens it again. A probe that tells nothing (the receiver throttles, we refused to
                send) is followed by another.
    slow start  closed a moment ago: concurrency and rate grow from a tenth to the whole within 30 s. Once these are
                over, the next opening is a first one again.

What an attempt tells that was under way when the breaker opened is neither here nor there: only the probe counts then.
A batch of outcomes is judged as a whole: the longest run of failures in it counts, with what was carried in, and one
without a failure opens nothing.
Times are seconds of the database's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from itertools import groupby
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.core.outcomes import Verdict

FAILURES_IN_A_ROW: Final = 5
WINDOW_SECONDS: Final = 30.0
WINDOW_ATTEMPTS_MIN: Final = 20
WINDOW_FAILURE_SHARE: Final = 0.5
"""Of the attempts; more than this opens it."""
OPEN_SECONDS_MIN: Final = 60.0
OPEN_SECONDS_MAX: Final = 600.0
RECOVERY_SECONDS: Final = 30.0
RECOVERY_SHARE_MIN: Final = 0.1
PROBE_AGAIN_SECONDS: Final = 5.0
"""After a probe that told nothing, and named no time of its own."""


class Vote(StrEnum):
    """What an outcome says about its receiver's health; one letter each, so that a batch is a word."""

    FAILURE = "f"
    ANSWER = "a"
    """It answers, be it with a refusal for good."""
    NEITHER = ""


_VOTES: Final[Mapping[Verdict, Vote]] = MappingProxyType(
    {
        Verdict.DELIVERED: Vote.ANSWER,
        Verdict.TRANSIENT: Vote.FAILURE,
        Verdict.THROTTLED: Vote.NEITHER,
        Verdict.GONE: Vote.ANSWER,
        Verdict.PERMANENT: Vote.ANSWER,
        Verdict.REFUSED: Vote.NEITHER,
        Verdict.CRASHED: Vote.NEITHER,
    }
)


class Phase(StrEnum):
    """What people and metrics call the states of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    RECOVERING = "recovering"
    """Closed, in its slow start."""


def vote_of(verdict: Verdict) -> Vote:
    """Return what *verdict* says about the receiver's health."""
    return _VOTES[verdict]


def open_seconds(opens: int) -> float:
    """Return for how long the breaker stays open that was opened for the *opens*-th time in a row, from 1."""
    assert opens >= 1
    # The shift is bounded, so that many openings cost no bignum.
    return min(OPEN_SECONDS_MAX, OPEN_SECONDS_MIN * (1 << min(opens - 1, 16)))


@attrs.frozen(kw_only=True)
class Breaker:
    """The counts, and the times that all else follows from."""

    failures: int = 0
    """In a row, to now."""
    window_started_at: float | None = None
    window_attempts: int = 0
    window_failures: int = 0
    opened_at: float | None = None
    """None: it is closed."""
    opens: int = 0
    """In a row: without a whole recovery between them."""
    closed_at: float | None = None
    """When a probe closed it last."""

    @property
    def until(self) -> float | None:
        """When an open breaker becomes half-open."""
        return None if self.opened_at is None else self.opened_at + open_seconds(self.opens)

    def phase(self, now: float) -> Phase:
        """Return what it is called at *now*."""
        if self.until is not None:
            return Phase.OPEN if now < self.until else Phase.HALF_OPEN
        return Phase.CLOSED if self.share(now) == 1.0 else Phase.RECOVERING

    def share(self, now: float) -> float:
        """Return which share of the webhook's concurrency and rate may be used once it is closed."""
        if self.closed_at is None or not abs(now - self.closed_at) < RECOVERY_SECONDS:
            return 1.0
        passed = max(0.0, now - self.closed_at) / RECOVERY_SECONDS
        return RECOVERY_SHARE_MIN + (1 - RECOVERY_SHARE_MIN) * passed

    def after(self, votes: str, *, now: float, probe: Vote | None = None) -> Breaker:
        """Return the breaker after a batch: its *votes* in order, and the vote of the *probe* if that was in it."""
        if self.opened_at is not None:
            return self._after_probe(probe, now=now)
        return self._after_votes(votes, now=now)

    def _after_probe(self, probe: Vote | None, *, now: float) -> Breaker:
        match probe:
            case Vote.ANSWER:
                return Breaker(opens=self.opens, closed_at=now)
            case Vote.FAILURE:
                return attrs.evolve(self, opened_at=now, opens=self.opens + 1)
            case _:
                return self

    def _after_votes(self, votes: str, *, now: float) -> Breaker:
        runs = [(vote, len(list(run))) for vote, run in groupby(votes)]
        lengths = [length for vote, length in runs if vote == Vote.FAILURE]
        if runs and runs[0][0] == Vote.FAILURE:
            lengths[0] += self.failures
        trailing = self.failures if not runs else lengths[-1] if runs[-1][0] == Vote.FAILURE else 0
        started = self.window_started_at
        is_new = started is None or not 0 <= now - started < WINDOW_SECONDS
        attempts = len(votes) + (0 if is_new else self.window_attempts)
        failures = votes.count(Vote.FAILURE) + (0 if is_new else self.window_failures)
        counted = attrs.evolve(
            self,
            failures=trailing,
            window_started_at=now if is_new else started,
            window_attempts=attempts,
            window_failures=failures,
        )
        too_many = attempts >= WINDOW_ATTEMPTS_MIN and failures > attempts * WINDOW_FAILURE_SHARE
        if not lengths or not (too_many or max(lengths) >= FAILURES_IN_A_ROW):
            return counted
        recovered = self.closed_at is None or now - self.closed_at >= RECOVERY_SECONDS
        return attrs.evolve(counted, opened_at=now, opens=1 if recovered else self.opens + 1)
