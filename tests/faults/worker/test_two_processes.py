"""`--processes 2`: one child may die, both drain, one port speaks for all."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest


@asynccontextmanager
async def fleet(rig, **settings: object):
    """Run a supervisor with two workers, both at work."""
    async with rig.starting_process("--processes", "2", **settings) as running:
        await running.event("worker_started", seconds=30)
        await rig.until_true(lambda: len(workers_of(running)) == 2, seconds=30)
        yield running


def workers_of(running) -> set[str]:
    return {event["worker_id"] for event in running.events if event.get("event") == "worker_started"}


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in children.split()]


async def get(running, path: str) -> httpx.Response:
    supervisors = [
        event
        for event in running.events
        if event.get("event") == "http_listening" and "port" in event and event["port"]
    ]
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://127.0.0.1:{supervisors[0]['port']}{path}")


def total(text: str, name: str) -> float:
    return sum(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))
    )


async def test_a_child_that_is_killed_under_load_is_started_again_and_nothing_is_lost(rig):
    ids = [await rig.add_webhook(f"/hook{number}", concurrency=8) for number in range(4)]
    async with fleet(rig) as running:
        for turn in range(3):
            for webhook_id in ids:
                await rig.insert(webhook_id, 100)
            await rig.receiver.wait_for(turn * 400 + 50)
            if turn == 1:
                os.kill(children_of(running.process.pid)[0], signal.SIGKILL)
        await rig.until_all("delivered", seconds=30)
        started = [event for event in running.events if event.get("event") == "worker_started"]
        assert len(started) == 3
        assert (await get(running, "/ready")).status_code == 200

    await rig.assert_each_arrived(at_least=True)
    await rig.assert_books_agree()


async def test_sigterm_drains_both_without_a_duplicate(rig):
    ids = [await rig.add_webhook(f"/hook{number}", concurrency=8) for number in range(4)]
    async with fleet(rig, DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=30) as running:
        for webhook_id in ids:
            await rig.insert(webhook_id, 300)
        await rig.receiver.wait_for(200)
        running.signal(signal.SIGTERM)
        assert await running.wait() == 0

    assert await rig.leases() == 0
    assert (await rig.statuses()).get("delivered") == len(rig.receiver.requests)
    await rig.assert_books_agree()


async def test_one_port_tells_the_sum_of_both(rig):
    ids = [await rig.add_webhook(f"/hook{number}") for number in range(2)]
    async with fleet(rig) as running:
        for webhook_id in ids:
            await rig.insert(webhook_id, 50)
        await rig.until_all("delivered")
        text = (await get(running, "/metrics")).text

    assert total(text, "webhook_deliveries_total") == 100
    assert total(text, "worker_health_status") == 2
    assert total(text, "webhook_queue_depth") == 0


@pytest.mark.long
async def test_the_children_die_with_their_supervisor(rig):
    webhook_id = await rig.add_webhook()
    async with fleet(rig) as running:
        children = children_of(running.process.pid)
        os.kill(running.process.pid, signal.SIGKILL)
        await running.wait()
        for child in children:
            await rig.until_true(lambda child=child: not lives(child), seconds=10)
    (delivery_id,) = await rig.insert(webhook_id)
    assert await rig.row(delivery_id, "delivery_status") == ("pending",)


def lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("key", ["other:base64:" + "A" * 43 + "=", ""])
async def test_a_key_that_no_child_can_use_ends_the_supervisor_with_2(rig, key: str):
    await rig.seal_check()
    async with rig.starting_process("--processes", "2", MASTER_KEY=key) as running:
        assert await running.wait(seconds=30) == 2
