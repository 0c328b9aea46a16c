"""What somebody's old snapshot costs the claim: its dead index entries can be neither skipped nor removed."""

from __future__ import annotations

import statistics
import time

import pytest

from pggit_reactor.core.model import State
from pggit_reactor.core.outcomes import Decision

SETTLED = 60_000
BATCH = 256
PAGES_MAX = 200
CLAIMS = 20


@pytest.mark.long
async def test_dead_entries_under_an_old_snapshot_slow_a_claim_and_are_forgotten_with_it(
    reactor_database, rows, hand, record_testsuite_property
):
    await rows.webhook(7, concurrency="256")
    await reactor_database.execute("ALTER TABLE pggit.alert_delivery_queue SET (autovacuum_enabled = off)")
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, 7, '{}' FROM generate_series(1, %s) AS n",
        (SETTLED,),
    )
    onlooker = await reactor_database.connect()
    await onlooker.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await onlooker.execute("SELECT count(*) FROM pg_class")
    claims: list[float] = []
    settled = 0
    while settled < SETTLED:
        began = time.perf_counter()
        claimed = await hand.claim({7: BATCH})
        claims.append(time.perf_counter() - began)
        settled += len((await hand.settle(claimed.deliveries, Decision(state=State.DELIVERED))).settled)

    before = await claim_and_give_back(rows, reactor_database, hand)
    await onlooker.execute("COMMIT")
    after = await claim_and_give_back(rows, reactor_database, hand)
    record_testsuite_property("claim_of_256_ms_first", round(statistics.median(claims[:10]) * 1000, 2))
    record_testsuite_property(
        "claim_of_256_ms_last_under_snapshot", round(statistics.median(claims[-10:]) * 1000, 2)
    )
    record_testsuite_property("claim_of_1_ms_under_snapshot", round(before[0] * 1000, 2))
    record_testsuite_property("claim_of_1_ms_after_it", round(after[0] * 1000, 2))
    record_testsuite_property("claim_of_1_pages_under_snapshot", before[1])

    assert after[1] <= PAGES_MAX < before[1]


async def claim_and_give_back(rows, reactor_database, hand) -> tuple[float, int]:
    """Return the median time of a claim of one fresh row, and the pages of the index and the table that it touched."""
    times: list[float] = []
    pages = (
        "SELECT coalesce(sum(pg_stat_get_xact_blocks_fetched(oid)), 0)::bigint FROM pg_class"
        " WHERE oid IN ('pggit.alert_delivery_queue'::regclass, 'pggit.alert_delivery_queue_claim_idx'::regclass)"
    )
    touched = 0
    for _ in range(CLAIMS):
        delivery_id = await rows.queue()
        async with hand.claiming.transaction():
            (before,) = await (await hand.claiming.execute(pages)).fetchone()
            began = time.perf_counter()
            claimed = await hand.claim({7: 1})
            times.append(time.perf_counter() - began)
            (after,) = await (await hand.claiming.execute(pages)).fetchone()
            touched = after - before
        assert [delivery.delivery_id for delivery in claimed.deliveries] == [delivery_id]
        await hand.settle(claimed.deliveries, Decision(state=State.DELIVERED))
    return statistics.median(times), touched
