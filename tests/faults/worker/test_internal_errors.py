"""An error of our own that nobody expected: counted, aloud, and the rest goes on."""

from __future__ import annotations

import pytest

from pggit_reactor.db.listener import Listener
from pggit_reactor.runtime.claimer import Claimer
from pggit_reactor.runtime.webhook_book import WebhookBook


class BugError(Exception):
    """What no code expects."""


def raising_once(original):
    """Return *original* as an async function that raises a `BugError` at its first call."""
    calls = 0

    async def raise_once(*arguments: object, **named: object):
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BugError
        return await original(*arguments, **named)

    return raise_once


def restarts(running, loop: str) -> float:
    return running.metric("pggit_reactor_loop_restarts_total", {"loop": loop})


async def test_a_bug_in_one_attempt_is_retried_without_using_up_a_retry(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker() as running:
        running.worker._fanout.send = raising_once(running.worker._fanout.send)
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")

    assert await rig.row(delivery_id, "crash_count", "retry_count", "attempt_count") == (1, 0, 2)
    await rig.assert_books_agree()


async def test_a_row_that_meets_a_bug_each_time_is_dead_after_three_and_stops_nobody(rig):
    broken, good = await rig.add_webhook("/broken"), await rig.add_webhook("/good")
    async with rig.worker() as running:
        send = running.worker._fanout.send

        async def crash(webhook, delivery, body):
            if webhook.webhook_id == broken:
                raise BugError("secret text")
            return await send(webhook, delivery, body)

        running.worker._fanout.send = crash
        (dead,) = await rig.insert(broken)
        rows = await rig.insert(good, 20)
        await rig.until_status(dead, "failed")
        for delivery_id in rows:
            await rig.until_status(delivery_id, "delivered")

        assert running.metric("pggit_reactor_attempts_in_flight") == 0
    reason, crash_count, retry_count, error = await rig.row(
        dead, "failed_reason", "crash_count", "retry_count", "last_error"
    )
    assert (reason, crash_count, retry_count) == ("crash", 3, 0)
    assert "secret text" not in error
    await rig.assert_books_agree()


async def test_a_bug_in_the_claimer_restarts_it(rig, monkeypatch):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        monkeypatch.setattr(Claimer, "_claim", raising_once(Claimer._claim))
        (first,) = await rig.insert(webhook_id)
        await rig.until_true(lambda: restarts(running, "claimer") == 1)
        (second,) = await rig.insert(webhook_id)
        # Both: what the claim that failed was for is not left to the poll.
        await rig.until_status(first, "delivered")
        await rig.until_status(second, "delivered")

        assert running.worker.health.health().ok


@pytest.mark.parametrize("place", ["before the write", "after the write"])
async def test_a_bug_in_the_settler_restarts_it_and_loses_no_outcome(rig, place: str):
    webhook_id = await rig.add_webhook()
    async with rig.worker() as running:
        settler = running.worker._settler
        if place == "before the write":
            settler._timed = raising_once(settler._timed)
        else:
            settler._on_report = raising_report(settler._on_report)
        await rig.insert(webhook_id, 10)
        await rig.until_all("delivered")

        assert restarts(running, "settler") == 1
    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_bug_while_rows_are_settled_apart_loses_no_outcome(rig):
    ids = [await rig.add_webhook(f"/hook{number}") for number in range(3)]
    for webhook_id in ids:
        await rig.database.execute(
            "INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (%s)", (webhook_id,)
        )
    async with rig.worker() as running:
        settler = running.worker._settler
        psql = await rig.database.connect()
        async with psql.transaction():
            await psql.execute("SELECT FROM pggit.webhook_health_metrics FOR UPDATE")
            for webhook_id in ids:
                await rig.insert(webhook_id, 3)
            await rig.until_true(lambda: settler.suspended == set(ids))
            settler._on_report = raising_report(settler._on_report)
        await rig.until_all("delivered")

        assert restarts(running, "settler") == 1
    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_bug_in_the_listener_restarts_it_and_what_it_missed_is_found_at_once(rig, monkeypatch):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        monkeypatch.setattr(Listener, "_sorted", lambda *_: raise_bug())
        (missed,) = await rig.insert(webhook_id)
        await rig.until_true(lambda: restarts(running, "listener") >= 1)
        monkeypatch.undo()
        await rig.until_status(missed, "delivered")
        (heard,) = await rig.insert(webhook_id)
        await rig.until_status(heard, "delivered")


async def test_a_bug_while_webhooks_are_loaded_gives_their_rows_back(rig, monkeypatch):
    first, second = await rig.add_webhook("/first"), await rig.add_webhook("/second")
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        monkeypatch.setattr(WebhookBook, "current", raising_once(WebhookBook.current))
        (delayed,) = await rig.insert(first)
        await rig.until_true(lambda: restarts(running, "introduction") == 1)
        (passing,) = await rig.insert(second)
        await rig.until_status(passing, "delivered", seconds=3)
        await rig.until_status(delayed, "delivered", seconds=3)

    await rig.assert_books_agree()


async def test_a_bug_in_heartbeat_and_chores_costs_no_delivery(rig, monkeypatch):
    webhook_id = await rig.add_webhook()
    async with rig.worker() as running:
        side = running.worker._side
        monkeypatch.setattr(type(side), "use", use_raising_on(side, type(side).use))
        await rig.until_true(lambda: restarts(running, "heartbeat") >= 2)
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered", seconds=3)
        monkeypatch.undo()


def use_raising_on(broken, original):
    def use(lane):
        if lane is broken:
            raise BugError
        return original(lane)

    return use


def raise_bug():
    raise BugError


def raising_report(original):
    """Return *original*, a plain function, so that it raises at its first call."""
    calls = 0

    def report(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BugError
        original(*arguments)

    return report


async def test_a_worker_whose_loops_all_failed_once_still_drains(rig, monkeypatch):
    webhook_id = await rig.add_webhook()
    async with rig.worker() as running:
        monkeypatch.setattr(Claimer, "_claim", raising_once(Claimer._claim))
        running.worker._settler._timed = raising_once(running.worker._settler._timed)
        await rig.insert(webhook_id, 5)
        await rig.until_true(lambda: restarts(running, "claimer") and restarts(running, "settler"))
    # The rig asserts exit status 0.
    assert await rig.leases() == 0
