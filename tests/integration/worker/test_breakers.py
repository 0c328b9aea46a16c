"""Circuit breakers and Retry-After, from the receiver's answers to what it is sent. Waits are cut short by moving the
times that the database keeps, as if they had passed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from pggit_reactor.testing.receiver import answer, gated
from pggit_reactor.testing.rig import Rig, RunningWorker

IS_OPEN = "SELECT coalesce(breaker_until > now(), false) FROM pggit.webhook_limit WHERE webhook_id = %s"
AUDITED = "SELECT count(*) FROM pggit.webhook_audit_log WHERE webhook_id = %s AND operation = %s"


async def open_breaker(rig: Rig, webhook_id: int, path: str = "/hook") -> None:
    """Let a worker that runs find out that the receiver is dead."""
    rig.receiver.default = answer(500)
    await rig.insert(webhook_id, 5)
    await rig.until(IS_OPEN, webhook_id)


async def pass_time(rig: Rig, seconds: float = 60.0) -> None:
    """Let that much of the breakers' times have passed already, and tell the workers to look."""
    await rig.database.execute(
        f"UPDATE pggit.webhook_limit SET breaker_until = breaker_until - interval '{seconds} s',"
        f" recovering_since = recovering_since - interval '{seconds} s'"
    )
    await rig.database.execute("NOTIFY pggit_delivery")


