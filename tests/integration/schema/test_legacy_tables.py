"""The tables of LEGACY 2.1 to 2.3 and 2.5, column by column, as scripts that were written for them rely on them."""

from __future__ import annotations

import pytest

# Name, type, "not null" or not, default. Time columns are timestamptz where legacy had plain timestamps.
LEGACY = {
    "alert_delivery_queue": [
        ("delivery_id", "bigint", True, "nextval('pggit.alert_delivery_queue_delivery_id_seq'::regclass)"),
        ("alert_id", "bigint", True, None),
        ("webhook_id", "bigint", True, None),
        ("message_body", "jsonb", True, None),
        ("delivery_status", "text", True, "'pending'::text"),
        ("retry_count", "integer", True, "0"),
        ("max_retries", "integer", True, "3"),
        ("next_retry_at", "timestamp with time zone", False, None),
        ("created_at", "timestamp with time zone", True, "now()"),
        ("attempted_at", "timestamp with time zone", False, None),
        ("delivered_at", "timestamp with time zone", False, None),
    ],
    "alert_delivery_log": [
        ("log_id", "bigint", True, "nextval('pggit.alert_delivery_log_log_id_seq'::regclass)"),
        ("delivery_id", "bigint", True, None),
        ("webhook_id", "bigint", True, None),
        ("event_type", "text", True, None),
        ("event_details", "jsonb", False, None),
        ("created_at", "timestamp with time zone", True, "now()"),
    ],
    "webhook_health_metrics": [
        ("metric_id", "bigint", True, "nextval('pggit.webhook_health_metrics_metric_id_seq'::regclass)"),
        ("webhook_id", "bigint", True, None),
        ("total_deliveries", "bigint", False, "0"),
        ("successful_deliveries", "bigint", False, "0"),
        ("failed_deliveries", "bigint", False, "0"),
        ("avg_response_time_ms", "numeric(10,2)", False, None),
        ("max_response_time_ms", "numeric(10,2)", False, None),
        ("min_response_time_ms", "numeric(10,2)", False, None),
        ("health_status", "text", True, "'unknown'::text"),
        ("last_check_at", "timestamp with time zone", False, None),
        ("last_success_at", "timestamp with time zone", False, None),
        ("last_failure_at", "timestamp with time zone", False, None),
        ("consecutive_failures", "integer", False, "0"),
        ("created_at", "timestamp with time zone", True, "now()"),
        ("updated_at", "timestamp with time zone", True, "now()"),
    ],
    "webhook_audit_log": [
        ("audit_id", "bigint", True, "nextval('pggit.webhook_audit_log_audit_id_seq'::regclass)"),
        ("webhook_id", "bigint", False, None),
        ("delivery_id", "bigint", False, None),
        ("operation", "character varying(50)", False, None),
        ("status_code", "integer", False, None),
        ("error_message", "text", False, None),
        ("signature_verified", "boolean", False, None),
        ("encryption_algorithm", "text", False, None),
        ("ip_address", "inet", False, None),
        ("occurred_at", "timestamp with time zone", False, "now()"),
        ("user_id", "text", False, None),
        ("request_id", "uuid", False, None),
    ],
}
KEYS = {
    "alert_delivery_queue": "delivery_id",
    "alert_delivery_log": "log_id",
    "webhook_health_metrics": "metric_id",
    "webhook_audit_log": "audit_id",
}


@pytest.mark.parametrize("table", LEGACY)
async def test_the_legacy_columns_come_first_in_their_order_with_their_kinds_and_defaults(
    reactor_database, table
):
    columns = await reactor_database.fetch(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)"
        " FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
        " WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        (f"pggit.{table}",),
    )

    assert columns[: len(LEGACY[table])] == LEGACY[table]


@pytest.mark.parametrize("table", LEGACY)
async def test_a_row_of_legacy_columns_alone_is_complete(reactor_database, table):
    """No column of ours may be demanded of those who do not know it."""
    demanded = await reactor_database.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > %s AND attnotnull"
        " AND NOT atthasdef AND NOT attisdropped",
        (f"pggit.{table}", len(LEGACY[table])),
    )

    assert demanded == []


@pytest.mark.parametrize("table", KEYS)
async def test_the_primary_key_is_the_legacy_one(reactor_database, table):
    keys = await reactor_database.fetch(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'",
        (f"pggit.{table}",),
    )

    assert keys == [(f"PRIMARY KEY ({KEYS[table]})",)]


@pytest.mark.parametrize("table", KEYS)
async def test_ids_are_drawn_from_a_sequence_that_the_column_owns(reactor_database, table):
    owned = await reactor_database.fetch_value(
        "SELECT pg_get_serial_sequence(%s, %s)", (f"pggit.{table}", KEYS[table])
    )

    assert owned == f"pggit.{table}_{KEYS[table]}_seq"


