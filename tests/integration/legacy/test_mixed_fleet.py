"""Old workers, producers, operators and clean-up scripts of LEGACY 7 and 8, with reactor workers running."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest
import trio

from pggit_reactor.core.delivery_uid import split_delivery_uid
from pggit_reactor.testing.receiver import answer
from pggit_reactor.testing.rig import Rig, arrivals

# A busy machine must not turn an answer into a timeout.
PATIENCE = {"DELIVERY_TIMEOUT_SECONDS": 15, "WORKER_LEASE_SECONDS": 30}

PRODUCERS = {
    "seven columns": "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, delivery_status,"
    " retry_count, max_retries, created_at)"
    ' VALUES (%(alert)s, %(webhook)s, \'{"severity": "WARNING", "z_score": 3.5}\','
    " 'pending', 0, 3, CURRENT_TIMESTAMP) RETURNING delivery_id",
    "three columns": "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
    " VALUES (%(alert)s, %(webhook)s, '{}') RETURNING delivery_id",
    "several rows": "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
    " VALUES (%(alert)s, %(webhook)s, '[]'), (%(alert)s, %(webhook)s, 'null') RETURNING delivery_id",
    "the helper": "SELECT pggit.observer_queue_alert(p_alert_id => %(alert)s, p_webhook_id => %(webhook)s,"
    " p_message_body => '{\"a\": 1}')",
}


@attrs.define(eq=False)
class OldWorker:
    """The original's loop in its own statements, each in a transaction of its own; it notes what it would have sent."""

    rig: Rig
    status: int = 200
    sent: list[int] = attrs.field(factory=list)

    async def run(self, done: trio.Event) -> None:
        connection = await self.rig.database.connect()
        while not done.is_set():
            cursor = await connection.execute("SELECT * FROM pggit.get_ready_deliveries(p_limit => 10)")
            for delivery_id, _, webhook_id, _, retry_count, max_retries in await cursor.fetchall():
                self.sent.append(delivery_id)
                await self.settle(connection, delivery_id, webhook_id, retry_count < max_retries)
            await trio.lowlevel.checkpoint()

    async def settle(self, connection, delivery_id: int, webhook_id: int, has_retries: bool) -> None:
        if self.status == 200:
            word, change = "delivered", "delivery_status = 'delivered', delivered_at = CURRENT_TIMESTAMP"
        elif self.status >= 500 and has_retries:
            word, change = (
                "retrying",
                (
                    "delivery_status = 'retrying', retry_count = retry_count + 1,"
                    " next_retry_at = CURRENT_TIMESTAMP + INTERVAL '0.05 seconds'"
                ),
            )
        else:
            word, change = "failed", "delivery_status = 'failed'"
        await connection.execute(
            f"UPDATE pggit.alert_delivery_queue SET {change}, attempted_at = CURRENT_TIMESTAMP WHERE delivery_id = %s",
            (delivery_id,),
        )
        await connection.execute(
            "SELECT pggit.update_webhook_health(%s, %s, 45, NULL)", (webhook_id, self.status)
        )
        await connection.execute(
            "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)"
            " VALUES (%s, %s, %s, '{\"http_status\": 200}')",
            (delivery_id, webhook_id, word),
        )


def arrived(rig: Rig) -> list[int]:
    return [split_delivery_uid(uid)[0] for uid in arrivals(rig.receiver)]


@pytest.mark.parametrize("form", PRODUCERS)
async def test_rows_of_every_form_of_producer_are_delivered(rig: Rig, form: str):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=600, **PATIENCE):
        rows = await rig.database.fetch(PRODUCERS[form], {"alert": 5, "webhook": webhook_id})
        await rig.until_all("delivered")

    assert sorted(arrived(rig)) == sorted(row[0] for row in rows)


async def test_a_thousand_rows_in_one_statement_are_a_thousand_rows(rig: Rig):
    ids = [await rig.add_webhook(f"/hook{number}", webhook_id=5000 + number) for number in range(10)]
    inserted = await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body,"
        " delivery_status, retry_count, max_retries,"
        " created_at) SELECT n, 5000 + n %% 100, jsonb_build_object('alert_id', n), 'pending', 0, 3,"
        " CURRENT_TIMESTAMP - (n %% 46) * INTERVAL '1 second' FROM generate_series(1, 1000) AS n",
        (),
    )
    assert inserted == 1000
    async with rig.worker(WORKER_POLL_SECONDS=600, **PATIENCE):
        await rig.until(
            "SELECT count(*) = 100 FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'"
        )

    assert len(ids) == 10
    assert len(arrived(rig)) == 100
    # Nobody registered the other 90: they wait.
    assert await rig.database.fetch("SELECT * FROM pggit.count_pending_by_status()") == [
        (900, 0, 100, 0, 1000)
    ]


