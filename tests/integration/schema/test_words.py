"""The words of the core are the words of the database, and each step of its state table is accepted there."""

from __future__ import annotations

import re
from itertools import product

import pytest

from pggit_reactor.core.model import (
    FailedReason,
    Ordering,
    SignatureAlgorithm,
    SignatureScope,
    State,
    WebhookState,
)
from pggit_reactor.core.states import TRANSITIONS, Event, advance
from pggit_reactor.testing.database import ReactorDatabase

CHECKED_WORDS = {
    ("alert_delivery_queue", "delivery_status_check"): set(State),
    ("alert_delivery_queue", "failed_reason_check"): set(FailedReason),
    ("webhook", "webhook_state_check"): set(WebhookState),
    ("webhook", "webhook_signature_scope_check"): set(SignatureScope),
    ("webhook_secret", "webhook_secret_algorithm_check"): set(SignatureAlgorithm),
    ("webhook", "webhook_ordering_check"): set(Ordering),
    # What has no enumeration in the core: the words of LEGACY 2.2, 2.3 and 2.5, and our own.
    ("alert_delivery_log", "event_type_check"): {
        "queued",
        "attempt",
        "delivered",
        "retrying",
        "failed",
        "escalated",
    },
    ("webhook_health_metrics", "health_status_check"): {"healthy", "degraded", "unavailable", "unknown"},
    ("reactor_worker", "reactor_worker_state_check"): {"running", "draining", "stopped"},
}
LEGACY_OPERATIONS = {
    "delivered",
    "failed",
    "retried",
    "signature_verified",
    "key_rotated",
    "url_decrypted",
    "authentication_failed",
    "rate_limited",
}
CHECK_VIOLATION = "23514"


@pytest.fixture
def reactor_database(emptied):
    return emptied


async def words_of(database: ReactorDatabase, table: str, constraint: str) -> set[str]:
    definition = await database.fetch_value(
        "SELECT pg_get_constraintdef(c.oid) FROM pg_constraint AS c"
        " WHERE c.conrelid = %s::regclass AND c.conname = %s AND c.contype = 'c' AND c.convalidated",
        (f"pggit.{table}", constraint),
    )
    return set(re.findall(r"'([^']*)'", definition))


@pytest.mark.parametrize(("table", "constraint"), CHECKED_WORDS, ids=lambda part: part)
async def test_the_words_of_a_constraint_are_those_of_the_core(reactor_database, table, constraint):
    assert await words_of(reactor_database, table, constraint) == CHECKED_WORDS[table, constraint]


async def test_every_legacy_operation_is_an_operation(reactor_database):
    words = await words_of(reactor_database, "webhook_audit_log", "operation_check")

    assert words > LEGACY_OPERATIONS
    assert max(map(len, words)) <= 50  # varchar(50)


@pytest.mark.parametrize("state", State)
async def test_every_state_is_stored_with_every_reason_and_without_one(rows, state):
    """Outsiders write what they like: a failed row without a reason is legal, and so is its opposite."""
    for reason in (None, *FailedReason):
        quoted = "NULL" if reason is None else f"'{reason}'"
        delivery_id = await rows.queue(delivery_status=f"'{state}'", failed_reason=quoted)

        assert await rows.get(delivery_id, "delivery_status", "failed_reason") == (state, reason)


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
async def test_every_step_of_the_cores_table_is_accepted(reactor_database, rows, state, event):
    """And where the core has none, the outsiders' is still taken: they are never refused (DESIGN 3)."""
    after = advance(state, event) if event in TRANSITIONS[state] else State.RETRYING
    delivery_id = await rows.queue(delivery_status=f"'{state}'")

    touched = await reactor_database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = %s WHERE delivery_id = %s",
        (after, delivery_id),
    )

    assert touched == 1
    assert await rows.get(delivery_id, "delivery_status") == (after,)


@pytest.mark.parametrize(("old", "new"), list(product(State, State)))
async def test_a_row_is_ready_after_a_step_just_where_the_core_has_it_in_play(
    reactor_database, rows, old, new
):
    delivery_id = await rows.queue(delivery_status=f"'{old}'", next_retry_at="now() - interval '1 s'")
    await reactor_database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = %s WHERE delivery_id = %s",
        (new, delivery_id),
    )

    in_play = Event.ACCEPTED in TRANSITIONS[new]
    assert await rows.get(delivery_id, "coalesce(ready_at <= now(), false)") == (in_play,)


@pytest.mark.parametrize(
    ("table", "columns", "values", "constraint"),
    [
        ("alert_delivery_queue", "delivery_status", "'Pending'", "delivery_status_check"),
        ("alert_delivery_queue", "delivery_status", "''", "delivery_status_check"),
        ("alert_delivery_queue", "delivery_status", "'dead'", "delivery_status_check"),
        ("alert_delivery_queue", "failed_reason", "'unlucky'", "failed_reason_check"),
        ("alert_delivery_queue", "retry_count", "-1", "retry_count_check"),
        ("alert_delivery_queue", "max_retries", "0", "max_retries_check"),
        ("alert_delivery_queue", "max_retries", "-3", "max_retries_check"),
        ("webhook_health_metrics", "health_status", "'dead'", "health_status_check"),
        ("webhook_health_metrics", "total_deliveries", "-1", "total_deliveries_check"),
        ("webhook_health_metrics", "successful_deliveries", "-1", "successful_deliveries_check"),
        ("webhook_health_metrics", "failed_deliveries", "-1", "failed_deliveries_check"),
        ("webhook_health_metrics", "avg_response_time_ms", "-0.01", "avg_response_time_ms_check"),
        ("webhook_health_metrics", "max_response_time_ms", "-0.01", "max_response_time_ms_check"),
        ("webhook_health_metrics", "min_response_time_ms", "-0.01", "min_response_time_ms_check"),
        ("webhook_audit_log", "operation", "'looked_at'", "operation_check"),
    ],
)
async def test_a_bad_value_is_refused_by_a_constraint_of_the_known_name(
    reactor_database, refusal, table, columns, values, constraint
):
    needed = {"alert_delivery_queue": ("alert_id, webhook_id, message_body", "1, 7, '{}'")}
    more, more_values = needed.get(table, ("webhook_id", "7"))
    error = await refusal(
        reactor_database, f"INSERT INTO pggit.{table} ({more}, {columns}) VALUES ({more_values}, {values})"
    )

    assert error.sqlstate == CHECK_VIOLATION
    assert f'"{constraint}"' in str(error)


async def test_an_unknown_log_event_is_refused(reactor_database, rows, refusal):
    delivery_id = await rows.queue()
    error = await refusal(
        reactor_database,
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type) VALUES (%s, 7, 'lost')",
        (delivery_id,),
    )

    assert error.sqlstate == CHECK_VIOLATION
    assert '"event_type_check"' in str(error)


@pytest.mark.parametrize(
    "column", ["alert_id", "webhook_id", "message_body", "delivery_status", "created_at"]
)
async def test_a_null_where_legacy_has_none_is_refused(reactor_database, rows, refusal, column):
    delivery_id = await rows.queue()
    error = await refusal(
        reactor_database,
        f"UPDATE pggit.alert_delivery_queue SET {column} = NULL WHERE delivery_id = %s",
        (delivery_id,),
    )

    assert error.sqlstate == "23502"
    assert f'"{column}"' in str(error)
