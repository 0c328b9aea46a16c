"""When to ask again for a webhook that its limits held back, and how long tokens were waited for.

No I/O and no clock: `now` is Trio's time, given by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import attrs

from pggit_reactor.core.model import WebhookId
from pggit_reactor.db.claims import ClaimedWebhook, HeldBy
from pggit_reactor.observability.metrics import Metrics

BUSY_SECONDS_MIN: Final = 0.001
"""Another worker's claim of the same webhook is over in less; each wait is once to twice as long, by chance."""
BUSY_SECONDS_MAX: Final = 0.064
"""Who holds a limit row for long is a person in a transaction: that is not asked for a thousand times a second."""
WEBHOOKS_MAX: Final = 50_000
"""Remembered of each kind."""


@attrs.define(eq=False, kw_only=True)
class Holds:
    """What a worker remembers of webhooks that were held back."""

    metrics: Metrics
    draw: Callable[[], float]
    """Uniform in [0, 1): workers that met once must not meet again."""
    _limited: set[WebhookId] = attrs.field(factory=set, init=False)
    _busy: dict[WebhookId, int] = attrs.field(factory=dict, init=False)
    """How many claims in a row found the limit row locked."""
    _waits: dict[WebhookId, float] = attrs.field(factory=dict, init=False)
    """Since when there was no token for a row that could have been sent."""

    def none_limited(self, webhook_ids: Iterable[WebhookId]) -> bool:
        """Say whether a plain claim will do, as far as is known; where it will not, it says so."""
        return self._limited.isdisjoint(webhook_ids)

    def ask_again_at(
        self, webhook_id: WebhookId, found: ClaimedWebhook, *, asked: int, got: int, now: float
    ) -> float | None:
        """Return when the webhook is worth a claim again, by what the last one found; None where nobody knows."""
        if not found.is_limited:
            self._limited.discard(webhook_id)
        else:
            if len(self._limited) >= WEBHOOKS_MAX:
                self._limited.clear()  # Plain claims tell again which have limits.
            self._limited.add(webhook_id)
        if found.held_by is HeldBy.LIMITS:
            return None
        if found.held_by is HeldBy.BUSY:
            self.metrics.bucket_busy()
            return now + self._busy_seconds(webhook_id)
        self._busy.pop(webhook_id, None)
        self._count_wait(webhook_id, found, asked=asked, got=got, now=now)
        return None if found.ask_again_seconds is None else now + found.ask_again_seconds

    def _busy_seconds(self, webhook_id: WebhookId) -> float:
        times = self._busy.get(webhook_id, 0)
        if len(self._busy) < WEBHOOKS_MAX:
            self._busy[webhook_id] = times + 1
        return min(BUSY_SECONDS_MAX, BUSY_SECONDS_MIN * 2.0 ** min(times, 16)) * (1 + self.draw())

    def _count_wait(
        self, webhook_id: WebhookId, found: ClaimedWebhook, *, asked: int, got: int, now: float
    ) -> None:
        is_short = found.held_by is HeldBy.TOKENS and got < asked
        if got or not is_short:
            since = self._waits.pop(webhook_id, None)
            if since is not None:
                self.metrics.token_waited(now - since)
        if is_short and webhook_id not in self._waits and len(self._waits) < WEBHOOKS_MAX:
            self._waits[webhook_id] = now
            self.metrics.rate_limited(webhook_id)
