"""An outcome that cannot be written is kept, and costs nobody else anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from pggit_reactor.db.lane import HOT_OPTIONS
from pggit_reactor.runtime import settler
from pggit_reactor.runtime.claimer import Claimer
from pggit_reactor.testing.receiver import Behaviour, answer, gated

SLEEPY_TRIGGER = """
CREATE FUNCTION pggit.test_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN {action}; RETURN NEW; END $$;
CREATE TRIGGER test_trigger BEFORE UPDATE ON pggit.alert_delivery_queue FOR EACH ROW
    WHEN (NEW.delivery_status = 'delivered' AND NEW.webhook_id = {webhook_id}) EXECUTE FUNCTION pggit.test_trigger();
"""


@asynccontextmanager
async def held(rig, query: str, *params: object) -> AsyncIterator[None]:
    """Hold what *query* locks, as somebody in psql does who went to lunch."""
    psql = await rig.database.connect()
    async with psql.transaction():
        assert (await psql.execute(query, params)).rowcount == 1
        yield
    psql.close_now()


async def read_only(rig, *, on: bool) -> None:
    """Make every connection but this one of the test's read-only from its next statement on, or no longer."""
    switch = "on" if on else "off"
    await rig.database.execute("SET default_transaction_read_only = off")
    await rig.database.execute(
        f"ALTER DATABASE {rig.database.name} SET default_transaction_read_only = {switch}"
    )
    await rig.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'pggit-reactor %'"
    )


def settler_of(running):
    return running.worker._settler


async def until_suspended(rig, running, webhook_id: int) -> None:
    """Return once nothing of the webhook is under way, and nothing more of it will be claimed."""
    await rig.until_true(lambda: webhook_id in settler_of(running).suspended)
    await rig.until_true(lambda: not running.worker._capacity.in_flight)


async def until_tried_again(rig, running, other: int) -> None:
    """Let another webhook's deliveries pass until what is held was tried again three times in vain."""
    failures = running.metric("pggit_reactor_settle_failures_total")
    while running.metric("pggit_reactor_settle_failures_total") < failures + 3:
        (passing,) = await rig.insert(other)
        await rig.until_status(passing, "delivered", seconds=5)


def gated_answer(gate: trio.Event) -> Behaviour:
    return gated(gate, answer(200))


async def test_a_row_that_somebody_holds_locked_is_settled_when_it_is_free(rig):
    webhook_id, other = await rig.add_webhook("/one"), await rig.add_webhook("/two")
    async with rig.worker() as running:
        gate = trio.Event()
        rig.receiver.script("/one", gated_answer(gate))
        (locked,) = await rig.insert(webhook_id)
        await rig.receiver.wait_for(1)
        query = "SELECT FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE"
        async with held(rig, query, locked):
            gate.set()
            await rig.until_true(lambda: settler_of(running).suspended)
            (passing,) = await rig.insert(other)
            await rig.until_status(passing, "delivered")
        await rig.until_status(locked, "delivered")
        (later,) = await rig.insert(webhook_id)
        await rig.until_status(later, "delivered")

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_health_row_that_somebody_holds_locked_stops_its_own_webhook_only(rig):
    webhook_id, other = await rig.add_webhook("/one", concurrency=4), await rig.add_webhook("/two")
    async with rig.worker() as running:
        for each in (webhook_id, other):
            (delivery_id,) = await rig.insert(each)
            await rig.until_status(delivery_id, "delivered")
        query = "SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = %s FOR UPDATE"
        async with held(rig, query, webhook_id):
            await rig.insert(webhook_id, 10)
            await until_suspended(rig, running, webhook_id)
            sent = len(rig.receiver.requests_for("/one"))
            await rig.insert(webhook_id, 10)
            await until_tried_again(rig, running, other)
            # Nothing more of it was claimed, or memory would fill with what cannot be written.
            assert len(rig.receiver.requests_for("/one")) == sent
        await rig.until_all("delivered")

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_webhook_row_that_somebody_holds_locked_delays_no_delivery(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        query = "SELECT FROM pggit.webhook WHERE webhook_id = %s FOR UPDATE"
        async with held(rig, query, webhook_id):
            (delivery_id,) = await rig.insert(webhook_id)
            await rig.until_status(delivery_id, "delivered", seconds=5)


async def test_a_webhook_that_is_gone_is_disabled_when_its_row_is_free(rig):
    webhook_id, other = await rig.add_webhook("/one"), await rig.add_webhook("/two")
    rig.receiver.script("/one", answer(410))
    async with rig.worker() as running:
        query = "SELECT FROM pggit.webhook WHERE webhook_id = %s FOR UPDATE"
        async with held(rig, query, webhook_id):
            (gone,) = await rig.insert(webhook_id)
            await rig.until_true(lambda: settler_of(running).suspended)
            (passing,) = await rig.insert(other)
            await rig.until_status(passing, "delivered", seconds=5)
        await rig.until_status(gone, "failed")

    assert await rig.database.fetch_value(
        "SELECT state FROM pggit.webhook WHERE webhook_id = %s", (webhook_id,)
    ) == ("disabled")
    await rig.assert_books_agree()


async def test_a_database_that_turned_read_only_is_waited_for(rig):
    webhook_id = await rig.add_webhook()
    gate = trio.Event()
    rig.receiver.script("/hook", *[gated_answer(gate)] * 3)
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=10, WORKER_LEASE_SECONDS=20) as running:
        await rig.insert(webhook_id, 3)
        await rig.receiver.wait_for(3)
        await read_only(rig, on=True)
        gate.set()
        await rig.until_true(lambda: settler_of(running).failing)
        waiting = await rig.insert(webhook_id, 3)
        await rig.until_true(lambda: settler_of(running).backlog == 3)
        await read_only(rig, on=False)
        await rig.until_all("delivered")

    assert await rig.row(waiting[0], "failed_reason", "retry_count") == (None, 0)
    await rig.assert_each_arrived()
    await rig.assert_books_agree()


