"""Strict order, judged by what the receiver saw. The poll is slow on purpose: nothing here may wait for one."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping

import attrs
import pytest
import trio

from pggit_reactor.testing.receiver import Behaviour, answer, gated
from pggit_reactor.testing.rig import Rig

NO_POLL = {"WORKER_POLL_SECONDS": 600}
FAR_RETRY = {"DELIVERY_BACKOFF_BASE_SECONDS": 600}


@attrs.define(eq=False)
class Judge:
    """A receiver's behaviour that fails each alert as often as *failures* says, and notes what is under way."""

    failures: Mapping[int, int] = attrs.field(factory=dict)
    seen: list[tuple[str, int]] = attrs.field(factory=list)
    under_way: Counter[str] = attrs.field(factory=Counter)
    overlaps: list[str] = attrs.field(factory=list)
    _failed: Counter[int] = attrs.field(factory=Counter)

    async def act(self, peer) -> None:
        body = json.loads(peer.request.body)
        key, number = str(body.get("key")), body["alert"]
        self.under_way[key] += 1
        if self.under_way[key] > 1:
            self.overlaps.append(key)
        self.seen.append((key, number))
        await trio.sleep(0.002)  # as a receiver takes
        self._failed[number] += 1
        fails = self._failed[number] <= self.failures.get(number, 0)
        self.under_way[key] -= 1
        await answer(503 if fails else 200).act(peer)

    def by_key(self) -> dict[str, list[int]]:
        found: defaultdict[str, list[int]] = defaultdict(list)
        for key, number in self.seen:
            found[key].append(number)
        return dict(found)


async def insert(
    rig: Rig, webhook_id: int, count: int, *, keys: int = 1, first: int = 1, **columns: str
) -> list[int]:
    """Insert alerts numbered from *first*, which take turns among *keys* ordering keys; return their ids."""
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", {value}" for value in columns.values())
    rows = await rig.database.fetch(
        f"INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key{names})"
        f" SELECT n, %s, jsonb_build_object('alert', n, 'key', mod(n, %s)), mod(n, %s)::text{values}"
        " FROM generate_series(%s::integer, %s::integer) AS n RETURNING delivery_id",
        (webhook_id, keys, keys, first, first + count - 1),
    )
    return [row[0] for row in rows]


@pytest.mark.parametrize("ordering", ["webhook", "key"])
async def test_one_after_the_other_with_retries_in_the_middle(rig: Rig, ordering):
    judge = Judge(failures={7: 2, 8: 1, 30: 3})
    rig.receiver.default = Behaviour(judge.act)
    webhook_id = await rig.add_webhook(ordering=ordering)
    async with rig.worker(**NO_POLL):
        await insert(rig, webhook_id, 60)
        await rig.until_all("delivered", seconds=30)

    numbers = [number for _, number in judge.seen]
    assert numbers == sorted(numbers)
    assert Counter(numbers) == Counter(range(1, 61)) + Counter({7: 2, 8: 1, 30: 3})
    assert judge.overlaps == []


async def test_keys_go_side_by_side_and_each_in_its_order(rig: Rig):
    judge = Judge(failures=dict.fromkeys(range(1, 400, 17), 1))
    rig.receiver.default = Behaviour(judge.act)
    webhook_id = await rig.add_webhook(ordering="key")
    async with rig.worker(**NO_POLL), rig.worker(WORKER_ID="two", **NO_POLL):
        await insert(rig, webhook_id, 400, keys=20)
        await rig.until_all("delivered", seconds=30)

    assert all(numbers == sorted(numbers) for numbers in judge.by_key().values())
    assert judge.overlaps == []
    assert len(judge.by_key()) == 20


async def test_a_head_with_a_far_retry_holds_its_followers_and_nobody_else(rig: Rig):
    rig.receiver.script("/hook", answer(503))
    webhook_id = await rig.add_webhook(ordering="key")
    async with rig.worker(**NO_POLL, **FAR_RETRY):
        (head,) = await insert(rig, webhook_id, 1, keys=5)
        await rig.until_status(head, "retrying")
        others = await insert(rig, webhook_id, 49, keys=5, first=2)
        held = [one for number, one in enumerate(others, start=2) if number % 5 == 1]
        for one in others:
            if one not in held:
                await rig.until_status(one, "delivered")

        assert {(await rig.row(one, "attempt_count"))[0] for one in held} == {0}
        ((waits_for, explanation),) = await rig.database.fetch(
            "SELECT waits_for, explanation FROM pggit.explain_delivery(%s::bigint)", (held[0],)
        )
        assert waits_for == "order"
        assert f"delivery {head} goes first" in explanation

        await rig.database.fetch("SELECT pggit.requeue_delivery(%s::bigint)", (head,))
        await rig.until_all("delivered")

    sent = [json.loads(request.body)["alert"] for request in rig.receiver.requests]
    assert [number for number in sent if number % 5 == 1] == [1, *range(1, 50, 5)]


