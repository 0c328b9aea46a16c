"""Old workers, operators and clean-up scripts write to rows that a worker has claimed (LEGACY 8)."""

from __future__ import annotations

import pytest
import trio

from pggit_reactor.testing.receiver import answer, gated

OLD_WORKERS_WRITES = {
    "delivered": "delivery_status = 'delivered', delivered_at = now(), attempted_at = now()",
    "retrying": "delivery_status = 'retrying', retry_count = retry_count + 1,"
    " next_retry_at = now() + interval '1 hour', attempted_at = now()",
    "failed": "delivery_status = 'failed', attempted_at = now()",
    "rate limited": "next_retry_at = now() + interval '1 hour'",
}


class Held:
    """A delivery in the middle of its attempt."""

    def __init__(self, rig) -> None:
        self.gate = trio.Event()
        rig.receiver.script("/hook", gated(self.gate, answer(200)))


async def begin(rig) -> tuple[Held, int, int]:
    webhook_id = await rig.add_webhook()
    held = Held(rig)
    (delivery_id,) = await rig.insert(webhook_id)
    await rig.receiver.wait_for(1)
    return held, webhook_id, delivery_id


async def until_fenced(rig, running, count: int = 1) -> None:
    await rig.until_true(lambda: running.metric("pggit_reactor_fenced_writes_total") == count)


@pytest.mark.parametrize("event", OLD_WORKERS_WRITES)
async def test_an_old_workers_write_voids_the_lease_and_fences_our_late_outcome(rig, event: str):
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=8) as running:
        held, webhook_id, delivery_id = await begin(rig)
        await rig.database.execute(
            f"UPDATE pggit.alert_delivery_queue SET {OLD_WORKERS_WRITES[event]} WHERE delivery_id = %s",
            (delivery_id,),
        )
        columns = (
            "delivery_status",
            "retry_count",
            "next_retry_at",
            "delivered_at",
            "attempted_at",
            "failed_reason",
        )
        written = await rig.row(delivery_id, *columns)
        assert await rig.row(delivery_id, "lease_token", "lease_expires_at", "leased_by") == (
            None,
            None,
            None,
        )
        held.gate.set()
        await until_fenced(rig, running)

        assert await rig.row(delivery_id, *columns) == written
        assert await rig.database.fetch("SELECT FROM pggit.alert_delivery_log") == []
        assert await rig.database.fetch("SELECT FROM pggit.webhook_health_metrics") == []
        assert (
            await rig.database.fetch("SELECT FROM pggit.webhook_audit_log WHERE delivery_id IS NOT NULL")
            == []
        )
        assert (
            running.metric("webhook_deliveries_total", {"status": "delivered", "webhook_id": str(webhook_id)})
            == 0
        )
        assert running.metric("pggit_reactor_attempts_in_flight") == 0
        # The worker is none the worse for it.
        (next_one,) = await rig.insert(webhook_id)
        await rig.until_status(next_one, "delivered")


async def test_a_claimed_row_that_is_deleted_is_forgotten(rig):
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=8) as running:
        held, webhook_id, delivery_id = await begin(rig)
        await rig.database.execute(
            "DELETE FROM pggit.alert_delivery_queue WHERE delivery_status IN ('pending', 'retrying')"
        )
        held.gate.set()
        await until_fenced(rig, running)
        (next_one,) = await rig.insert(webhook_id)
        await rig.until_status(next_one, "delivered")

    rows = await rig.database.fetch("SELECT delivery_id FROM pggit.alert_delivery_log")
    assert rows == [(next_one,)] != [(delivery_id,)]


async def test_an_operator_who_requeues_a_claimed_retry_gets_it_sent_anew_and_the_old_outcome_fenced(rig):
    webhook_id = await rig.add_webhook()
    gate = trio.Event()
    rig.receiver.script("/hook", answer(500), gated(gate, answer(200)))
    async with rig.worker(
        DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=8, WORKER_POLL_SECONDS=600
    ) as running:
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.receiver.wait_for(2)
        await requeue(rig, delivery_id)
        # At once and without the poll: another attempt, while the one that lost its lease still hangs.
        await rig.receiver.wait_for(3)
        await rig.until_status(delivery_id, "delivered")
        gate.set()
        await until_fenced(rig, running)

    assert await rig.row(delivery_id, "delivery_status", "retry_count", "attempt_count") == (
        "delivered",
        0,
        2,
    )
    await rig.assert_books_agree()


