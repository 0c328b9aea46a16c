"""What is sealed, when, and that nobody waits for it."""

from __future__ import annotations

import attrs
import pytest
import trio

from pggit_reactor.core.audit_chain import FIRST_ID, GENESIS_HASH
from pggit_reactor.db.embedded import open_embedded_postgres
from pggit_reactor.errors import AuditChainError, DatabaseError
from pggit_reactor.security.audit_seal import AuditSealer
from pggit_reactor.testing.database import QUICK_SETTINGS, open_database

INSERT = "INSERT INTO pggit.webhook_audit_log (operation) VALUES ('webhook_tested') RETURNING audit_id"


async def test_rows_are_sealed_in_segments_that_follow_each_other(chain):
    await chain.log(5)
    first = await chain.seal(rows_max=3)
    second = await chain.seal(rows_max=3)
    nothing = await chain.seal()
    await chain.log(2)
    third = await chain.seal()

    assert [(s.number, s.from_id, s.to_id, s.row_count) for s in (first, second, third)] == [
        (1, FIRST_ID, 3, 3),
        (2, 4, 5, 2),
        (3, 6, 7, 2),
    ]
    assert nothing is None
    assert (first.previous_hash, second.previous_hash) == (GENESIS_HASH, first.hash)
    report = await chain.verify()
    assert (report.ok, report.rows, report.segments, report.seals_checked, report.tail_rows) == (
        True,
        7,
        3,
        3,
        0,
    )


async def test_rows_that_stood_there_before_the_chain_are_its_first(chain):
    """Adopted ones, whatever their ids."""
    for audit_id in (-5, 0, 12):
        await chain.database.execute(
            "INSERT INTO pggit.webhook_audit_log (audit_id, operation, salt) VALUES (%s, 'delivered', NULL)",
            (audit_id,),
        )
    await chain.database.execute("SELECT setval('pggit.webhook_audit_log_audit_id_seq', 12)")

    assert (await chain.seal()).row_count == 3
    assert (await chain.verify()).ok


async def test_an_insert_does_not_wait_while_a_segment_is_sealed(chain):
    await chain.log(3)
    horizon = await chain.horizon()
    async with chain.worker.transaction():
        await chain.seal(horizon)
        session = await chain.database.connect(lock_timeout="200")
        await session.execute(INSERT)  # a lock that sealing holds would end this with an error

    assert (await chain.verify()).tail_rows == 1


async def test_a_row_of_a_transaction_that_stays_open_is_sealed_late(chain):
    slow = await chain.database.connect()
    await slow.execute("BEGIN")
    (slow_id,) = await (await slow.execute(INSERT)).fetchone()
    await chain.log(2)
    first = await chain.seal()

    assert first.row_count == 2
    assert first.open_ids.endswith(f",{slow_id + 1})}}")
    assert await chain.seal() is None
    await slow.execute("COMMIT")
    report = await chain.verify()
    assert (report.ok, report.rows) == (True, 2)
    second = await chain.seal()
    assert (second.late_ids, second.row_count) == ((slow_id,), 1)
    report = await chain.verify()
    assert (report.ok, report.rows, report.late_rows) == (True, 3, 1)
    assert await chain.database.fetch("SELECT FROM pggit.audit_gap") == []


async def test_what_was_rolled_back_is_waited_for_no_longer(chain):
    slow = await chain.database.connect()
    await slow.execute("BEGIN")
    (slow_id,) = await (await slow.execute(INSERT)).fetchone()
    await chain.log()
    await chain.seal()
    await slow.execute("ROLLBACK")
    assert await chain.seal() is None

    assert await chain.database.fetch("SELECT FROM pggit.audit_gap") == []
    await chain.database.execute(
        "INSERT INTO pggit.webhook_audit_log (audit_id, operation) VALUES (%s, 'delivered')", (slow_id,)
    )
    assert await chain.kinds() == {"row_inserted"}


async def test_a_prepared_transaction_is_waited_for_under_its_other_name(postgres_bin, chain_of):
    settings = {**QUICK_SETTINGS, "max_prepared_transactions": "2"}
    async with (
        open_embedded_postgres(settings=settings, bin_dir=postgres_bin) as server,
        open_database(server) as database,
    ):
        chain = await chain_of(database)
        slow = await database.connect()
        await slow.execute("BEGIN")
        (slow_id,) = await (await slow.execute(INSERT)).fetchone()
        await chain.log()
        horizon = await chain.horizon()
        await slow.execute("PREPARE TRANSACTION 'of a test'")
        await horizon.look(chain.worker)
        first = await chain.seal(horizon)
        assert await chain.seal() is None
        await slow.execute("COMMIT PREPARED 'of a test'")
        second = await chain.seal()

        assert (first.row_count, second.late_ids) == (1, (slow_id,))
        assert (await chain.verify()).ok


