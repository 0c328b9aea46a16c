"""Whatever an outsider may write into a row: the worker works on, and nobody else waits."""

from __future__ import annotations

import pytest

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.lane import CLAIM_OPTIONS
from pggit_reactor.db.webhooks import headers_place
from pggit_reactor.runtime import refusals
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.receiver import answer
from pggit_reactor.testing.rig import MASTER_KEY

COLUMNS = "alert_id, webhook_id, message_body"

POISONS = {
    "the largest counts": ("retry_count, max_retries, attempt_count", "2147483647, 2147483647, 2147483647"),
    "the largest count of crashes": ("crash_count", "32767"),
    "a count of crashes below zero": ("crash_count", "-32768"),
    "a count of attempts below zero": ("attempt_count", "-2147483648"),
    "the highest priority": ("priority", "32767"),
    "the lowest priority": ("priority", "-32768"),
    "a trace that is none": ("traceparent", "E'00-\\r\\nX-Evil: 1'"),
    "an event type with control characters": ("event_type", "E'a\\r\\nX-Evil: 1\\u0001'"),
    "an event type of a megabyte": ("event_type", "repeat('x', 1000000)"),
    "headers that are an array": ("headers", "'[1, 2]'"),
    "headers that are a number": ("headers", "'1e100000'"),
    "headers that nest deeply": ("headers", "(repeat('[', 5000) || repeat(']', 5000))::jsonb"),
    "headers with a line break": ("headers", """'{"X-A": "1\\r\\nX-Evil: 1"}'"""),
    "headers of a megabyte": ("headers", "jsonb_build_object('X-A', repeat('x', 1000000))"),
    "an owner of a lease that ran out": (
        "lease_token, lease_expires_at, leased_by",
        "-1, '-infinity', E'\\u0001; DROP TABLE'",
    ),
    "a lease that ran out and the largest count of crashes": (
        "lease_token, lease_expires_at, leased_by, crash_count",
        "1, now() - interval '1 s', 'nobody', 32767",
    ),
    "an owner without a lease": ("leased_by, lease_expires_at", "repeat('x', 100000), now()"),
    "a lease without an expiry": ("lease_token", "9223372036854775807"),
    "times at the end of time": (
        "created_at, replayed_at, expires_at",
        "'-infinity', '294276-12-31', 'infinity'",
    ),
    "times at its beginning": (
        "created_at, replayed_at, held_until",
        "'4713-01-01 BC', '-infinity', '-infinity'",
    ),
    "words of another state": (
        "last_status, last_error, failed_reason, delivered_at",
        "-2147483648, repeat('x', 1000000), 'crash', 'infinity'",
    ),
    "the smallest salt": ("uid_salt", "-9223372036854775808"),
    "keys with control characters": ("ordering_key, idempotency_key", "E'\\u0001', E'\\n'"),
    "a retry that is long past": ("delivery_status, next_retry_at", "'retrying', '-infinity'"),
}


async def insert_poison(rig, webhook_id: int, columns: str, values: str, *, body: str = "'{}'") -> int:
    return await rig.database.fetch_value(
        f"INSERT INTO pggit.alert_delivery_queue ({COLUMNS}, {columns})"
        f" VALUES (1, %s, {body}, {values}) RETURNING delivery_id",
        (webhook_id,),
    )


@pytest.mark.parametrize("poison", POISONS)
async def test_a_row_with_hostile_values_comes_to_an_end_and_the_next_one_is_delivered(rig, poison: str):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        poisoned = await insert_poison(rig, webhook_id, *POISONS[poison])
        (good,) = await rig.insert(webhook_id)
        await rig.until_status(good, "delivered", seconds=5)
        await rig.until(
            "SELECT ready_at IS NULL FROM pggit.alert_delivery_queue WHERE delivery_id = %s",
            poisoned,
            seconds=5,
        )

        assert running.metric("pggit_reactor_settle_failures_total") == 0
    assert all(request.header("x-evil") is None for request in rig.receiver.requests)


