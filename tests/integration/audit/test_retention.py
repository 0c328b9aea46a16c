"""Old rows go, the chain stays verifiable, and nothing younger can be made to go with them."""

from __future__ import annotations

import attrs
import pytest

from pggit_reactor.db.audit_log import drop_audit_partitions, prune_audit
from pggit_reactor.errors import DatabaseError

DAY_US = 86_400_000_000
INSERT = "INSERT INTO pggit.webhook_audit_log (operation) VALUES ('webhook_tested') RETURNING audit_id"


@pytest.fixture
def age(chain):
    """Makes the chain older, as its keeper would have written it then."""

    async def age(days: int, *, up_to: int) -> None:
        from pggit_reactor.db.audit_chain import _segment  # the one reader of a segment's columns

        rows = await chain.database.fetch(
            "SELECT number, from_id, to_id, row_count, late_ids, open_ids::text, rows_hash, previous_hash,"
            " previous_proven, trunc(extract(epoch FROM sealed_at) * 1000000)::bigint, key_id, hash, seal,"
            " is_checkpoint FROM pggit.audit_segment ORDER BY number"
        )
        previous = None
        for segment in map(_segment, rows):
            sealed_us = segment.sealed_us - (days * DAY_US if segment.number <= up_to else 0)
            made = attrs.evolve(
                segment,
                sealed_us=sealed_us,
                previous_hash=segment.previous_hash if previous is None else previous.hash,
            )
            made = attrs.evolve(made, hash=made.computed_hash(), seal=chain.sealer.seal(made.header()))
            await chain.database.execute(
                "UPDATE pggit.audit_segment SET previous_hash = %s, hash = %s, seal = %s,"
                " sealed_at = timestamptz 'epoch' + %s * interval '1 microsecond' WHERE number = %s",
                (made.previous_hash, made.hash, made.seal, made.sealed_us, made.number),
            )
            previous = made

    return age


async def test_old_segments_lose_their_rows_and_leave_a_checkpoint(chain, age):
    await chain.log(6)
    for _ in range(3):
        await chain.seal(rows_max=2)
    await age(400, up_to=2)
    assert (await chain.verify()).ok

    assert await prune_audit(chain.worker, days=365, rows_max=100) == 4
    assert await prune_audit(chain.worker, days=365, rows_max=100) == 0
    newest = (await chain.verify()).last_sealed_us
    report = await chain.verify(kept_since_us=newest - 365 * DAY_US)
    assert (report.ok, report.rows, report.segments, report.dropped_before_id) == (True, 2, 2, 5)
    assert await chain.database.fetch(
        "SELECT operation, details ->> 'rows', user_id IS NOT NULL FROM pggit.webhook_audit_log"
        " ORDER BY audit_id DESC LIMIT 1"
    ) == [("audit_pruned", "4", True)]
    await chain.seal()
    assert (await chain.verify()).ok


async def test_a_batch_is_bounded_and_the_next_one_goes_on(chain, age):
    await chain.log(10)
    for _ in range(5):
        await chain.seal(rows_max=2)
    await age(400, up_to=5)

    assert await prune_audit(chain.worker, days=90, rows_max=3) == 4
    assert (await chain.verify()).ok
    assert await prune_audit(chain.worker, days=90, rows_max=1) == 2
    assert await prune_audit(chain.worker, days=90, rows_max=100) == 4
    report = await chain.verify()
    assert (report.ok, report.rows, report.segments) == (True, 0, 1)


async def test_a_row_that_a_younger_segment_holds_stays_and_an_open_gap_too(chain, age):
    slow, slower = await chain.database.connect(), await chain.database.connect()
    for session in (slow, slower):
        await session.execute("BEGIN")
        await session.execute(INSERT)
    await chain.log(2)
    await chain.seal()
    await slow.execute("COMMIT")
    await chain.seal()
    await age(400, up_to=1)
    assert await prune_audit(chain.worker, days=365, rows_max=100) == 2
    assert (await chain.verify()).ok
    await slower.execute("COMMIT")
    await chain.seal()

    report = await chain.verify()
    assert (report.breaks, report.late_rows, report.rows) == ((), 2, 3)


async def test_a_partition_whose_rows_are_all_old_is_emptied_at_once_and_dropped(chain, age):
    await chain.log(3)
    await chain.database.execute("SELECT setval('pggit.webhook_audit_log_audit_id_seq', 9999998)")
    await chain.log(3)
    await chain.seal(rows_max=3)
    await chain.seal(rows_max=3)
    await chain.database.execute("SELECT pggit.add_audit_partitions()")
    await age(400, up_to=2)

    assert await prune_audit(chain.worker, days=365, rows_max=1) == 6
    assert await drop_audit_partitions(chain.worker) == 1
    assert await chain.database.fetch_value("SELECT to_regclass('pggit.webhook_audit_log_p0') IS NULL")
    await chain.log()
    await chain.seal()
    report = await chain.verify()
    assert (report.breaks, report.rows) == ((), 2)


async def test_the_log_is_not_locked_for_dropping_while_somebody_is_at_it(chain, age):
    await chain.database.execute("SELECT setval('pggit.webhook_audit_log_audit_id_seq', 9999998)")
    await chain.log(2)
    await chain.seal()
    await age(400, up_to=1)
    writer = await chain.database.connect()
    await writer.execute("BEGIN")
    await writer.execute(INSERT)
    await prune_audit(chain.worker, days=365, rows_max=100)

    assert await drop_audit_partitions(chain.worker) == 0
    await writer.execute("COMMIT")
    assert await drop_audit_partitions(chain.worker) == 1


async def test_nobody_can_have_rows_dropped_that_are_younger_than_90_days(chain, age):
    await chain.log()
    await chain.seal()
    await age(89, up_to=1)
    with pytest.raises(DatabaseError, match="90 days or more"):
        await prune_audit(chain.worker, days=89, rows_max=100)

    assert await prune_audit(chain.worker, days=90, rows_max=100) == 0


async def test_rows_that_were_dropped_before_their_time_are_missed(chain, age):
    """Who owns the database can take a segment for a checkpoint; it says itself how old it is."""
    await chain.log(2)
    await chain.seal(rows_max=1)
    second = await chain.seal(rows_max=1)
    await chain.database.execute("UPDATE pggit.audit_segment SET is_checkpoint = true WHERE number = 1")
    await chain.database.execute("DELETE FROM pggit.webhook_audit_log WHERE audit_id = 1")

    assert await chain.kinds(kept_since_us=second.sealed_us - 300 * DAY_US) == {"dropped_early"}
