"""Many settlers write the same webhooks' rows at once: no deadlock, and every attempt is counted exactly once."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import pytest
import trio

from pggit_reactor.core.model import ClaimedDelivery, FailedReason, State
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.lane import HOT_OPTIONS
from pggit_reactor.db.settle import Settlement, settle

SETTLERS = 8
WEBHOOKS = 20
ROWS_A_WEBHOOK = 80
BATCH_ROWS = 20

DELIVERED = Decision(state=State.DELIVERED)
RETRY = Decision(state=State.RETRYING, delay_seconds=60, counts_retry=True)
DEAD = Decision(state=State.FAILED, failed_reason=FailedReason.PERMANENT)
GONE = Decision(state=State.FAILED, failed_reason=FailedReason.GONE, disable_webhook=True)


@attrs.frozen(kw_only=True)
class Outcome:
    decision: Decision
    http_status: int


OUTCOMES = (
    Outcome(decision=DELIVERED, http_status=200),
    Outcome(decision=RETRY, http_status=503),
    Outcome(decision=DEAD, http_status=400),
)
GONE_TOO = (*OUTCOMES, Outcome(decision=GONE, http_status=410))


@pytest.fixture
def reactor_database(emptied):
    return emptied


def settlement(delivery: ClaimedDelivery, outcome: Outcome) -> Settlement:
    return Settlement.of(
        delivery,
        outcome.decision,
        attempted=True,
        http_status=outcome.http_status,
        elapsed_seconds=0.01 * (1 + delivery.delivery_id % 7),
    )


async def claim_everything(reactor_database, rows, hand) -> list[ClaimedDelivery]:
    for webhook_id in range(WEBHOOKS):
        await rows.webhook(webhook_id, concurrency="256")
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, mod(n, %s), '{}' FROM generate_series(1, %s) AS n",
        (WEBHOOKS, WEBHOOKS * ROWS_A_WEBHOOK),
    )
    claimed = await hand.claim(dict.fromkeys(range(WEBHOOKS), ROWS_A_WEBHOOK))
    assert len(claimed.deliveries) == WEBHOOKS * ROWS_A_WEBHOOK
    return list(claimed.deliveries)


async def run_settlers(reactor_database, shares: Sequence[Sequence[Settlement]]) -> None:
    """Raises what a settler raises: `RowLockedError` for a deadlock, since none waits for its lock timeout."""
    patient = {**HOT_OPTIONS, "lock_timeout": "9000", "role": "pggit_worker"}
    ready = [(await reactor_database.connect(**patient), share) for share in shares]

    async def run(connection: TrioConnection, share: Sequence[Settlement]) -> None:
        for start in range(0, len(share), BATCH_ROWS):
            report = await settle(connection, share[start : start + BATCH_ROWS], worker_id="a worker")
            assert not report.locked
            assert not report.fenced

    async with trio.open_nursery() as nursery:
        for connection, share in ready:
            nursery.start_soon(run, connection, share)


HEALTH = (
    "SELECT webhook_id, total_deliveries, successful_deliveries, failed_deliveries, avg_response_time_ms::float8,"
    " min_response_time_ms::float8, max_response_time_ms::float8 FROM pggit.webhook_health_metrics ORDER BY 1"
)


@pytest.mark.parametrize(
    "outcomes", [OUTCOMES, GONE_TOO], ids=["with failures", "with webhooks that are gone"]
)
@pytest.mark.parametrize("seed", range(3))
async def test_settlers_with_interleaved_batches_never_deadlock_and_health_is_exact(
    reactor_database, rows, hand, outcomes, seed
):
    dice = random.Random(seed)
    deliveries = await claim_everything(reactor_database, rows, hand)
    dice.shuffle(deliveries)
    settlements = [settlement(delivery, dice.choice(outcomes)) for delivery in deliveries]
    await run_settlers(reactor_database, [settlements[number::SETTLERS] for number in range(SETTLERS)])

    health = await reactor_database.fetch(HEALTH)
    assert [row[0] for row in health] == list(range(WEBHOOKS))
    for webhook_id, total, successes, failures, mean_ms, min_ms, max_ms in health:
        own = [item for item in settlements if item.webhook_id == webhook_id]
        elapsed_ms = [item.elapsed_seconds * 1000 for item in own]
        delivered = sum(item.decision is DELIVERED for item in own)
        assert (total, successes, failures) == (ROWS_A_WEBHOOK, delivered, ROWS_A_WEBHOOK - delivered)
        assert (min_ms, max_ms) == pytest.approx((min(elapsed_ms), max(elapsed_ms)))
        # The mean is numeric(10,2): each of the batches rounds it by at most 0.005.
        assert mean_ms == pytest.approx(sum(elapsed_ms) / len(elapsed_ms), abs=0.005 * ROWS_A_WEBHOOK)
    assert await reactor_database.fetch_value("SELECT count(*) FROM pggit.alert_delivery_log") == len(
        settlements
    )
    disabled = {item.webhook_id for item in settlements if item.decision is GONE}
    assert await reactor_database.fetch_value(
        "SELECT count(*) FROM pggit.webhook_audit_log WHERE operation = 'webhook_disabled'"
    ) == len(disabled)


async def test_settlers_and_registrars_of_the_same_webhooks_do_not_deadlock(reactor_database, rows, hand):
    """A settle of 410 touches registry and limits, as `webhook set` and the adoption of unknown ids do."""
    deliveries = await claim_everything(reactor_database, rows, hand)
    dice = random.Random(7)
    dice.shuffle(deliveries)
    settlements = [settlement(delivery, GONE_TOO[-1]) for delivery in deliveries]
    operator = await reactor_database.connect(role="pggit_operator")
    over = trio.Event()

    async def change_webhooks() -> None:
        while not over.is_set():
            webhook_id = dice.randrange(WEBHOOKS)
            await operator.execute(
                "UPDATE pggit.webhook SET state = 'active' WHERE webhook_id = %s", (webhook_id,)
            )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change_webhooks)
        await run_settlers(reactor_database, [settlements[number::SETTLERS] for number in range(SETTLERS)])
        over.set()

    assert await reactor_database.fetch_value(
        "SELECT sum(total_deliveries) FROM pggit.webhook_health_metrics"
    ) == len(settlements)


async def test_who_logs_for_a_delivery_in_an_open_transaction_holds_up_neither_its_claim_nor_its_settling(
    reactor_database, rows, hand
):
    """His foreign key holds the queue row FOR KEY SHARE, which no outcome changes."""
    await rows.webhook(7)
    delivery_id = await rows.queue()
    outsider = await reactor_database.connect()
    async with outsider.transaction():
        await outsider.execute(
            "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type) VALUES (%s, 7, 'queued')",
            (delivery_id,),
        )
        claimed = await hand.claim({7: 1})
        report = await hand.settle(claimed.deliveries, DELIVERED)

        assert [item.delivery_id for item in report.settled] == [delivery_id]


async def test_a_row_that_somebody_holds_is_stepped_over_by_claim_and_settle_alike(
    reactor_database, rows, hand
):
    await rows.webhook(7)
    held, free = await rows.queue(), await rows.queue()
    outsider = await reactor_database.connect()
    lock = "SELECT FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE"
    async with outsider.transaction():
        await outsider.execute(lock, (held,))
        claimed = await hand.claim({7: 10})
        assert [delivery.delivery_id for delivery in claimed.deliveries] == [free]
    rest = await hand.claim({7: 10})
    assert [delivery.delivery_id for delivery in rest.deliveries] == [held]

    async with outsider.transaction():
        await outsider.execute(lock, (held,))
        report = await hand.settle([*claimed.deliveries, *rest.deliveries], DELIVERED)
        assert [item.delivery_id for item in report.settled] == [free]
        assert [item.delivery_id for item in report.locked] == [held]
