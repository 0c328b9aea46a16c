"""The outcome table is total, and decisions keep the budgets of attempts and time."""

import attrs
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pggit_reactor.core.backoff import Backoff
from pggit_reactor.core.model import Answer, AttemptFailure, FailedReason, FailureKind, State
from pggit_reactor.core.outcomes import CRASHES_MAX, Verdict, classify, decide
from pggit_reactor.core.retry_after import RETRY_AFTER_SECONDS_MAX, parse_retry_after
from pggit_reactor.core.states import Event, advance
from pggit_reactor.core.status_policy import NO_POLICY, StatusPolicy
from pggit_reactor.testing import strategies as our

NOW = 1_800_000_000.0
TRANSIENT_KINDS = {"dns", "connect", "tls", "timeout", "reset", "malformed"}
REFUSED_KINDS = {"url_refused", "bad_headers", "too_large"}


@attrs.frozen(kw_only=True)
class Row:
    """What `decide` is told of a row and its webhook."""

    retry_count: int = 0
    max_retries: int = 3
    max_attempts: int | None = None
    crash_count: int = 0
    age_seconds: float = 0.0
    give_up_after_seconds: float = 72 * 3600.0
    backoff: Backoff = attrs.field(factory=Backoff)
    draw: float = 0.0
    now: float = NOW
    attempt_count: int = 0
    policy: StatusPolicy = NO_POLICY

    def decide(self, outcome):
        return decide(outcome, **attrs.asdict(self, recurse=False))


rows = st.builds(
    Row,
    retry_count=st.integers(0, 200),
    max_retries=st.integers(1, 200),
    max_attempts=st.one_of(st.none(), st.integers(1, 200)),
    crash_count=st.integers(0, 5),
    age_seconds=our.seconds(),
    give_up_after_seconds=our.seconds(),
    backoff=our.backoffs(),
    draw=our.draws(),
    attempt_count=st.integers(0, 10**6),
    policy=our.status_policies(),
)


def expected_verdict(status: int) -> Verdict:
    """DESIGN 5's table, written once more as its sentences have it, for answers without Retry-After."""
    match status:
        case 408 | 425:
            return Verdict.TRANSIENT
        case 410:
            return Verdict.GONE
        case 429:
            return Verdict.THROTTLED
        case _ if 200 <= status < 300:
            return Verdict.DELIVERED
        case _ if 400 <= status < 500:
            return Verdict.PERMANENT
    return Verdict.TRANSIENT


@pytest.mark.parametrize("hundred", range(10))
def test_every_status_has_the_verdict_of_the_table(hundred):
    statuses = range(hundred * 100, hundred * 100 + 100)

    verdicts = {status: classify(Answer(status=status)) for status in statuses}

    assert verdicts == {status: expected_verdict(status) for status in statuses}


@given(status=st.integers())
def test_a_status_that_http_does_not_have_still_has_a_verdict(status):
    assume(not 100 <= status <= 599)

    assert classify(Answer(status=status)) is Verdict.TRANSIENT


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_of_failure_has_its_verdict(kind):
    verdict = classify(AttemptFailure(kind=kind, detail=""))

    assert (
        verdict
        is {
            **dict.fromkeys(TRANSIENT_KINDS, Verdict.TRANSIENT),
            **dict.fromkeys(REFUSED_KINDS, Verdict.REFUSED),
            "internal": Verdict.CRASHED,
        }[kind]
    )


@given(status=our.statuses(), field=our.retry_after_fields())
def test_retry_after_changes_the_verdict_of_503_alone(status, field):
    verdict = classify(Answer(status=status, retry_after=field))

    if status == 503 and parse_retry_after(field, now=NOW) is not None:
        assert verdict is Verdict.THROTTLED
    else:
        assert verdict is expected_verdict(status)


@given(outcome=our.outcomes(), row=rows)
def test_every_decision_is_a_step_of_the_state_table_from_each_state_that_is_claimed(outcome, row):
    decision = row.decide(outcome)

    event = {
        State.DELIVERED: Event.ACCEPTED,
        State.RETRYING: Event.DEFERRED,
        State.FAILED: Event.GAVE_UP,
    }[decision.state]
    assert advance(State.PENDING, event) is advance(State.RETRYING, event) is decision.state


@given(outcome=our.outcomes(), row=rows)
def test_a_decision_is_consistent_in_itself(outcome, row):
    decision = row.decide(outcome)

    assert (decision.delay_seconds is not None) == (decision.state is State.RETRYING)
    assert (decision.failed_reason is not None) == (decision.state is State.FAILED)
    assert not decision.counts_retry or decision.state is State.RETRYING
    assert not (decision.counts_retry and decision.counts_crash)
    assert decision.disable_webhook == (decision.failed_reason is FailedReason.GONE)
    assert (
        decision.webhook_hold_seconds is None or 0 < decision.webhook_hold_seconds <= RETRY_AFTER_SECONDS_MAX
    )


