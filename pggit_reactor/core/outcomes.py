"""What an attempt's outcome means, and what follows from it: DESIGN 5's outcome table, pure and total.

`classify` reads the table; `decide` adds the budget of attempts and time. The settler writes what `decide`
says and knows no rule of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, assert_never

import attrs

from pggit_reactor.core.backoff import Backoff
from pggit_reactor.core.model import Answer, AttemptFailure, FailedReason, FailureKind, State
from pggit_reactor.core.retry_after import parse_retry_after
from pggit_reactor.core.status_policy import NO_POLICY, Meaning, StatusPolicy

CRASHES_MAX: Final = 3
"""Unexpected errors of our own that one delivery may cause before it is dead."""


class Verdict(StrEnum):
    """The kinds of outcome; each has one consequence in `decide`."""

    DELIVERED = "delivered"
    TRANSIENT = "transient"
    THROTTLED = "throttled"
    """The receiver asks for patience: an attempt, but not one of the row's retries."""
    GONE = "gone"
    """410: the receiver wants no more of these, so the webhook is disabled too."""
    PERMANENT = "permanent"
    REFUSED = "refused"
    """We did not send it, and would not the next time either."""
    CRASHED = "crashed"
    """An unexpected error of our own: no fault of the receiver's, so it uses up none of the row's retries."""


_MEANINGS: Final[Mapping[Meaning, Verdict]] = MappingProxyType(
    {Meaning.PERMANENT: Verdict.PERMANENT, Meaning.TRANSIENT: Verdict.TRANSIENT}
)

# What no line names goes by its hundred. 1xx as a final answer, and what lies outside 100 to 599, is an
# answer that nobody can act on: transient, like a malformed one.
_STATUS_VERDICTS: Final[Mapping[int, Verdict]] = MappingProxyType(
    {
        408: Verdict.TRANSIENT,
        410: Verdict.GONE,
        425: Verdict.TRANSIENT,
    }
)

_FAILURE_VERDICTS: Final[Mapping[FailureKind, Verdict]] = MappingProxyType(
    {
        FailureKind.DNS: Verdict.TRANSIENT,
        FailureKind.CONNECT: Verdict.TRANSIENT,
        FailureKind.TLS: Verdict.TRANSIENT,
        FailureKind.TIMEOUT: Verdict.TRANSIENT,
        FailureKind.RESET: Verdict.TRANSIENT,
        FailureKind.MALFORMED: Verdict.TRANSIENT,
        FailureKind.URL_REFUSED: Verdict.REFUSED,
        FailureKind.BAD_HEADERS: Verdict.REFUSED,
        FailureKind.TOO_LARGE: Verdict.REFUSED,
        FailureKind.INTERNAL: Verdict.CRASHED,
    }
)

_REFUSALS: Final[Mapping[FailureKind, FailedReason]] = MappingProxyType(
    {
        FailureKind.URL_REFUSED: FailedReason.URL_REFUSED,
        FailureKind.BAD_HEADERS: FailedReason.BAD_HEADERS,
        FailureKind.TOO_LARGE: FailedReason.TOO_LARGE,
    }
)


@attrs.frozen(kw_only=True)
class Decision:
    """What the settler writes after an attempt. `attempt_count` rises by one whatever happened."""

    state: State
    delay_seconds: float | None = None
    """Until the next attempt; None where none follows."""
    failed_reason: FailedReason | None = None
    """Set exactly where the state is `failed`."""
    counts_retry: bool = False
    """`retry_count` rises by one."""
    counts_crash: bool = False
    """`crash_count` rises by one."""
    webhook_hold_seconds: float | None = None
    """No delivery of this webhook may start for so long: the receiver's Retry-After."""
    disable_webhook: bool = False


def classify(outcome: Answer | AttemptFailure, policy: StatusPolicy = NO_POLICY) -> Verdict:
    """Return what *outcome* means; total over any status, also those that HTTP does not have.

    *policy* is the webhook's own table; see `core.status_policy` for what it may change.
    """
    if isinstance(outcome, AttemptFailure):
        return _FAILURE_VERDICTS[outcome.kind]
    status = outcome.status
    named = policy.statuses.get(status)
    if named is Meaning.PERMANENT:
        return Verdict.PERMANENT
    if status == 429 or (status == 503 and _asked_wait_seconds(outcome, now=0.0) is not None):
        return Verdict.THROTTLED
    named = named or policy.of_hundred(status)
    if named is not None:
        return _MEANINGS[named]
    return _STATUS_VERDICTS.get(status) or _of_hundred(status)


