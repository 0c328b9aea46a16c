"""How likely it is that a webhook's circuit breaker must open soon, and why: a small model that learns as it goes.

Logistic regression on four figures, each of which a person can follow. It starts from weights that make sense, and
each moment is learnt from as soon as it is known what came of it: whether within `HORIZON_SECONDS` the plain rule would
have opened a breaker (five failures in a row, or over half of twenty or more attempts in 30 s). The weights are one set
for all webhooks of a worker, since a single one hardly ever fails; the figures are each webhook's own.

Time is an argument. Nothing of it is kept beyond the process.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

import attrs

HORIZON_SECONDS: Final = 60.0
ALARM_AT: Final = 0.5
CALM_BELOW: Final = 0.25
"""An alarm is over below this, so that it does not flutter."""
LOOK_EVERY_SECONDS: Final = 1.0
"""How often a webhook is judged and learnt from; attempts between count into its figures."""

RUN_MAX: Final = 5
"""The plain rule's failures in a row, and the rest of that rule:"""
WINDOW_SECONDS: Final = 30
WINDOW_ATTEMPTS_MIN: Final = 20
WINDOW_SHARE_MAX: Final = 0.5

FEATURES: Final = ("errors", "slowness", "run", "hour")
_PRIOR: Final[Mapping[str, float]] = {"errors": 6.0, "slowness": 1.5, "run": 3.0, "hour": 3.0}
_PRIOR_BIAS: Final = -4.5
_RATE: Final = 0.05
_KEEP: Final = 0.999999
"""Weights forget towards where they began, by so little a step."""
_GAIN: Final = 1.0 / 16.0
_SLACK_SECONDS: Final = 0.05
_SLOWNESS_MAX: Final = 4.0
_BASELINE_GAIN: Final = 1.0 / 256.0
_HOUR_SECONDS: Final = 3600.0
_HOURS: Final = 24
_HOUR_PRIOR: Final = 50.0
"""An hour counts for itself as far as it has more attempts than this."""
_HOUR_ATTEMPTS_MAX: Final = 20_000.0
_PENDING_MAX: Final = 128


@attrs.frozen(kw_only=True)
class Risk:
    """A webhook's risk at a moment."""

    probability: float
    contributions: Mapping[str, float]
    """What each figure adds to the log-odds."""


@attrs.define(eq=False)
class WebhookFigures:
    """What the model looks at, of one webhook."""

    errors: float = 0.0
    """The share of failures of about the last sixteen attempts."""
    run: int = 0
    recent_seconds: float = 0.0
    baseline_seconds: float = 0.0
    is_at_risk: bool = False
    is_open: bool = False
    """The plain rule opens the breaker at the last attempt."""
    _attempts: int = 0
    looked_at: float = -math.inf
    _window: deque[list[float]] = attrs.field(factory=deque)
    """[second, attempts, failures]"""
    _hours: list[list[float]] = attrs.field(factory=lambda: [[0.0, 0.0] for _ in range(_HOURS)])
    """[attempts, failures] by hour of the day"""
    pending: deque[tuple[float, tuple[float, ...]]] = attrs.field(factory=lambda: deque(maxlen=_PENDING_MAX))

    def count(self, *, failed: bool, seconds: float | None, now: float, wall: float) -> None:
        """Count an attempt in."""
        self._attempts += 1
        self.errors += (float(failed) - self.errors) * _GAIN
        self.run = self.run + 1 if failed else 0
        if seconds is not None:
            gain = max(_GAIN, 1.0 / self._attempts)
            self.recent_seconds += (seconds - self.recent_seconds) * gain
            gain = max(_BASELINE_GAIN, 1.0 / self._attempts)
            self.baseline_seconds += (self.recent_seconds - self.baseline_seconds) * gain
        hour = self._hours[_hour(wall)]
        hour[0] += 1.0
        hour[1] += failed
        if hour[0] > _HOUR_ATTEMPTS_MAX:
            hour[0] /= 2.0
            hour[1] /= 2.0
        self.is_open = self._opens(failed=failed, now=now)

    def _opens(self, *, failed: bool, now: float) -> bool:
        second = math.floor(now)
        window = self._window
        if not window or window[-1][0] != second:
            window.append([second, 0, 0])
        window[-1][1] += 1
        window[-1][2] += failed
        while window[0][0] <= second - WINDOW_SECONDS:
            window.popleft()
        if self.run >= RUN_MAX:
            return True
        if not failed:
            return False
        attempts = sum([bucket[1] for bucket in window])
        failures = sum([bucket[2] for bucket in window])
        return attempts >= WINDOW_ATTEMPTS_MIN and failures > WINDOW_SHARE_MAX * attempts

    def values(self, wall: float) -> tuple[float, ...]:
        """Return the figures in the order of `FEATURES`, each from 0 to a few."""
        ratio = (self.recent_seconds + _SLACK_SECONDS) / (self.baseline_seconds + _SLACK_SECONDS)
        return (
            self.errors,
            min(_SLOWNESS_MAX, max(0.0, math.log2(ratio))),
            min(self.run, RUN_MAX) / RUN_MAX,
            self._hour_excess(wall),
        )

    def _hour_excess(self, wall: float) -> float:
        """Return by how much the coming hour fails more often than the day."""
        attempts = sum([hour[0] for hour in self._hours])
        overall = sum([hour[1] for hour in self._hours]) / attempts if attempts else 0.0
        hour = self._hours[_hour(wall + HORIZON_SECONDS)]
        rate = (hour[1] + _HOUR_PRIOR * overall) / (hour[0] + _HOUR_PRIOR)
        return max(0.0, rate - overall)


