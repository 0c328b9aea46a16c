"""Each of a worker's connections may be cut, go silent or go deaf at any moment."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from pggit_reactor.db import listener
from pggit_reactor.db.connection import ABANDON_SECONDS_MAX
from pggit_reactor.db.lane import USE_SECONDS
from pggit_reactor.runtime import worker as worker_module
from pggit_reactor.testing.faults import Direction, open_proxy

HALF_OPEN_NOTICED_SECONDS = 15
"""DESIGN 4: on claim, settle and listen alike."""


@pytest.mark.parametrize("connection", ["claim", "settle", "side", "listen"])
async def test_a_connection_that_is_ended_under_load_costs_nothing(rig, connection: str):
    ids = [await rig.add_webhook(f"/hook{number}", concurrency=8) for number in range(4)]
    async with rig.worker() as running:
        for turn in range(3):
            for webhook_id in ids:
                await rig.insert(webhook_id, 50)
            await rig.receiver.wait_for(turn * 200 + 20)
            await rig.terminate(connection)
        await rig.until_all("delivered")

        name = "listener" if connection == "listen" else connection
        await rig.until_true(
            lambda: running.metric("pggit_reactor_reconnects_total", {"connection": name}) >= 1
        )
    await rig.assert_each_arrived()
    await rig.assert_books_agree()
    assert await rig.database.fetch_value("SELECT max(crash_count) FROM pggit.alert_delivery_queue") == 0


async def test_a_settle_whose_answer_is_lost_is_written_once(rig):
    webhook_id = await rig.add_webhook()
    async with open_proxy(*rig.host_and_port()) as proxy, rig.worker() as running:
        await rig.change_lane(running, "settle", dsn=rig.dsn_through(proxy))
        (first,) = await rig.insert(webhook_id)
        await rig.until_status(first, "delivered")
        assert proxy.open_count == 1
        proxy.swallow(Direction.TO_CLIENT)
        (second,) = await rig.insert(webhook_id)
        await rig.until_status(second, "delivered")
        proxy.heal()
        proxy.cut()
        (third,) = await rig.insert(webhook_id)
        await rig.until_status(third, "delivered")

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_claim_whose_answer_is_lost_comes_back_with_its_lease_and_is_no_crash(rig):
    webhook_id = await rig.add_webhook()
    async with open_proxy(*rig.host_and_port()) as proxy, rig.worker() as running:
        await rig.change_lane(running, "claim", dsn=rig.dsn_through(proxy))
        (first,) = await rig.insert(webhook_id)
        await rig.until_status(first, "delivered")
        assert proxy.open_count == 1
        proxy.swallow(Direction.TO_CLIENT)
        (second,) = await rig.insert(webhook_id)
        await rig.until(
            "SELECT lease_token IS NOT NULL FROM pggit.alert_delivery_queue WHERE delivery_id = %s", second
        )
        proxy.heal()
        proxy.cut()
        await rig.until_status(second, "delivered")

    assert await rig.row(second, "crash_count", "attempt_count") == (0, 1)
    await rig.assert_each_arrived()


@pytest.mark.parametrize("connection", ["claim", "settle"])
async def test_a_half_open_connection_is_noticed_and_replaced(rig, connection: str):
    assert USE_SECONDS + ABANDON_SECONDS_MAX <= HALF_OPEN_NOTICED_SECONDS
    webhook_id = await rig.add_webhook()
    async with open_proxy(*rig.host_and_port()) as proxy, rig.worker() as running:
        lane = await rig.change_lane(running, connection, dsn=rig.dsn_through(proxy))
        (first,) = await rig.insert(webhook_id)
        await rig.until_status(first, "delivered")
        assert proxy.open_count == 1
        lane.use_seconds = 0.3
        proxy.stall()
        (second,) = await rig.insert(webhook_id)
        await rig.until_true(lambda: lane._connection is None, seconds=0.3 + ABANDON_SECONDS_MAX + 1)
        # What is stalled stays so; only a new connection helps.
        async with open_proxy(*rig.host_and_port()) as other_way:
            lane.dsn = rig.dsn_through(other_way)
            await rig.until_status(second, "delivered")
            lane.dsn = rig.database.dsn
            lane.close()

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_deaf_listener_is_found_by_its_canary_and_what_it_missed_is_found_at_once(rig, monkeypatch):
    quick = partial(listener.open_listener, canary_every_seconds=0.2, canary_answer_seconds=0.3)
    monkeypatch.setattr(worker_module, "open_listener", quick)
    monkeypatch.setattr(listener, "CONNECT_SECONDS", 0.5)
    webhook_id = await rig.add_webhook()
    async with open_proxy(*rig.host_and_port()) as proxy:
        rig.dsn = rig.dsn_through(proxy)
        async with rig.worker(WORKER_POLL_SECONDS=600) as running:
            for lane in running.worker._lanes:
                await rig.change_lane(running, lane.name, dsn=rig.database.dsn)
            (first,) = await rig.insert(webhook_id)
            await rig.until_status(first, "delivered")
            await proxy.wait_open(1)
            proxy.swallow(Direction.TO_CLIENT)
            (missed,) = await rig.insert(webhook_id)
            await rig.until_true(lambda: not running.worker.health.ready().checks["listener"].ok)
            assert await rig.row(missed, "delivery_status") == ("pending",)
            proxy.heal()
            await rig.until_status(missed, "delivered")
            (heard,) = await rig.insert(webhook_id)
            await rig.until_status(heard, "delivered")

            # A listener that is deaf is no reason to take no work: the poll is there.
            assert running.worker.health.ready().ok

    await rig.assert_each_arrived()


async def test_without_a_listener_the_poll_carries_on(rig, monkeypatch):
    async def refuse(*_: object, **__: object):
        raise worker_module.DatabaseError("LISTEN does not go through here")

    monkeypatch.setattr(worker_module, "LISTEN_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(listener, "connect", refuse)
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=0.2) as running:
        with trio.fail_after(5):
            (delivery_id,) = await rig.insert(webhook_id)
            await rig.until_status(delivery_id, "delivered")

        assert running.metric("pggit_reactor_wakeups_total", {"cause": "poll"}) >= 1


async def test_a_worker_that_cannot_settle_is_not_called_dead_and_its_late_outcome_is_fenced(rig):
    """It is heard all the time: another worker takes its row over when the lease has run out, without blame."""
    webhook_id = await rig.add_webhook()
    async with open_proxy(*rig.host_and_port()) as proxy, rig.worker() as stuck:
        await rig.change_lane(stuck, "settle", dsn=rig.dsn_through(proxy))
        (first,) = await rig.insert(webhook_id)
        await rig.until_status(first, "delivered")
        assert proxy.open_count == 1
        proxy.stall()
        (second,) = await rig.insert(webhook_id)
        await rig.receiver.wait_for(2)
        async with rig.worker() as other:
            await rig.until_status(second, "delivered")
            assert other.metric("pggit_reactor_leases_expired_total") == 1
            proxy.heal()
            await rig.until_true(lambda: stuck.metric("pggit_reactor_fenced_writes_total") == 1)

    assert await rig.row(second, "crash_count", "attempt_count") == (0, 1)
    await rig.assert_books_agree()
