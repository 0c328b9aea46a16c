"""What people change by plain SQL, past every command and function, is in the audit log too."""

from __future__ import annotations

import pytest

OLD = "now() - interval '2 hours'"


@pytest.fixture(autouse=True)
def _webhook(webhook):
    """Each of them is about a registered webhook or its deliveries."""


def test_a_requeue_by_the_operators_update_is_audited_once(owner, operator, enqueue, audited):
    delivery_id = enqueue(delivery_status="failed", failed_reason="exhausted")
    operator.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', retry_count = 0, next_retry_at = NULL,"
        " attempted_at = NULL WHERE delivery_id = %s",
        (delivery_id,),
    )

    assert audited(
        "operation",
        "delivery_id",
        "user_id = session_user",
        "details->>'action'",
        "details->>'failed_reason'",
    ) == [("delivery_replayed", delivery_id, True, "update", "exhausted")]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("replay_delivery", "failed"),
        ("requeue_delivery", "retrying"),
        ("requeue_delivery", "pending"),
        ("requeue_delivery", "failed"),
    ],
)
def test_a_function_leaves_one_row_and_names_itself(call, enqueue, audited, name, status):
    delivery_id = enqueue(delivery_status=status)
    call(name, delivery_id)

    assert audited("operation", "details->>'action'", "details->>'from'") == [
        ("delivery_replayed", name.removesuffix("_delivery"), status)
    ]


@pytest.mark.parametrize("name", ["retry_delivery", "reset_stuck_deliveries"])
def test_the_helpers_of_the_first_weeks_are_audited(owner, enqueue, audited, name):
    delivery_id = enqueue(delivery_status="retrying")
    owner.execute(f"UPDATE pggit.alert_delivery_queue SET created_at = {OLD}")
    owner.execute(f"SELECT * FROM pggit.{name}({delivery_id if name == 'retry_delivery' else ''})")

    assert audited("operation", "delivery_id") == [("delivery_replayed", delivery_id)]


def test_deliveries_that_are_deleted_are_counted_in_one_row(operator, enqueue, audited):
    first = enqueue()
    enqueue(delivery_status="failed")
    last = enqueue(delivery_status="retrying")
    operator.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_id < 0")
    operator.execute("DELETE FROM pggit.alert_delivery_queue")

    assert audited(
        "operation", "details->'deliveries'", "details->'undelivered'", "details->'first'", "details->'last'"
    ) == [("deliveries_deleted", 3, 2, first, last)]


def test_a_webhook_that_is_changed_or_removed_by_sql_is_audited_with_its_columns(operator, audited):
    operator.execute("UPDATE pggit.webhook SET rate_per_s = 5, burst = 7")
    operator.execute("UPDATE pggit.webhook SET burst = 7")
    operator.execute("UPDATE pggit.webhook SET sealed_url = '\\x01'")
    operator.execute("DELETE FROM pggit.webhook")

    assert audited("operation", "webhook_id", "details->'columns'") == [
        ("webhook_changed", 7, ["burst", "rate_per_s"]),
        ("webhook_removed", 7, None),
    ]


def test_a_secret_that_is_changed_or_removed_by_sql_is_audited(owner, operator, audited):
    owner.execute(
        "INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret) VALUES (7, 1, ''), (7, 2, '')"
    )
    operator.execute("UPDATE pggit.webhook_secret SET expires_at = now() WHERE version = 1")
    operator.execute("DELETE FROM pggit.webhook_secret WHERE version = 1")

    assert audited("operation", "details->'columns'") == [
        ("webhook_changed", ["expires_at"]),
        ("secret_retired", None),
    ]


def test_what_a_function_audits_itself_is_not_audited_twice(call, audited):
    call("pause_webhook", 7)
    call("resume_webhook", 7)

    assert audited("operation") == [("webhook_paused",), ("webhook_resumed",)]


def test_who_may_delete_need_not_be_one_who_may_write_the_audit_log(owner, enqueue, audited):
    owner.execute("DROP ROLE IF EXISTS cleaner_of_a_test")
    owner.execute("CREATE ROLE cleaner_of_a_test")
    owner.execute("GRANT USAGE ON SCHEMA pggit TO cleaner_of_a_test")
    owner.execute("GRANT SELECT, DELETE ON pggit.alert_delivery_queue TO cleaner_of_a_test")
    enqueue()
    owner.execute("SET ROLE cleaner_of_a_test")
    owner.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_status = 'pending'")
    owner.execute("RESET ROLE")

    assert audited("operation") == [("deliveries_deleted",)]
    owner.execute("DROP OWNED BY cleaner_of_a_test")
    owner.execute("DROP ROLE cleaner_of_a_test")


def test_a_request_id_joins_what_one_call_did(owner, operator, enqueue, audited):
    wanted = "00000000-0000-4000-8000-0000000000ab"
    for value in (wanted, "no uuid"):
        operator.execute("SELECT set_config('pggit.request_id', %s, false)", (value,))
        operator.execute("SELECT pggit.disable_webhook(7)")
        operator.execute("SELECT pggit.enable_webhook(7)")

    assert audited("request_id::text") == [(wanted,), (wanted,), (None,), (None,)]
