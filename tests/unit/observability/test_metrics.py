"""The metrics: names that others rely on, bounded labels, and what a scrape shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.observability.exposition import render
from pggit_reactor.observability.merging import GAUGE_MERGE
from pggit_reactor.observability.metrics import LABELS_MAX, STATUSES, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(worker_id="w-1", version="1.2.3", webhook_labels_max=3)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_six_legacy_metrics_have_their_names_types_labels_and_buckets(metrics: Metrics) -> None:
    metrics.attempt_settled(7, "retrying", 1.5)
    families = {family.name: family for family in metrics.collect()}

    def shape(name: str) -> tuple[str, list[str]]:
        family = families[name]
        return family.type, sorted({label for sample in family.samples for label in sample.labels})

    assert shape("webhook_deliveries") == ("counter", ["status", "webhook_id"])
    assert shape("webhook_delivery_duration_seconds") == ("histogram", ["le", "webhook_id"])
    assert shape("webhook_queue_depth") == ("gauge", [])
    assert shape("worker_health_status") == ("gauge", ["worker_id"])
    assert shape("rate_limit_hits") == ("counter", ["webhook_id"])
    assert shape("circuit_breaker_opens") == ("counter", ["webhook_id"])
    buckets = [
        sample.labels["le"]
        for sample in families["webhook_delivery_duration_seconds"].samples
        if "le" in sample.labels
    ]
    assert buckets == ["0.01", "0.05", "0.1", "0.5", "1.0", "2.0", "5.0", "+Inf"]
    assert {s.labels["status"] for s in families["webhook_deliveries"].samples} == set(STATUSES)


def test_a_settled_attempt_counts_by_status_and_its_length_is_observed(metrics: Metrics) -> None:
    metrics.attempt_settled(7, "delivered", 0.02)
    metrics.attempt_settled(7, "delivered", 3.0)
    metrics.attempt_settled(7, "failed", 0.02)

    assert value(metrics, "webhook_deliveries_total", status="delivered", webhook_id="7") == 2
    assert value(metrics, "webhook_deliveries_total", status="failed", webhook_id="7") == 1
    assert value(metrics, "webhook_deliveries_total", status="retrying", webhook_id="7") == 0
    assert value(metrics, "webhook_delivery_duration_seconds_bucket", webhook_id="7", le="2.0") == 2
    assert value(metrics, "webhook_delivery_duration_seconds_count", webhook_id="7") == 3


@given(webhooks=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_webhook_labels_are_bounded_and_no_event_is_lost(webhooks: list[int]) -> None:
    metrics = Metrics(worker_id="w", version="1", webhook_labels_max=3)
    for webhook_id in webhooks:
        metrics.attempt_settled(webhook_id, "delivered", 0.1)
        metrics.rate_limited(webhook_id)
        metrics.breaker_opened(webhook_id)
        metrics.concurrency_lowered(webhook_id)
        metrics.webhook_at_risk(webhook_id)

    first_three = list(dict.fromkeys(webhooks))[:3]
    for family in metrics.collect():
        counts = [s for s in family.samples if s.name.endswith("_total") and "webhook_id" in s.labels]
        if counts:
            allowed = {str(webhook_id) for webhook_id in first_three} | {"other"}
            assert {sample.labels["webhook_id"] for sample in counts} <= allowed
            assert sum(sample.value for sample in counts) == len(webhooks)


def test_other_labels_are_bounded_too(metrics: Metrics) -> None:
    for number in range(2 * LABELS_MAX):
        metrics.loop_restarted(f"loop-{number}")

    (family,) = [f for f in metrics.collect() if f.name == "pggit_reactor_loop_restarts"]
    assert len(family.samples) == LABELS_MAX + 1
    assert value(metrics, "pggit_reactor_loop_restarts_total", loop="other") == LABELS_MAX


def test_causes_and_statuses_are_there_before_their_first_event(metrics: Metrics) -> None:
    for cause in ("notify", "timer", "poll"):
        assert value(metrics, "pggit_reactor_wakeups_total", cause=cause) == 0
    for status in ("pending", "retrying"):
        assert value(metrics, "pggit_reactor_queue_depth", status=status) == 0


def test_the_legacy_depth_is_what_waits(metrics: Metrics) -> None:
    metrics.set_queue(
        depth={"pending": 4, "retrying": 3, "failed": 100}, oldest_age_seconds={"pending": 9, "failed": 1e6}
    )
    metrics.set_queue(depth={"retrying": 3, "failed": 101}, oldest_age_seconds={"failed": 1e6})

    assert value(metrics, "webhook_queue_depth") == 3
    assert value(metrics, "pggit_reactor_queue_depth", status="pending") == 0
    assert value(metrics, "pggit_reactor_queue_depth", status="failed") == 101
    assert value(metrics, "pggit_reactor_queue_oldest_age_seconds", status="pending") == 0


def test_every_event_and_state_has_its_series(metrics: Metrics) -> None:
    metrics.attempt_ended("transient")
    metrics.attempt_sent(0.004)
    metrics.claimed(rows=12, seconds=0.0007)
    metrics.settled(rows=9, seconds=0.003)
    metrics.settle_failed()
    metrics.woken("timer")
    metrics.lease_expired(2)
    metrics.write_fenced(3)
    metrics.reconnected("listener")
    metrics.refresh_failed()
    metrics.set_up(True)
    metrics.set_notify_lag(0.25)
    metrics.set_clock_skew(-1.5)
    metrics.set_notification_queue_usage(0.5)
    metrics.set_webhooks_paused_unopenable(1)
    metrics.set_egress_relaxations(2)
    metrics.set_unknown_webhook_rows(6)
    metrics.observe_load(
        attempts_in_flight=lambda: 8, body_bytes_in_memory=lambda: 1024, settle_backlog=lambda: 4
    )

    ours = "pggit_reactor_"
    assert value(metrics, ours + "attempts_total", outcome="transient") == 1
    assert value(metrics, ours + "commit_to_send_seconds_bucket", le="0.005") == 1
    assert value(metrics, ours + "commit_to_send_seconds_bucket", le="0.002") == 0
    assert value(metrics, ours + "claim_rows_sum") == 12
    assert value(metrics, ours + "claim_seconds_sum") == pytest.approx(0.0007)
    assert value(metrics, ours + "settle_rows_sum") == 9
    assert value(metrics, ours + "settle_seconds_count") == 1
    assert value(metrics, ours + "settle_failures_total") == 1
    assert value(metrics, ours + "wakeups_total", cause="timer") == 1
    assert value(metrics, ours + "leases_expired_total") == 2
    assert value(metrics, ours + "fenced_writes_total") == 3
    assert value(metrics, ours + "reconnects_total", connection="listener") == 1
    assert value(metrics, ours + "scrape_refresh_failures_total") == 1
    assert value(metrics, "worker_health_status", worker_id="w-1") == 1
    assert value(metrics, ours + "notify_lag_seconds") == 0.25
    assert value(metrics, ours + "clock_skew_seconds") == -1.5
    assert value(metrics, ours + "notification_queue_usage_ratio") == 0.5
    assert value(metrics, ours + "webhooks_paused_unopenable") == 1
    assert value(metrics, ours + "egress_relaxations") == 2
    assert value(metrics, ours + "unknown_webhook_rows") == 6
    assert value(metrics, ours + "attempts_in_flight") == 8
    assert value(metrics, ours + "body_bytes_in_memory") == 1024
    assert value(metrics, ours + "settle_backlog") == 4


def test_the_build_is_named(metrics: Metrics) -> None:
    (family,) = [f for f in metrics.collect() if f.name == "pggit_reactor_build_info"]

    assert family.samples[0].labels["version"] == "1.2.3"
    assert family.samples[0].value == 1


def test_every_gauge_has_a_rule_for_several_processes_and_no_rule_lacks_its_gauge(metrics: Metrics) -> None:
    gauges = {family.name for family in metrics.collect() if family.type == "gauge"}

    assert gauges == set(GAUGE_MERGE)


async def test_no_created_series_is_shown(metrics: Metrics) -> None:
    metrics.attempt_settled(7, "delivered", 0.02)
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        body, _ = await render(metrics, accept=accept)
        assert b"_created" not in body
