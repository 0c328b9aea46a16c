"""One claimed delivery, from the claim to its settlement."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol

import attrs

from pggit_reactor.core.backoff import Backoff
from pggit_reactor.core.breaker import vote_of
from pggit_reactor.core.echoes import mask_echoes
from pggit_reactor.core.headers import parse_extra_headers
from pggit_reactor.core.model import (
    Answer,
    AttemptFailure,
    AttemptResult,
    ClaimedDelivery,
    FailedReason,
    FailureKind,
    State,
    Webhook,
)
from pggit_reactor.core.outcomes import CRASHES_MAX, Decision, Verdict, classify, decide
from pggit_reactor.db.settle import Settlement
from pggit_reactor.errors import BadHeadersError
from pggit_reactor.runtime.clock import Clock

ERROR_CHARS_MAX: Final = 500
EXCERPT_CHARS_MAX: Final = 1024


class Send(Protocol):
    """Sends one request; never raises for anything that the world can do."""

    async def __call__(self, webhook: Webhook, delivery: ClaimedDelivery, body: bytes) -> AttemptResult:
        """Return the result of the attempt."""


@attrs.frozen(kw_only=True)
class Attempt:
    """What became of a claimed delivery."""

    settlement: Settlement
    result: AttemptResult | None
    """None where no request was made."""
    verdict: str


def unsent(delivery: ClaimedDelivery, webhook: Webhook) -> Attempt | None:
    """Return the end of a delivery that must not be sent, or None where it may be."""
    if delivery.expired:
        return _ended(delivery, FailedReason.EXPIRED, "expires_at had passed before an attempt could be made")
    if delivery.crash_count >= CRASHES_MAX:
        died = f"its worker died in the middle of an attempt {delivery.crash_count} times"
        return _ended(delivery, FailedReason.CRASH, died)
    if delivery.body_bytes > webhook.max_body_bytes:
        # Known before the body is loaded, so that a huge one costs no memory.
        allowed = f"allowed: {webhook.max_body_bytes} (max_body_bytes)"
        return _ended(
            delivery, FailedReason.TOO_LARGE, f"the body has {delivery.body_bytes} octets; {allowed}"
        )
    return None


async def attempt(
    delivery: ClaimedDelivery, webhook: Webhook, body: bytes, *, send: Send, backoff: Backoff, clock: Clock
) -> Attempt:
    """Send *body* once and decide what follows."""
    result = await send(webhook, delivery, body)
    return _settled(delivery, webhook, result, backoff=backoff, clock=clock)


def crashed(
    delivery: ClaimedDelivery, webhook: Webhook, error: Exception, *, backoff: Backoff, clock: Clock
) -> Attempt:
    """Return the settlement of a delivery whose attempt met an unexpected error of our own."""
    detail = f"internal error ({type(error).__name__}); see the worker's log"
    failure = AttemptFailure(kind=FailureKind.INTERNAL, detail=detail)
    result = AttemptResult(outcome=failure, elapsed_seconds=0.0)
    return _settled(delivery, webhook, result, backoff=backoff, clock=clock)


def _settled(
    delivery: ClaimedDelivery, webhook: Webhook, result: AttemptResult, *, backoff: Backoff, clock: Clock
) -> Attempt:
    decision = decide(
        result.outcome,
        retry_count=delivery.retry_count,
        max_retries=delivery.max_retries,
        max_attempts=webhook.max_attempts,
        crash_count=delivery.crash_count,
        age_seconds=delivery.age_seconds,
        give_up_after_seconds=webhook.give_up_after_seconds,
        backoff=backoff,
        draw=clock.draw(),
        now=clock.wall(),
        attempt_count=delivery.attempt_count,
        policy=webhook.status_policy,
    )
    verdict = classify(result.outcome, webhook.status_policy)
    error, excerpt = (
        (None, None) if decision.state is State.DELIVERED else _error(result.outcome, webhook, delivery)
    )
    settlement = Settlement.of(
        delivery,
        decision,
        attempted=verdict is not Verdict.REFUSED,
        vote=vote_of(verdict),
        http_status=result.outcome.status if isinstance(result.outcome, Answer) else 0,
        elapsed_seconds=result.elapsed_seconds,
        error=error,
        excerpt=excerpt,
    )
    return Attempt(settlement=settlement, result=result, verdict=verdict.value)


def _ended(delivery: ClaimedDelivery, reason: FailedReason, error: str) -> Attempt:
    decision = Decision(state=State.FAILED, failed_reason=reason)
    settlement = Settlement.of(delivery, decision, attempted=False, error=_clean(error)[:ERROR_CHARS_MAX])
    return Attempt(settlement=settlement, result=None, verdict=reason.value)


def _error(
    outcome: Answer | AttemptFailure, webhook: Webhook, delivery: ClaimedDelivery
) -> tuple[str, str | None]:
    """Return what went wrong for log and audit, and what the receiver said, for `last_error` alone."""
    if isinstance(outcome, AttemptFailure):
        return _clean(f"{outcome.kind}: {outcome.detail}")[:ERROR_CHARS_MAX], None
    if not outcome.excerpt:
        return f"HTTP {outcome.status}", None
    row_headers: tuple[tuple[str, str], ...] = ()
    with suppress(BadHeadersError):
        row_headers = parse_extra_headers(delivery.headers_json)
    masked = mask_echoes(_clean(outcome.excerpt), webhook, row_headers)
    return f"HTTP {outcome.status}", masked[:EXCERPT_CHARS_MAX]


def _clean(text: str) -> str:
    # PostgreSQL takes no NUL in text, and people want one line.
    return "".join(char if char.isprintable() else " " for char in text)