def _of_hundred(status: int) -> Verdict:
    if 200 <= status <= 299:
        return Verdict.DELIVERED
    return Verdict.PERMANENT if 400 <= status <= 499 else Verdict.TRANSIENT


def decide(
    outcome: Answer | AttemptFailure,
    *,
    retry_count: int,
    max_retries: int,
    max_attempts: int | None,
    crash_count: int,
    age_seconds: float,
    give_up_after_seconds: float,
    backoff: Backoff,
    draw: float,
    now: float,
    attempt_count: int = 0,
    policy: StatusPolicy = NO_POLICY,
) -> Decision:
    """Return what follows from *outcome* for a row with these counts (as they were before the attempt).

    *max_attempts*, the webhook's, replaces the row's *max_retries* where it is set. A retry that would come
    later than *give_up_after_seconds* in the row's life is none: the row is dead, `exhausted`. *draw* is
    uniform in [0, 1); *now* is Unix time, for a Retry-After that is a date. *attempt_count* matters only
    after a 429 without Retry-After, which leaves `retry_count` as it is: waits that grew by that alone
    would not grow. *policy* is the webhook's own table of statuses.
    """
    verdict = classify(outcome, policy)
    match verdict:
        case Verdict.DELIVERED | Verdict.GONE | Verdict.PERMANENT:
            return _FINAL[verdict]
        case Verdict.REFUSED:
            assert isinstance(outcome, AttemptFailure)
            return _dead(_REFUSALS[outcome.kind])
        case Verdict.CRASHED:
            decision = _after_crash(crash_count, backoff=backoff, draw=draw)
        case Verdict.THROTTLED:
            delay = backoff.delay_seconds(max(retry_count, attempt_count) + 1, draw)
            decision = _after_throttle(outcome, backoff_seconds=delay, now=now)
        case Verdict.TRANSIENT:
            retries_allowed = max_retries if max_attempts is None else max_attempts - 1
            if retry_count >= retries_allowed:
                return _dead(FailedReason.EXHAUSTED)
            delay = backoff.delay_seconds(retry_count + 1, draw)
            decision = Decision(state=State.RETRYING, delay_seconds=delay, counts_retry=True)
        case _:
            assert_never(verdict)
    return _within_lifetime(decision, age_seconds=age_seconds, give_up_after_seconds=give_up_after_seconds)


def _dead(reason: FailedReason) -> Decision:
    return Decision(state=State.FAILED, failed_reason=reason)


_FINAL: Final[Mapping[Verdict, Decision]] = MappingProxyType(
    {
        Verdict.DELIVERED: Decision(state=State.DELIVERED),
        Verdict.GONE: attrs.evolve(_dead(FailedReason.GONE), disable_webhook=True),
        Verdict.PERMANENT: _dead(FailedReason.PERMANENT),
    }
)


def _after_crash(crash_count: int, *, backoff: Backoff, draw: float) -> Decision:
    if crash_count + 1 >= CRASHES_MAX:
        return attrs.evolve(_dead(FailedReason.CRASH), counts_crash=True)
    delay = backoff.delay_seconds(crash_count + 1, draw)
    return Decision(state=State.RETRYING, delay_seconds=delay, counts_crash=True)


def _after_throttle(outcome: Answer | AttemptFailure, *, backoff_seconds: float, now: float) -> Decision:
    asked = _asked_wait_seconds(outcome, now=now) or 0.0
    return Decision(
        state=State.RETRYING,
        # "Retry-After: 0" is valid, and must not become a tight loop that uses up no retry.
        delay_seconds=max(backoff_seconds, asked),
        webhook_hold_seconds=asked or None,
    )


def _asked_wait_seconds(outcome: Answer | AttemptFailure, *, now: float) -> float | None:
    return parse_retry_after(outcome.retry_after, now=now) if isinstance(outcome, Answer) else None


def _within_lifetime(decision: Decision, *, age_seconds: float, give_up_after_seconds: float) -> Decision:
    delay = decision.delay_seconds
    if delay is None or age_seconds + delay <= give_up_after_seconds:
        return decision
    # This row is dead, but what the receiver asked for holds for its others.
    return attrs.evolve(
        _dead(FailedReason.EXHAUSTED),
        counts_crash=decision.counts_crash,
        webhook_hold_seconds=decision.webhook_hold_seconds,
    )