async def test_foreign_keys_are_one_from_log_to_queue_and_one_from_secret_to_webhook(reactor_database):
    keys = await reactor_database.fetch(
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE contype = 'f' AND connamespace = 'pggit'::regnamespace ORDER BY 1"
    )

    assert keys == [
        (
            "pggit.alert_delivery_log",
            "FOREIGN KEY (delivery_id) REFERENCES pggit.alert_delivery_queue(delivery_id) ON DELETE CASCADE",
        ),
        (
            "pggit.webhook_secret",
            "FOREIGN KEY (webhook_id) REFERENCES pggit.webhook(webhook_id) ON DELETE CASCADE",
        ),
    ]


async def test_deleting_a_delivery_deletes_its_log_and_an_unknown_delivery_has_none(
    reactor_database, rows, refusal
):
    log = (
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type) VALUES (%s, 7, 'queued')"
    )
    gone, kept = await rows.queue(), await rows.queue()
    for delivery_id in (gone, gone, kept):
        await reactor_database.execute(log, (delivery_id,))
    await reactor_database.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_id = %s", (gone,))

    assert await reactor_database.fetch("SELECT delivery_id FROM pggit.alert_delivery_log") == [(kept,)]
    assert (await refusal(reactor_database, log, (gone,))).sqlstate == "23503"


async def test_a_webhooks_health_row_is_unique_by_a_plain_constraint_that_others_may_refer_to(
    reactor_database,
):
    await reactor_database.execute("CREATE SCHEMA pggit_traffic")
    await reactor_database.execute(
        "CREATE TABLE pggit_traffic.limits"
        " (webhook_id bigint REFERENCES pggit.webhook_health_metrics (webhook_id))"
    )
    for status in ("degraded", "healthy"):
        await reactor_database.execute(
            "INSERT INTO pggit.webhook_health_metrics (webhook_id, health_status) VALUES (-5, %s)"
            " ON CONFLICT (webhook_id) DO UPDATE SET health_status = excluded.health_status",
            (status,),
        )

    assert await reactor_database.fetch(
        "SELECT webhook_id, health_status FROM pggit.webhook_health_metrics"
    ) == [(-5, "healthy")]


async def test_a_health_row_of_an_id_alone_is_unknown_with_counts_of_zero(reactor_database):
    await reactor_database.execute("INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (9)")

    assert await reactor_database.fetch(
        "SELECT total_deliveries, successful_deliveries, failed_deliveries, avg_response_time_ms, health_status,"
        " last_check_at, consecutive_failures, created_at = updated_at FROM pggit.webhook_health_metrics"
    ) == [(0, 0, 0, None, "unknown", None, 0, True)]


async def test_an_audit_row_of_webhook_and_operation_alone_is_valid(reactor_database):
    await reactor_database.execute(
        "INSERT INTO pggit.webhook_audit_log (webhook_id, operation) VALUES (9, 'rate_limited')"
    )

    assert await reactor_database.fetch(
        "SELECT webhook_id, operation, occurred_at IS NOT NULL FROM pggit.webhook_audit_log"
    ) == [(9, "rate_limited", True)]


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 2**63 - 1])
async def test_any_bigint_is_an_alert_and_a_webhook(reactor_database, rows, number):
    await rows.queue(alert_id=f"'{number}'", webhook_id=f"'{number}'")
    await reactor_database.execute(
        "INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (%s)", (number,)
    )

    assert await reactor_database.fetch("SELECT alert_id, webhook_id FROM pggit.alert_delivery_queue") == [
        (number, number)
    ]


@pytest.mark.parametrize("body", ["{}", "[1, 2]", '"text"', "null", "17.50", "true"])
async def test_any_json_value_is_a_body_and_comes_back_as_it_was(rows, body):
    delivery_id = await rows.queue(message_body=f"'{body}'")

    assert await rows.get(delivery_id, "message_body::text") == (body,)


async def test_one_alert_may_go_twice_to_one_webhook(reactor_database, rows):
    first, second = await rows.queue(), await rows.queue()

    assert first < second


async def test_a_producers_seven_columns_and_three_make_the_same_row(reactor_database):
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, 2, '{}')"
    )
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, delivery_status, retry_count,"
        " max_retries, created_at) VALUES (1, 2, '{}', 'pending', 0, 3, now())"
    )
    three, seven = await reactor_database.fetch(
        "SELECT to_jsonb(q) - '{delivery_id,uid_salt,created_at,ready_at}'::text[]"
        " FROM pggit.alert_delivery_queue AS q"
    )

    assert three == seven


async def test_the_salt_of_each_row_is_its_own_and_fills_the_bits_that_the_uid_uses(reactor_database):
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, 1, '{}' FROM generate_series(1, 1000) AS n"
    )
    distinct, ever_set, always_set = (
        await reactor_database.fetch(
            "SELECT count(DISTINCT uid_salt & 288230376151711743), bit_or(uid_salt & 288230376151711743),"
            " bit_and(uid_salt & 288230376151711743) FROM pggit.alert_delivery_queue"
        )
    )[0]

    assert (distinct, ever_set, always_set) == (1000, 2**58 - 1, 0)