@pytest.mark.parametrize(
    "ending",
    [
        "SELECT pggit.cancel_delivery(%(head)s::bigint)",
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered' WHERE delivery_id = %(head)s",
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id = %(head)s",
        "UPDATE pggit.alert_delivery_queue SET webhook_id = -1 WHERE delivery_id = %(head)s",
        "DELETE FROM pggit.alert_delivery_queue WHERE delivery_id = %(head)s",
    ],
)
@pytest.mark.parametrize("ordering", ["webhook", "key"])
async def test_a_head_that_somebody_else_ends_lets_its_followers_go_at_once(rig: Rig, ordering, ending):
    webhook_id = await rig.add_webhook(ordering=ordering)
    async with rig.worker(**NO_POLL):
        (head,) = await insert(rig, webhook_id, 1, next_retry_at="now() + interval '1 h'")
        await insert(rig, webhook_id, 3, first=2)
        (other,) = await rig.insert(await rig.add_webhook("/other"))
        await rig.until_status(other, "delivered")  # By now the followers were looked at.
        assert rig.receiver.requests_for("/hook") == []

        await rig.database.execute(ending, {"head": head})
        with trio.fail_after(10):
            requests = await rig.receiver.wait_for(3, path="/hook")

    assert [json.loads(request.body)["alert"] for request in requests] == [2, 3, 4]


async def test_a_dead_head_lets_the_next_pass(rig: Rig):
    rig.receiver.script("/hook", answer(400), answer(500), answer(500))
    webhook_id = await rig.add_webhook(ordering="webhook", max_attempts=2)
    async with rig.worker(**NO_POLL):
        ids = await insert(rig, webhook_id, 3)
        await rig.until_status(ids[2], "delivered")

    assert [(await rig.row(one, "failed_reason"))[0] for one in ids] == ["permanent", "exhausted", None]


async def test_a_replayed_delivery_goes_before_what_still_waits(rig: Rig):
    opened = trio.Event()
    webhook_id = await rig.add_webhook(ordering="webhook")
    async with rig.worker(**NO_POLL):
        (first,) = await insert(rig, webhook_id, 1)
        await rig.until_status(first, "delivered")
        rig.receiver.script("/hook", gated(opened, answer()))
        await insert(rig, webhook_id, 3, first=2)
        await rig.receiver.wait_for(2)
        await rig.database.fetch("SELECT pggit.replay_delivery(%s::bigint)", (first,))
        opened.set()
        requests = await rig.receiver.wait_for(5)
        await rig.until_all("delivered")

    assert [json.loads(request.body)["alert"] for request in requests] == [1, 2, 1, 3, 4]


async def test_rows_without_a_key_block_nobody_and_nobody_blocks_them(rig: Rig):
    rig.receiver.script("/hook", answer(503))
    webhook_id = await rig.add_webhook(ordering="key")
    async with rig.worker(**NO_POLL, **FAR_RETRY):
        (head,) = await insert(rig, webhook_id, 1)
        await rig.until_status(head, "retrying")
        await insert(rig, webhook_id, 300, first=2)  # They wait for it.
        rig.receiver.script("/hook", answer(503))
        (unlucky,) = await rig.insert(webhook_id)
        await rig.until_status(unlucky, "retrying")
        for one in await rig.insert(webhook_id, 10):
            await rig.until_status(one, "delivered")

    assert (await rig.statuses())["pending"] == 300


async def test_what_is_under_way_when_an_order_is_set_is_waited_for(rig: Rig):
    opened = trio.Event()
    rig.receiver.default = gated(opened, answer())
    webhook_id = await rig.add_webhook(concurrency=4)
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=10, WORKER_LEASE_SECONDS=30, **NO_POLL):
        await insert(rig, webhook_id, 20)
        await rig.receiver.wait_for(4)
        await rig.database.execute("UPDATE pggit.webhook SET ordering = 'webhook'")
        judge = Judge()
        rig.receiver.default = Behaviour(judge.act)
        opened.set()
        await rig.until_all("delivered")

    first = sorted(json.loads(request.body)["alert"] for request in rig.receiver.requests[:4])
    assert [number for _, number in judge.seen] == [n for n in range(1, 21) if n not in first]
    assert judge.overlaps == []


async def test_a_draining_worker_tells_others_of_the_followers(rig: Rig):
    opened = trio.Event()
    rig.receiver.script("/hook", gated(opened, answer()))
    webhook_id = await rig.add_webhook(ordering="webhook")
    long = {"DELIVERY_TIMEOUT_SECONDS": 10, "WORKER_LEASE_SECONDS": 30}
    async with rig.worker(WORKER_ID="stays", **NO_POLL, **long):
        async with rig.worker(WORKER_ID="goes", **NO_POLL, **long):
            ids = await insert(rig, webhook_id, 2)
            await rig.receiver.wait_for(1)
            opened.set()
        await rig.until_status(ids[1], "delivered")

    assert len(rig.receiver.requests) == 2