async def test_a_transaction_that_never_touched_the_log_leaves_nothing_open(chain):
    other = await chain.database.connect()
    await other.execute("BEGIN")
    await other.execute("INSERT INTO pggit.webhook_limit (webhook_id) VALUES (1)")
    rolled_back = await chain.database.connect()
    for end in ("ROLLBACK", "COMMIT"):
        await rolled_back.execute("BEGIN")
        await rolled_back.execute(INSERT)
        await rolled_back.execute(end)

    assert (await chain.seal()).open_ids == "{}"


async def test_many_writers_at_once_lose_nothing(chain):
    """Short and long transactions, commits and rollbacks, while another session seals all the time."""
    writers, rounds = 6, 25

    async def write(number: int) -> None:
        session = await chain.database.connect()
        for step in range(rounds):
            await session.execute("BEGIN")
            for _ in range(1 + (number + step) % 4):
                await session.execute(INSERT)
                if (number * step) % 7 == 3:
                    await trio.sleep(0.01)
            await session.execute("ROLLBACK" if (number + step) % 5 == 0 else "COMMIT")
        done.append(number)

    done: list[int] = []
    async with trio.open_nursery() as nursery:
        for number in range(writers):
            nursery.start_soon(write, number)
        while len(done) < writers:
            await chain.seal(rows_max=7)
    while (await chain.seal()) is not None:
        pass

    report = await chain.verify()
    assert report.breaks == ()
    assert report.rows == await chain.database.fetch_value("SELECT count(*) FROM pggit.webhook_audit_log")
    assert (report.tail_rows, await chain.database.fetch("SELECT FROM pggit.audit_gap")) == (0, [])


async def test_two_workers_do_not_seal_at_once(chain):
    await chain.log()
    other = await chain.database.connect(role="pggit_worker")
    async with other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('pggit_reactor.audit', 0))")
        assert await chain.seal() is None

    assert (await chain.seal()).row_count == 1


async def test_a_segment_that_does_not_follow_is_refused(chain):
    await chain.log()
    segment = await chain.seal()
    again = attrs.evolve(segment, number=2)
    with pytest.raises(DatabaseError, match="does not follow segment 1"):
        await chain.worker.execute(
            "SELECT pggit.add_audit_segment(%s, %s, %s, 1, '{}', '{}', %s, %s, true, 1, 'test', %s, %s)",
            (
                again.number,
                again.from_id,
                again.to_id,
                again.rows_hash,
                again.previous_hash,
                again.hash,
                again.seal,
            ),
        )


async def test_a_new_master_key_is_put_on_the_chain_while_the_old_one_proves_it(chain, ring_of):
    await chain.log()
    await chain.seal()
    chain.sealer = AuditSealer(ring_of(("new", 2), ("test", 1)))
    joint = await chain.seal()
    chain.sealer = AuditSealer(ring_of(("new", 2)))
    await chain.log()
    await chain.seal()

    assert (joint.row_count, joint.key_id, joint.previous_proven) == (0, "new", True)
    report = await chain.verify()
    assert (report.ok, report.unknown_keys, report.seals_checked) == (True, {"test": 1}, 2)


async def test_a_key_that_was_lost_leaves_a_joint_that_only_it_can_prove(chain, ring_of):
    await chain.log()
    await chain.seal()
    chain.sealer = AuditSealer(ring_of(("new", 2)))
    await chain.log()
    joint = await chain.seal()

    assert (joint.row_count, joint.previous_proven) == (1, False)
    assert await chain.kinds() == {"seal_unproven"}
    with_both = AuditSealer(ring_of(("new", 2), ("test", 1)))
    assert await chain.kinds(check_seal=with_both.check) == set()


async def test_nothing_is_put_on_a_segment_that_no_holder_of_the_key_wrote(chain):
    await chain.log()
    await chain.seal()
    await chain.database.execute("UPDATE pggit.audit_segment SET seal = sha256('forged') || seal")
    await chain.log()

    with pytest.raises(AuditChainError, match="segment 1"):
        await chain.seal()