async def test_poisons_together_stop_nothing(rig):
    poisoned, good = await rig.add_webhook("/poisoned"), await rig.add_webhook("/good")
    for columns, values in POISONS.values():
        await insert_poison(rig, poisoned, columns, values)
    rows = await rig.insert(good, 20)
    async with rig.worker(WORKER_POLL_SECONDS=600):
        for delivery_id in rows:
            await rig.until_status(delivery_id, "delivered", seconds=5)
        await rig.until(
            "SELECT NOT EXISTS (SELECT FROM pggit.alert_delivery_queue WHERE ready_at IS NOT NULL)"
        )


async def test_hostile_counts_do_not_break_the_way_of_a_failing_row(rig):
    await rig.never_open_breakers()
    webhook_id = await rig.add_webhook("/down", max_attempts=None)
    rig.receiver.default = answer(500)
    async with rig.worker():
        exhausted = await insert_poison(rig, webhook_id, "retry_count, max_retries", "2147483647, 2147483647")
        crashing = await insert_poison(rig, webhook_id, "crash_count, attempt_count", "-32768, 2147483647")
        last = await insert_poison(rig, webhook_id, "retry_count, max_retries", "2147483646, 2147483647")
        await rig.until_status(exhausted, "failed", seconds=5)
        await rig.until_status(crashing, "failed", seconds=5)
        await rig.until(
            "SELECT attempt_count = 1 FROM pggit.alert_delivery_queue WHERE delivery_id = %s", last
        )

    assert await rig.row(exhausted, "failed_reason") == ("exhausted",)
    assert await rig.row(crashing, "failed_reason") == ("exhausted",)


async def test_a_count_of_crashes_below_zero_meets_a_crash(rig):
    webhook_id, other = await rig.add_webhook("/one"), await rig.add_webhook("/two")
    async with rig.worker() as running:
        send = running.worker._fanout.send

        async def crash(webhook, delivery, body):
            if webhook.webhook_id == webhook_id:
                raise RuntimeError("a bug of ours")
            return await send(webhook, delivery, body)

        running.worker._fanout.send = crash
        poisoned = await insert_poison(rig, webhook_id, "crash_count", "-32768")
        await rig.until(
            "SELECT attempt_count > 0 FROM pggit.alert_delivery_queue WHERE delivery_id = %s",
            poisoned,
            seconds=5,
        )
        (good,) = await rig.insert(other)
        await rig.until_status(good, "delivered", seconds=5)


