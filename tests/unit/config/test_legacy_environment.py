"""The environment of the original (LEGACY 9), and the example of ours."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from pggit_reactor.config.described import FIELDS, describe_settings
from pggit_reactor.config.legacy import HONOURED, REPORTED
from pggit_reactor.config.load import load_settings

EXAMPLE = Path(__file__).parents[3] / "deploy" / "env.example"
ASSIGNMENT = re.compile(r"^(#?)([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)
OURS = re.compile(r"PGGIT_REACTOR_[A-Z_]+")

# What an .env of the original held: its guide's production values.
ORIGINAL_ENV = {
    "DATABASE_URL": "postgresql://postgres:postgres@localhost:5432/pggit",
    "WORKER_ID": "pggit-worker-1",
    "WORKER_COUNT": "3",
    "BATCH_SIZE": "20",
    "POLL_INTERVAL": "0.5",
    "HTTP_TIMEOUT": "5.0",
    "LOG_LEVEL": "info",
    "METRICS_PORT": "8000",
    "MAX_RETRIES": "3",
    "RATE_LIMIT_RPS": "10",
    "CIRCUIT_BREAKER_FAILURE_THRESHOLD": "5",
    "CIRCUIT_BREAKER_TIMEOUT_SECONDS": "60",
    "DB_POOL_MIN": "5",
    "DB_POOL_MAX": "25",
    "DB_CONNECT_TIMEOUT": "10",
    "HTTPS_ONLY": "true",
    "TLS_MIN_VERSION": "1.2",
    "MIN_TLS_VERSION": "1.2",
    "CERT_PIN_HASHES": "sha256/AAAA",
    "CERTIFICATE_PIN_HASHES": "sha256/AAAA",
    "ENCRYPTION_MASTER_KEY": "0123456789abcdef0123456789abcdef",
    "WEBHOOK_ENCRYPTION_KEY": "0123456789abcdef0123456789abcdef",
    "WEBHOOK_SIGNING_SECRET": "s3cret-of-a-webhook",
    "JWT_SECRET": "s3cret-of-tokens",
    "JWT_SECRET_KEY": "s3cret-of-tokens",
    "BEARER_TOKEN_EXPIRY_HOURS": "24",
    "RATE_LIMIT_GLOBAL_RPS": "1000",
    "RATE_LIMIT_PER_REQUESTER_RPS": "100",
    "REDIS_URL": "redis://redis:6379/0",
    "AUDIT_LOG_ENABLED": "true",
    "AUDIT_LOG_RETENTION_DAYS": "365",
    "KEY_ROTATION_INTERVAL_DAYS": "90",
    "KEY_ROTATION_GRACE_PERIOD_DAYS": "7",
    "PROMETHEUS_ENABLED": "true",
    "PROMETHEUS_PORT": "8000",
    "SENTRY_DSN": "https://key@sentry.example/1",
    "DD_AGENT_HOST": "agent",
    "DD_TRACE_ENABLED": "true",
}


def test_an_env_file_of_the_original_is_accepted_and_every_variable_honoured_or_reported():
    loaded = load_settings(environ=ORIGINAL_ENV)

    told = {warning.split()[0] for warning in loaded.warnings}
    honoured = set(loaded.sources.values())
    assert honoured == {
        "DATABASE_URL",
        "WORKER_ID",
        "POLL_INTERVAL",
        "HTTP_TIMEOUT",
        "LOG_LEVEL",
        "METRICS_PORT",
        "RATE_LIMIT_RPS",
        "AUDIT_LOG_RETENTION_DAYS",
    }
    assert told == {name for name in ORIGINAL_ENV if not name.startswith("DD_")} - honoured | {"DD_*"}


def test_reports_quote_no_value():
    text = "\n".join(load_settings(environ=ORIGINAL_ENV).warnings)

    values = {value for value in ORIGINAL_ENV.values() if len(value) > 8}
    assert [value for value in values if value in text] == []


@pytest.mark.parametrize("name", REPORTED)
def test_what_replaces_a_variable_exists(name):
    known = {facts.variable for facts in describe_settings()} | {
        facts.file_variable for facts in describe_settings()
    }

    assert set(OURS.findall(REPORTED[name])) <= known


def test_the_legacy_keys_are_keys_of_settings():
    assert set(HONOURED.values()) <= set(FIELDS)


def example() -> dict[str, tuple[bool, str]]:
    """Return the variables of the example: whether each is only shown, and its value."""
    found = ASSIGNMENT.findall(EXAMPLE.read_text(encoding="utf-8"))
    assert len({name for _, name, _ in found}) == len(found)
    return {name: (bool(mark), value) for mark, name, value in found}


def test_the_example_names_every_setting_and_every_legacy_name_that_is_read():
    ours = {
        name
        for facts in describe_settings()
        for name in (facts.variable, facts.file_variable)
        if name is not None
    }

    assert set(example()) == ours | set(HONOURED) | {"DATABASE_URL"}


def test_what_the_example_sets_is_valid_and_what_it_shows_are_the_defaults(tmp_path):
    key = tmp_path / "key"
    key.write_text("k:passphrase:correct horse battery staple", encoding="utf-8")
    key.chmod(0o600)
    variables = example()
    needed = {name: value for name, (only_shown, value) in variables.items() if not only_shown}
    shown = {name: value for name, (only_shown, value) in variables.items() if only_shown and value}
    needed["PGGIT_REACTOR_MASTER_KEY_FILE"] = str(key)

    plain = load_settings(environ=needed)
    spelled_out = load_settings(environ=needed | shown)
    assert plain.warnings == spelled_out.warnings == ()
    assert attrs.asdict(spelled_out.settings, recurse=False) == attrs.asdict(plain.settings, recurse=False)
