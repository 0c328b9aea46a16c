"""The eight load scenarios of LEGACY 14, against running workers with limits and breakers on; figures are printed."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import pytest
import trio

from pggit_reactor.testing.receiver import answer, gated
from pggit_reactor.testing.rig import Rig

pytestmark = pytest.mark.long

# A busy machine must not turn an answer into a timeout.
PATIENCE = {"DELIVERY_TIMEOUT_SECONDS": 15, "WORKER_LEASE_SECONDS": 30}
STATUS = "SELECT delivery_status, count(*) FROM pggit.alert_delivery_queue GROUP BY 1 ORDER BY 1"
HEALTH = "SELECT health_status, consecutive_failures FROM pggit.webhook_health_metrics WHERE webhook_id = %s"


async def add_webhook(rig: Rig, path: str = "/hook", **columns: object) -> int:
    """Register *path* with the limits that a webhook has by default; breakers are always on."""
    return await rig.add_webhook(path, rate_per_s=100, burst=20, **columns)


async def test_scenario_1_a_thousand_rows_over_a_hundred_webhooks_drain_at_95_percent(rig: Rig):
    for number in range(100):
        await add_webhook(rig, f"/hook{number}", webhook_id=1000 + number)
        if number % 20 == 0:  # Ten rows each: five webhooks of a hundred refuse theirs for good.
            rig.receiver.script(f"/hook{number}", *[answer(400)] * 10)
    await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at)"
        " SELECT n, 1000 + n % 100, '{}', now() - make_interval(secs => n % 46) FROM generate_series(1, 1000) AS n"
    )
    began = perf_counter()
    async with rig.worker(WORKER_ATTEMPTS_MAX=50, **PATIENCE), rig.worker(WORKER_ATTEMPTS_MAX=50, **PATIENCE):
        await rig.until(
            "SELECT NOT EXISTS (SELECT FROM pggit.alert_delivery_queue WHERE ready_at IS NOT NULL)",
            seconds=120,
        )
    took = perf_counter() - began
    print(f"scenario 1: 1000 rows in {took:.1f} s, {1000 / took:.0f}/s")  # noqa: T201  # figures

    assert await rig.database.fetch(STATUS) == [("delivered", 950), ("failed", 50)]
    assert await rig.database.fetch(
        "SELECT successful, failed, in_progress, success_rate_percent FROM pggit.v_delivery_performance"
    ) == [(950, 50, 0, 95)]


async def test_scenarios_2_and_3_five_500s_degrade_and_a_success_heals(rig: Rig):
    webhook_id = await add_webhook(rig)
    rig.receiver.script("/hook", answer(200), *[answer(500)] * 5)
    async with rig.worker(**PATIENCE):
        await rig.insert(webhook_id)
        await rig.until_all("delivered")
        await rig.database.execute(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body,"
            " max_retries) VALUES (1, %s, '{}', 4)",
            (webhook_id,),
        )
        await rig.until(
            "SELECT count(*) = 1 FROM pggit.alert_delivery_queue WHERE delivery_status = 'failed'"
        )
        assert await rig.database.fetch(HEALTH, (webhook_id,)) == [("degraded", 5)]
        breaker = "SELECT round(extract(epoch FROM breaker_until - now())) FROM pggit.webhook_limit"
        assert 50 <= await rig.database.fetch_value(breaker) <= 60
        # The minute is over at once.
        await rig.database.execute("UPDATE pggit.webhook_limit SET breaker_until = now()")
        await rig.insert(webhook_id)
        await rig.until(
            "SELECT count(*) = 2 FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'"
        )

    assert await rig.database.fetch(HEALTH, (webhook_id,)) == [("healthy", 0)]
    assert await rig.database.fetch("SELECT breaker_until FROM pggit.webhook_limit") == [(None,)]
    print("scenarios 2 and 3: breaker open after 5 in a row, closed and healthy after one success")  # noqa: T201  # figures


async def test_scenario_4_a_400_is_permanent(rig: Rig):
    webhook_id = await add_webhook(rig)
    rig.receiver.script("/hook", answer(400))
    async with rig.worker(**PATIENCE):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "failed")

    assert len(rig.receiver.requests) == 1
    assert await rig.row(delivery_id, "retry_count", "failed_reason") == (0, "permanent")
    assert await rig.database.fetch(HEALTH, (webhook_id,)) == [("unavailable", 1)]


async def test_scenario_5_a_timeout_is_transient(rig: Rig):
    webhook_id = await add_webhook(rig)
    never = trio.Event()
    rig.receiver.script("/hook", gated(never, answer(200)))
    began = perf_counter()
    async with rig.worker(
        DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=8, DELIVERY_BACKOFF_BASE_SECONDS=60
    ):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "retrying")
        took = perf_counter() - began

    never.set()
    print(f"scenario 5: given up after {took:.2f} s")  # noqa: T201  # figures
    assert 5 <= took < 7
    assert await rig.row(delivery_id, "retry_count", "last_status") == (1, 0)
    assert await rig.database.fetch(HEALTH, (webhook_id,)) == [("degraded", 1)]


async def test_scenario_6_ten_webhooks_fail_and_the_rest_works(rig: Rig):
    failing = [await add_webhook(rig, f"/bad{number}", webhook_id=7000 + number) for number in range(10)]
    for number in range(10):
        rig.receiver.script(f"/bad{number}", *[answer(503)] * 5)
    working = [await add_webhook(rig, f"/good{number}") for number in range(20)]
    await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, max_retries)"
        " SELECT n, n, '{}', 4 FROM generate_series(7000, 7009) AS n"
    )
    async with rig.worker(**PATIENCE):
        for webhook_id in working:
            await rig.insert(webhook_id, 10)
        await rig.until(
            "SELECT NOT EXISTS (SELECT FROM pggit.alert_delivery_queue WHERE ready_at IS NOT NULL)",
            seconds=60,
        )

    assert await rig.database.fetch(STATUS) == [("delivered", 200), ("failed", 10)]
    assert await rig.database.fetch(
        "SELECT webhook_id, health_status, consecutive_failures FROM pggit.v_degraded_webhooks ORDER BY webhook_id"
    ) == [(webhook_id, "degraded", 5) for webhook_id in failing]


async def test_scenario_7_claim_and_views_are_quick_with_500_rows_and_more(rig: Rig):
    await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, n % 50, '{}' FROM generate_series(1, 6000) AS n"
    )
    await rig.database.execute(
        "SELECT pggit.update_webhook_health(n % 600, (ARRAY[200, 503])[1 + n % 2], 20) FROM"
        " generate_series(1, 1200) AS n"
    )
    connection = await rig.database.connect()

    async def milliseconds(query: str) -> float:
        began = perf_counter()
        await (await connection.execute(query)).fetchall()
        return (perf_counter() - began) * 1000

    async with rig.worker(**PATIENCE):
        for query in (
            "SELECT * FROM pggit.get_ready_deliveries(100)",
            "SELECT * FROM pggit.v_webhook_health_dashboard",
            "SELECT * FROM pggit.v_degraded_webhooks",
        ):
            turns = [(await milliseconds("SELECT 1"), await milliseconds(query)) for _ in range(21)]
            one, took = (median(column) for column in zip(*turns, strict=True))
            print(f"scenario 7: {query}: {took:.2f} ms, {took / one:.1f} x SELECT 1")  # noqa: T201  # figures
            assert took / one <= 100


async def test_scenario_8_a_slow_webhook_is_seen_and_delays_nobody(rig: Rig):
    slow = await add_webhook(rig, "/slow")
    others = [await add_webhook(rig, f"/hook{number}") for number in range(5)]
    gate = trio.Event()
    rig.receiver.script("/slow", *[gated(gate, answer(200))] * 100)
    await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at)"
        " SELECT n, %s, '{}', now() - interval '10 s' FROM generate_series(1, 100) AS n",
        (slow,),
    )
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=20, WORKER_LEASE_SECONDS=30):
        for webhook_id in others:
            await rig.insert(webhook_id, 20)
        await rig.until(
            "SELECT count(*) = 100 FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'"
        )
        ((depth, age),) = await rig.database.fetch(
            "SELECT count, extract(epoch FROM now() - oldest)::float8 FROM pggit.v_delivery_queue_status"
            " WHERE status = 'pending'"
        )
        ((latency,),) = await rig.database.fetch(
            "SELECT max(extract(epoch FROM delivered_at - created_at))::float8 FROM pggit.alert_delivery_queue"
            " WHERE webhook_id <> %s", (slow,)
        )  # fmt: skip
        print(  # noqa: T201  # figures
            f"scenario 8: {depth} rows wait, the oldest for {age:.1f} s; the others took at most"
            f" {latency * 1000:.0f} ms"
        )
        assert (depth, age >= 10) == (100, True)
        assert latency < 5
        gate.set()
        await rig.until_all("delivered")