async def test_a_body_of_five_megabytes_is_dead_and_delays_nobody(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        huge = await insert_poison(
            rig, webhook_id, "event_type", "NULL", body="to_jsonb(repeat('x', 5000000))"
        )
        (good,) = await rig.insert(webhook_id)
        await rig.until_status(good, "delivered", seconds=5)
        await rig.until_status(huge, "failed", seconds=5)

    assert await rig.row(huge, "failed_reason", "attempt_count") == ("too_large", 0)


async def test_a_hostile_health_row_does_not_stop_its_webhook(rig):
    webhook_id = await rig.add_webhook()
    await rig.database.execute(
        "INSERT INTO pggit.webhook_health_metrics (webhook_id, total_deliveries, successful_deliveries,"
        " failed_deliveries, avg_response_time_ms, consecutive_failures)"
        " VALUES (%s, NULL, 9223372036854775807, NULL, 99999999.99, 2147483647)",
        (webhook_id,),
    )
    rig.receiver.script("/hook", answer(400))
    async with rig.worker():
        rows = await rig.insert(webhook_id, 2)
        for delivery_id in rows:
            await rig.until(
                "SELECT attempt_count = 1 FROM pggit.alert_delivery_queue WHERE delivery_id = %s", delivery_id
            )


async def test_a_flood_of_hostile_notifications_is_heard_and_forgotten(rig):
    """Anybody who may connect may NOTIFY."""
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        for payload in [
            "9" * 30,
            "-9223372036854775808,9223372036854775807",
            "canary:1",
            "\u2603",
            "1,,2",
            "NaN",
        ]:
            await rig.database.execute("SELECT pg_notify('pggit_delivery', %s)", (payload,))
        ids = ",".join(str(number) for number in range(1_000_000, 1_001_000))
        for _ in range(50):
            await rig.database.execute("SELECT pg_notify('pggit_delivery', %s)", (ids,))
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered", seconds=5)

        assert running.metric("pggit_reactor_loop_restarts_total", {"loop": "listener"}) == 0
        assert running.metric("pggit_reactor_loop_restarts_total", {"loop": "claimer"}) == 0


async def test_a_registration_that_opens_to_nonsense_pauses_and_stops_nobody(rig):
    """Sealed with the right key, and yet nothing that could be sent to."""
    broken, good = await rig.add_webhook("/broken"), await rig.add_webhook("/good")
    sealer = Sealer(Keyring.parse(Secret(MASTER_KEY)))
    headers = sealer.seal(b'["no", "object"]', place=headers_place(broken))
    await rig.database.execute(
        "UPDATE pggit.webhook SET sealed_headers = %s WHERE webhook_id = %s", (headers, broken)
    )
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        (waiting,) = await rig.insert(broken)
        await rig.until("SELECT state = 'paused' FROM pggit.webhook WHERE webhook_id = %s", broken, seconds=5)
        (passing,) = await rig.insert(good)
        await rig.until_status(passing, "delivered", seconds=5)
        await rig.until_true(lambda: not running.worker._capacity.in_flight)

    assert await rig.row(waiting, "delivery_status", "lease_token", "attempt_count") == ("pending", None, 0)
    assert not rig.receiver.requests_for("/broken")


@pytest.mark.parametrize(
    "action",
    [
        pytest.param("RAISE EXCEPTION 'not this one'", id="refuses"),
        pytest.param("PERFORM pg_sleep(60)", id="never ends"),
    ],
)
async def test_a_row_that_cannot_be_claimed_stops_its_own_webhook_only(rig, lines, monkeypatch, action: str):
    """A trigger of somebody else's stands for any reason why one row makes the claim of many fail."""
    monkeypatch.setattr(refusals, "BARRED_SECONDS_MIN", 1.0)
    monkeypatch.setattr(refusals, "BARRED_SECONDS_PER_SECOND", 3)
    ids = [await rig.add_webhook(f"/hook{number}") for number in range(4)]
    await rig.database.execute(
        "CREATE FUNCTION pggit.test_trigger() RETURNS trigger LANGUAGE plpgsql AS $$"
        f" BEGIN {action}; RETURN NEW; END $$"
    )
    await rig.database.execute(
        "CREATE TRIGGER test_trigger BEFORE UPDATE ON pggit.alert_delivery_queue FOR EACH ROW"
        " WHEN (NEW.lease_token IS NOT NULL AND NEW.event_type = 'poison') EXECUTE FUNCTION pggit.test_trigger()"
    )
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        await rig.change_lane(running, "claim", options={**CLAIM_OPTIONS, "statement_timeout": "500"})
        poisoned = await insert_poison(rig, ids[0], "event_type", "'poison'")
        for webhook_id in ids:
            await rig.insert(webhook_id, 3)
        for webhook_id in ids[1:]:
            await rig.until(
                "SELECT bool_and(delivery_status = 'delivered') FROM pggit.alert_delivery_queue WHERE webhook_id = %s",
                webhook_id,
                seconds=10,
            )
        await rig.until_true(lambda: lines.named("claim_refused"))
        for _ in range(5):
            (passing,) = await rig.insert(ids[1])
            await rig.until_status(passing, "delivered", seconds=5)
        assert {event["webhook_id"] for event in lines.named("claim_refused")} == {ids[0]}
        await rig.database.execute("DROP TRIGGER test_trigger ON pggit.alert_delivery_queue")
        await rig.until_all("delivered")

    assert await rig.row(poisoned, "attempt_count") == (1,)
    await rig.assert_each_arrived()
    await rig.assert_books_agree()