async def requeue(rig, delivery_id: int) -> None:
    await rig.database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', retry_count = 0,"
        " next_retry_at = NULL, attempted_at = NULL WHERE delivery_id = %s",
        (delivery_id,),
    )


@pytest.mark.parametrize("status", [400, 200])
async def test_a_requeued_row_wakes_the_worker_without_the_poll(rig, status: int):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(status))
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "failed" if status == 400 else "delivered")
        await requeue(rig, delivery_id)
        await rig.until_status(delivery_id, "delivered")
        await rig.receiver.wait_for(2)

    assert await rig.row(delivery_id, "failed_reason", "last_error", "attempt_count") == (None, None, 2)
    assert len({request.header("webhook-id") for request in rig.receiver.requests}) == 1


async def test_a_row_that_is_made_due_sooner_wakes_the_worker_without_the_poll(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(503))
    async with rig.worker(WORKER_POLL_SECONDS=600, DELIVERY_BACKOFF_BASE_SECONDS=600):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "retrying")
        await rig.database.execute("UPDATE pggit.alert_delivery_queue SET next_retry_at = now()")
        await rig.until_status(delivery_id, "delivered")


async def test_a_row_that_is_moved_to_another_webhook_wakes_the_worker_without_the_poll(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (delivery_id,) = await rig.insert(123_456)
        await rig.database.execute("UPDATE pggit.alert_delivery_queue SET webhook_id = %s", (webhook_id,))
        await rig.until_status(delivery_id, "delivered")


async def test_a_late_old_worker_may_turn_delivered_into_retrying(rig):
    """Outsiders' transitions are never refused; the row is simply sent once more."""
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")
        await rig.database.execute(
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'retrying', retry_count = retry_count + 1,"
            " next_retry_at = now() + interval '0.2 s', attempted_at = now()"
        )
        await rig.receiver.wait_for(2)
        await rig.until_status(delivery_id, "delivered")

    assert await rig.row(delivery_id, "retry_count", "attempt_count") == (1, 2)


async def test_a_writer_who_changes_nothing_that_matters_leaves_the_lease_alone(rig):
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=5, WORKER_LEASE_SECONDS=8) as running:
        held, _, delivery_id = await begin(rig)
        await rig.database.execute("UPDATE pggit.alert_delivery_queue SET priority = 3, retry_count = 1")
        held.gate.set()
        await rig.until_status(delivery_id, "delivered")

        assert running.metric("pggit_reactor_fenced_writes_total") == 0
    await rig.assert_books_agree()


async def test_rows_that_come_and_go_under_load_leave_no_lease_and_no_disagreement(rig):
    """An operator re-queues, puts off and deletes at random while everything runs."""
    ids = [await rig.add_webhook(f"/hook{number}", concurrency=8) for number in range(3)]
    async with rig.worker() as running:
        for turn in range(15):
            for webhook_id in ids:
                await rig.insert(webhook_id, 20)
            await rig.database.execute(
                "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() + interval '0.1 s'"
                " WHERE delivery_id %% 7 = %s AND delivery_status IN ('pending', 'retrying')",
                (turn % 7,),
            )
            await rig.database.execute(
                "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', next_retry_at = NULL"
                " WHERE delivery_id %% 11 = %s",
                (turn % 11,),
            )
            await rig.database.execute(
                "DELETE FROM pggit.alert_delivery_queue WHERE delivery_id %% 13 = %s", (turn % 13,)
            )
        await rig.until_all("delivered")
        await rig.until_true(lambda: running.metric("pggit_reactor_attempts_in_flight") == 0)
        await rig.until_true(lambda: running.worker._settler.backlog == 0)

    assert await rig.leases() == 0
