"""The way of each delivery as a log event, and the outcomes that people must see."""

from __future__ import annotations

from typing import Final

import attrs
import trio

from pggit_reactor.core.breaker import Phase
from pggit_reactor.core.model import Phases, State
from pggit_reactor.db.settle import BreakerChange, Settlement, SettleReport
from pggit_reactor.observability.logs import Logger, get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.fanout import Finished

KEPT_MAX: Final = 4096


@attrs.define(eq=False, kw_only=True)
class Timeline:
    """Logs ``delivery_settled`` for each attempt: at debug level those that were delivered, with their milestones in
    milliseconds since the row was ready; aloud those that were not."""

    metrics: Metrics
    debug: bool
    tells_deliveries: bool = False
    """What was delivered is logged at info level: for people who watch, not for production."""
    log: Logger = attrs.field(factory=lambda: get_logger("deliveries").bind())
    _kept: dict[int, Finished] = attrs.field(factory=dict, init=False)

    def finished(self, finished: Finished) -> None:
        """Remember an attempt until it is settled; only where somebody reads debug events."""
        if self.debug and len(self._kept) < KEPT_MAX:
            self._kept[finished.delivery.delivery_id] = finished

    def settled(self, report: SettleReport) -> None:
        """Count and log what was written, and what came too late to be."""
        for item in report.settled:
            if item.attempted:
                status = item.decision.state.value
                self.metrics.attempt_settled(item.webhook_id, status, item.elapsed_seconds)
            if item.decision.webhook_hold_seconds is not None:
                self.metrics.rate_limited(item.webhook_id)
            if self.debug or self.tells_deliveries or item.decision.state is not State.DELIVERED:
                self._log(item)
        for change in report.breakers:
            self._breaker(change)
        if report.fenced:
            for item in report.fenced:
                self._kept.pop(item.delivery_id, None)
            self.metrics.write_fenced(len(report.fenced))
            self.log.warning(
                "outcomes_fenced", delivery_ids=[item.delivery_id for item in report.fenced[:20]]
            )

    def _breaker(self, change: BreakerChange) -> None:
        if change.open_seconds is None:
            self.metrics.breaker_turned(Phase.CLOSED)
            self.log.info("breaker_closed", webhook_id=change.webhook_id)
            return
        self.metrics.breaker_turned(Phase.OPEN)
        self.metrics.breaker_opened(change.webhook_id)
        self.log.warning("breaker_opened", webhook_id=change.webhook_id, open_seconds=change.open_seconds)

    def _log(self, item: Settlement) -> None:
        decision = item.decision
        delivered = self.log.info if self.tells_deliveries else self.log.debug
        level = {State.DELIVERED: delivered, State.FAILED: self.log.warning}.get(
            decision.state, self.log.info
        )
        fields: dict[str, object] = {}
        kept = self._kept.pop(item.delivery_id, None)
        if kept is not None:
            fields["ms"] = _milestones(kept)
        level(
            "delivery_settled",
            delivery_id=item.delivery_id,
            uid=item.uid,
            webhook_id=item.webhook_id,
            status=decision.state.value,
            http_status=item.http_status,
            error=item.error,
            reason=decision.failed_reason and decision.failed_reason.value,
            retry_in_seconds=decision.delay_seconds and round(decision.delay_seconds, 3),
            **fields,
        )


def _milestones(finished: Finished) -> dict[str, float]:
    """Return milliseconds since the row was ready, as the claim's statement told it."""
    ready_at = finished.times.claimed_at - finished.delivery.waited_seconds
    result = finished.attempt.result
    phases = result.phases if result else Phases()
    marks = {
        "woken": finished.times.woken_at,
        "claiming": finished.times.began_at,
        "claimed": finished.times.claimed_at,
        "sent": None if phases.sent is None else finished.started_at + phases.sent,
        "answered": None if phases.answered is None else finished.started_at + phases.answered,
        "settled": trio.current_time(),
    }
    return {name: round((at - ready_at) * 1000, 2) for name, at in marks.items() if at is not None}