async def test_old_and_new_workers_share_a_queue_and_no_row_is_sent_twice(rig: Rig):
    ids = [await rig.add_webhook(f"/hook{number}") for number in range(5)]
    old = [OldWorker(rig), OldWorker(rig)]
    done = trio.Event()
    async with (
        rig.worker(WORKER_ATTEMPTS_MAX=8, **PATIENCE),
        rig.worker(WORKER_ATTEMPTS_MAX=8, **PATIENCE),
        trio.open_nursery() as nursery,
    ):
        for worker in old:
            nursery.start_soon(worker.run, done)
        for _ in range(20):
            for webhook_id in ids:
                await rig.insert(webhook_id, 10)
        await rig.until_all("delivered")
        done.set()

    sent = [*old[0].sent, *old[1].sent, *arrived(rig)]
    assert Counter(Counter(sent).values()) == {1: 1000}
    assert old[0].sent
    assert old[1].sent
    assert arrived(rig)
    # All were counted, by whomever they were sent.
    assert await rig.database.fetch(
        "SELECT sum(total_deliveries), sum(successful_deliveries) FROM pggit.webhook_health_metrics"
    ) == [(1000, 1000)]
    assert await rig.database.fetch(
        "SELECT count(*), count(DISTINCT delivery_id) FROM pggit.alert_delivery_log WHERE event_type = 'delivered'"
    ) == [(1000, 1000)]


async def test_what_old_workers_reschedule_new_ones_deliver(rig: Rig):
    await rig.never_open_breakers()  # Theirs, of 20 failures, would be a minute's wait.
    webhook_id = await rig.add_webhook()
    old = OldWorker(rig, status=503)
    (*_, last) = await rig.insert(webhook_id, 20)
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.run, done)
        await rig.until("SELECT count(*) = 20 FROM pggit.alert_delivery_queue WHERE retry_count >= 1")
        done.set()
    # So many failures opened the breaker for new workers too; an operator closes it, by the runbook's statement.
    await rig.database.execute(
        "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = 'healthy',"
        " last_check_at = CURRENT_TIMESTAMP WHERE health_status <> 'healthy'"
    )
    async with rig.worker(**PATIENCE):
        await rig.until(
            "SELECT NOT EXISTS (SELECT FROM pggit.alert_delivery_queue WHERE ready_at IS NOT NULL)"
        )

    assert await rig.database.fetch(
        "SELECT count(*) FROM pggit.alert_delivery_queue WHERE delivery_status IN ('pending', 'retrying')"
    ) == [(0,)]
    assert await rig.row(last, "retry_count > 0") == (True,)
    assert set(Counter(arrived(rig)).values()) <= {1}


async def test_a_rate_limited_old_worker_puts_a_row_off_and_a_new_one_keeps_to_it(rig: Rig):
    webhook_id = await rig.add_webhook()
    (delivery_id,) = await rig.insert(webhook_id)
    await rig.database.execute("SELECT * FROM pggit.get_ready_deliveries(10)")
    await rig.database.execute(
        "UPDATE pggit.alert_delivery_queue SET next_retry_at = CURRENT_TIMESTAMP + INTERVAL '0.8"
        " seconds' WHERE delivery_id = %s",
        (delivery_id,),
    )
    async with rig.worker(WORKER_POLL_SECONDS=600, **PATIENCE):
        await rig.until_status(delivery_id, "delivered")

    assert await rig.row(delivery_id, "attempted_at >= next_retry_at") == (True,)


async def test_an_operators_statements_work_while_everything_runs(rig: Rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(400), answer(400))
    async with rig.worker(WORKER_POLL_SECONDS=600, **PATIENCE):
        ids = await rig.insert(webhook_id, 2)
        for delivery_id in ids:
            await rig.until_status(delivery_id, "failed")
        assert await rig.database.fetch("SELECT health_status FROM pggit.v_degraded_webhooks") == [
            ("unavailable",)
        ]
        await rig.database.execute(
            "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = 'healthy',"
            " last_check_at = CURRENT_TIMESTAMP WHERE health_status != 'healthy'"
        )
        assert await rig.database.fetch("SELECT FROM pggit.v_degraded_webhooks") == []
        requeued = await rig.database.execute(
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', retry_count = 0, next_retry_at = NULL,"
            " attempted_at = NULL WHERE delivery_status = 'failed'"
        )
        assert requeued == 2
        await rig.until_all("delivered")
        deleted = await rig.database.execute(
            "DELETE FROM pggit.alert_delivery_queue WHERE delivery_status IN ('pending', 'retrying')"
            " AND created_at < CURRENT_TIMESTAMP - INTERVAL '7 days'"
        )
        assert deleted == 0
        for read in READS:
            await rig.database.fetch(read)

    assert await rig.database.fetch(
        "SELECT health_status, total_deliveries, successful_deliveries, failed_deliveries FROM"
        " pggit.webhook_health_metrics"
    ) == [("healthy", 4, 2, 2)]


READS = [
    "SELECT delivery_status, COUNT(*), MIN(created_at) FROM pggit.alert_delivery_queue GROUP BY delivery_status",
    "SELECT * FROM pggit.alert_delivery_queue WHERE delivery_status = 'failed'"
    " AND created_at > CURRENT_TIMESTAMP - INTERVAL '1 hour' ORDER BY created_at DESC",
    "SELECT health_status, COUNT(*) FROM pggit.webhook_health_metrics GROUP BY health_status",
    "SELECT webhook_id, ROUND(100.0 * successful_deliveries / NULLIF(total_deliveries, 0), 2),"
    " ROUND(avg_response_time_ms, 1) FROM pggit.webhook_health_metrics ORDER BY consecutive_failures DESC",
    "SELECT webhook_id FROM pggit.webhook_health_metrics WHERE failed_deliveries > successful_deliveries",
    "SELECT * FROM pggit.v_degraded_webhooks WHERE consecutive_failures > 0",
    "SELECT * FROM pggit.alert_delivery_log WHERE webhook_id = 1 ORDER BY created_at DESC LIMIT 50",
]
