"""Every setting, its default and its bounds: one frozen class a section, units in the names.

A `Settings` that exists is valid: each field judges itself, and `Settings` judges what spans sections. Where
the values come from is the business of `pggit_reactor.config.load`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final

import attrs

from pggit_reactor.config.setting import (
    Check,
    about,
    command_complaint,
    dsn_complaint,
    host_complaint,
    judge,
    port_host_complaint,
    worker_id_complaint,
)
from pggit_reactor.core.egress import EgressRules, TlsVersion
from pggit_reactor.core.forward_proxy import parse_proxy
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError

LEASE_MARGIN_SECONDS: Final = 3.0
"""A lease is at least this much longer than an attempt, so that no attempt outlives its lease (DESIGN 4)."""
ATTEMPT_TIMEOUT_SECONDS_MAX: Final = 20.0
BACKOFF_CAP_SECONDS: Final = 1800.0
RETENTION_DAYS_MAX: Final = 36_500
AUDIT_DAYS_MIN: Final = 90  # As in pggit.prune_audit: no worker can drop what is younger.
_BODY_BYTES_MAX: Final = 16_777_216  # As the column pggit.webhook.max_body_bytes.
_DAY_SECONDS: Final = 86_400.0


class LogLevel(StrEnum):
    """The least important events that are printed."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class LogFormat(StrEnum):
    """How events are printed; `AUTO`: whoever opens the stream takes console on a terminal, else JSON."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


def _dsn_secret_complaint(value: Secret[str]) -> str | None:
    return dsn_complaint(value.reveal())


def _proxy_complaint(value: Secret[str]) -> str | None:
    try:
        parse_proxy(value.reveal().strip())
    except ConfigurationError as exc:
        return str(exc).removeprefix("egress.proxy_url ")
    return None


def _egress_check(name: str) -> Check:
    def complaint(text: str) -> str | None:
        try:
            EgressRules.parse(**{name: text})  # type: ignore[arg-type]  # *name* is that of a text
        except ConfigurationError as exc:
            return str(exc).removeprefix(f"egress.{name} ")
        return None

    return complaint


@attrs.frozen(kw_only=True)
class DatabaseSettings:
    """Where the queue is."""

    url: Secret[str] | None = attrs.field(
        default=None,
        validator=judge,
        metadata=about(
            "database.url",
            "The database: an URL or the KEY=VALUE form of libpq.",
            secret=True,
            also=("DATABASE_URL",),
            check=_dsn_secret_complaint,
        ),
    )
    listen_url: Secret[str] | None = attrs.field(
        default=attrs.Factory(lambda self: self.url, takes_self=True),
        validator=judge,
        metadata=about(
            "database.listen_url",
            "A direct connection for LISTEN, where database.url goes through a pooler.",
            secret=True,
            check=_dsn_secret_complaint,
            default_text="database.url",
        ),
    )


@attrs.frozen(kw_only=True)
class KeySettings:
    """The keys that seal URLs and secrets. The texts are read by `pggit_reactor.security.keyring`."""

    master_key: Secret[str] | None = attrs.field(
        default=None,
        validator=judge,
        metadata=about(
            "keys.master_key",
            "Master keys, the active one first: ID:base64:... or ID:passphrase:..., a line or comma each.",
            secret=True,
            variable="MASTER_KEY",
        ),
    )
    master_key_command: str = attrs.field(
        default="",
        validator=judge,
        metadata=about(
            "keys.master_key_command",
            "A program and its arguments that prints the master keys, instead of keys.master_key; run without a shell, "
            "for 10 s at most.",
            variable="MASTER_KEY_COMMAND",
            check=command_complaint,
        ),
    )


@attrs.frozen(kw_only=True)
class SecretSettings:
    """How signing secrets are rotated."""

    grace_seconds: float = attrs.field(
        default=30 * _DAY_SECONDS,
        validator=judge,
        metadata=about(
            "secrets.grace_seconds",
            "How long the secrets before a new one sign on; a rotation by schedule lets them for one period at most.",
            unit="s",
            least=1,
            most=366 * _DAY_SECONDS,
        ),
    )
    reminder_seconds: float = attrs.field(
        default=90 * _DAY_SECONDS,
        validator=judge,
        metadata=about(
            "secrets.reminder_seconds",
            "After how long a signing secret counts as old, for a metric and a daily log event; 0: never.",
            unit="s",
            least=0,
            most=3660 * _DAY_SECONDS,
        ),
    )


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """How a worker works."""

    lease_seconds: float = attrs.field(
        default=30.0,
        validator=judge,
        metadata=about(
            "worker.lease_seconds",
            "How long a claim holds; a crashed worker's rows are ready again after it. "
            f"At least delivery.timeout_seconds + {LEASE_MARGIN_SECONDS:g}.",
            unit="s",
            least=0.1 + LEASE_MARGIN_SECONDS,
            most=3600,
        ),
    )
    poll_seconds: float = attrs.field(
        default=5.0,
        validator=judge,
        metadata=about(
            "worker.poll_seconds",
            "How often to look for what no notification told of.",
            unit="s",
            least=0.1,
            most=3600,
        ),
    )
    drain_seconds: float = attrs.field(
        default=25.0,
        validator=judge,
        metadata=about(
            "worker.drain_seconds",
            "How long a stop waits for running attempts; 0 aborts at once.",
            unit="s",
            least=0,
            most=3600,
        ),
    )
    attempts_max: int = attrs.field(
        default=256,
        validator=judge,
        metadata=about(
            "worker.attempts_max",
            "Attempts in flight in one process.",
            least=1,
            most=65_536,
        ),
    )
    webhook_share: float = attrs.field(
        default=0.5,
        validator=judge,
        metadata=about(
            "worker.webhook_share",
            "Of the attempts that are free or its own, the share that one webhook may hold.",
            least=0.01,
            most=1,
        ),
    )
    body_bytes_max: int = attrs.field(
        default=67_108_864,
        validator=judge,
        metadata=about(
            "worker.body_bytes_max",
            "Bodies held in memory by one process. At least delivery.max_body_bytes.",
            unit="bytes",
            least=1024,
            most=1 << 40,
        ),
    )
    worker_id: str = attrs.field(
        default="worker",
        validator=judge,
        metadata=about(
            "worker.id",
            "Names the worker in leases, logs and metrics.",
            # Only for settings that are built by hand: `load` puts in the host and the process id.
            check=worker_id_complaint,
            default_text="host and process id",
        ),
    )
    processes: int = attrs.field(
        default=1,
        validator=judge,
        metadata=about(
            "worker.processes",
            "Workers under one supervisor, a process each.",
            least=1,
            most=256,
        ),
    )


@attrs.frozen(kw_only=True)
class DeliverySettings:
    """How a delivery is attempted."""

    timeout_seconds: float = attrs.field(
        default=5.0,
        validator=judge,
        metadata=about(
            "delivery.timeout_seconds",
            "An attempt's whole time: look-up, connect, TLS, send and answer. A webhook may set its own.",
            unit="s",
            least=0.1,
            most=ATTEMPT_TIMEOUT_SECONDS_MAX,
        ),
    )
    rate_per_s: float = attrs.field(
        default=100.0,
        validator=judge,
        metadata=about(
            "delivery.rate_per_s",
            "The rate of a webhook that is registered without one, in attempts a second; 0 is no limit.",
            least=0,
            most=1_000_000,
        ),
    )
    backoff_base_seconds: float = attrs.field(
        default=5.0,
        validator=judge,
        metadata=about(
            "delivery.backoff_base_seconds",
            "The wait before the first retry, half of it random; doubled at each further one.",
            unit="s",
            least=0.001,
            most=BACKOFF_CAP_SECONDS,
        ),
    )
    unknown_webhook_hold_seconds: float = attrs.field(
        default=_DAY_SECONDS,
        validator=judge,
        metadata=about(
            "delivery.unknown_webhook_hold_seconds",
            "How long rows of an unregistered webhook wait for its registration; 0 gives them up at once.",
            unit="s",
            least=0,
            most=366 * _DAY_SECONDS,
        ),
    )
    fleet_rate_per_s: float = attrs.field(
        default=0.0,
        validator=judge,
        metadata=about(
            "delivery.fleet_rate_per_s",
            "Attempts a second of all workers and webhooks together; 0 for no limit. The same for every worker.",
            least=0,
            most=1_000_000,
        ),
    )
    fleet_burst: int = attrs.field(
        default=100,
        validator=judge,
        metadata=about("delivery.fleet_burst", "Attempts at once above it.", least=1, most=1_000_000),
    )
    max_body_bytes: int = attrs.field(
        default=1_048_576,
        validator=judge,
        metadata=about(
            "delivery.max_body_bytes",
            "The largest body that is sent; a webhook may set its own.",
            unit="bytes",
            least=1,
            most=_BODY_BYTES_MAX,
        ),
    )
    health_prediction: bool = attrs.field(
        default=False,
        validator=judge,
        metadata=about(
            "delivery.health_prediction",
            "Whether a webhook that is likely to fail soon is sent fewer at once, and said to be at risk.",
        ),
    )


@attrs.frozen(kw_only=True)
class RetentionSettings:
    """How long what is over is kept."""

    audit_days: int = attrs.field(
        default=365,
        validator=judge,
        metadata=about(
            "retention.audit_days",
            "Sealed audit rows are dropped after so many days; the chain stays verifiable.",
            least=AUDIT_DAYS_MIN,
            most=RETENTION_DAYS_MAX,
        ),
    )
    delivered_days: int = attrs.field(
        default=0,
        validator=judge,
        metadata=about(
            "retention.delivered_days",
            "Delivered deliveries, with their log, are removed after so many days; 0: never.",
            least=0,
            most=RETENTION_DAYS_MAX,
        ),
    )
    failed_days: int = attrs.field(
        default=0,
        validator=judge,
        metadata=about(
            "retention.failed_days",
            "Failed deliveries, with their log, are removed after so many days; 0: never.",
            least=0,
            most=RETENTION_DAYS_MAX,
        ),
    )


@attrs.frozen(kw_only=True)
class EgressSettings:
    """Where requests may go. The texts are those of `pggit_reactor.core.egress`."""

    ports: str = attrs.field(
        default="443",
        validator=judge,
        metadata=about(
            "egress.ports",
            "Ports that webhooks may have.",
            entries=True,
            check=_egress_check("ports"),
        ),
    )
    allow: str = attrs.field(
        default="",
        validator=judge,
        metadata=about(
            "egress.allow",
            "Networks that webhooks must lie in, where set.",
            entries=True,
            check=_egress_check("allow"),
            default_text="any public network",
        ),
    )
    deny: str = attrs.field(
        default="",
        validator=judge,
        metadata=about(
            "egress.deny",
            "Networks that webhooks may not lie in.",
            entries=True,
            check=_egress_check("deny"),
            default_text="none",
        ),
    )
    unsafe_allow: str = attrs.field(
        default="",
        validator=judge,
        metadata=about(
            "egress.unsafe_allow",
            "Tests and private receivers: NETWORK:PORT or NETWORK:*, such as 127.0.0.0/8:*,[::1]:*.",
            entries=True,
            check=_egress_check("unsafe_allow"),
            default_text="none",
        ),
    )

    tls_min_version: TlsVersion = attrs.field(
        default=TlsVersion.TLS_1_2,
        validator=judge,
        metadata=about("egress.tls_min_version", "The least version of TLS that receivers must speak."),
    )

    proxy_url: Secret[str] | None = attrs.field(
        default=None,
        validator=judge,
        metadata=about(
            "egress.proxy_url",
            "A forward proxy for all requests, http://HOST:PORT or http://USER:PASSWORD@HOST:PORT. "
            "It is itself exempt from these rules.",
            secret=True,
            check=_proxy_complaint,
        ),
    )

    def rules(self) -> EgressRules:
        """Return the texts as the rules that they mean; cannot fail, for each text was judged when it was
        set."""
        return EgressRules.parse(
            ports=self.ports,
            allow=self.allow,
            deny=self.deny,
            unsafe_allow=self.unsafe_allow,
            tls_version_min=self.tls_min_version,
            proxy_url=self.proxy_url,
        )


@attrs.frozen(kw_only=True)
class MetricsSettings:
    """Where the worker serves /metrics, /health and /ready."""

    host: str = attrs.field(
        default="127.0.0.1",
        validator=judge,
        metadata=about(
            "metrics.host",
            "Address of /metrics, /health and /ready; or unix: and an absolute path.",
            check=port_host_complaint,
        ),
    )
    port: int = attrs.field(
        default=8000,
        validator=judge,
        metadata=about(
            "metrics.port",
            "Their port; 0 takes any, named by the log event http_listening.",
            least=0,
            most=65_535,
        ),
    )


@attrs.frozen(kw_only=True)
class ApiSettings:
    """Where the management API listens."""

    host: str = attrs.field(
        default="127.0.0.1",
        validator=judge,
        metadata=about(
            "api.host",
            "Address of the API.",
            check=host_complaint,
        ),
    )
    port: int = attrs.field(
        default=8080,
        validator=judge,
        metadata=about(
            "api.port",
            "Port of the API; 0 takes any.",
            least=0,
            most=65_535,
        ),
    )
    token_key: Secret[str] | None = attrs.field(
        default=None,
        validator=judge,
        metadata=about(
            "api.token_key",
            "The key of the API's tokens: base64 of 32 or more octets, or an Ed25519 key in PEM.",
            secret=True,
        ),
    )


@attrs.frozen(kw_only=True)
class LogSettings:
    """What is printed, and how."""

    level: LogLevel = attrs.field(
        default=LogLevel.INFO,
        validator=judge,
        metadata=about(
            "log.level",
            "The least important events to print.",
        ),
    )
    format: LogFormat = attrs.field(
        default=LogFormat.AUTO,
        validator=judge,
        metadata=about(
            "log.format",
            "console for people, json for machines.",
            default_text="auto: console on a terminal, else json",
        ),
    )


@attrs.frozen(kw_only=True)
class Settings:
    """All settings. Raises ConfigurationError where sections contradict each other."""

    database: DatabaseSettings = DatabaseSettings()
    keys: KeySettings = KeySettings()
    secrets: SecretSettings = SecretSettings()
    worker: WorkerSettings = WorkerSettings()
    delivery: DeliverySettings = DeliverySettings()
    retention: RetentionSettings = RetentionSettings()
    egress: EgressSettings = EgressSettings()
    metrics: MetricsSettings = MetricsSettings()
    api: ApiSettings = ApiSettings()
    log: LogSettings = LogSettings()
    postgres_bin: Path | None = attrs.field(
        default=None,
        validator=judge,
        metadata=about(
            "postgres_bin",
            "Folder of the server programs (initdb, postgres) for demo, up and tests.",
            default_text="found",
        ),
    )

    def __attrs_post_init__(self) -> None:
        complaints = (
            lease_complaint(self.worker.lease_seconds, self.delivery.timeout_seconds),
            body_budget_complaint(self.worker.body_bytes_max, self.delivery.max_body_bytes),
            key_source_complaint(self.keys.master_key, self.keys.master_key_command),
        )
        for complaint in filter(None, complaints):
            raise ConfigurationError(complaint)


def lease_complaint(lease_seconds: float, timeout_seconds: float) -> str | None:
    """Say that a lease would end before an attempt that it covers; None if it would not."""
    least = timeout_seconds + LEASE_MARGIN_SECONDS
    if lease_seconds >= least:
        return None
    return (
        f"worker.lease_seconds: {lease_seconds:.15g} is too little for delivery.timeout_seconds "
        f"{timeout_seconds:.15g}; right is {least:.15g} s or more, so that no attempt outlives its lease"
    )


def body_budget_complaint(body_bytes_max: int, max_body_bytes: int) -> str | None:
    """Say that the largest body would not fit into the memory for bodies; None if it would."""
    if body_bytes_max >= max_body_bytes:
        return None
    return (
        f"worker.body_bytes_max: {body_bytes_max} is less than delivery.max_body_bytes {max_body_bytes}: the "
        f"largest body could never be loaded; right is {max_body_bytes} or more"
    )


def key_source_complaint(master_key: Secret[str] | None, master_key_command: str) -> str | None:
    """Say that master keys come from two places, of which one would be forgotten; None if they do not."""
    if master_key is None or not master_key_command:
        return None
    return "keys.master_key and keys.master_key_command are both set; right is one of them"
