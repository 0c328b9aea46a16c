"""A greedy webhook and a receiver that hangs, beside twenty webhooks with a few alerts each."""

from __future__ import annotations

import pytest
import trio

from pggit_reactor.testing.receiver import Behaviour, answer, gated
from pggit_reactor.testing.rig import Rig

ATTEMPTS_MAX = 64
OTHERS = 20
ROWS_EACH = 5
PATIENCE = {"DELIVERY_TIMEOUT_SECONDS": 15, "WORKER_LEASE_SECONDS": 30, "WORKER_ATTEMPTS_MAX": ATTEMPTS_MAX}


async def test_a_greedy_and_a_hanging_webhook_cost_the_others_nothing(rig: Rig):
    """The greedy one weighs as much as one may, and both may have far more attempts than the worker has."""
    greedy = await rig.add_webhook("/greedy", concurrency=256, weight=100)
    hanging = await rig.add_webhook("/hanging", concurrency=256)
    others = [await rig.add_webhook(f"/other{number}") for number in range(OTHERS)]
    release = trio.Event()
    rig.receiver.script("/hanging", *[gated(release, answer(200))] * 500)
    await rig.insert(greedy, 20_000)
    await rig.insert(hanging, 500)
    async with rig.worker(**PATIENCE, drained=False):
        await rig.receiver.wait_for(10, path="/hanging")
        await rig.receiver.wait_for(500, path="/greedy")
        before = len(rig.receiver.requests_for("/greedy"))
        for webhook_id in others:
            await rig.insert(webhook_id, ROWS_EACH)
        await rig.until(
            "SELECT count(*) = %s FROM pggit.alert_delivery_queue"
            " WHERE webhook_id = ANY (%s) AND delivery_status = 'delivered'",
            OTHERS * ROWS_EACH,
            others,
        )
        meanwhile = len(rig.receiver.requests_for("/greedy")) - before
        (slowest,) = (
            await rig.database.fetch(
                "SELECT extract(epoch FROM max(delivered_at - created_at))::float8 FROM pggit.alert_delivery_queue"
                " WHERE webhook_id = ANY (%s)",
                (others,),
            )
        )[0]

    # The greedy one had thousands of rows due before them all. Half of what it could send in that time is plenty.
    assert meanwhile < 5000
    assert slowest < 3
    assert len(rig.receiver.requests_for("/hanging")) <= ATTEMPTS_MAX // 2


@pytest.mark.parametrize(("share", "most"), [("0.25", 16), ("1", 64)])
async def test_a_webhook_holds_its_share_of_a_worker_and_no_more(rig: Rig, share: str, most: int):
    webhook_id = await rig.add_webhook(concurrency=256)
    release = trio.Event()
    rig.receiver.default = gated(release, answer(200))
    await rig.insert(webhook_id, 200)
    async with rig.worker(**PATIENCE, WORKER_WEBHOOK_SHARE=share):
        await rig.receiver.wait_for(most)
        leased = await rig.database.fetch_value(
            "SELECT count(*) FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL"
        )
        release.set()
        await rig.until_all("delivered")

    assert leased == most


async def test_slots_of_a_worker_that_is_full_go_by_weight(rig: Rig):
    """Attempts end one by one, and each slot that gets free is worth a claim of one."""
    ids = {
        weight: await rig.add_webhook(f"/{weight}", concurrency=256, weight=weight) for weight in (1, 2, 5)
    }
    ends = trio.Semaphore(0)

    async def act(peer):
        await ends.acquire()
        await answer(200).act(peer)

    rig.receiver.default = Behaviour(act)
    for webhook_id in ids.values():
        await rig.insert(webhook_id, 400)
    async with rig.worker(**{**PATIENCE, "WORKER_ATTEMPTS_MAX": 16}, WORKER_WEBHOOK_SHARE=1):
        for ended in range(400):
            await rig.receiver.wait_for(min(16 + ended, 1200))
            ends.release()
        sent = {weight: len(rig.receiver.requests_for(f"/{weight}")) for weight in ids}
        for _ in range(1200):
            ends.release()
        await rig.until_all("delivered")

    turns = {weight: count / weight for weight, count in sent.items()}
    # Sixteen that were claimed while the worker did not know their weights.
    assert max(turns.values()) - min(turns.values()) <= 16
