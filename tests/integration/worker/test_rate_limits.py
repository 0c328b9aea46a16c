"""Token buckets, from INSERT to the receiver: judged by when the requests came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from pggit_reactor.testing.rig import Rig, RunningWorker
from pggit_reactor.testing.windows import assert_within_rate


def moments(rig: Rig, path: str | None = None) -> list[float]:
    return [request.arrived_monotonic for request in rig.receiver.requests_for(path)]


async def test_a_webhook_gets_its_burst_at_once_and_then_its_rate(rig: Rig):
    webhook_id = await rig.add_webhook(rate_per_s=50, burst=5)
    async with rig.worker() as running:
        await rig.insert(webhook_id, 40)
        await rig.until_all("delivered")

        assert_within_rate(moments(rig), rate_per_s=50, burst=5)
        arrived = sorted(moments(rig))
        assert arrived[4] - arrived[0] < 0.1
        # 35 tokens at 50 a second, and not much more than that.
        assert 0.6 <= arrived[-1] - arrived[0] < 1.4
        assert running.metric("rate_limit_hits_total", {"webhook_id": str(webhook_id)}) >= 1
        assert running.metric("pggit_reactor_token_wait_seconds_count") >= 1
        assert running.metric("pggit_reactor_tokens_lost_total") == 0


async def test_one_that_waits_for_tokens_holds_no_lease_and_nobody_else_up(rig: Rig):
    slow = await rig.add_webhook("/slow", rate_per_s=1, burst=1)
    quick = await rig.add_webhook("/quick")
    async with rig.worker() as running:
        await rig.insert(slow, 500)
        await rig.receiver.wait_for(1, path="/slow")
        await rig.insert(quick, 50)
        await rig.receiver.wait_for(50, path="/quick")
        await rig.until(
            "SELECT count(*) = 51 FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'"
        )

        leased = "SELECT count(*) FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL"
        assert await rig.database.fetch_value(leased) <= 1  # The one that the next token may be for.
        arrived = sorted(moments(rig, "/quick"))
        assert arrived[-1] - arrived[0] < 1.0
        assert running.metric("pggit_reactor_tokens_lost_total") == 0


async def test_a_worker_that_is_started_again_finds_the_bucket_as_it_was(rig: Rig):
    webhook_id = await rig.add_webhook(rate_per_s=5, burst=10)
    async with rig.worker():
        await rig.insert(webhook_id, 10)
        await rig.until_all("delivered")
    await rig.insert(webhook_id, 5)
    async with rig.worker():
        await rig.until_all("delivered")

    assert_within_rate(moments(rig), rate_per_s=5, burst=10)


@asynccontextmanager
async def late_body(rig: Rig, running: RunningWorker, webhook_id: int) -> AsyncIterator[int]:
    """Queue a large body, and let the worker that claimed it read it no sooner than its token is worth nothing."""
    # The worker knows the webhook already, so that nothing but the body is late.
    await rig.insert(webhook_id)
    await rig.until_all("delivered")
    await rig.database.execute("UPDATE pggit.webhook_limit SET bucket_tat = NULL")
    async with running.worker._load.use():
        (delivery_id,) = await rig.insert(webhook_id, body={"pad": "x" * 200_000})
        await rig.until(
            "SELECT lease_expires_at - interval '4 s' < clock_timestamp() - interval '0.3 s'"
            " FROM pggit.alert_delivery_queue WHERE delivery_id = %s",
            delivery_id,
        )
        yield delivery_id


async def test_a_large_body_that_came_late_takes_a_token_of_the_moment(rig: Rig):
    """Given back it would be late the next time too, for ever."""
    webhook_id = await rig.add_webhook(rate_per_s=0.1, burst=2)
    async with rig.worker(WORKER_POLL_SECONDS=60) as running:
        async with late_body(rig, running, webhook_id) as delivery_id:
            pass
        await rig.until_status(delivery_id, "delivered")

        assert running.metric("pggit_reactor_tokens_lost_total") == 1
    # Two tokens were taken, of which one is lost.
    missing = "SELECT extract(epoch FROM bucket_tat - now()) FROM pggit.webhook_limit"
    assert 15 < await rig.database.fetch_value(missing) <= 20


async def test_a_large_body_that_came_late_goes_back_where_there_is_no_token(rig: Rig):
    webhook_id = await rig.add_webhook(rate_per_s=0.001, burst=1)
    async with rig.worker() as running:
        async with late_body(rig, running, webhook_id) as delivery_id:
            pass
        await rig.until(
            "SELECT lease_token IS NULL FROM pggit.alert_delivery_queue WHERE delivery_id = %s", delivery_id
        )

        assert await rig.row(delivery_id, "delivery_status", "attempt_count") == ("pending", 0)
        assert running.metric("pggit_reactor_tokens_lost_total") >= 1
        await rig.database.execute("UPDATE pggit.webhook_limit SET bucket_tat = NULL")
        await rig.until_status(delivery_id, "delivered")


@pytest.mark.long
async def test_four_workers_share_one_bucket_and_no_window_is_over(rig: Rig):
    webhook_id = await rig.add_webhook(rate_per_s=60, burst=12)
    async with AsyncExitStack() as fleet:
        for _ in range(4):
            await fleet.enter_async_context(rig.process())
        for _ in range(12):
            await rig.insert(webhook_id, 40)
        await rig.until_all("delivered")

    arrived = sorted(moments(rig))
    assert len(arrived) == 480
    assert_within_rate(arrived, rate_per_s=60, burst=12)
    # And the rate is reached: 468 tokens after the burst.
    assert arrived[-1] - arrived[0] < 468 / 60 * 1.25


FLEET = {"DELIVERY_FLEET_RATE_PER_S": 60, "DELIVERY_FLEET_BURST": 10}


async def test_the_fleet_has_a_limit_of_all_webhooks_together(rig: Rig):
    ids = [await rig.add_webhook(f"/hook{number}") for number in range(5)]
    async with rig.worker(WORKER_ID="one", **FLEET) as one, rig.worker(WORKER_ID="two", **FLEET) as two:
        for webhook_id in ids:
            await rig.insert(webhook_id, 20)
        await rig.until_all("delivered")

        assert sum(running.metric("pggit_reactor_fleet_waits_total") for running in (one, two)) >= 1
    arrived = sorted(moments(rig))
    assert len(arrived) == 100
    assert_within_rate(arrived, rate_per_s=60, burst=10)
    assert arrived[-1] - arrived[0] < 90 / 60 * 1.5
    # Nobody is last: each webhook has had some before another is done.
    first_half = {request.path for request in rig.receiver.requests[:50]}
    assert len(first_half) == 5


async def test_what_a_claim_did_not_use_of_the_fleets_tokens_goes_back(rig: Rig):
    webhook_id = await rig.add_webhook(rate_per_s=1, burst=1)
    other = await rig.add_webhook("/other")
    async with rig.worker(DELIVERY_FLEET_RATE_PER_S=0.01, DELIVERY_FLEET_BURST=40):
        # Each claim asks for as many as the webhook's concurrency allows, and gets a row or none.
        await rig.insert(webhook_id, 20)
        for _ in range(20):
            await rig.insert(other)
        await rig.receiver.wait_for(20, path="/other")
        await rig.until("SELECT count(*) = 0 FROM pggit.alert_delivery_queue WHERE webhook_id = %s AND"
                        " ready_at IS NOT NULL", other)  # fmt: skip

        missing = "SELECT round(extract(epoch FROM bucket_tat - now()) / 100) FROM pggit.fleet_limit"
        await rig.until(f"SELECT ({missing}) = (SELECT sum(attempt_count) FROM pggit.alert_delivery_queue)")
