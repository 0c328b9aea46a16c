"""SIGTERM drains without a duplicate; a second one gives everything back at once."""

from __future__ import annotations

import signal

import httpx
import trio

from pggit_reactor.testing.faults import open_proxy
from pggit_reactor.testing.receiver import answer, gated, hang

SECOND_SIGNAL_SECONDS = 2.0
EXIT_SLACK_SECONDS = 1.5
"""For the interpreter to end, on a busy machine."""


async def probe(process, path: str) -> int:
    """Return the status that the worker's port answers with."""
    port = (await process.event("http_listening"))["port"]
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code


async def test_sigterm_under_load_exits_0_without_a_duplicate_and_leaves_the_rest_to_others(rig):
    ids = [await rig.add_webhook(f"/hook{number}", concurrency=8) for number in range(4)]
    async with rig.process(DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=30) as leaving:
        for webhook_id in ids:
            await rig.insert(webhook_id, 400)
        await rig.receiver.wait_for(200)
        leaving.signal(signal.SIGTERM)
        assert await leaving.wait() == 0
        sent = len(rig.receiver.requests)
        # Everything that it began it finished and wrote, and everything else is free at once, lease or no lease.
        assert await rig.leases() == 0
        assert (await rig.statuses()).get("delivered") == sent
        assert (await rig.statuses()).get("pending") == 1600 - sent > 0
        async with rig.process(DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=30):
            await rig.until_all("delivered")

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_draining_finishes_what_is_being_sent_and_says_that_it_is_not_ready(rig):
    webhook_id = await rig.add_webhook()
    gate = trio.Event()
    rig.receiver.script("/hook", gated(gate, answer(200)))
    async with rig.worker(drained=False, DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=10) as running:
        (begun,) = await rig.insert(webhook_id)
        await rig.receiver.wait_for(1)
        running.signal(signal.SIGTERM)
        await rig.until_true(lambda: not running.worker.health.ready().ok)
        (late,) = await rig.insert(webhook_id)
        assert running.worker.health.health().ok
        assert await rig.row(begun, "delivery_status") == ("pending",)
        gate.set()
        assert await running.wait() == 0

    assert await rig.row(begun, "delivery_status", "attempt_count") == ("delivered", 1)
    assert await rig.row(late, "delivery_status", "lease_token", "attempt_count") == ("pending", None, 0)
    state = await rig.database.fetch_value("SELECT state FROM pggit.reactor_worker")
    assert state == "stopped"


async def test_another_worker_is_woken_for_what_a_leaving_one_gives_back(rig):
    webhook_id = await rig.add_webhook()
    async with (
        rig.worker(drained=False, DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=30) as leaving,
    ):
        rig.receiver.script("/hook", hang())
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.receiver.wait_for(1)
        async with rig.worker(WORKER_POLL_SECONDS=600):
            leaving.signal(signal.SIGTERM)
            leaving.signal(signal.SIGTERM)
            assert await leaving.wait() == 1
            # Its lease had half a minute to go, and nobody polls.
            await rig.until_status(delivery_id, "delivered", seconds=3)

    assert await rig.row(delivery_id, "crash_count", "retry_count") == (0, 0)


