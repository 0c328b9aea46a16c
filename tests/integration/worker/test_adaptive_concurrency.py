"""Workers beside a real receiver whose strength drops and returns."""

from __future__ import annotations

import pytest
import trio

from pggit_reactor.testing.receiver import Queueing, answer, gated
from pggit_reactor.testing.rig import Rig, RunningWorker

LIMIT = 16
PATIENCE = {"DELIVERY_TIMEOUT_SECONDS": 1, "DELIVERY_BACKOFF_BASE_SECONDS": 0.05}


def allowed(running: RunningWorker, webhook_id: int) -> int:
    return running.worker._learned.allowed(webhook_id, LIMIT)


async def until_allowed(running: RunningWorker, webhook_id: int, least: int, most: int) -> None:
    with trio.fail_after(60):
        while not least <= allowed(running, webhook_id) <= most:  # noqa: ASYNC110  # nobody announces it
            await trio.sleep(0.01)


@pytest.mark.long
async def test_a_receiver_whose_capacity_drops_is_spared_and_gets_its_limit_again(rig: Rig):
    await rig.never_open_breakers()  # An overload is over sooner than a breaker is closed.
    webhook_id = await rig.add_webhook(concurrency=LIMIT, max_attempts=1000)
    queue = Queueing(LIMIT, seconds=0.05)
    rig.receiver.default = queue.behaviour(answer(200))
    async with rig.worker(**PATIENCE) as running:
        await rig.insert(webhook_id, 20_000)
        await rig.receiver.wait_for(200)
        assert allowed(running, webhook_id) == LIMIT

        queue.capacity, queue.seconds = 1, 0.2
        await until_allowed(running, webhook_id, 1, 4)
        with trio.fail_after(60):
            while queue.queued > 2:  # noqa: ASYNC110  # requests that were given up, and that it works off all the same
                await trio.sleep(0.01)
        queue.most_queued = 0
        before = len(rig.receiver.requests)
        await rig.receiver.wait_for(before + 20)
        assert queue.most_queued <= LIMIT // 2

        queue.capacity, queue.seconds = LIMIT, 0.05
        await until_allowed(running, webhook_id, LIMIT, LIMIT)
        await rig.database.execute("UPDATE pggit.webhook SET state = 'paused'")

    falls = running.metric("pggit_reactor_concurrency_lowered_total", {"webhook_id": str(webhook_id)})
    assert falls >= 2


async def test_what_was_learnt_survives_a_restart_and_is_cleared_when_it_is_over(rig: Rig):
    await rig.never_open_breakers()
    webhook_id = await rig.add_webhook(concurrency=LIMIT, max_attempts=1000)
    learned = "SELECT learned_concurrency {} FROM pggit.webhook_limit"
    rig.receiver.default = answer(429)  # Which no breaker opens for.
    async with rig.worker(**PATIENCE):
        await rig.insert(webhook_id, 50)
        await rig.until(learned.format("= 1"), seconds=30)

    rig.receiver.default = answer(200)
    async with rig.worker(**PATIENCE) as running:
        await rig.insert(webhook_id, 500)
        await until_allowed(running, webhook_id, LIMIT, LIMIT)
        await rig.until(learned.format("IS NULL"), seconds=30)
        await rig.until_all("delivered")


async def test_a_worker_starts_from_what_another_learnt_unless_it_is_old(rig: Rig):
    fresh = await rig.add_webhook("/fresh", concurrency=LIMIT)
    old = await rig.add_webhook("/old", concurrency=LIMIT)
    await rig.database.execute(
        "UPDATE pggit.webhook_limit SET learned_concurrency = 2,"
        " learned_at = now() - CASE WHEN webhook_id = %s THEN interval '1 minute' ELSE interval '2 hours' END",
        (fresh,),
    )
    release = trio.Event()
    rig.receiver.default = gated(release, answer(200))
    await rig.insert(fresh, 20)
    await rig.insert(old, 20)
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=15, WORKER_LEASE_SECONDS=30):
        await rig.receiver.wait_for(LIMIT, path="/old")
        await rig.receiver.wait_for(2, path="/fresh")
        leased = dict(
            await rig.database.fetch(
                "SELECT webhook_id, count(*) FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL GROUP BY 1"
            )
        )
        release.set()
        await rig.until_all("delivered")

    assert leased == {fresh: 2, old: LIMIT}


@pytest.mark.parametrize("switch", ["true", "false"])
async def test_prediction_looks_at_attempts_where_it_is_turned_on(rig: Rig, switch: str):
    webhook_id = await rig.add_webhook()
    async with rig.worker(DELIVERY_HEALTH_PREDICTION=switch) as running:
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")
        known = running.worker._learned._known[webhook_id]

    assert (known.figures is not None) == (switch == "true")