@attrs.define(eq=False)
class RiskModel:
    """The weights, and what is learnt."""

    bias: float = _PRIOR_BIAS
    weights: list[float] = attrs.field(factory=lambda: [_PRIOR[name] for name in FEATURES])

    def ended(
        self, figures: WebhookFigures, *, failed: bool, seconds: float | None, now: float, wall: float
    ) -> Risk | None:
        """Take the end of an attempt into account; return the risk where the webhook is judged now, else None.

        *seconds* is how long the answer took, or how long it was waited for in vain. *wall* is Unix time.
        """
        figures.count(failed=failed, seconds=seconds, now=now, wall=wall)
        if figures.is_open:
            self._learn_opening(figures, now)
            return None  # It is no risk any more.
        self._learn_calm(figures, now)
        if now < figures.looked_at + LOOK_EVERY_SECONDS:
            return None
        figures.looked_at = now
        values = figures.values(wall)
        figures.pending.append((now, values))
        return self.risk(values)

    def risk(self, values: tuple[float, ...]) -> Risk:
        """Return the probability and what each figure adds to it."""
        parts = [weight * value for weight, value in zip(self.weights, values, strict=True)]
        return Risk(
            probability=_logistic(self.bias + sum(parts)),
            contributions=dict(zip(FEATURES, parts, strict=True)),
        )

    def _learn_opening(self, figures: WebhookFigures, now: float) -> None:
        for at, values in figures.pending:
            self._step(values, came=at >= now - HORIZON_SECONDS)
        figures.pending.clear()

    def _learn_calm(self, figures: WebhookFigures, now: float) -> None:
        pending = figures.pending
        while pending and pending[0][0] < now - HORIZON_SECONDS:
            self._step(pending.popleft()[1], came=False)

    def _step(self, values: tuple[float, ...], *, came: bool) -> None:
        off = float(came) - self.risk(values).probability
        self.bias = _PRIOR_BIAS + (self.bias - _PRIOR_BIAS) * _KEEP + _RATE * off
        for index, name in enumerate(FEATURES):
            kept = _PRIOR[name] + (self.weights[index] - _PRIOR[name]) * _KEEP
            # A figure that is high never speaks for health: what it means stays readable.
            self.weights[index] = max(0.0, kept + _RATE * off * values[index])


def has_become_at_risk(figures: WebhookFigures, risk: Risk) -> bool:
    """Say whether *risk* is news; an alarm lasts until the risk is clearly lower."""
    if figures.is_at_risk:
        figures.is_at_risk = risk.probability >= CALM_BELOW
        return False
    figures.is_at_risk = risk.probability >= ALARM_AT
    return figures.is_at_risk


def _hour(wall: float) -> int:
    return int(wall // _HOUR_SECONDS) % _HOURS


def _logistic(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, log_odds))))
