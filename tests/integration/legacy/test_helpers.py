"""The other functions of LEGACY 3 and 5, and the reset of a breaker by the legacy UPDATE."""

from __future__ import annotations

import pytest

from pggit_reactor.errors import DatabaseError
from pggit_reactor.testing.receiver import answer
from pggit_reactor.testing.rig import Rig


async def insert(database, **columns: str) -> int:
    wanted = {"alert_id": "1", "webhook_id": "7", "message_body": "'{}'", **columns}
    return await database.fetch_value(
        f"INSERT INTO pggit.alert_delivery_queue ({', '.join(wanted)}) VALUES ({', '.join(wanted.values())})"
        " RETURNING delivery_id"
    )


async def row(database, delivery_id: int, *columns: str) -> tuple:
    (found,) = await database.fetch(
        f"SELECT {', '.join(columns)} FROM pggit.alert_delivery_queue WHERE delivery_id = %s", (delivery_id,)
    )
    return found


async def health(database, webhook_id: int, *columns: str) -> tuple:
    (found,) = await database.fetch(
        f"SELECT {', '.join(columns)} FROM pggit.webhook_health_metrics WHERE webhook_id = %s", (webhook_id,)
    )
    return found


# -- health


@pytest.mark.parametrize(
    ("status", "word"),
    [(200, "healthy"), (299, "healthy"), (0, "degraded"), (500, "degraded"), (599, "degraded"), (199, "unavailable"),
     (300, "unavailable"), (404, "unavailable"), (410, "unavailable"), (429, "unavailable")],
)  # fmt: skip
async def test_a_status_has_its_word(reactor_database, status: int, word: str):
    assert (
        await reactor_database.fetch_value("SELECT pggit.update_webhook_health(-5, %s, 10)", (status,))
        is True
    )

    assert await health(reactor_database, -5, "health_status") == (word,)


async def test_the_mean_starts_at_the_first_response_where_the_row_began_without_one(reactor_database):
    await reactor_database.execute(
        "INSERT INTO pggit.webhook_health_metrics (webhook_id, total_deliveries,"
        " successful_deliveries) VALUES (5, 3, 3)"
    )
    await reactor_database.execute("SELECT pggit.update_webhook_health(5, 200, 40)")

    assert await health(
        reactor_database,
        5,
        "avg_response_time_ms",
        "max_response_time_ms",
        "min_response_time_ms",
        "total_deliveries",
    ) == (40, 40, 40, 4)


async def test_a_response_without_a_time_counts_and_moves_no_mean(reactor_database):
    await reactor_database.execute("SELECT pggit.update_webhook_health(5, 200, 40)")
    await reactor_database.execute("SELECT pggit.update_webhook_health(5, NULL, NULL)")

    assert await health(reactor_database, 5, "avg_response_time_ms", "total_deliveries", "health_status") == (
        40, 2, "degraded",
    )  # fmt: skip


async def test_a_negative_time_is_refused_as_a_constraint_and_a_huge_one_is_kept_in_bounds(reactor_database):
    with pytest.raises(DatabaseError) as caught:
        await reactor_database.execute("SELECT pggit.update_webhook_health(5, 200, -1)")
    assert caught.value.sqlstate == "23514"
    await reactor_database.execute("SELECT pggit.update_webhook_health(5, 200, 2147483647)")


RESET = (
    "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = 'healthy',"
    " last_check_at = CURRENT_TIMESTAMP WHERE webhook_id = %s AND health_status <> 'healthy'"
)
BREAKER = ("breaker_failures", "breaker_opened_at", "breaker_opens", "consecutive_failures", "health_status")


async def open_breaker(database) -> None:
    await database.execute("SELECT pggit.update_webhook_health(5, 503, 10) FROM generate_series(1, 5)")
    await database.execute(
        "UPDATE pggit.webhook_health_metrics SET breaker_opened_at = now(), breaker_opens = 2 WHERE webhook_id = 5"
    )
    await database.execute(
        "INSERT INTO pggit.webhook_limit (webhook_id, breaker_until) VALUES (5, now() + interval '1 hour')"
    )
    assert (await health(database, 5, "breaker_failures", "breaker_opened_at IS NULL")) == (5, False)


@pytest.mark.parametrize(
    ("means", "opens"),
    # After a success the next opening is a longer one, until a whole recovery has passed.
    [(RESET, 0), ("SELECT pggit.update_webhook_health(%s, 200, 10)", 2)],
)
async def test_the_legacy_reset_and_a_success_close_the_breaker_and_wake_the_workers(
    reactor_database, means: str, opens: int
):
    await open_breaker(reactor_database)
    listener = await reactor_database.connect()
    await listener.execute("LISTEN pggit_delivery")
    await reactor_database.execute(means, (5,))

    assert await health(reactor_database, 5, *BREAKER) == (0, None, opens, 0, "healthy")
    assert await reactor_database.fetch("SELECT breaker_until, blocked_until FROM pggit.webhook_limit") == [
        (None, None)
    ]
    assert [notify.payload for notify in await listener.wait_notifies()] == ["5"]


