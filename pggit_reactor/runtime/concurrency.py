"""What this worker has learnt of how much each receiver can bear; see `core.adaptive_concurrency`.

A webhook's level is kept here, in memory, and bounded in number. What is below the limit is written to the database at
heartbeats, so that another worker, or this one after a restart, starts from it rather than from the limit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.core.adaptive_concurrency import AdaptiveConcurrency, Change, Sign
from pggit_reactor.core.model import AttemptFailure, AttemptResult, FailureKind, WebhookId
from pggit_reactor.core.outcomes import Verdict
from pggit_reactor.core.risk import RiskModel, WebhookFigures, has_become_at_risk
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics

WEBHOOKS_MAX: Final = 10_000
"""Webhooks that a level is kept of; of the rest, the longest unused, it is forgotten."""
SAID_EVERY_SECONDS: Final = 10.0
"""A webhook's level is news so often; it may fall and rise many times meanwhile."""
WRITTEN_AT_ONCE_MAX: Final = 500
FALL_AT_RISK: Final = 0.5

_SIGNS: Final[Mapping[str, Sign]] = MappingProxyType(
    {
        Verdict.DELIVERED.value: Sign.GOOD,
        Verdict.PERMANENT.value: Sign.GOOD,
        Verdict.GONE.value: Sign.GOOD,
        Verdict.TRANSIENT.value: Sign.FAILED,
        Verdict.THROTTLED.value: Sign.OVERLOADED,
    }
)

_GOOD: Final = Sign.GOOD
_NONE: Final = Change.NONE
"""See `core.adaptive_concurrency`."""

_log = get_logger("concurrency")


@attrs.define(eq=False)
class _Known:
    """One webhook."""

    adaptive: AdaptiveConcurrency
    figures: WebhookFigures | None = None
    said_at: float = -math.inf
    is_said: bool = False
    """That its level is low was logged, and not yet that it is not."""


@attrs.define(eq=False, kw_only=True)
class LearnedConcurrency:
    """The levels of a worker's webhooks."""

    metrics: Metrics
    now: Callable[[], float]
    """Trio's clock."""
    risks: RiskModel | None = None
    """Where it is there, a webhook that is likely to fail soon is lowered before it does."""
    wall: Callable[[], float] = lambda: 0.0
    """Unix time, for the hour of the day; asked only with `risks`."""
    _known: OrderedDict[WebhookId, _Known] = attrs.field(factory=OrderedDict, init=False)
    _unwritten: dict[WebhookId, int | None] = attrs.field(factory=dict, init=False)

    def allowed(self, webhook_id: WebhookId, limit: int) -> int:
        """Return how many attempts of a webhook may be in flight, 1 to *limit*."""
        known = self._known.get(webhook_id)
        return limit if known is None else known.adaptive.allowed(limit)

    def start_from(self, learned: Mapping[WebhookId, int]) -> None:
        """Take over what the database says, for webhooks that this worker knows nothing of."""
        for webhook_id, level in learned.items():
            if webhook_id not in self._known:
                self._remember(webhook_id).adaptive.level = float(level)

    def ended(
        self,
        webhook_id: WebhookId,
        result: AttemptResult | None,
        verdict: str,
        *,
        limit: int,
        in_flight: int,
        started_at: float,
    ) -> None:
        """Take the end of an attempt into account; *in_flight* counts it in."""
        sign = _SIGNS.get(verdict)
        if result is None or sign is None:
            return  # Nothing was sent.
        outcome = result.outcome
        seconds = None
        if isinstance(outcome, AttemptFailure):
            if outcome.kind is FailureKind.TIMEOUT:
                sign = Sign.OVERLOADED
        elif sign is _GOOD:
            # Without look-up, connection and TLS: at the start of a burst that is our own work.
            phases = result.phases
            if phases.answered is not None and phases.sent is not None:
                seconds = phases.answered - phases.sent
        known = self._known.get(webhook_id)
        if known is None:
            known = self._remember(webhook_id)
        else:
            self._known.move_to_end(webhook_id)
        now = self.now()
        change = known.adaptive.ended(
            sign, limit=limit, in_flight=in_flight, started_at=started_at, now=now, answer_seconds=seconds
        )
        if change is not _NONE:
            self._changed(webhook_id, known, change, limit=limit, now=now)
        if self.risks is not None:
            self._foresee(webhook_id, known, sign, seconds or result.elapsed_seconds, limit=limit, now=now)

    def take_unwritten(self) -> dict[WebhookId, int | None]:
        """Return levels that are not yet in the database, not too many at once; None: the limit counts again."""
        batch = dict(list(self._unwritten.items())[:WRITTEN_AT_ONCE_MAX])
        for webhook_id in batch:
            del self._unwritten[webhook_id]
        return batch

    def put_back(self, levels: Mapping[WebhookId, int | None]) -> None:
        """These could not be written. What is newer counts."""
        self._unwritten = {**levels, **self._unwritten}

    def _foresee(
        self, webhook_id: WebhookId, known: _Known, sign: Sign, seconds: float, *, limit: int, now: float
    ) -> None:
        assert self.risks is not None
        if known.figures is None:
            known.figures = WebhookFigures()
        failed = sign is not _GOOD
        risk = self.risks.ended(known.figures, failed=failed, seconds=seconds, now=now, wall=self.wall())
        if risk is None or not has_become_at_risk(known.figures, risk):
            return
        self.metrics.webhook_at_risk(webhook_id)
        because = {name: round(part, 2) for name, part in risk.contributions.items()}
        _log.warning(
            "webhook_at_risk", webhook_id=webhook_id, probability=round(risk.probability, 2), because=because
        )
        change = known.adaptive.fall(FALL_AT_RISK, limit=limit, now=now)
        if change is not _NONE:
            self._changed(webhook_id, known, change, limit=limit, now=now)

    def _remember(self, webhook_id: WebhookId) -> _Known:
        known = self._known[webhook_id] = _Known(AdaptiveConcurrency())
        if len(self._known) > WEBHOOKS_MAX:
            forgotten, _ = self._known.popitem(last=False)
            self._unwritten.pop(forgotten, None)
        return known

    def _changed(
        self, webhook_id: WebhookId, known: _Known, change: Change, *, limit: int, now: float
    ) -> None:
        is_back = change is Change.RECOVERED
        self._unwritten[webhook_id] = None if is_back else known.adaptive.allowed(limit)
        if change is Change.LOWERED:
            self.metrics.concurrency_lowered(webhook_id)
        if is_back and known.is_said:
            known.is_said = False
            _log.info("concurrency_recovered", webhook_id=webhook_id, limit=limit)
        if change is Change.LOWERED and now >= known.said_at + SAID_EVERY_SECONDS:
            known.said_at = now
            known.is_said = True
            allowed = known.adaptive.allowed(limit)
            _log.info("concurrency_lowered", webhook_id=webhook_id, allowed=allowed, limit=limit)
