"""Every metric of a worker, in one registry of its own.

The six of LEGACY 11 keep their names, types, labels and buckets, because queries in the field select them;
ours are called ``pggit_reactor_...``. Label values come from outside (webhook ids, names of loops), so each
label has a cap: first come, first named, and the rest is ``other``. Children are bound once and kept, since
looking one up by its labels costs more than counting.

Numbers that somebody holds anyway (attempts in flight, bytes of bodies) are read at the scrape through
`observe_load` and cost the hot path nothing. Numbers that come from the database are set by whoever refreshes
them before a scrape. Each gauge also has a rule in `merging.GAUGE_MERGE`: what several processes' values
become.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pggit_reactor.observability.merging import families_without_created

WEBHOOK_LABELS_MAX: Final = 100
"""Webhooks that have series of their own; 15 lines each at a scrape."""
LABELS_MAX: Final = 32
"""Values of any other label: loops, connections, causes, outcomes."""
OTHER: Final = "other"

STATUSES: Final = ("delivered", "failed", "retrying")
"""Values of the legacy label ``status``: what became of an attempt's delivery."""
WAITING_STATUSES: Final = ("pending", "retrying")
"""What `webhook_queue_depth` counts."""
WAKE_CAUSES: Final = ("notify", "timer", "poll")

BREAKER_STATES: Final = ("closed", "open", "half_open", "recovering")
"""What `core.breaker.Phase` calls them."""

_LEGACY_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1, 2, 5)
_LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 30, 300)
_WAIT_BUCKETS: Final = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STATEMENT_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)
_ROWS_BUCKETS: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)

M = TypeVar("M", bound=MetricWrapperBase)


class _Children(Generic[M]):
    """The bound children of a metric with one label, at most `LABELS_MAX` and one for the rest."""

    __slots__ = ("_bound", "_metric")

    def __init__(self, metric: M, values: Sequence[str] = ()) -> None:
        self._metric = metric
        self._bound: dict[str, M] = {value: metric.labels(value) for value in values}

    def __getitem__(self, value: str) -> M:
        child = self._bound.get(value)
        if child is not None:
            return child
        if len(self._bound) >= LABELS_MAX:
            # Not remembered under its own name: our memory is bounded as well as the scrape.
            return self._metric.labels(OTHER)
        self._bound[value] = self._metric.labels(value)
        return self._bound[value]


class _WebhookSeries:
    """What is counted for each webhook; zero from the start, so that a rate sees the first event."""

    __slots__ = ("at_risk", "breaker_opens", "concurrency_falls", "deliveries", "duration", "limit_hits")

    def __init__(self, metrics: Metrics, label: str) -> None:
        self.deliveries = {status: metrics.deliveries.labels(status, label) for status in STATUSES}
        self.duration = metrics.duration.labels(label)
        self.limit_hits = metrics.limit_hits.labels(label)
        self.breaker_opens = metrics.breaker_opens.labels(label)
        self.concurrency_falls = metrics.concurrency_falls.labels(label)
        self.at_risk = metrics.at_risk.labels(label)