async def test_an_operator_without_rights_on_the_limits_resets_a_breaker(reactor_database):
    await open_breaker(reactor_database)
    await reactor_database.execute("REVOKE ALL ON pggit.webhook_limit FROM pggit_operator")
    operator = await reactor_database.connect(role="pggit_operator")
    await operator.execute(RESET, (5,))

    assert await reactor_database.fetch("SELECT breaker_until FROM pggit.webhook_limit") == [(None,)]


async def test_a_permanent_failure_says_nothing_to_the_breaker(reactor_database):
    await reactor_database.execute(
        "SELECT pggit.update_webhook_health(5, 404, 10) FROM generate_series(1, 7)"
    )

    assert await health(reactor_database, 5, "breaker_failures", "consecutive_failures") == (0, 7)


async def test_initialising_a_webhook_twice_is_no_error(reactor_database):
    for _ in range(2):
        await reactor_database.execute(
            "INSERT INTO pggit.webhook_health_metrics (webhook_id, health_status) VALUES (9, 'healthy')"
            " ON CONFLICT (webhook_id) DO NOTHING"
        )
    assert await health(reactor_database, 9, "total_deliveries", "consecutive_failures") == (0, 0)


# -- URL and audit


async def test_a_registered_url_is_sealed_and_the_error_says_what_shows_it(rig: Rig):
    webhook_id = await rig.add_webhook()

    with pytest.raises(
        DatabaseError, match=f"webhook {webhook_id} is sealed .*pggit-reactor webhook show"
    ) as caught:
        await rig.database.fetch("SELECT pggit.get_webhook_decrypted(%s)", (webhook_id,))
    assert caught.value.sqlstate == "55000"


async def test_an_audit_row_is_written_and_its_id_returned(reactor_database):
    ids = [
        await reactor_database.fetch_value(
            "SELECT pggit.log_webhook_delivery(1, 2, %s, p_signature_verified => true)", (status,)
        )
        for status in (204, 500)
    ]
    assert await reactor_database.fetch(
        "SELECT audit_id, operation, status_code, signature_verified FROM pggit.webhook_audit_log ORDER BY 1"
    ) == [(ids[0], "delivered", 204, True), (ids[1], "failed", 500, True)]


# -- week 1


async def test_an_alert_is_queued_with_one_event(reactor_database):
    delivery_id = await reactor_database.fetch_value(
        "SELECT pggit.observer_queue_alert(p_alert_id => 3, p_webhook_id => -4, p_message_body => 'null')"
    )
    assert await row(
        reactor_database, delivery_id, "alert_id", "webhook_id", "message_body::text", "delivery_status", "retry_count",
        "max_retries", "created_at <= now()",
    ) == (3, -4, "null", "pending", 0, 3, True)  # fmt: skip
    assert await reactor_database.fetch(
        "SELECT event_type FROM pggit.get_delivery_log(%s)", (delivery_id,)
    ) == [("queued",)]


async def test_delivering_a_row_by_hand_puts_it_in_front_of_the_workers(rig: Rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(503, [("Retry-After", "3000")]))
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "retrying")
        await rig.database.execute("UPDATE pggit.webhook_limit SET retry_after_until = NULL")
        assert await rig.database.fetch("SELECT * FROM pggit.observer_deliver_alert(%s)", (delivery_id,)) == [
            (delivery_id, "retrying", 503, "due now; a worker delivers it")
        ]
        await rig.until_status(delivery_id, "delivered")
    assert await rig.database.fetch("SELECT * FROM pggit.observer_deliver_alert(%s)", (delivery_id,)) == [
        (delivery_id, "delivered", 200, None)
    ]


async def test_a_failed_row_is_retried_by_hand_and_delivered_by_a_worker(rig: Rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(404))
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "failed")
        assert await rig.database.fetch("SELECT * FROM pggit.retry_delivery(%s)", (delivery_id,)) == [
            (delivery_id, "pending", 404, "due now; a worker delivers it")
        ]
        await rig.until_status(delivery_id, "delivered")
    assert await rig.database.fetch(
        "SELECT status, error_message FROM pggit.retry_delivery(%s)", (delivery_id,)
    ) == [("delivered", "a delivered delivery is left as it is; retried are: retrying, failed")]