@asynccontextmanager
async def fleet(rig: Rig, size: int) -> AsyncIterator[list[RunningWorker]]:
    """Run several workers in this process."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(rig.worker(WORKER_ID=f"w{number}")) for number in range(size)]


def total(workers: list[RunningWorker], state: str) -> float:
    return sum(
        running.metric("pggit_reactor_breaker_transitions_total", {"state": state}) for running in workers
    )


async def test_a_dead_receiver_is_left_alone_and_comes_back_by_one_probe(rig: Rig):
    webhook_id = await rig.add_webhook(concurrency=1, attempt_timeout="10 s")
    async with fleet(rig, 3) as workers:
        await open_breaker(rig, webhook_id)
        asked = len(rig.receiver.requests)
        assert asked == 5  # One at a time, each worker: but these are all that there are to send.
        await rig.insert(webhook_id, 200)

        # Half-open, the receiver still dead: one request, however many workers and rows there are.
        await pass_time(rig)
        await rig.receiver.wait_for(asked + 1)
        await rig.until(IS_OPEN, webhook_id)
        assert len(rig.receiver.requests) == asked + 1
        opened = "SELECT round(extract(epoch FROM breaker_until - now())) FROM pggit.webhook_limit"
        assert 100 <= await rig.database.fetch_value(opened) <= 120

        release = trio.Event()
        rig.receiver.default = gated(release, answer(200))
        await pass_time(rig, 120)
        await rig.receiver.wait_for(asked + 2)
        # While the probe is under way nobody else is let through, though all are told to look.
        for _ in range(5):
            await rig.database.execute("NOTIFY pggit_delivery")
        await rig.until("SELECT count(*) = 1 FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL")
        assert len(rig.receiver.requests) == asked + 2
        rig.receiver.default = answer(200)
        release.set()
        await rig.until_all("delivered")

        assert (total(workers, "open"), total(workers, "half_open"), total(workers, "closed")) == (2, 2, 1)
    assert await rig.database.fetch_value(AUDITED, (webhook_id, "breaker_opened")) == 2
    assert await rig.database.fetch_value(AUDITED, (webhook_id, "breaker_half_open")) == 2
    assert await rig.database.fetch_value(AUDITED, (webhook_id, "breaker_closed")) == 1


async def test_a_breaker_survives_its_workers(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        await open_breaker(rig, webhook_id)
    asked = len(rig.receiver.requests)
    rig.receiver.default = answer(200)
    other = await rig.add_webhook("/other")
    async with rig.worker():
        await rig.insert(webhook_id, 10)
        await rig.insert(other)
        await rig.receiver.wait_for(1, path="/other")
        assert len(rig.receiver.requests_for("/hook")) == asked
        await rig.database.execute("SELECT pggit.reset_webhook(%s)", (webhook_id,))
        await rig.until_all("delivered")


async def test_a_breaker_that_ends_wakes_the_workers_at_its_time(rig: Rig):
    """Neither at a poll, nor by a notification."""
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        await open_breaker(rig, webhook_id)
        asked = len(rig.receiver.requests)
        rig.receiver.default = answer(200)
        until = await rig.database.fetch_value(
            "UPDATE pggit.webhook_limit SET breaker_until = now() + interval '1.5 s'"
            " RETURNING extract(epoch FROM breaker_until)::float8"
        )
        # Some hint says that there is something to do, and the claim that it leads to says when.
        running.worker.claimer.hint([webhook_id])
        probe = (await rig.receiver.wait_for(asked + 1))[asked]
        assert 0 <= probe.arrived_wall - until < 1.0
        await rig.until_all("delivered")


async def test_a_poll_finds_blocks_that_end_before_the_next_one(rig: Rig):
    webhook_id = await rig.add_webhook()
    await rig.database.execute("UPDATE pggit.webhook_limit SET retry_after_until = now() + interval '2 s'")
    await rig.insert(webhook_id)
    async with rig.worker(WORKER_POLL_SECONDS=30):
        (request,) = await rig.receiver.wait_for(1)
    until = "SELECT extract(epoch FROM retry_after_until)::float8 FROM pggit.webhook_limit"
    assert 0 <= request.arrived_wall - await rig.database.fetch_value(until) < 1.0


async def test_slow_start_begins_with_a_tenth_of_the_concurrency_and_grows(rig: Rig):
    webhook_id = await rig.add_webhook(concurrency=40, attempt_timeout="20 s")
    async with rig.worker() as running:
        await open_breaker(rig, webhook_id)
        release = trio.Event()
        rig.receiver.default = gated(release, answer(200))
        await rig.insert(webhook_id, 300)
        await pass_time(rig)
        asked = len(rig.receiver.requests) + 1
        await rig.receiver.wait_for(asked)
        in_flight = running.worker._capacity.by_webhook
        held = trio.Event()
        rig.receiver.default = gated(held, answer(200))
        release.set()
        await rig.until("SELECT recovering_since IS NOT NULL FROM pggit.webhook_limit")
        await rig.receiver.wait_for(asked + 4)
        # 10 % of 40, and 1 a second more: what hangs frees no slot, and yet more is begun as it grows.
        assert in_flight[webhook_id] <= 6
        await rig.database.execute(
            "UPDATE pggit.webhook_limit SET recovering_since = recovering_since - interval '15 s'"
        )
        with trio.fail_after(5):
            while in_flight[webhook_id] < 20:  # noqa: ASYNC110  # the worker's own count tells of no event
                await trio.sleep(0.01)
        assert in_flight[webhook_id] <= 26
        held.set()
        rig.receiver.default = answer(200)
        await rig.until_all("delivered")


async def test_slow_start_bounds_the_rate_too(rig: Rig):
    webhook_id = await rig.add_webhook(rate_per_s=50, burst=10)
    async with rig.worker():
        await open_breaker(rig, webhook_id)
        rig.receiver.default = answer(200)
        await rig.insert(webhook_id, 60)
        asked = len(rig.receiver.requests)
        await pass_time(rig)
        await rig.receiver.wait_for(asked + 12)

    arrived = sorted(request.arrived_monotonic for request in rig.receiver.requests)[asked:]
    # The probe and a burst of 1, then 5 a second and growing by 1.5 each second; not 10 at once and 50 a second.
    assert arrived[11] - arrived[0] > 1.0


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_holds_the_whole_webhook_in_all_workers(rig: Rig, status: int):
    webhook_id = await rig.add_webhook(concurrency=1, attempt_timeout="10 s")
    rig.receiver.script("/hook", answer(status, [("Retry-After", "2")]))
    async with fleet(rig, 2):
        (first,) = await rig.insert(webhook_id)
        await rig.until("SELECT retry_after_until > now() FROM pggit.webhook_limit")
        await rig.insert(webhook_id, 20)
        await rig.until_all("delivered")

    requests = rig.receiver.requests
    assert len(requests) == 22
    # A hold is counted from when the answer was written, so no request comes before its end.
    until = "SELECT extract(epoch FROM retry_after_until)::float8 FROM pggit.webhook_limit"
    held_until = await rig.database.fetch_value(until)
    assert all(request.arrived_wall >= held_until for request in requests[1:])
    assert requests[1].arrived_wall < held_until + 1.0
    assert await rig.row(first, "retry_count", "attempt_count") == (0, 2)
    assert await rig.database.fetch_value(AUDITED, (webhook_id, "rate_limited")) == 1


async def test_a_probe_that_is_throttled_is_followed_by_one_after_the_wait(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        await open_breaker(rig, webhook_id)
        asked = len(rig.receiver.requests)
        rig.receiver.default = answer(200)
        rig.receiver.script("/hook", answer(429, [("Retry-After", "1")]))
        await pass_time(rig)
        await rig.receiver.wait_for(asked + 1)
        await rig.until(
            "SELECT retry_after_until IS NOT NULL AND probe_token IS NULL FROM pggit.webhook_limit"
        )
        assert await rig.database.fetch_value("SELECT breaker_until < now() FROM pggit.webhook_limit")
        await rig.until_all("delivered")

    assert await rig.database.fetch_value(AUDITED, (webhook_id, "breaker_half_open")) == 2


@pytest.mark.long
async def test_four_processes_let_exactly_one_probe_through(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(rig.process())
        await open_breaker(rig, webhook_id)
        await rig.insert(webhook_id, 300)
        await rig.until("SELECT count(*) = 0 FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL")
        for opening in range(6):
            asked = len(rig.receiver.requests)
            await pass_time(rig, 60 * 2**opening)
            await rig.receiver.wait_for(asked + 1)
            await rig.until(IS_OPEN, webhook_id)
            # The outcome is written: whoever else had been let through would have arrived before.
            assert len(rig.receiver.requests) == asked + 1
        rig.receiver.default = answer(200)
        await pass_time(rig, 3600)
        await rig.until_all("delivered", seconds=90)
