"""INSERT to signed POST, without faults."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import trio

from pggit_reactor.receiver import verify
from pggit_reactor.testing.receiver import Behaviour, answer
from pggit_reactor.testing.rig import SIGNING_SECRET, Rig, arrivals


async def test_an_inserted_row_arrives_signed_and_is_settled(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        (delivery_id,) = await rig.insert(webhook_id, body={"b": 1, "a": "ü", "n": 1.10})
        (request,) = await rig.receiver.wait_for(1)
        await rig.until_status(delivery_id, "delivered")

    verify(request.body, dict(request.headers), SIGNING_SECRET)
    # The text of the jsonb value as PostgreSQL prints it, not a round trip through Python's floats.
    assert request.body == '{"a": "ü", "b": 1, "n": 1.1}'.encode()
    uid = await rig.database.fetch_value(
        "SELECT pggit.delivery_uid(delivery_id, uid_salt)::text FROM pggit.alert_delivery_queue"
    )
    assert request.header("webhook-id") == uid


@pytest.mark.parametrize("value", ["null", '"text"', "[1, 2]", "0.10", "{}"])
async def test_any_json_value_is_sent_as_it_is(rig: Rig, value: str):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        await rig.database.execute(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, %s, %s)",
            (webhook_id, value),
        )
        (request,) = await rig.receiver.wait_for(1)

    assert request.body.decode() == value


async def test_settling_writes_row_log_audit_and_health_together(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")

    assert await rig.row(delivery_id, "retry_count", "attempt_count", "last_status", "last_error", "lease_token") == (
        0, 1, 200, None, None,
    )  # fmt: skip
    ((event, details),) = await rig.database.fetch(
        "SELECT event_type, event_details FROM pggit.alert_delivery_log WHERE delivery_id = %s",
        (delivery_id,),
    )
    assert (event, details["http_status"], details["retry_count"]) == ("delivered", 200, 0)
    assert details["response_time_ms"] > 0
    assert await rig.database.fetch(
        "SELECT operation, status_code FROM pggit.webhook_audit_log WHERE delivery_id = %s", (delivery_id,)
    ) == [("delivered", 200)]
    assert await rig.database.fetch(
        "SELECT total_deliveries, successful_deliveries, failed_deliveries, health_status, consecutive_failures,"
        " last_failure_at IS NULL FROM pggit.webhook_health_metrics WHERE webhook_id = %s",
        (webhook_id,),
    ) == [(1, 1, 0, "healthy", 0, True)]


async def test_a_row_reaches_four_workers_once_each_of_five_thousand(rig: Rig):
    ids = [await rig.add_webhook(f"/hook{number}", concurrency=16) for number in range(10)]
    # Four workers, the receiver and 640 handshakes share this process: no attempt may time out for that alone.
    patience = {"DELIVERY_TIMEOUT_SECONDS": 15, "WORKER_LEASE_SECONDS": 30}
    async with (
        rig.worker(**patience),
        rig.worker(**patience),
        rig.worker(**patience),
        rig.worker(**patience),
    ):
        for webhook_id in ids:
            await rig.insert(webhook_id, 500)
        await rig.until_all("delivered", seconds=120)

    counts = Counter(arrivals(rig.receiver))
    assert len(counts) == 5000
    assert set(counts.values()) == {1}


async def test_without_the_trigger_the_poll_finds_the_row(rig: Rig):
    webhook_id = await rig.add_webhook()
    await rig.database.execute("ALTER TABLE pggit.alert_delivery_queue DISABLE TRIGGER USER")
    async with rig.worker(WORKER_POLL_SECONDS=0.2) as running:
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")

        assert running.metric("pggit_reactor_wakeups_total", {"cause": "poll"}) >= 1


async def test_notify_off_leaves_a_row_to_the_poll(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=0.2):
        await rig.database.execute("SET pggit.notify = off")
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")


async def test_a_row_put_off_by_its_producer_is_sent_at_its_time_without_a_poll(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600):
        delivery_id = await rig.database.fetch_value(
            "SELECT pggit.enqueue(%s, '{}', p_deliver_after => clock_timestamp() + interval '0.7 s')",
            (webhook_id,),
        )
        await rig.until_status(delivery_id, "delivered")

    early = await rig.database.fetch_value(
        "SELECT attempted_at < next_retry_at FROM pggit.alert_delivery_queue"
    )
    assert not early


async def test_a_higher_priority_goes_first(rig: Rig):
    webhook_id = await rig.add_webhook(concurrency=1)
    for priority in (0, 5, -3, 9):
        await rig.database.execute(
            "SELECT pggit.enqueue(%s, to_jsonb(%s::int), p_priority => %s)", (webhook_id, priority, priority)
        )
    async with rig.worker():
        requests = await rig.receiver.wait_for(4)

    assert [json.loads(request.body) for request in requests] == [9, 5, 0, -3]


async def test_a_known_idempotency_key_is_one_delivery(rig: Rig):
    webhook_id = await rig.add_webhook()
    first, second = [
        await rig.database.fetch_value(
            "SELECT pggit.enqueue(%s, '{}', p_idempotency_key => 'k')", (webhook_id,)
        )
        for _ in range(2)
    ]
    async with rig.worker():
        await rig.until_status(first, "delivered")

    assert first == second
    assert len(rig.receiver.requests) == 1


async def test_extra_headers_trace_and_event_type_travel_with_a_row(rig: Rig):
    webhook_id = await rig.add_webhook()
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    await rig.database.execute(
        "SELECT pggit.enqueue(%s, '{}', p_headers => '{\"X-Team\": \"db\"}', p_traceparent => %s,"
        " p_event_type => 'x.y')",
        (webhook_id, trace),
    )
    async with rig.worker():
        (request,) = await rig.receiver.wait_for(1)

    assert request.header("x-team") == "db"
    assert request.header("traceparent") == trace


async def test_a_body_larger_than_what_comes_with_a_claim_is_sent_whole(rig: Rig):
    webhook_id = await rig.add_webhook()
    text = "x" * 300_000
    async with rig.worker():
        await rig.insert(webhook_id, 3, body=text)
        requests = await rig.receiver.wait_for(3)

    assert all(request.body == json.dumps(text).encode() for request in requests)


async def test_many_large_bodies_stay_within_the_byte_budget(rig: Rig):
    webhook_id = await rig.add_webhook()
    text = "x" * 900_000
    async with rig.worker(WORKER_BODY_BYTES_MAX=2_000_000) as running:
        await rig.insert(webhook_id, 12, body=text)
        seen = 0.0
        while len(rig.receiver.requests) < 12:
            seen = max(seen, running.metric("pggit_reactor_body_bytes_in_memory"))
            await trio.sleep(0.005)
        await rig.until_all("delivered")

    assert 0 < seen <= 2_000_000


async def test_a_body_over_the_limit_is_dead_with_its_reason_and_stops_nothing(rig: Rig):
    webhook_id = await rig.add_webhook(max_body_bytes=1000)
    async with rig.worker():
        (large,) = await rig.insert(webhook_id, body="x" * 1001)
        (small,) = await rig.insert(webhook_id)
        await rig.until_status(large, "failed")
        await rig.until_status(small, "delivered")

    assert await rig.row(large, "failed_reason", "attempt_count") == ("too_large", 0)


async def test_headers_of_a_plain_insert_that_may_not_be_sent_make_the_row_dead(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        delivery_id = await rig.database.fetch_value(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, headers)"
            " VALUES (1, %s, '{}', '{\"Host\": \"elsewhere\"}') RETURNING delivery_id",
            (webhook_id,),
        )
        await rig.until_status(delivery_id, "failed")

    assert await rig.row(delivery_id, "failed_reason") == ("bad_headers",)
    assert not rig.receiver.requests


async def test_a_row_past_its_expiry_is_dead_and_not_sent(rig: Rig):
    webhook_id = await rig.add_webhook()
    delivery_id = await rig.database.fetch_value(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, expires_at)"
        " VALUES (1, %s, '{}', now() - interval '1 s') RETURNING delivery_id",
        (webhook_id,),
    )
    async with rig.worker():
        await rig.until_status(delivery_id, "failed")

    assert await rig.row(delivery_id, "failed_reason") == ("expired",)
    assert not rig.receiver.requests


async def test_rows_with_times_that_python_cannot_hold_stop_nothing(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        await rig.database.execute(
            "INSERT INTO pggit.alert_delivery_queue"
            " (alert_id, webhook_id, message_body, created_at, expires_at, next_retry_at)"
            " VALUES (1, %(id)s, '1', '-infinity', 'infinity', NULL),"
            "        (1, %(id)s, '2', '4000-01-01 BC', '290000-01-01', NULL),"
            "        (1, %(id)s, '3', now(), NULL, '-infinity'), (1, %(id)s, '4', 'infinity', NULL, NULL)",
            {"id": webhook_id},
        )
        requests = await rig.receiver.wait_for(3)
        await rig.until(
            "SELECT count(*) = 3 FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'"
        )

    assert sorted(request.body for request in requests) == [b"1", b"2", b"3"]


async def test_an_alert_for_an_unknown_webhook_waits_for_its_registration(rig: Rig):
    stranger = 987_654
    async with rig.worker(WORKER_POLL_SECONDS=0.2):
        (delivery_id,) = await rig.insert(stranger)
        await rig.until(
            "SELECT EXISTS (SELECT FROM pggit.webhook_limit WHERE webhook_id = %s AND unknown_since IS NOT NULL)",
            stranger,
        )
        assert await rig.row(delivery_id, "delivery_status") == ("pending",)
        await rig.add_webhook(webhook_id=stranger)
        await rig.until_status(delivery_id, "delivered")


async def test_an_unknown_webhooks_rows_are_dead_after_the_hold(rig: Rig):
    async with rig.worker(WORKER_POLL_SECONDS=0.2, DELIVERY_UNKNOWN_WEBHOOK_HOLD_SECONDS=0):
        (delivery_id,) = await rig.insert(-5)
        await rig.until_status(delivery_id, "failed")

    assert await rig.row(delivery_id, "failed_reason") == ("unknown_webhook",)


async def test_rows_of_a_paused_webhook_stay_and_go_when_it_is_active_again(rig: Rig):
    webhook_id = await rig.add_webhook(state="paused")
    other = await rig.add_webhook("/other")
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (waiting,) = await rig.insert(webhook_id)
        (passing,) = await rig.insert(other)
        await rig.until_status(passing, "delivered")
        assert await rig.row(waiting, "delivery_status", "lease_token") == ("pending", None)
        await rig.database.execute(
            "UPDATE pggit.webhook SET state = 'active' WHERE webhook_id = %s", (webhook_id,)
        )
        await rig.until_status(waiting, "delivered")


async def test_a_new_url_counts_from_the_next_delivery_on(rig: Rig):
    webhook_id = await rig.add_webhook("/old")
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (first,) = await rig.insert(webhook_id)
        await rig.until_status(first, "delivered")
        await rig.database.execute(
            "UPDATE pggit.webhook SET sealed_url = %s WHERE webhook_id = %s",
            (rig.sealed_url(webhook_id, rig.receiver.url("/new")), webhook_id),
        )
        (second,) = await rig.insert(webhook_id)
        await rig.until_status(second, "delivered")

    assert [request.path for request in rig.receiver.requests] == ["/old", "/new"]


async def test_one_webhook_never_has_more_than_its_concurrency_in_flight(rig: Rig):
    webhook_id = await rig.add_webhook(concurrency=3)
    release = trio.Event()
    running = most = 0

    async def hold(peer):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        await answer(200).act(peer)
        running -= 1

    rig.receiver.default = Behaviour(act=hold)
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=15, WORKER_LEASE_SECONDS=30):
        await rig.insert(webhook_id, 20)
        await rig.receiver.wait_for(3)
        # Everything that the worker could claim now it has claimed: the leases in the table say how much.
        assert (
            await rig.database.fetch_value(
                "SELECT count(*) FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL"
            )
            == 3
        )
        release.set()
        await rig.until_all("delivered")

    assert most == 3
