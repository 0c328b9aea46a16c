"""A worker that is stopped past its lease and goes on: what it did late must not count."""

from __future__ import annotations

import signal

import attrs
import httpx
import pytest
import trio

from pggit_reactor.runtime.fanout import FanOut
from pggit_reactor.testing.receiver import answer, gated

FENCED = "pggit_reactor_fenced_writes_total"


async def scrape(process, name: str) -> float:
    """Return a sample of the process's metrics."""
    port = (await process.event("http_listening"))["port"]
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


async def test_a_zombie_whose_rows_another_worker_took_is_fenced(rig):
    webhook_id = await rig.add_webhook()
    gate = trio.Event()
    rig.receiver.script("/hook", *[gated(gate, answer(200))] * 3)
    async with rig.process() as zombie:
        rows = await rig.insert(webhook_id, 3)
        await rig.receiver.wait_for(3)
        zombie.signal(signal.SIGSTOP)
        async with rig.process():
            await rig.until_all("delivered")
            written = [await rig.row(row, "delivered_at", "attempt_count", "retry_count") for row in rows]
            # Its answers lie in its sockets when it wakes up.
            gate.set()
            zombie.signal(signal.SIGCONT)
            await zombie.event("outcomes_fenced")
        assert await scrape(zombie, FENCED) == 3

    assert [await rig.row(row, "delivered_at", "attempt_count", "retry_count") for row in rows] == written
    await rig.assert_books_agree()


@pytest.mark.long
async def test_a_zombie_works_on(rig):
    webhook_id = await rig.add_webhook()
    gate = trio.Event()
    rig.receiver.script("/hook", *[gated(gate, answer(200))] * 3)
    async with rig.process() as zombie:
        await rig.insert(webhook_id, 3)
        await rig.receiver.wait_for(3)
        zombie.signal(signal.SIGSTOP)
        await rig.until(
            "SELECT bool_and(lease_expires_at < clock_timestamp()) FROM pggit.alert_delivery_queue"
        )
        gate.set()
        zombie.signal(signal.SIGCONT)
        # It may claim its own rows again before it reads their answers; either way each ends once.
        await rig.until_all("delivered")
        await rig.insert(webhook_id, 10)
        await rig.until_all("delivered")
        zombie.signal(signal.SIGTERM)
        assert await zombie.wait() == 0

    await rig.assert_each_arrived(at_least=True)
    await rig.assert_books_agree()


async def test_a_worker_that_claims_its_own_row_again_while_the_old_attempt_runs_loses_no_slot(rig):
    webhook_id = await rig.add_webhook(concurrency=2)
    gate = trio.Event()
    rig.receiver.script("/hook", gated(gate, answer(200)))
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=10, WORKER_LEASE_SECONDS=20) as running:
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.receiver.wait_for(1)
        # As if it had been stopped for longer than its lease.
        await rig.database.execute("UPDATE pggit.alert_delivery_queue SET lease_expires_at = now()")
        running.worker.claimer.look_around()
        await rig.until_status(delivery_id, "delivered")
        gate.set()
        await rig.until_true(lambda: running.metric(FENCED) == 1)
        await rig.until_true(lambda: running.metric("pggit_reactor_attempts_in_flight") == 0)
        assert not running.worker._capacity.by_webhook

    assert await rig.row(delivery_id, "crash_count", "attempt_count") == (0, 1)
    await rig.assert_books_agree()


async def test_a_claim_that_took_too_long_is_given_back_and_not_sent_on_a_lease_that_is_half_over(
    rig, monkeypatch
):
    webhook_id = await rig.add_webhook()
    dispatch, given_back = FanOut.dispatch, []

    def late(fanout, deliveries, times):
        """As if the answer of the first claim had been on its way for 3 s."""
        monkeypatch.setattr(FanOut, "dispatch", dispatch)
        given_back.extend(deliveries)
        dispatch(fanout, deliveries, attrs.evolve(times, began_at=times.began_at - 3))

    async with rig.worker():
        monkeypatch.setattr(FanOut, "dispatch", late)
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")

    assert [delivery.delivery_id for delivery in given_back] == [delivery_id]
    await rig.assert_each_arrived()
    await rig.assert_books_agree()