@pytest.mark.parametrize("function", ["observer_deliver_alert", "retry_delivery"])
@pytest.mark.parametrize("argument", ["99", "NULL"])
async def test_an_unknown_delivery_is_refused_by_name(reactor_database, function: str, argument: str):
    with pytest.raises(
        DatabaseError, match=f"p_delivery_id is {argument.lower()}; no delivery has this id"
    ) as caught:
        await reactor_database.fetch(f"SELECT * FROM pggit.{function}({argument})")
    assert caught.value.sqlstate == "P0002"


async def test_what_is_being_delivered_is_not_taken_away(reactor_database):
    delivery_id = await insert(
        reactor_database, lease_token="1", lease_expires_at="now() + interval '1 min'", leased_by="'a worker'"
    )
    rows = await reactor_database.fetch(
        "SELECT status, error_message FROM pggit.observer_deliver_alert(%s)", (delivery_id,)
    )
    await reactor_database.execute(
        "UPDATE pggit.alert_delivery_queue SET created_at = now() - interval '2 hours'"
    )
    reset = await reactor_database.fetch_value("SELECT reset_count FROM pggit.reset_stuck_deliveries()")

    assert (rows, reset) == ([("pending", "being delivered at this moment")], 0)
    assert await row(reactor_database, delivery_id, "lease_token") == (1,)


async def test_escalation_reports_what_waits_over_30_minutes_and_changes_nothing(reactor_database):
    old = await insert(
        reactor_database, created_at="now() - interval '90 minutes'", delivery_status="'retrying'"
    )
    older = await insert(reactor_database, created_at="now() - interval '5 hours'")
    await insert(reactor_database, created_at="now() - interval '29 minutes'")
    await insert(reactor_database, created_at="now() - interval '5 hours'", delivery_status="'failed'")

    assert await reactor_database.fetch(
        "SELECT delivery_id, delivery_status, hours_pending FROM pggit.observer_escalate_failed_alerts()"
    ) == [(older, "pending", 5), (old, "retrying", 1.5)]


async def test_stuck_rows_go_back_to_pending_and_what_its_producer_put_off_does_not(reactor_database):
    old = "now() - interval '61 minutes'"
    stuck = [
        await insert(reactor_database, created_at=old),
        await insert(
            reactor_database,
            created_at=old,
            delivery_status="'retrying'",
            retry_count="2",
            attempted_at="now()",
        ),
        await insert(
            reactor_database,
            created_at=old,
            delivery_status="'retrying'",
            next_retry_at="now() + interval '5 min'",
        ),
    ]
    kept = [
        await insert(reactor_database, created_at=old, next_retry_at="now() + interval '1 day'"),
        await insert(
            reactor_database, created_at="now() - interval '59 minutes'", delivery_status="'retrying'"
        ),
        await insert(reactor_database, created_at=old, delivery_status="'failed'"),
    ]
    before = [await row(reactor_database, delivery_id, "alert_delivery_queue::text") for delivery_id in kept]
    rows = await reactor_database.fetch(
        "SELECT reset_count, execution_timestamp <= now() + interval '1 min' FROM pggit.reset_stuck_deliveries()"
    )

    assert rows == [(3, True)]
    for delivery_id in stuck:
        assert await row(
            reactor_database,
            delivery_id,
            "delivery_status",
            "retry_count",
            "next_retry_at",
            "attempted_at",
            "ready_at <= now()",
        ) == ("pending", 0, None, None, True)
    assert [
        await row(reactor_database, delivery_id, "alert_delivery_queue::text") for delivery_id in kept
    ] == before
    assert await reactor_database.fetch(
        "SELECT count(*), bool_and(event_details ? 'action' AND event_details ? 'reason') FROM pggit.alert_delivery_log"
        " WHERE event_type = 'escalated'"
    ) == [(3, True)]


async def test_processing_wakes_the_workers_counts_outcomes_and_fails_nothing(reactor_database):
    listener = await reactor_database.connect()
    await listener.execute("LISTEN pggit_delivery")
    due = {
        "delivery_status": "'retrying'",
        "next_retry_at": "now() - interval '1 s'",
        "created_at": "now() - interval '2 hours'",
    }
    ids = [await insert(reactor_database, **due) for _ in range(3)]
    await listener.wait_notifies()
    for event in ("delivered", "failed", "delivered"):
        await reactor_database.execute(
            "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)"
            " VALUES (%s, 7, %s, '{\"retry_count\": 1}')", (ids[0], event),
        )  # fmt: skip
    rows = await reactor_database.fetch(
        "SELECT processed_count, succeeded_count, failed_count, escalated_count FROM pggit.process_failed_deliveries()"
    )
    again = await reactor_database.fetch("SELECT succeeded_count FROM pggit.process_failed_deliveries()")

    assert (rows, again) == ([(3, 2, 1, 3)], [(0,)])
    assert "7" in {notify.payload for notify in await listener.wait_notifies()}
    assert await reactor_database.fetch("SELECT * FROM pggit.count_pending_deliveries()") == [(0, 3, 0, 3)]