class Metrics(Collector):
    """The metrics of one worker process; a collector, so that it can be rendered or registered elsewhere.

    Methods are cheap, and never fail on a label value from outside.
    """

    def __init__(self, *, worker_id: str, version: str, webhook_labels_max: int = WEBHOOK_LABELS_MAX) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._webhook_labels_max = webhook_labels_max
        self._webhooks: dict[int, _WebhookSeries] = {}
        self._other_webhooks: _WebhookSeries | None = None
        self._define_legacy(worker_id)
        self._define_work()
        self._define_limits()
        self._define_connections()
        self._define_load()
        self._define_state()
        build = self._gauge("build_info", "Always 1; the labels say what runs.", "version", "python")
        build.labels(version, platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield all families, without the ``_created`` series that double every other one for nobody."""
        return families_without_created(self.registry.collect())

    # The hot path: once for each delivery.

    def attempt_settled(self, webhook_id: int, status: str, seconds: float) -> None:
        """Count an attempt whose outcome is written: *status* is of `STATUSES`, *seconds* its length."""
        series = self._webhooks.get(webhook_id) or self._webhook(webhook_id)
        series.deliveries[status].inc()
        series.duration.observe(seconds)

    def attempt_ended(self, outcome: str) -> None:
        """Count an attempt by its verdict (`core.outcomes.Verdict`), written or not."""
        self._attempts[outcome].inc()

    def attempt_sent(self, waited_seconds: float) -> None:
        """Record the time from a row's commit (or from when it became ready) to the request's last octet."""
        self._commit_to_send.observe(waited_seconds)

    # Once for each batch, wake-up or event.

    def claimed(self, *, rows: int, seconds: float) -> None:
        """Record a claim statement, empty ones too."""
        self._claim_seconds.observe(seconds)
        self._claim_rows.observe(rows)

    def settled(self, *, rows: int, seconds: float) -> None:
        """Record a committed settle."""
        self._settle_seconds.observe(seconds)
        self._settle_rows.observe(rows)

    def settle_failed(self) -> None:
        """Count a settle that was not written and will be tried again."""
        self._settle_failures.inc()

    def woken(self, cause: str) -> None:
        """Count a wake-up of the claimer; *cause* is of `WAKE_CAUSES`."""
        self._wakeups[cause].inc()

    def gate_opened(self) -> None:
        """Count a time of silence that this worker gave producers."""
        self._gate_openings.inc()

    def lease_expired(self, count: int = 1) -> None:
        """Count rows taken over after their lease ran out."""
        self._leases_expired.inc(count)

    def write_fenced(self, count: int = 1) -> None:
        """Count outcomes that changed nothing, because the row has another lease token."""
        self._fenced_writes.inc(count)

    def rate_limited(self, webhook_id: int) -> None:
        """Count a delivery put off by a rate limit, ours or the receiver's."""
        (self._webhooks.get(webhook_id) or self._webhook(webhook_id)).limit_hits.inc()

    def token_waited(self, seconds: float) -> None:
        """Record how long a webhook with rows that could have been sent had no token for them."""
        self._token_wait.observe(seconds)

    def bucket_busy(self) -> None:
        """Count a claim that found a webhook being claimed by another worker."""
        self._buckets_busy.inc()

    def tokens_lost(self, count: int = 1) -> None:
        """Count tokens that were taken and not used, because an attempt could not begin in time."""
        self._tokens_lost.inc(count)

    def fleet_waited(self) -> None:
        """Count a claim that the limit of the whole fleet cut short."""
        self._fleet_waits.inc()

    def breaker_turned(self, state: str) -> None:
        """Count a breaker that this worker saw open, let a probe through, or close; *state* is of `BREAKER_STATES`."""
        self._breaker_turns[state].inc()

    def set_breakers(self, counts: Mapping[str, int]) -> None:
        """Set how many webhooks have a breaker in each state but closed."""
        for state in BREAKER_STATES:
            if state != "closed":
                self._breakers[state].set(counts.get(state, 0))

    def breaker_opened(self, webhook_id: int) -> None:
        """Count an opening of a circuit breaker."""
        (self._webhooks.get(webhook_id) or self._webhook(webhook_id)).breaker_opens.inc()

    def concurrency_lowered(self, webhook_id: int) -> None:
        """Count a fall of what a receiver is thought able to bear."""
        (self._webhooks.get(webhook_id) or self._webhook(webhook_id)).concurrency_falls.inc()

    def webhook_at_risk(self, webhook_id: int) -> None:
        """Count a time that a webhook was thought likely to fail soon."""
        (self._webhooks.get(webhook_id) or self._webhook(webhook_id)).at_risk.inc()

    def reconnected(self, connection: str) -> None:
        """Count a lost and restored database connection, such as ``listener``."""
        self._reconnects[connection].inc()

    def loop_restarted(self, loop: str) -> None:
        """Count a restart of a failed loop."""
        self._loop_restarts[loop].inc()

    def refresh_failed(self) -> None:
        """Count a scrape whose database-derived gauges are old."""
        self._refresh_failures.inc()

    # State, as known now.

    def set_up(self, up: bool) -> None:
        """Set the legacy `worker_health_status`: whether this process lives."""
        self._health.set(1 if up else 0)

    def set_notify_lag(self, seconds: float) -> None:
        """Set the last round trip of the listener's canary."""
        self._notify_lag.set(seconds)

    def set_clock_skew(self, seconds: float) -> None:
        """Set database time minus this machine's time."""
        self._clock_skew.set(seconds)

    def set_notification_queue_usage(self, ratio: float) -> None:
        """Set `pg_notification_queue_usage()`, 0 to 1; at 1 producers' COMMITs fail."""
        self._notification_queue_usage.set(ratio)

    def set_queue(self, *, depth: Mapping[str, int], oldest_age_seconds: Mapping[str, float]) -> None:
        """Set depth and age of the oldest row by status; a status without rows is left out or zero."""
        for status in {*WAITING_STATUSES, *depth}:
            self._queue_depth[status].set(depth.get(status, 0))
        for status in {*WAITING_STATUSES, *oldest_age_seconds}:
            self._queue_age[status].set(oldest_age_seconds.get(status, 0))
        self._legacy_depth.set(sum(depth.get(status, 0) for status in WAITING_STATUSES))

    def set_webhooks_paused_unopenable(self, count: int) -> None:
        """Set how many webhooks are paused because no key opens their URL or secret."""
        self._paused_unopenable.set(count)

    def set_secrets_old(self, count: int) -> None:
        """Set how many webhooks have no signing secret younger than the reminder."""
        self._secrets_old.set(count)

    def audit_sealed(self, rows: int) -> None:
        """Count a segment of the audit chain, and its rows."""
        self._audit_segments.inc()
        self._audit_rows.inc(rows)

    def audit_seal_failed(self) -> None:
        """Count a pass over the audit log that sealed nothing, though it should have."""
        self._audit_seal_failures.inc()

    def set_egress_relaxations(self, count: int) -> None:
        """Set how many entries `egress.unsafe_allow` has."""
        self._egress_relaxations.set(count)

    def set_unknown_webhook_rows(self, count: int) -> None:
        """Set how many rows wait for a webhook that nobody registered."""
        self._unknown_webhook_rows.set(count)

    def observe_load(
        self,
        *,
        attempts_in_flight: Callable[[], float],
        body_bytes_in_memory: Callable[[], float],
        settle_backlog: Callable[[], float],
    ) -> None:
        """Read these at each scrape. They must not fail, block or wait."""
        self._in_flight.set_function(attempts_in_flight)
        self._body_bytes.set_function(body_bytes_in_memory)
        self._settle_backlog.set_function(settle_backlog)

    def _webhook(self, webhook_id: int) -> _WebhookSeries:
        if len(self._webhooks) < self._webhook_labels_max:
            series = self._webhooks[webhook_id] = _WebhookSeries(self, str(webhook_id))
            return series
        if self._other_webhooks is None:
            self._other_webhooks = _WebhookSeries(self, OTHER)
        return self._other_webhooks

    def _define_legacy(self, worker_id: str) -> None:
        registry = self.registry
        self.deliveries = Counter(
            "webhook_deliveries_total",
            "Attempts by what became of them.",
            ("status", "webhook_id"),
            registry=registry,
        )
        self.duration = Histogram(
            "webhook_delivery_duration_seconds",
            "Length of an attempt.",
            ("webhook_id",),
            buckets=_LEGACY_BUCKETS,
            registry=registry,
        )
        self._legacy_depth = Gauge(
            "webhook_queue_depth", "Rows that are pending or retrying.", registry=registry
        )
        health = Gauge("worker_health_status", "1 up, 0 down.", ("worker_id",), registry=registry)
        self._health = health.labels(worker_id)
        self.limit_hits = Counter(
            "rate_limit_hits_total",
            "Deliveries put off by a rate limit.",
            ("webhook_id",),
            registry=registry,
        )
        self.breaker_opens = Counter(
            "circuit_breaker_opens_total",
            "Openings of circuit breakers.",
            ("webhook_id",),
            registry=registry,
        )

    def _define_work(self) -> None:
        self._commit_to_send = self._histogram(
            "commit_to_send_seconds", "From a row's commit to its request sent.", _LATENCY_BUCKETS
        )
        self._attempts = _Children(self._counter("attempts_total", "Attempts by verdict.", "outcome"))
        self._claim_seconds = self._histogram("claim_seconds", "Length of a claim.", _STATEMENT_BUCKETS)
        self._claim_rows = self._histogram("claim_rows", "Rows of a claim.", _ROWS_BUCKETS)
        self._settle_seconds = self._histogram("settle_seconds", "Length of a settle.", _STATEMENT_BUCKETS)
        self._settle_rows = self._histogram("settle_rows", "Outcomes of a settle.", _ROWS_BUCKETS)
        self._settle_failures = self._counter("settle_failures_total", "Settles that were not written.")
        self._gate_openings = self._counter(
            "gate_openings_total", "Times that producers were let off NOTIFY under load."
        )
        self._leases_expired = self._counter("leases_expired_total", "Rows taken over after their lease.")
        self.concurrency_falls = self._counter(
            "concurrency_lowered_total", "Falls of what a receiver is thought able to bear.", "webhook_id"
        )
        self.at_risk = self._counter(
            "webhook_at_risk_total", "Times that a webhook was thought likely to fail soon.", "webhook_id"
        )
        self._fenced_writes = self._counter("fenced_writes_total", "Outcomes that came too late to count.")

    def _define_limits(self) -> None:
        self._token_wait = self._histogram(
            "token_wait_seconds", "How long webhooks with due rows had no token.", _WAIT_BUCKETS
        )
        self._buckets_busy = self._counter(
            "buckets_busy_total", "Claims of a webhook that another worker was claiming."
        )
        self._tokens_lost = self._counter(
            "tokens_lost_total", "Tokens taken for attempts that could not begin in time."
        )

        self._fleet_waits = self._counter(
            "fleet_waits_total", "Claims that the limit of the whole fleet cut short."
        )
        turns = self._counter(
            "breaker_transitions_total", "Circuit breakers that came into a state.", "state"
        )
        self._breaker_turns = _Children(turns, ("open", "half_open", "closed"))
        breakers = self._gauge("webhook_breakers", "Webhooks whose breaker is not simply closed.", "state")
        self._breakers = _Children(breakers, [state for state in BREAKER_STATES if state != "closed"])

    def _define_connections(self) -> None:
        wakeups = self._counter("wakeups_total", "Wake-ups of the claimer.", "cause")
        self._wakeups = _Children(wakeups, WAKE_CAUSES)
        reconnects = self._counter("reconnects_total", "Database connections restored.", "connection")
        self._reconnects = _Children(reconnects)
        restarts = self._counter("loop_restarts_total", "Restarts of failed loops.", "loop")
        self._loop_restarts = _Children(restarts)
        self._refresh_failures = self._counter(
            "scrape_refresh_failures_total", "Scrapes whose queue figures are old."
        )

    def _define_load(self) -> None:
        self._in_flight = self._gauge("attempts_in_flight", "Attempts that have begun and not ended.")
        self._body_bytes = self._gauge("body_bytes_in_memory", "Octets of claimed bodies.")
        self._settle_backlog = self._gauge("settle_backlog", "Outcomes that wait to be written.")

    def _define_state(self) -> None:
        depth = self._gauge("queue_depth", "Rows of the queue (capped count).", "status")
        self._queue_depth = _Children(depth, WAITING_STATUSES)
        age = self._gauge("queue_oldest_age_seconds", "Age of the oldest row.", "status")
        self._queue_age = _Children(age, WAITING_STATUSES)
        self._notify_lag = self._gauge("notify_lag_seconds", "Last round trip of the canary.")
        self._clock_skew = self._gauge("clock_skew_seconds", "Database time minus worker time.")
        self._notification_queue_usage = self._gauge(
            "notification_queue_usage_ratio", "Share of PostgreSQL's notification queue in use."
        )
        self._paused_unopenable = self._gauge(
            "webhooks_paused_unopenable", "Webhooks paused because no key opens them."
        )
        self._secrets_old = self._gauge(
            "webhook_secrets_old", "Webhooks whose newest signing secret is older than the reminder."
        )
        self._audit_segments = self._counter("audit_segments", "Segments put on the audit chain.")
        self._audit_rows = self._counter("audit_rows_sealed", "Audit rows in them.")
        self._audit_seal_failures = self._counter(
            "audit_seal_failures", "Passes over the audit log that should have sealed and did not."
        )
        self._egress_relaxations = self._gauge("egress_relaxations", "Entries of egress.unsafe_allow.")
        self._unknown_webhook_rows = self._gauge(
            "unknown_webhook_rows", "Rows that wait for a webhook nobody registered."
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pggit_reactor_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"pggit_reactor_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"pggit_reactor_{name}", text, buckets=buckets, registry=self.registry)
