"""The variables of the original worker (LEGACY 9): honoured, or reported with what replaces them; never
ignored.

A variable that the old worker read and that still has a meaning is a source of its own, below the file. All
others are reported: operators have them in their files, and a variable that silently does nothing is a trap.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

HONOURED: Final[Mapping[str, str]] = MappingProxyType(
    {
        # DATABASE_URL is a name of ours too (DESIGN 8), so it is not here.
        "WORKER_ID": "worker.id",
        "POLL_INTERVAL": "worker.poll_seconds",
        "HTTP_TIMEOUT": "delivery.timeout_seconds",
        "LOG_LEVEL": "log.level",
        "METRICS_PORT": "metrics.port",
        "RATE_LIMIT_RPS": "delivery.rate_per_s",
        "AUDIT_LOG_RETENTION_DAYS": "retention.audit_days",
    }
)
"""Legacy variable to the key of the setting that it sets."""

_BATCH: Final = "a worker claims what can be sent at once; PGGIT_REACTOR_WORKER_ATTEMPTS_MAX bounds it"
_BREAKER: Final = (
    "the circuit breaker is shared by all workers: it opens at 5 failures in a row, or when most of 20 fail"
)
_POOL: Final = "a worker keeps a few connections of its own, and there is no pool to size"
_TLS: Final = (
    "TLS 1.2 or later and a verified certificate are always required; egress.tls_min_version raises it"
)
_PINS: Final = "pins belong to a webhook (`pggit-reactor webhook set ID pins=...`)"
_MASTER_KEY: Final = (
    "master keys have another form: `pggit-reactor key new` prints one for PGGIT_REACTOR_MASTER_KEY_FILE"
)
_API_KEY: Final = "the key of the API's tokens is a file: PGGIT_REACTOR_API_TOKEN_KEY_FILE"
_API_RATE: Final = "the API's limits are fixed"

REPORTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "WORKER_COUNT": "it never had an effect; `worker --processes N` runs N workers",
        "BATCH_SIZE": _BATCH,
        "MAX_RETRIES": "each row has its max_retries, and a webhook may have its own max_attempts",
        "CIRCUIT_BREAKER_FAILURE_THRESHOLD": _BREAKER,
        "CIRCUIT_BREAKER_TIMEOUT_SECONDS": _BREAKER,
        "DB_POOL_MIN": _POOL,
        "DB_POOL_MAX": _POOL,
        "DB_CONNECT_TIMEOUT": "connect_timeout belongs into PGGIT_REACTOR_DATABASE_URL",
        "HTTPS_ONLY": "https is always required",
        "TLS_MIN_VERSION": _TLS,
        "MIN_TLS_VERSION": _TLS,
        "CERT_PIN_HASHES": _PINS,
        "CERTIFICATE_PIN_HASHES": _PINS,
        "ENCRYPTION_MASTER_KEY": _MASTER_KEY,
        "WEBHOOK_ENCRYPTION_KEY": _MASTER_KEY,
        "WEBHOOK_SIGNING_SECRET": "each webhook has a secret of its own (`webhook add --secret-file`)",
        "JWT_SECRET": _API_KEY,
        "JWT_SECRET_KEY": _API_KEY,
        "BEARER_TOKEN_EXPIRY_HOURS": "a token lives for an hour unless it is issued for another time",
        "RATE_LIMIT_GLOBAL_RPS": _API_RATE,
        "RATE_LIMIT_PER_REQUESTER_RPS": _API_RATE,
        "REDIS_URL": "all state is in PostgreSQL",
        "AUDIT_LOG_ENABLED": "the audit log is always kept",
        "KEY_ROTATION_INTERVAL_DAYS": "rotation is a property of a webhook; a reminder comes after 90 days",
        "KEY_ROTATION_GRACE_PERIOD_DAYS": "during a rotation both secrets are valid for 30 days",
        "PROMETHEUS_ENABLED": "/metrics is always served",
        "PROMETHEUS_PORT": "the port of /metrics is PGGIT_REACTOR_METRICS_PORT",
        "SENTRY_DSN": "errors are in the log (PGGIT_REACTOR_LOG_FORMAT=json) and in the metrics",
        # Of the original's Compose file (LEGACY 13), which mapped them to the names above.
        "WORKER_BATCH_SIZE": _BATCH,
        "WORKER_POLL_INTERVAL": "its name is PGGIT_REACTOR_WORKER_POLL_SECONDS",
        "WORKER_HTTP_TIMEOUT": "its name is PGGIT_REACTOR_DELIVERY_TIMEOUT_SECONDS",
    }
)
"""Legacy variable to what replaces it."""

_DATADOG_PREFIX: Final = "DD_"


def legacy_warnings(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Report each legacy variable that is set and has no effect. Values are never shown: some are secrets."""
    reports = [f"{name} has no effect: {what}" for name, what in REPORTED.items() if environ.get(name)]
    if any(name.startswith(_DATADOG_PREFIX) for name in environ):
        # Datadog's own agent is set by dozens of these: one line for all.
        reports.append("DD_* variables have no effect: /metrics is there for any collector, Datadog's too")
    return tuple(reports)