async def test_a_second_sigterm_gives_leases_back_and_exits_1_within_two_seconds(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", *[hang()] * 5)
    async with rig.process(DELIVERY_TIMEOUT_SECONDS=15, WORKER_LEASE_SECONDS=30) as leaving:
        rows = await rig.insert(webhook_id, 5)
        await rig.receiver.wait_for(5)
        leaving.signal(signal.SIGTERM)
        await leaving.event("draining")
        began = trio.current_time()
        leaving.signal(signal.SIGTERM)
        assert await leaving.wait() == 1
        assert trio.current_time() - began < SECOND_SIGNAL_SECONDS + EXIT_SLACK_SECONDS

    for row in rows:
        columns = "delivery_status", "lease_token", "lease_expires_at", "leased_by", "attempt_count"
        assert await rig.row(row, *columns) == ("pending", None, None, None, 0)


async def test_a_drain_that_takes_too_long_is_an_abort(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", hang())
    async with rig.worker(
        drained=False, DELIVERY_TIMEOUT_SECONDS=15, WORKER_LEASE_SECONDS=30, WORKER_DRAIN_SECONDS=0.3
    ) as running:
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.receiver.wait_for(1)
        running.signal(signal.SIGTERM)
        assert await running.wait(seconds=5) == 1

    assert await rig.row(delivery_id, "delivery_status", "lease_token") == ("pending", None)


async def test_an_outcome_that_is_known_is_written_even_by_an_abort(rig):
    webhook_id, hanging = await rig.add_webhook("/good"), await rig.add_webhook("/hanging")
    rig.receiver.script("/hanging", hang())
    async with rig.worker(drained=False, DELIVERY_TIMEOUT_SECONDS=15, WORKER_LEASE_SECONDS=30) as running:
        psql = await rig.database.connect()
        (known,) = await rig.insert(webhook_id)
        await rig.until_status(known, "delivered")
        async with psql.transaction():
            await psql.execute("SELECT FROM pggit.webhook_health_metrics FOR UPDATE")
            (known,) = await rig.insert(webhook_id)
            await rig.insert(hanging)
            await rig.receiver.wait_for(3)
            await rig.until_true(lambda: running.worker._settler.suspended)
            running.signal(signal.SIGTERM)
            await rig.until_true(lambda: running.worker.claimer.draining)
            running.signal(signal.SIGTERM)
        assert await running.wait() == 1

    assert await rig.row(known, "delivery_status", "attempt_count") == ("delivered", 1)
    assert await rig.leases() == 0


async def test_with_the_database_gone_a_worker_still_stops(rig, lines):
    """Its outcome is lost with it, and its lease expires: the row is sent again, which is what at-least-once means."""
    webhook_id = await rig.add_webhook()
    host, port = rig.host_and_port()
    async with open_proxy(host, port) as proxy:
        rig.dsn = rig.dsn_through(proxy)
        async with rig.worker(drained=False, WORKER_DRAIN_SECONDS=0.5) as running:
            gate = trio.Event()
            rig.receiver.script("/hook", gated(gate, answer(200)))
            (delivery_id,) = await rig.insert(webhook_id)
            await rig.receiver.wait_for(1)
            proxy.refuse()
            proxy.cut()
            gate.set()
            await rig.until_true(lambda: running.worker._settler.failing)
            running.signal(signal.SIGTERM)
            assert await running.wait(seconds=10) == 1
        assert lines.named("aborting")

    assert await rig.row(delivery_id, "delivery_status", "lease_token IS NULL") == ("pending", False)


async def test_an_idle_worker_without_a_database_stops_with_0(rig):
    host, port = rig.host_and_port()
    async with open_proxy(host, port) as proxy:
        rig.dsn = rig.dsn_through(proxy)
        async with rig.worker(drained=False) as running:
            proxy.refuse()
            proxy.cut()
            await rig.until_true(lambda: not running.worker.health.ready().ok)
            running.signal(signal.SIGTERM)
            assert await running.wait(seconds=10) == 0


async def test_a_worker_that_waits_for_its_database_to_appear_stops_at_once(rig):
    host, port = rig.host_and_port()
    async with open_proxy(host, port) as proxy:
        rig.dsn = rig.dsn_through(proxy)
        proxy.refuse()
        async with rig.starting_process() as waiting:
            await waiting.event("waiting_for_database", seconds=30)
            # It lives, so nobody should restart it, and it does nothing yet, so nobody should count on it.
            assert [await probe(waiting, path) for path in ("/health", "/ready")] == [200, 503]
            waiting.signal(signal.SIGTERM)
            assert await waiting.wait(seconds=5) == 0
