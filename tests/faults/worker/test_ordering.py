"""Strict order over four worker processes, one of which is killed: what the receiver saw, key by key."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from contextlib import AsyncExitStack

import pytest
import trio

from pggit_reactor.testing.receiver import Behaviour, answer

KEYS = 25
ROWS = 1000
WORKERS = 4


def fickle(sent: Counter[int]) -> Behaviour:
    """Answers 503 to the first attempt of each thirteenth alert."""

    async def act(peer) -> None:
        number = json.loads(peer.request.body)["alert"]
        sent[number] += 1
        await trio.sleep(0.001)  # as a receiver takes
        await answer(503 if number % 13 == 0 and sent[number] == 1 else 200).act(peer)

    return Behaviour(act)


async def insert(rig, webhook_id: int, first: int, count: int) -> None:
    await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key)"
        " SELECT n, %s, jsonb_build_object('alert', n, 'key', mod(n, %s)), mod(n, %s)::text"
        " FROM generate_series(%s::integer, %s::integer) AS n",
        (webhook_id, KEYS, KEYS, first, first + count - 1),
    )


@pytest.mark.parametrize("ordering", ["key", pytest.param("webhook", marks=pytest.mark.long)])
async def test_four_workers_keep_each_order_through_failures_and_a_kill(rig, ordering):
    rig.receiver.default = fickle(Counter())
    webhook_id = await rig.add_webhook(ordering=ordering)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(rig.process(WORKER_ID=f"w{number}")) for number in range(WORKERS)
        ]
        await insert(rig, webhook_id, 1, ROWS // 2)
        await rig.receiver.wait_for(ROWS // 5)
        workers[0].kill()
        await insert(rig, webhook_id, ROWS // 2 + 1, ROWS // 2)
        await rig.until_all("delivered", seconds=50)

    orders: defaultdict[int, list[int]] = defaultdict(list)
    for request in rig.receiver.requests:
        body = json.loads(request.body)
        orders[body["key"] if ordering == "key" else 0].append(body["alert"])
    assert all(numbers == sorted(numbers) for numbers in orders.values())
    assert {number for numbers in orders.values() for number in numbers} == set(range(1, ROWS + 1))
    await rig.assert_each_arrived(at_least=True)


@pytest.mark.long
async def test_ten_thousand_keys_two_deliveries_each(rig):
    sent: list[tuple[int, int]] = []

    async def act(peer) -> None:
        body = json.loads(peer.request.body)
        sent.append((body["key"], body["alert"]))
        await answer(200).act(peer)

    rig.receiver.default = Behaviour(act)
    webhook_id = await rig.add_webhook(ordering="key", concurrency=64)
    async with rig.worker(WORKER_POLL_SECONDS=600, DELIVERY_TIMEOUT_SECONDS=10, WORKER_LEASE_SECONDS=30):
        await rig.database.execute(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key)"
            " SELECT n, %s, jsonb_build_object('alert', n, 'key', mod(n, 10000)), mod(n, 10000)::text"
            " FROM generate_series(1, 20000) AS n",
            (webhook_id,),
        )
        await rig.until_all("delivered", seconds=120)

    orders: defaultdict[int, list[int]] = defaultdict(list)
    for key, number in sent:
        orders[key].append(number)
    assert len(orders) == 10_000
    assert all(numbers == sorted(numbers) and len(numbers) == 2 for numbers in orders.values())


async def test_a_fresh_alert_is_not_kept_by_ten_thousand_keys_that_wait(rig):
    webhook_id = await rig.add_webhook(ordering="key")
    await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key, next_retry_at)"
        " SELECT n, %s, '{}', 'waits ' || mod(n, 10000), CASE WHEN n <= 10000 THEN now() + interval '1 h' END"
        " FROM generate_series(1, 20000) AS n",
        (webhook_id,),
    )
    async with rig.worker(WORKER_POLL_SECONDS=600):
        for _ in range(5):
            (fresh,) = await rig.insert(webhook_id)
            await rig.until_status(fresh, "delivered", seconds=5)

    assert len(rig.receiver.requests) == 5