@pytest.mark.parametrize(
    "action",
    [
        pytest.param("PERFORM pg_sleep(60)", id="statement timeout"),
        pytest.param("RAISE EXCEPTION 'not today'", id="a trigger of somebody else's raises"),
        pytest.param("PERFORM 1 / 0", id="a trigger of somebody else's is wrong"),
    ],
)
async def test_an_outcome_that_the_database_refuses_stops_its_own_webhook_only(rig, action: str, monkeypatch):
    monkeypatch.setattr(settler, "APART_STATEMENT_TIMEOUT_MS", 100)
    webhook_id, other = await rig.add_webhook("/one"), await rig.add_webhook("/two")
    async with rig.worker(WORKER_LEASE_SECONDS=30) as running:
        await rig.change_lane(running, "settle", options={**HOT_OPTIONS, "statement_timeout": "400"})
        await rig.database.execute(SLEEPY_TRIGGER.format(action=action, webhook_id=webhook_id))
        (refused,) = await rig.insert(webhook_id)
        for _ in range(5):
            (passing,) = await rig.insert(other)
            await rig.until_status(passing, "delivered", seconds=10)
        await rig.until_true(lambda: settler_of(running).backlog == 1)
        await rig.database.execute("DROP TRIGGER test_trigger ON pggit.alert_delivery_queue")
        await rig.until_status(refused, "delivered")

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_webhook_of_refused_rows_is_claimed_no_more_and_one_good_row_among_them_is_written(rig):
    webhook_id = await rig.add_webhook(concurrency=4)
    await rig.database.execute(
        SLEEPY_TRIGGER.replace("NEW.webhook_id", "NEW.alert_id <> 3 AND NEW.webhook_id").format(
            action="RAISE EXCEPTION 'no'", webhook_id=webhook_id
        )
    )
    async with rig.worker(WORKER_LEASE_SECONDS=30) as running:
        other = await rig.add_webhook("/other")
        rows = await rig.insert(webhook_id, settler.REFUSED_ROWS_MAX + 2)
        await rig.until_status(rows[2], "delivered")
        held = settler_of(running)._held
        await rig.until_true(lambda: sum(row is not None for _, row in held) >= settler.REFUSED_ROWS_MAX)
        await until_suspended(rig, running, webhook_id)
        sent = len(rig.receiver.requests_for("/hook"))
        await rig.insert(webhook_id, 10)
        await until_tried_again(rig, running, other)
        assert len(rig.receiver.requests_for("/hook")) == sent
        await rig.database.execute("DROP TRIGGER test_trigger ON pggit.alert_delivery_queue")
        await rig.until_all("delivered")

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_worker_that_may_not_settle_does_not_burn_its_core(rig, monkeypatch):
    """Claiming is stopped then, and a poll that is overdue must not turn the loop into a spin."""
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=0.1) as running:
        settler_of(running).failing = True
        turns = 0
        turn = Claimer._turn

        async def counted(claimer: Claimer) -> None:
            nonlocal turns
            turns += 1
            await turn(claimer)

        monkeypatch.setattr(Claimer, "_turn", counted)
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until(
            "SELECT clock_timestamp() > created_at + interval '0.5 s' FROM pggit.alert_delivery_queue"
        )
        assert turns < 50
        settler_of(running).failing = False
        await rig.until_status(delivery_id, "delivered")
