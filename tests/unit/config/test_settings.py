"""Settings judge themselves, and their defaults are those of the contract."""

import re

import attrs
import pytest

from pggit_reactor.config.described import FIELDS, describe_settings
from pggit_reactor.config.setting import dsn_complaint, dsn_has_password
from pggit_reactor.config.settings import (
    DatabaseSettings,
    DeliverySettings,
    EgressSettings,
    LogFormat,
    LogLevel,
    MetricsSettings,
    Settings,
    WorkerSettings,
)
from pggit_reactor.core.egress import EgressRules, TlsVersion
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError

DSN = "postgresql://worker:hunter22@db.example.com/pggit"


def test_the_defaults_are_those_of_the_contract():
    """DESIGN 8, the table of settings."""
    settings = Settings()

    assert settings.database == DatabaseSettings(url=None, listen_url=None)
    assert settings.keys.master_key is None
    worker = settings.worker
    assert (worker.lease_seconds, worker.poll_seconds, worker.drain_seconds) == (30, 5, 25)
    assert (worker.attempts_max, worker.body_bytes_max, worker.processes) == (256, 67_108_864, 1)
    delivery = settings.delivery
    assert (delivery.timeout_seconds, delivery.backoff_base_seconds) == (5, 5)
    assert (delivery.unknown_webhook_hold_seconds, delivery.max_body_bytes) == (86_400, 1_048_576)
    assert attrs.astuple(settings.egress) == ("443", "", "", "", TlsVersion.TLS_1_2, None)
    assert attrs.astuple(settings.retention) == (365, 0, 0)
    assert attrs.astuple(settings.metrics) == ("127.0.0.1", 8000)
    assert attrs.astuple(settings.api) == ("127.0.0.1", 8080, None)
    assert attrs.astuple(settings.log) == (LogLevel.INFO, LogFormat.AUTO)
    assert settings.postgres_bin is None


def test_listening_uses_the_first_database_url_unless_it_has_its_own():
    assert DatabaseSettings(url=Secret(DSN)).listen_url == Secret(DSN)
    assert DatabaseSettings(url=Secret(DSN), listen_url=Secret("host=direct")).listen_url == Secret(
        "host=direct"
    )


def test_the_shortest_times_of_the_crash_tests_are_allowed():
    Settings(
        worker=WorkerSettings(lease_seconds=3.1, poll_seconds=0.1),
        delivery=DeliverySettings(timeout_seconds=0.1),
    )


@pytest.mark.parametrize(
    ("section", "name", "value", "complaint"),
    [
        (
            DeliverySettings,
            "timeout_seconds",
            0.09,
            "delivery.timeout_seconds: 0.09 is too little; right is 0.1 to 20 s",
        ),
        (
            DeliverySettings,
            "timeout_seconds",
            20.5,
            "delivery.timeout_seconds: 20.5 is too much; right is 0.1 to 20 s",
        ),
        (
            DeliverySettings,
            "timeout_seconds",
            float("nan"),
            "delivery.timeout_seconds: nan is not a finite number",
        ),
        (DeliverySettings, "unknown_webhook_hold_seconds", -1, "is too little; right is 0 to"),
        (DeliverySettings, "max_body_bytes", 0, "right is 1 to 16777216 bytes"),
        (
            WorkerSettings,
            "poll_seconds",
            0.05,
            "worker.poll_seconds: 0.05 is too little; right is 0.1 to 3600 s",
        ),
        (WorkerSettings, "lease_seconds", 3, "worker.lease_seconds: 3 is too little; right is 3.1 to 3600 s"),
        (WorkerSettings, "attempts_max", 0, "right is 1 to 65536"),
        (WorkerSettings, "worker_id", "", "worker.id: '' is not an id"),
        (WorkerSettings, "worker_id", "a\nb", "right is 1 to 128 printable characters"),
        (MetricsSettings, "port", 65_536, "metrics.port: 65536 is too much; right is 0 to 65535"),
        (MetricsSettings, "host", "http://x/", "metrics.host: 'http://x/' is not an address to listen on"),
        (EgressSettings, "ports", "", "egress.ports: names no port"),
        (EgressSettings, "deny", "example.com", "egress.deny: has 'example.com'"),
        (EgressSettings, "unsafe_allow", "127.0.0.1", "egress.unsafe_allow: has '127.0.0.1'"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_what_would_be_right(section, name, value, complaint):
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        section(**{name: value})


def test_a_lease_covers_the_longest_attempt():
    with pytest.raises(
        ConfigurationError, match=r"worker\.lease_seconds: 12 is too little .* right is 13 s or more"
    ):
        Settings(worker=WorkerSettings(lease_seconds=12), delivery=DeliverySettings(timeout_seconds=10))

    Settings(worker=WorkerSettings(lease_seconds=13), delivery=DeliverySettings(timeout_seconds=10))


def test_the_memory_for_bodies_holds_the_largest_body():
    with pytest.raises(ConfigurationError, match="right is 2048 or more"):
        Settings(worker=WorkerSettings(body_bytes_max=1024), delivery=DeliverySettings(max_body_bytes=2048))


def test_egress_texts_are_the_rules_of_the_core():
    egress = EgressSettings(ports="443,8443", unsafe_allow="127.0.0.0/8:*,[::1]:*")

    assert egress.rules() == EgressRules.parse(ports="443,8443", unsafe_allow="127.0.0.0/8:*,[::1]:*")


@pytest.mark.parametrize(
    "text",
    [
        DSN,
        "postgres://",
        "postgresql://a,b/pggit?target_session_attrs=read-write",
        "host=db dbname=pggit",
        "host = db   port= 5432\n",
        r"password='it\'s a secret' host=/run",
        r"password=a\ b",
        "password=a'b host=",
    ],
)
def test_both_forms_of_libpq_are_connection_texts(text):
    assert dsn_complaint(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "hunter22",
        "host=a hunter22",
        "host='hunter22",
        "=hunter22",
        "host='a'hunter22",
        "x\0=hunter22",
    ]
    + [
        f"{scheme}://u:hunter22@h/d" for scheme in ("mysql", "postgresql+psycopg", "https", "jdbc:postgresql")
    ],
)
def test_anything_else_is_not_and_is_not_quoted(text):
    with pytest.raises(ConfigurationError, match=r"database\.url: .*right is postgresql://") as caught:
        DatabaseSettings(url=Secret(text))

    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DSN, True),
        ("host=a password=b", True),
        ("postgresql://worker@db/pggit", False),
        ("host=a user=b", False),
    ],
)
def test_a_password_in_a_connection_text_is_noticed(text, expected):
    assert dsn_has_password(text) is expected


