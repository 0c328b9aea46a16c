"""What a worker has learnt of its receivers: bounded, written once, and said once."""

from __future__ import annotations

import pytest
import structlog

from pggit_reactor.core.model import Answer, AttemptFailure, AttemptResult, FailureKind, Phases, WebhookId
from pggit_reactor.core.risk import RiskModel
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime import concurrency
from pggit_reactor.runtime.concurrency import SAID_EVERY_SECONDS, WRITTEN_AT_ONCE_MAX, LearnedConcurrency

LIMIT = 32
FINE = AttemptResult(
    outcome=Answer(status=200), elapsed_seconds=0.01, phases=Phases(sent=0.001, answered=0.01)
)
LATE = AttemptResult(outcome=AttemptFailure(kind=FailureKind.TIMEOUT, detail=""), elapsed_seconds=5.0)
BROKEN = AttemptResult(outcome=AttemptFailure(kind=FailureKind.INTERNAL, detail=""), elapsed_seconds=0.0)


class Worker:
    """A worker's levels, and the clock that they go by."""

    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = Metrics(worker_id="w", version="1")
        self.learned = LearnedConcurrency(metrics=self.metrics, now=lambda: self.now)

    def end(self, webhook_id: int, result: AttemptResult | None = FINE, verdict: str = "delivered") -> None:
        self.now += 0.01
        self.learned.ended(
            WebhookId(webhook_id), result, verdict, limit=LIMIT, in_flight=LIMIT, started_at=self.now
        )

    def allowed(self, webhook_id: int) -> int:
        return self.learned.allowed(WebhookId(webhook_id), LIMIT)

    def recover(self, webhook_id: int) -> None:
        while self.allowed(webhook_id) < LIMIT:
            self.end(webhook_id)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_a_level_that_fell_is_written_once_and_cleared_when_it_is_back(worker: Worker):
    worker.end(1, LATE, "transient")
    assert worker.learned.take_unwritten() == {1: 16}
    assert worker.learned.take_unwritten() == {}

    worker.recover(1)
    assert worker.learned.take_unwritten() == {1: None}


def test_what_could_not_be_written_comes_again_unless_there_is_newer(worker: Worker):
    for webhook_id in (1, 2):
        worker.end(webhook_id, LATE, "transient")
    levels = worker.learned.take_unwritten()
    worker.end(2, LATE, "transient")
    worker.learned.put_back(levels)

    assert worker.learned.take_unwritten() == {1: 16, 2: 8}


def test_levels_are_written_so_many_at_once(worker: Worker):
    for webhook_id in range(WRITTEN_AT_ONCE_MAX + 5):
        worker.end(webhook_id, LATE, "transient")

    assert [len(worker.learned.take_unwritten()) for _ in range(3)] == [WRITTEN_AT_ONCE_MAX, 5, 0]


def test_what_was_learnt_elsewhere_counts_where_nothing_is_known(worker: Worker):
    worker.end(1)
    worker.learned.start_from({WebhookId(1): 3, WebhookId(2): 3})

    assert (worker.allowed(1), worker.allowed(2)) == (LIMIT, 3)
    assert worker.learned.take_unwritten() == {}


def test_of_too_many_webhooks_the_longest_unused_is_forgotten(worker: Worker, monkeypatch):
    monkeypatch.setattr(concurrency, "WEBHOOKS_MAX", 3)
    for webhook_id in (1, 2, 3):
        worker.end(webhook_id, LATE, "transient")
    worker.end(1)
    worker.end(4, LATE, "transient")

    assert [worker.allowed(webhook_id) for webhook_id in (1, 2, 3, 4)] == [16, LIMIT, 16, 16]
    assert set(worker.learned.take_unwritten()) == {1, 3, 4}


@pytest.mark.parametrize(
    ("result", "verdict", "allowed"),
    [
        (LATE, "transient", 16),
        (AttemptResult(outcome=Answer(status=429), elapsed_seconds=0.01), "throttled", 16),
        (AttemptResult(outcome=Answer(status=500), elapsed_seconds=0.01), "transient", LIMIT),
        (AttemptResult(outcome=Answer(status=404), elapsed_seconds=0.01), "permanent", LIMIT),
        (BROKEN, "crashed", LIMIT),
        (None, "expired", LIMIT),
    ],
)  # fmt: skip
def test_a_single_end_lowers_the_level_where_it_speaks_of_overload(worker: Worker, result, verdict, allowed):
    worker.end(1, result, verdict)

    assert worker.allowed(1) == allowed


def test_falls_are_counted_each_and_said_now_and_then(worker: Worker):
    with structlog.testing.capture_logs() as said:
        for _ in range(3):
            worker.end(1, LATE, "transient")
        worker.recover(1)
        worker.end(1, LATE, "transient")
        worker.now += SAID_EVERY_SECONDS
        worker.end(1, LATE, "transient")

    assert [(event["event"], event.get("allowed")) for event in said] == [
        ("concurrency_lowered", 16),
        ("concurrency_recovered", None),
        ("concurrency_lowered", 8),
    ]
    labels = {"webhook_id": "1"}
    assert worker.metrics.registry.get_sample_value("pggit_reactor_concurrency_lowered_total", labels) == 5


def test_a_webhook_at_risk_is_lowered_counted_and_said_with_its_reasons():
    worker = Worker()
    worker.learned.risks = RiskModel()
    with structlog.testing.capture_logs() as said:
        for _ in range(4):
            for status, verdict in (
                (500, "transient"),
                (500, "transient"),
                (500, "transient"),
                (200, "delivered"),
            ):
                worker.now += 2
                answer = AttemptResult(outcome=Answer(status=status), elapsed_seconds=0.01)
                worker.end(1, answer, verdict)

    alarms = [event for event in said if event["event"] == "webhook_at_risk"]
    assert len(alarms) == 1
    assert alarms[0]["probability"] >= 0.5
    assert max(alarms[0]["because"], key=alarms[0]["because"].get) == "errors"
    labels = {"webhook_id": "1"}
    assert worker.metrics.registry.get_sample_value("pggit_reactor_webhook_at_risk_total", labels) == 1
    assert worker.allowed(1) < LIMIT