@given(outcome=our.outcomes(), row=rows)
def test_no_retry_comes_after_the_end_of_the_rows_life(outcome, row):
    decision = row.decide(outcome)

    if decision.delay_seconds is not None:
        assert row.age_seconds + decision.delay_seconds <= row.give_up_after_seconds


@given(outcome=our.outcomes(), row=rows)
def test_every_retry_waits_at_least_half_the_base(outcome, row):
    decision = row.decide(outcome)

    if decision.delay_seconds is not None:
        assert decision.delay_seconds >= min(row.backoff.base_seconds, row.backoff.cap_seconds) / 2


@given(
    row=rows.filter(lambda row: row.give_up_after_seconds > 0),
    status=st.sampled_from([500, 302, 408, 425, 599]),
)
@example(row=Row(retry_count=2), status=500)
@example(row=Row(retry_count=3), status=500)
@example(row=Row(retry_count=3, max_attempts=5), status=500)
@example(row=Row(retry_count=0, max_attempts=1), status=500)
def test_a_transient_failure_is_retried_exactly_while_the_budget_lasts(row, status):
    attempts_allowed = row.max_attempts if row.max_attempts is not None else row.max_retries + 1

    patient = attrs.evolve(row, age_seconds=0.0, give_up_after_seconds=1e9, policy=NO_POLICY)
    decision = patient.decide(Answer(status=status))

    if row.retry_count + 1 < attempts_allowed:
        assert decision.state is State.RETRYING
        assert decision.counts_retry
        assert decision.delay_seconds == row.backoff.delay_seconds(row.retry_count + 1, row.draw)
    else:
        assert decision.failed_reason is FailedReason.EXHAUSTED


def test_three_retries_are_four_attempts():
    row, attempts = Row(), 0
    while True:
        attempts += 1
        decision = row.decide(Answer(status=500))
        if decision.state is State.FAILED:
            break
        row = attrs.evolve(row, retry_count=row.retry_count + decision.counts_retry)

    assert attempts == 4


@given(row=rows)
def test_the_third_crash_kills_whatever_the_retries_left(row):
    decision = attrs.evolve(row, age_seconds=0.0, give_up_after_seconds=1e9).decide(
        AttemptFailure(kind=FailureKind.INTERNAL, detail="KeyError")
    )

    assert decision.counts_crash
    assert not decision.counts_retry
    if row.crash_count + 1 >= CRASHES_MAX:
        assert decision.failed_reason is FailedReason.CRASH
    else:
        assert decision.state is State.RETRYING


@given(row=rows, asked=st.integers(0, 10**6), status=st.sampled_from([429, 503]))
def test_retry_after_is_obeyed_holds_the_webhook_and_uses_up_no_retry(row, asked, status):
    patient = attrs.evolve(row, age_seconds=0.0, give_up_after_seconds=1e9, policy=NO_POLICY)

    decision = patient.decide(Answer(status=status, retry_after=str(asked)))

    capped = min(asked, RETRY_AFTER_SECONDS_MAX)
    assert decision.state is State.RETRYING
    own_wait = row.backoff.delay_seconds(max(row.retry_count, row.attempt_count) + 1, row.draw)
    assert decision.delay_seconds == max(capped, own_wait)
    assert not decision.counts_retry
    assert decision.webhook_hold_seconds == (capped or None)


def test_a_webhook_is_held_for_its_others_also_when_the_row_is_dead():
    row = Row(age_seconds=100.0, give_up_after_seconds=101.0)

    decision = row.decide(Answer(status=429, retry_after="60"))

    assert decision.failed_reason is FailedReason.EXHAUSTED
    assert decision.webhook_hold_seconds == 60


def test_the_waits_after_429_without_retry_after_grow_by_all_attempts():
    waits = [Row(attempt_count=count).decide(Answer(status=429)).delay_seconds for count in range(4)]

    assert waits == [2.5, 5.0, 10.0, 20.0]


@pytest.mark.parametrize("kind", sorted(REFUSED_KINDS))
def test_what_we_would_not_send_is_dead_at_once_with_that_reason(kind):
    decision = Row().decide(AttemptFailure(kind=FailureKind(kind), detail=""))

    assert decision.failed_reason == kind


def test_410_is_dead_and_disables_the_webhook():
    decision = Row().decide(Answer(status=410))

    assert (decision.failed_reason, decision.disable_webhook) == (FailedReason.GONE, True)
