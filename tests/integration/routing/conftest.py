"""Phase 7 of pgGit as far as routing meets it, and a plain connection."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pggit_reactor.testing.database import ReactorDatabase

# Our own words for the relations of LEGACY 6.
PHASE7 = """
    CREATE TABLE pggit.alert_notification_webhooks (
        webhook_id bigserial PRIMARY KEY, webhook_type text NOT NULL, name text NOT NULL, channel_or_recipient text,
        webhook_url_encrypted bytea, webhook_url_iv bytea, encryption_key_id text DEFAULT 'phase7_default',
        enabled boolean DEFAULT true, created_at timestamp DEFAULT now(), last_tested_at timestamp,
        test_status text DEFAULT 'untested', test_error_message text, UNIQUE (webhook_type, name));
    CREATE TABLE pggit.alert_notification_queue (
        queue_id bigserial PRIMARY KEY, alert_id bigint, webhook_id bigint, message_body text NOT NULL,
        message_format text DEFAULT 'json', status text DEFAULT 'pending', retry_count integer DEFAULT 0,
        max_retries integer DEFAULT 3, error_message text, created_at timestamp DEFAULT now(), sent_at timestamp);
"""


@pytest.fixture
def database(reactor_database: ReactorDatabase) -> Iterator[psycopg.Connection]:
    with psycopg.connect(reactor_database.dsn.reveal(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def phase7(database: psycopg.Connection) -> psycopg.Connection:
    """The same database, after somebody installed phase 7 in it."""
    database.execute(PHASE7)
    return database


@pytest.fixture
def register(database: psycopg.Connection):
    """Register a webhook that nothing is ever sent to; returns its id."""

    def add(webhook_id: int, *, type_: str | None = None, state: str = "active") -> int:
        database.execute(
            "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, state, labels)"
            " VALUES (%s, %s, '', 'https://a.example', %s, jsonb_strip_nulls(jsonb_build_object('type', %s::text)))",
            (webhook_id, f"w{webhook_id}", state, type_),
        )
        return webhook_id

    return add


@pytest.fixture
def rule(database: psycopg.Connection):
    """Add a routing rule; returns its id."""

    def add(webhook_id: int, severity_level: str = "CRITICAL", **columns: object) -> int:
        values = {"webhook_id": webhook_id, "severity_level": severity_level, **columns}
        places = ", ".join(f"%({name})s" for name in values)
        row = database.execute(
            f"INSERT INTO pggit.alert_routing_rules ({', '.join(values)}) VALUES ({places}) RETURNING rule_id",
            values,
        ).fetchone()
        return row[0]

    return add


@pytest.fixture
def publish(database: psycopg.Connection):
    """Publish an alert; returns the ids of its deliveries by webhook."""

    def call(
        severity: str | None,
        anomaly_type: str | None = None,
        bottleneck_type: str | None = None,
        **named: object,
    ) -> dict[int, int]:
        arguments = {
            "p_body": '{"a": 1}',
            "p_severity": severity,
            "p_anomaly_type": anomaly_type,
            "p_bottleneck_type": bottleneck_type,
            **named,
        }
        places = ", ".join(f"{name} => %({name})s" for name in arguments)
        ids = [row[0] for row in database.execute(f"SELECT * FROM pggit.publish({places})", arguments)]
        rows = database.execute(
            "SELECT q.webhook_id, q.delivery_id FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = ANY (%s)",
            (ids,),
        ).fetchall()
        assert len(rows) == len(ids)
        return dict(rows)

    return call
