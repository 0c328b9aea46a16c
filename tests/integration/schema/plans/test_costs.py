"""What a claim and a settle write: HOT updates, and WAL. The figures are in the report (``--junit-xml``)."""

from __future__ import annotations

import time

import pytest

from pggit_reactor.core.model import FailedReason, State
from pggit_reactor.core.outcomes import Decision

ROWS = 2000
BATCH = 100
CLAIM_WAL_BYTES_MAX = 250
SETTLE_WAL_BYTES_MAX = 1500
SLACK = 1.1
"""Autovacuum and checkpoints write WAL too."""

UPDATES = (
    "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
    " WHERE relid = 'pggit.alert_delivery_queue'::regclass"
)
DELIVERED = Decision(state=State.DELIVERED)
OUTCOMES = {
    "delivered": DELIVERED,
    "retry": Decision(state=State.RETRYING, delay_seconds=60, counts_retry=True),
    "dead": Decision(state=State.FAILED, failed_reason=FailedReason.PERMANENT),
}


async def fill(reactor_database, rows, count: int = ROWS, webhooks: int = 10) -> None:
    for webhook_id in range(webhooks):
        await rows.webhook(webhook_id, concurrency="256")
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, mod(n, %s), jsonb_build_object('title', 'disk full', 'severity', 'CRITICAL', 'n', n)"
        " FROM generate_series(1, %s) AS n",
        (webhooks, count),
    )


@pytest.mark.parametrize("priorities", [1, 5])
async def test_a_claim_is_a_hot_update_of_each_row_that_it_takes(reactor_database, rows, hand, priorities):
    """No index knows a lease, and the fill factor leaves room for one more version of each row in its page."""
    await fill(reactor_database, rows)
    await reactor_database.execute(
        "UPDATE pggit.alert_delivery_queue SET priority = mod(delivery_id, %s)", (priorities,)
    )
    await reactor_database.execute("VACUUM FULL pggit.alert_delivery_queue")
    async with hand.claiming.transaction():
        claimed = await hand.claim(dict.fromkeys(range(10), ROWS // 10))
        counts = await (await hand.claiming.execute(UPDATES)).fetchone()

    assert len(claimed.deliveries) == ROWS
    assert counts == (ROWS, ROWS)


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_a_settle_updates_each_row_once(reactor_database, rows, hand, outcome):
    """It moves readiness, which the claim index knows, so it cannot be HOT."""
    await fill(reactor_database, rows)
    claimed = await hand.claim(dict.fromkeys(range(10), BATCH // 10))
    async with hand.settling.transaction():
        await hand.settle(claimed.deliveries, OUTCOMES[outcome])
        counts = await (await hand.settling.execute(UPDATES)).fetchone()

    assert counts is not None
    assert counts[0] == BATCH


@pytest.mark.parametrize("batch", [1, BATCH])
async def test_the_wal_of_a_claim_and_of_a_settle_is_bounded(
    reactor_database, rows, hand, record_testsuite_property, batch
):
    await fill(reactor_database, rows)
    await reactor_database.execute("ALTER TABLE pggit.alert_delivery_queue SET (autovacuum_enabled = off)")
    await reactor_database.execute("CHECKPOINT")
    claims: list[float] = []
    settles: list[float] = []
    wal_claimed = wal_settled = 0
    for turn in range(ROWS // BATCH if batch > 1 else 200):
        budgets = dict.fromkeys(range(10), batch // 10) if batch > 1 else {turn % 10: 1}
        start, began = await lsn(reactor_database), time.perf_counter()
        claimed = await hand.claim(budgets)
        claims.append(time.perf_counter() - began)
        between, began = await lsn(reactor_database), time.perf_counter()
        await hand.settle(claimed.deliveries, DELIVERED)
        settles.append(time.perf_counter() - began)
        assert len(claimed.deliveries) == batch
        wal_claimed += between - start
        wal_settled += await lsn(reactor_database) - between
    count = batch * len(claims)
    figures = {
        "claim_wal_bytes": wal_claimed / count,
        "settle_wal_bytes": wal_settled / count,
        # The best: what it costs, not what the machine's other users cost.
        "claim_us": min(claims) / batch * 1e6,
        "settle_us": min(settles) / batch * 1e6,
    }
    for name, value in figures.items():
        record_testsuite_property(f"{name}_{batch}", round(value, 1))

    # A batch of one bears its statement's fixed costs, a commit record and the health row, alone.
    fixed_bytes = 0 if batch > 1 else 500
    assert figures["claim_wal_bytes"] < CLAIM_WAL_BYTES_MAX * SLACK + fixed_bytes
    assert figures["settle_wal_bytes"] < SETTLE_WAL_BYTES_MAX * SLACK + fixed_bytes


async def lsn(reactor_database) -> int:
    return int(await reactor_database.fetch_value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
