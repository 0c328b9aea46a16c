"""How many attempts a receiver can bear at once: additive increase, multiplicative decrease.

A webhook has a limit of its own (`concurrency`); within it, a worker keeps a level for each. The level falls by half
when the receiver says that it is too much (429, a 503 that asks for patience, no answer in time), or when more than a
few of its answers are failures; and by a fifth when it has become slow. It rises by one a round of answers, as long as
it is used up and nothing is wrong. At most one fall a round trip: what had started before the last one says nothing
about it.

*Slow* is meant by the receiver's own measure: the mean of late against a baseline, which follows a smaller mean quickly
and rises by itself, slowly. There is slack in absolute terms too, since twice of a millisecond is noise, and mostly our
own. Lowering the level helps where requests queue behind each other. Where it does not help, the receiver is slow for
another reason, and may be: once an eighth of the level was tried in vain, what it takes now is the new baseline, and
the level is what it was.

Optimistic: a webhook starts at its limit, unless a level was learnt before. Time is an argument; values change in
place, because this is done for every attempt.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import attrs

FALL_ON_FAULT: Final = 0.5
FALL_ON_SLOWNESS: Final = 0.8
USED_UP: Final = 0.75
"""A level is used up where so much of it is in flight: claims come in batches, so it is never all of it."""
ERRORS_MAX: Final = 0.1
"""The share of failures, of about the last sixteen answers, above which the level falls: two close to each other."""
SLOW_RATIO: Final = 2.0
SLOW_SLACK_SECONDS: Final = 0.1
"""Slow is above the baseline times the ratio, and this much above that."""
SAMPLES_MIN: Final = 8
"""A mean of fewer says nothing."""
BASELINE_DOUBLES_SECONDS: Final = 600.0
BASELINE_STEP_SECONDS: Final = 1.0
TRIAL_DEPTH: Final = 8
"""A level is lowered for slowness to a part of what it was, and then it is judged whether that helped."""
HELPED_RATIO: Final = 0.5
"""It did where the mean is below so much of what it was at its worst; of mere queueing, an eighth would be left."""

_GAIN_SAMPLES: Final = 16
_GAIN: Final = 1.0 / _GAIN_SAMPLES


class Sign(StrEnum):
    """What the end of an attempt says about the receiver's strength."""

    GOOD = "good"
    """It answered, and it was its own answer: 2xx, and 4xx too."""
    FAILED = "failed"
    """An error that may have many causes."""
    OVERLOADED = "overloaded"
    """It says so, or did not answer in time."""


class Change(StrEnum):
    """What became of a level."""

    NONE = "none"
    LOWERED = "lowered"
    RAISED = "raised"
    RECOVERED = "recovered"
    """It is at the limit again."""


# The attributes of an enumeration are slow to look up, and these are for every attempt.
_GOOD: Final = Sign.GOOD
_OVERLOADED: Final = Sign.OVERLOADED
_NONE: Final = Change.NONE


@attrs.define(eq=False)
class AdaptiveConcurrency:
    """The level of one webhook in one worker."""

    level: float = math.inf
    """Infinite where the limit is all that counts."""
    lowered_at: float = -math.inf
    baseline_seconds: float = math.inf
    """Infinite while it is not known."""
    recent_seconds: float = 0.0
    """The mean of late, since the last fall."""
    _samples: int = 0
    _errors: float = 0.0
    _baseline_at: float = 0.0
    _trial_level: float = 0.0
    """What the level was before it was lowered for slowness; 0 where it was not."""
    _worst_seconds: float = 0.0

    def allowed(self, limit: int) -> int:
        """Return how many attempts may be in flight, 1 to *limit*."""
        return limit if self.level >= limit else int(self.level)

    def ended(
        self,
        sign: Sign,
        *,
        limit: int,
        in_flight: int,
        started_at: float,
        now: float,
        answer_seconds: float | None = None,
    ) -> Change:
        """Take the end of an attempt into account.

        *in_flight* counts it in. *answer_seconds* is how long the receiver took to answer, None where it did not.
        """
        if started_at < self.lowered_at:
            return _NONE
        if sign is not _GOOD:
            self._errors += (1.0 - self._errors) * _GAIN
            if sign is _OVERLOADED or self._errors > ERRORS_MAX:
                self._trial_level = 0.0
                return self.fall(FALL_ON_FAULT, limit=limit, now=now)
            return _NONE
        if self._errors:
            self._errors -= self._errors * _GAIN
        is_well = True
        if answer_seconds is not None:
            slow_seconds = self._sample(answer_seconds, now)
            if self._samples >= SAMPLES_MIN:
                if self.recent_seconds > slow_seconds:
                    return self._slow(limit=limit, now=now)
                self._trial_level = 0.0
            is_well = answer_seconds <= slow_seconds  # One slow answer says little; enough not to go on.
        if self.level == math.inf or in_flight < USED_UP * int(self.level) or not is_well:
            return _NONE
        self.level += 1.0 / self.level
        return self._capped(limit)

    def fall(self, factor: float, *, limit: int, now: float) -> Change:
        """Lower the level to *factor* of what it is."""
        self.lowered_at = now
        self._errors = 0.0
        self._samples = 0
        before = min(self.level, float(limit))
        if before <= 1.0:
            return _NONE
        self.level = max(1.0, before * factor)
        return Change.LOWERED

    def _capped(self, limit: int) -> Change:
        if self.level < limit:
            return Change.RAISED
        self.level = math.inf
        return Change.RECOVERED

    def _sample(self, seconds: float, now: float) -> float:
        """Take *seconds* into the mean and the baseline; return above what an answer is slow."""
        samples = self._samples = self._samples + 1
        if samples > _GAIN_SAMPLES:
            recent = self.recent_seconds = self.recent_seconds + (seconds - self.recent_seconds) * _GAIN
        else:
            recent = self.recent_seconds = self.recent_seconds + (seconds - self.recent_seconds) / samples
        baseline = self.baseline_seconds
        if samples < SAMPLES_MIN:
            return SLOW_RATIO * baseline + SLOW_SLACK_SECONDS
        if baseline == math.inf:
            baseline = recent
        elif recent < baseline:
            baseline += (recent - baseline) * _GAIN
        elif now >= self._baseline_at + BASELINE_STEP_SECONDS:
            baseline *= 2.0 ** ((now - self._baseline_at) / BASELINE_DOUBLES_SECONDS)
        else:
            return SLOW_RATIO * baseline + SLOW_SLACK_SECONDS
        self.baseline_seconds, self._baseline_at = baseline, now
        return SLOW_RATIO * baseline + SLOW_SLACK_SECONDS

    def _slow(self, *, limit: int, now: float) -> Change:
        level = min(self.level, float(limit))
        if self._trial_level == 0.0:
            self._trial_level, self._worst_seconds = level, self.recent_seconds
        self._worst_seconds = max(self._worst_seconds, self.recent_seconds)
        if level > max(1.0, self._trial_level / TRIAL_DEPTH):
            return self.fall(FALL_ON_SLOWNESS, limit=limit, now=now)
        tried, self._trial_level = self._trial_level, 0.0
        if self.recent_seconds < HELPED_RATIO * self._worst_seconds:
            return _NONE  # The next answer begins a trial from here.
        self.baseline_seconds = self.recent_seconds
        if tried <= level:
            return _NONE
        self.level = tried
        return self._capped(limit)
