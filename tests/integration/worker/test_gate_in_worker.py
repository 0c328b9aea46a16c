"""The sleep gate with a real worker: producers fall silent under load, and nothing waits for the poll."""

from __future__ import annotations

import pytest
import trio

from pggit_reactor.testing.rig import Rig, RunningWorker

INSERT = "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, %s, '{}')"
OPENINGS = "pggit_reactor_gate_openings_total"


def make_eager(running: RunningWorker) -> None:
    """Open the gate at the first rows, as a busier machine would."""
    running.worker.claimer.gate.open_rows = running.worker.claimer.gate.keep_rows = 2


async def produce(rig: Rig, webhook_id: int, rows: int) -> None:
    connection = await rig.database.connect()
    for _ in range(rows):
        await connection.execute(INSERT, (webhook_id,))


@pytest.mark.parametrize("workers", [1, 2])
async def test_rows_that_were_committed_silently_never_wait_for_the_poll(rig: Rig, workers: int):
    ids = [await rig.add_webhook(f"/hook{number}") for number in range(4)]
    async with rig.worker(WORKER_POLL_SECONDS=600) as first, rig.worker(WORKER_POLL_SECONDS=600) as second:
        running = [first, second][:workers]
        for worker in running:
            make_eager(worker)
        async with trio.open_nursery() as nursery:
            for webhook_id in ids:
                nursery.start_soon(produce, rig, webhook_id, 120)
        await rig.until_all("delivered", seconds=30)

        assert sum(worker.metric(OPENINGS) for worker in running) >= 1
        # Afterwards producers are heard again: the gate is closed and drained.
        await rig.until("SELECT pg_sequence_last_value('pggit.reactor_gate') = 0")
        (last,) = await rig.insert(ids[0])
        await rig.until_status(last, "delivered", seconds=5)


async def test_a_producer_that_idles_in_its_transaction_while_the_gate_closes_is_waited_for(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600) as running:
        make_eager(running)
        slow = await rig.database.connect()
        async with slow.transaction():
            await rig.insert(webhook_id, 200)
            await rig.until("SELECT pg_sequence_last_value('pggit.reactor_gate') > 0")
            await slow.execute(INSERT, (webhook_id,))
            await rig.until(
                "SELECT count(*) = 200 FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'"
            )
            await rig.until("SELECT pg_sequence_last_value('pggit.reactor_gate') = 0")
            assert running.worker.claimer.gate.answers, "it may not sleep while a silent producer is running"
        await rig.until_all("delivered", seconds=10)
        with trio.fail_after(5):
            while running.worker.claimer.gate.answers:  # noqa: ASYNC110  # no event tells
                await trio.sleep(0.01)


async def test_a_worker_that_leaves_while_it_answers_tells_the_others(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600):
        async with rig.worker(WORKER_POLL_SECONDS=600) as leaving:
            make_eager(leaving)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce, rig, webhook_id, 150)
                await rig.until("SELECT coalesce(pg_sequence_last_value('pggit.reactor_gate'), 0) > 0")
        await rig.until_all("delivered", seconds=15)