async def test_the_status_view_always_has_four_rows(reactor_database):
    assert await reactor_database.fetch("SELECT status, count, oldest FROM pggit.v_delivery_queue_status") == [
        ("pending", 0, None), ("retrying", 0, None), ("delivered", 0, None), ("failed", 0, None),
    ]  # fmt: skip
    await insert(
        reactor_database,
        delivery_status="'delivered'",
        created_at="now() - interval '4 s'",
        delivered_at="now()",
    )
    await insert(reactor_database, delivery_status="'failed'", retry_count="3")

    assert await reactor_database.fetch("SELECT status, count FROM pggit.v_delivery_queue_status") == [
        ("pending", 0), ("retrying", 0), ("delivered", 1), ("failed", 1),
    ]  # fmt: skip
    assert await reactor_database.fetch(
        "SELECT total_deliveries, successful, failed, in_progress, success_rate_percent, avg_delivery_time_seconds,"
        " max_retries_used FROM pggit.v_delivery_performance"
    ) == [(2, 1, 1, 0, 50, 4, 3)]


async def test_infinite_times_break_no_view_and_no_function(reactor_database):
    for when in ("'infinity'", "'-infinity'"):
        for status in ("'pending'", "'delivered'", "'failed'"):
            await insert(reactor_database, delivery_status=status, created_at=when, delivered_at=when)
        await reactor_database.execute(
            "INSERT INTO pggit.webhook_health_metrics (webhook_id, health_status, last_check_at,"
            " last_success_at, last_failure_at)"
            f" VALUES ({len(when)}, 'degraded', {when}, {when}, {when})"
        )
    for name in ("v_webhook_health_dashboard", "v_degraded_webhooks", "v_webhook_performance",
                 "v_delivery_queue_status",
                 "v_delivery_performance", "v_failed_deliveries", "observer_escalate_failed_alerts()",
                 "get_ready_deliveries(10)", "reset_stuck_deliveries()", "process_failed_deliveries()"):  # fmt: skip
        assert await reactor_database.fetch(f"SELECT x::text FROM pggit.{name} AS x"), name


# -- phase 7's queue


NOTIFY = (
    "INSERT INTO pggit.alert_notification_queue (alert_id, webhook_id, message_body, message_format)"
    " VALUES (%s, %s, %s, 'json') RETURNING queue_id"
)


@pytest.fixture
async def phase7(empty_database, load):
    from pggit_reactor.db.migrate import migrate

    await load("phase7")
    await migrate(await empty_database.connect())
    return empty_database


async def test_a_notification_is_queued_once_with_one_event(phase7):
    queue_id = await phase7.fetch_value(NOTIFY, (4, 1, '{"title": "slow"}'))
    assert await phase7.fetch(
        "SELECT alert_id, webhook_id, message_body - 'queued_at', delivery_status FROM pggit.alert_delivery_queue"
    ) == [
        (
            queue_id,
            1,
            {"alert_id": 4, "webhook_id": 1, "message_format": "json", "message_body": '{"title": "slow"}',
             "original_status": "pending"},
            "pending",
        )
    ]  # fmt: skip
    assert await phase7.fetch("SELECT event_type, event_details FROM pggit.alert_delivery_log") == [
        ("queued", {"integration_source": "alert_notification_queue", "original_queue_id": queue_id})
    ]


async def test_a_notification_to_nobody_and_one_that_cannot_be_queued_break_no_producer(phase7):
    await phase7.execute(NOTIFY, (4, None, "error"))
    await phase7.execute("ALTER TABLE pggit.alert_delivery_log ADD CONSTRAINT full_disk CHECK (false)")
    await phase7.execute(NOTIFY, (4, 1, "{}"))

    assert await phase7.fetch("SELECT count(*) FROM pggit.alert_notification_queue") == [(2,)]
    assert await phase7.fetch("SELECT FROM pggit.alert_delivery_queue") == []


async def test_a_producer_of_phase_7_needs_no_rights_on_the_queue(phase7):
    await phase7.execute("GRANT USAGE ON SCHEMA pggit TO pggit_reader")
    await phase7.execute("GRANT INSERT, SELECT ON pggit.alert_notification_queue TO pggit_reader")
    await phase7.execute(
        "GRANT USAGE ON SEQUENCE pggit.alert_notification_queue_queue_id_seq TO pggit_reader"
    )
    producer = await phase7.connect(role="pggit_reader")
    await producer.execute(NOTIFY, (4, 1, "{}"))

    assert await phase7.fetch("SELECT count(*) FROM pggit.alert_delivery_queue") == [(1,)]