def test_secrets_do_not_show():
    settings = Settings(database=DatabaseSettings(url=Secret(DSN)))

    assert "hunter22" not in repr(settings)
    assert "hunter22" not in str(settings)


CONTRACT_NAMES = """
    DATABASE_URL DATABASE_LISTEN_URL MASTER_KEY WORKER_LEASE_SECONDS WORKER_POLL_SECONDS WORKER_DRAIN_SECONDS
    DELIVERY_TIMEOUT_SECONDS DELIVERY_RATE_PER_S DELIVERY_BACKOFF_BASE_SECONDS DELIVERY_UNKNOWN_WEBHOOK_HOLD_SECONDS
    EGRESS_UNSAFE_ALLOW METRICS_HOST METRICS_PORT API_HOST API_PORT API_TOKEN_KEY POSTGRES_BIN WORKER_ID
    LOG_LEVEL LOG_FORMAT EGRESS_PORTS EGRESS_ALLOW EGRESS_DENY WORKER_ATTEMPTS_MAX WORKER_BODY_BYTES_MAX
    DELIVERY_MAX_BODY_BYTES WORKER_PROCESSES WORKER_WEBHOOK_SHARE EGRESS_TLS_MIN_VERSION
    EGRESS_PROXY_URL
    MASTER_KEY_COMMAND SECRETS_GRACE_SECONDS SECRETS_REMINDER_SECONDS
    RETENTION_AUDIT_DAYS RETENTION_DELIVERED_DAYS RETENTION_FAILED_DAYS
    DELIVERY_HEALTH_PREDICTION DELIVERY_FLEET_RATE_PER_S DELIVERY_FLEET_BURST
"""


def test_every_setting_of_the_contract_has_its_variable():
    """DESIGN 8's table, name by name, and what came later."""

    assert sorted(d.variable for d in describe_settings()) == sorted(
        f"PGGIT_REACTOR_{name}" for name in CONTRACT_NAMES.split()
    )
    assert [d.file_variable for d in describe_settings() if d.secret] == [
        "PGGIT_REACTOR_DATABASE_URL_FILE",
        "PGGIT_REACTOR_DATABASE_LISTEN_URL_FILE",
        "PGGIT_REACTOR_MASTER_KEY_FILE",
        "PGGIT_REACTOR_EGRESS_PROXY_URL_FILE",
        "PGGIT_REACTOR_API_TOKEN_KEY_FILE",
    ]


def test_a_description_says_all_that_a_reader_needs():
    described = {description.key: description for description in describe_settings()}

    timeout = described["delivery.timeout_seconds"]
    assert (timeout.default, timeout.unit, timeout.values) == ("5", "s", "0.1 to 20 s")
    assert described["log.level"].values == "debug, info, warning, error, critical"
    assert described["worker.id"].default == "host and process id"
    assert described["database.url"].also == ("DATABASE_URL",)
    assert all(description.meaning.endswith(".") for description in described.values())


def test_every_field_of_every_section_is_a_setting():
    """A field that is not described could be neither set nor documented."""
    counted = sum(
        len(attrs.fields(type(section))) for section in attrs.astuple(Settings(), recurse=False)[:-1]
    )

    assert len(FIELDS) == counted + 1
