"""A token bucket as one time: the theoretical arrival time of GCRA (ITU-T I.371).

A bucket of *burst* tokens that fills at *rate* a second is kept as `tat`, the moment at which it will be full. What is
missing from it is the time until then: so nothing has to be written while it fills, and a full one needs no state at
all. The claim statement does the same arithmetic on the database's clock (``db/sql/claim.sql``, and ``fleet.sql``);
a test holds the two together. Times are whole microseconds, as PostgreSQL's are.

What holds, in any window of w seconds: at most rate x w + burst tokens are taken, by however many takers, though they
read the clock in another order than they take. Where the rate is changed within the window: the sum over its pieces
of rate x time, and the larger burst. A clock that steps back gives no token more than real time would have; one that
steps forward gives at most one burst more, as nothing can know better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeVar

import attrs

MICROSECONDS: Final = 1_000_000
RATE_MIN: Final = 1e-6
"""Tokens a second; less is taken for this, one in 11 days."""
RATE_MAX: Final = 1e9
FILL_SECONDS_MAX: Final = 3e8
"""A bucket holds at most what comes in about ten years, whatever its burst: times must stay within PostgreSQL's."""
TOLERANCE: Final = 0.001
"""Of a token. A cost is rounded up to a microsecond, and a bucket that was waited for exactly must not lack a grain."""
DISORDER_SECONDS_MAX: Final = 1.0
"""A bucket that seems emptier than empty by less was taken from by somebody who read the clock later, and owes that;
by more, the clock was set back, and nobody waits that out."""
WAKE_SECONDS_MIN: Final = 0.01
"""Who waits for a token comes back no sooner, unless the bucket is half full sooner: it must not run over."""

K = TypeVar("K")


@attrs.frozen(kw_only=True)
class Bucket:
    """How a bucket fills and what it holds at most. Methods take its `tat` and the time, in microseconds."""

    rate_per_s: float
    burst: int
    share: float = 1.0
    """Of rate and burst, in (0, 1]: a webhook that recovers starts with a tenth."""

    @property
    def rate(self) -> float:
        """Tokens a second, within the bounds and by its share."""
        return min(max(self.rate_per_s, RATE_MIN), RATE_MAX) * self.share

    @property
    def size(self) -> int:
        """Tokens in a full bucket, at least one."""
        whole = min(max(self.rate_per_s, RATE_MIN), RATE_MAX)
        return max(1, math.floor(min(self.burst, whole * FILL_SECONDS_MAX) * self.share))

    def _missing(self, tat: int | None, now: int) -> float:
        """Return how long it is until the bucket is full, in microseconds."""
        if tat is None:
            return 0.0
        missing, empty = max(tat - now, 0), self.size / self.rate * MICROSECONDS
        return empty if missing > empty + DISORDER_SECONDS_MAX * MICROSECONDS else missing

    def available(self, tat: int | None, now: int) -> int:
        """Return how many tokens may be taken now."""
        missing_tokens = self._missing(tat, now) / MICROSECONDS * self.rate
        return max(0, math.floor(self.size - missing_tokens + TOLERANCE))

    def take(self, tat: int | None, now: int, count: int) -> int:
        """Return the `tat` after *count* tokens were taken, which must be available. Taking none mends a `tat` that is
        too far ahead, and changes no other in effect."""
        assert 0 <= count <= self.available(tat, now)
        return now + round(self._missing(tat, now)) + math.ceil(count * MICROSECONDS / self.rate)

    def wait_seconds(self, tat: int | None, now: int) -> float:
        """Return how long who wants more than is there shall wait: for a token, and a little longer for several."""
        token = self._missing(tat, now) / MICROSECONDS - (self.size - 1) / self.rate
        return max(token, min(WAKE_SECONDS_MIN, self.size / self.rate / 2), 0.0)


def debt_at_new_rate(tat: int, now: int, *, old_rate_per_s: float, new_rate_per_s: float) -> int:
    """Return the `tat` of a bucket whose rate was changed under way: it lacks as many tokens as before."""
    old = min(max(old_rate_per_s, RATE_MIN), RATE_MAX)
    new = min(max(new_rate_per_s, RATE_MIN), RATE_MAX)
    return now + math.ceil(max(tat - now, 0) * old / new)


def ration(budgets: Mapping[K, int], tokens: int) -> dict[K, int]:
    """Return what is left of *budgets* where only so many *tokens* are there for all: one each in turn, so that no one
    goes without while another gets a second. Those that get none are left out."""
    granted = dict.fromkeys(budgets, 0)
    open_keys = [key for key, budget in budgets.items() if budget > 0]
    left = tokens
    while open_keys and left > 0:
        for key in open_keys[:left]:
            granted[key] += 1
        left -= len(open_keys[:left])
        open_keys = [key for key in open_keys if granted[key] < budgets[key]]
    return {key: count for key, count in granted.items() if count}
