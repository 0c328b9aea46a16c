"""What the model of the gate (tests/property/gate) takes for granted, asked of a real server in real sessions.

Producers are sessions that stop at the step that matters; the worker's side is `pggit_reactor.db.gate`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from pggit_reactor.db.connect import TrioConnection, connect
from pggit_reactor.db.embedded import open_embedded_postgres
from pggit_reactor.db.gate import (
    CHECKS_BEFORE_LIST,
    OPEN_SECONDS_MAX,
    PAUSE_SECONDS_MAX,
    PAUSE_SECONDS_MIN,
    Drain,
    GateValue,
    close_gate,
    drain_pause_seconds,
    open_gate,
)
from pggit_reactor.errors import DatabaseError
from pggit_reactor.testing.database import ReactorDatabase, open_database

# Open for as long as is possible, so that a slow machine does not find it lapsed in the middle of a test.
OPEN_SECONDS = OPEN_SECONDS_MAX
INSERT = "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, 7, '{}')"
ROW_COUNT = "SELECT count(*) FROM pggit.alert_delivery_queue"
VALUE = "SELECT pg_sequence_last_value('pggit.reactor_gate'::regclass)"


class Silence:
    """Tells a silent producer from one that notified, by listening."""

    def __init__(self, listener: TrioConnection) -> None:
        self._listener = listener

    async def of(self, *statements: str, producer: TrioConnection) -> bool:
        """Run *statements*, then notify by hand: whatever they notified was heard before that."""
        for statement in statements:
            await producer.execute(statement)
        await producer.execute("NOTIFY pggit_delivery, 'mark'")
        return not await self.heard_before_mark()

    async def heard_before_mark(self) -> list[str]:
        heard: list[str] = []
        with trio.fail_after(20):
            while "mark" not in heard:
                heard += [notify.payload for notify in await self._listener.wait_notifies()]
        return heard[: heard.index("mark")]


@pytest.fixture
async def worker(reactor_database: ReactorDatabase) -> TrioConnection:
    return await reactor_database.connect()


@pytest.fixture
async def producer(reactor_database: ReactorDatabase) -> TrioConnection:
    return await reactor_database.connect()


@pytest.fixture
async def silence(reactor_database: ReactorDatabase) -> Silence:
    listener = await reactor_database.connect()
    await listener.execute("LISTEN pggit_delivery")
    return Silence(listener)


async def checks(drain: Drain, worker: TrioConnection) -> list[bool]:
    """Check more often than it takes to ask for the holders of the queue."""
    return [await drain.done(worker) for _ in range(CHECKS_BEFORE_LIST + 2)]


async def test_a_gate_that_nobody_ever_opened_is_closed(producer: TrioConnection, silence: Silence) -> None:
    assert not await silence.of(INSERT, producer=producer)


async def test_producers_are_silent_while_it_is_open_and_notify_once_it_is_closed(
    worker: TrioConnection, producer: TrioConnection, silence: Silence
) -> None:
    own = await open_gate(worker, OPEN_SECONDS)
    assert await silence.of(INSERT, producer=producer)

    await close_gate(worker, own)
    assert not await silence.of(INSERT, producer=producer)


async def test_an_opening_lapses_by_itself(
    worker: TrioConnection, producer: TrioConnection, silence: Silence
) -> None:
    until = await open_gate(worker, 0.05)
    past = "SELECT extract(epoch FROM clock_timestamp()) * 1000 > %s"
    with trio.fail_after(10):
        while (await (await worker.execute(past, [until])).fetchone()) != (True,):
            await trio.lowlevel.checkpoint()

    assert not await silence.of(INSERT, producer=producer)


async def test_a_value_too_far_ahead_silences_nobody(
    worker: TrioConnection, producer: TrioConnection, silence: Silence
) -> None:
    """A restored backup, a clock set back, a hand: no wrong value may leave producers silent for long."""
    ahead = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint + 60000"
    await worker.execute(f"SELECT setval('pggit.reactor_gate', {ahead})")

    assert not await silence.of(INSERT, producer=producer)


async def test_an_opening_stands_when_its_transaction_is_rolled_back(
    worker: TrioConnection, producer: TrioConnection, silence: Silence
) -> None:
    """Why a worker answers from before the call: no error takes the opening back."""
    ahead = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint + 1500"
    await worker.execute("BEGIN")
    await worker.execute(f"SELECT setval('pggit.reactor_gate', {ahead})")
    await worker.execute("ROLLBACK")

    assert await silence.of(INSERT, producer=producer)


async def test_a_worker_leaves_the_opening_of_another_as_it_is(
    reactor_database: ReactorDatabase, worker: TrioConnection
) -> None:
    other = await reactor_database.connect()
    mine = GateValue(await open_gate(worker, OPEN_SECONDS) - 1)  # Not the same millisecond.
    await open_gate(other, OPEN_SECONDS)
    before = await reactor_database.fetch_value(VALUE)

    await close_gate(worker, mine)
    assert await reactor_database.fetch_value(VALUE) == before

    await close_gate(worker)
    assert await reactor_database.fetch_value(VALUE) == 0


async def test_a_drain_is_over_at_once_when_nobody_writes(
    reactor_database: ReactorDatabase, worker: TrioConnection
) -> None:
    """Other databases of the server have transactions too, so this may take more than one look."""
    own = await open_gate(worker, OPEN_SECONDS)
    await reactor_database.execute(INSERT)

    drain = await close_gate(worker, own)

    assert (await checks(drain, worker))[-1]


ENDS = {
    "commit": ("COMMIT", 1),
    "rollback": ("ROLLBACK", 0),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "insert",
    [
        (INSERT,),
        ("SAVEPOINT s", INSERT, "RELEASE s"),
        ("SAVEPOINT s", INSERT, "ROLLBACK TO s", INSERT),
        ("SAVEPOINT a", "SAVEPOINT b", INSERT),
        (f"DO $$ BEGIN {INSERT}; EXCEPTION WHEN division_by_zero THEN NULL; END $$",),
    ],
    ids=lambda statements: " - ".join(statement.split()[0] + statement[-2:] for statement in statements),
)
async def test_a_drain_waits_for_a_silent_producer_however_it_wrote(
    reactor_database: ReactorDatabase,
    worker: TrioConnection,
    producer: TrioConnection,
    insert: tuple[str, ...],
    end: str,
) -> None:
    last, rows = ENDS[end]
    own = await open_gate(worker, OPEN_SECONDS)
    await producer.execute("BEGIN")
    for statement in insert:
        await producer.execute(statement)

    drain = await close_gate(worker, own)
    assert not any(await checks(drain, worker))
    assert drain.waits_for is not None
    assert len(drain.waits_for) == 1

    await producer.execute(last)
    assert await drain.done(worker)
    assert await drain.done(worker)
    assert await reactor_database.fetch_value(ROW_COUNT) == rows


async def test_a_drain_waits_for_a_silent_copy(
    reactor_database: ReactorDatabase, worker: TrioConnection, producer: TrioConnection, silence: Silence
) -> None:
    own = await open_gate(worker, OPEN_SECONDS)
    await producer.execute("BEGIN")
    columns = "alert_id, webhook_id, message_body"
    async with producer.cursor().copy(f"COPY pggit.alert_delivery_queue ({columns}) FROM STDIN") as copy:
        await copy.write_row((1, 7, "{}"))

    drain = await close_gate(worker, own)
    assert not any(await checks(drain, worker))

    assert await silence.of("COMMIT", producer=producer)
    assert await drain.done(worker)
    assert await reactor_database.fetch_value(ROW_COUNT) == 1


async def test_a_transaction_older_than_the_opening_is_waited_for(
    worker: TrioConnection, producer: TrioConnection
) -> None:
    """Its xid is old, and it reads the gate late: X is above the xid of whoever reads before the closing."""
    await producer.execute("BEGIN")
    await producer.execute(INSERT)
    own = await open_gate(worker, OPEN_SECONDS)
    await producer.execute(INSERT)

    drain = await close_gate(worker, own)
    assert not any(await checks(drain, worker))

    await producer.execute("ROLLBACK")
    assert await drain.done(worker)


async def test_a_producer_that_begins_after_the_closing_is_not_waited_for(
    worker: TrioConnection, producer: TrioConnection, silence: Silence
) -> None:
    own = await open_gate(worker, OPEN_SECONDS)
    drain = await close_gate(worker, own)
    await producer.execute("BEGIN")
    await producer.execute(INSERT)

    assert (await checks(drain, worker))[-1]
    assert not await silence.of("COMMIT", producer=producer)


async def test_a_writer_that_never_touches_the_queue_is_not_waited_for_long(
    reactor_database: ReactorDatabase, worker: TrioConnection, producer: TrioConnection
) -> None:
    await reactor_database.execute("CREATE TABLE elsewhere (id int)")
    await producer.execute("BEGIN")
    await producer.execute("INSERT INTO elsewhere VALUES (1)")

    drain = await close_gate(worker)
    found = await checks(drain, worker)

    assert not found[0]
    assert found[-1]


async def test_a_reader_of_the_queue_is_not_waited_for(
    worker: TrioConnection, producer: TrioConnection
) -> None:
    await producer.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await producer.execute(ROW_COUNT)

    drain = await close_gate(worker)

    assert (await checks(drain, worker))[-1]


async def test_the_xmax_of_a_snapshot_would_not_do_for_x(
    worker: TrioConnection, producer: TrioConnection
) -> None:
    """It is one above the latest *ended* transaction, so a running producer may have that very xid."""
    met = False
    for _ in range(20):  # Another session of the server may end in between, and hide it.
        async with producer.transaction(force_rollback=True):
            row = await (await producer.execute("SELECT pg_current_xact_id()::text::bigint")).fetchone()
            snapshot = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
            xmax = await (await worker.execute(snapshot)).fetchone()
            drain = await close_gate(worker)
        assert row is not None
        assert row[0] < int(drain.x)
        met = met or xmax == row

    assert met


async def test_closing_refuses_a_transaction_and_a_pipeline(worker: TrioConnection) -> None:
    """There X would be older than the closing."""
    async with worker.transaction():
        with pytest.raises(AssertionError):
            await close_gate(worker)
    async with worker.pipeline():
        with pytest.raises(AssertionError):
            await close_gate(worker)


async def test_a_producer_may_say_that_it_never_notifies(producer: TrioConnection, silence: Silence) -> None:
    """For PREPARE TRANSACTION, which refuses whoever notified: the poll finds such rows."""
    assert await silence.of("SET pggit.notify = off", INSERT, producer=producer)


async def test_a_replica_session_fires_no_trigger_and_is_silent(
    producer: TrioConnection, silence: Silence
) -> None:
    assert await silence.of("SET session_replication_role = replica", INSERT, producer=producer)


async def test_a_worker_needs_update_and_a_producer_nothing_that_could_open_it(
    reactor_database: ReactorDatabase, worker: TrioConnection, producer: TrioConnection
) -> None:
    await producer.execute("SET ROLE pggit_producer")
    with pytest.raises(DatabaseError, match="permission denied"):
        await open_gate(producer)

    await worker.execute("SET ROLE pggit_worker")
    await open_gate(worker, OPEN_SECONDS)
    drain = await close_gate(worker)
    assert (await checks(drain, worker))[-1]


async def test_a_plain_producer_reads_the_gate(
    worker: TrioConnection, producer: TrioConnection, silence: Silence
) -> None:
    await producer.execute("SET ROLE pggit_producer")
    assert not await silence.of(INSERT, producer=producer)

    await open_gate(worker, OPEN_SECONDS)
    assert await silence.of(INSERT, producer=producer)


async def test_a_producer_behind_an_owners_view_needs_no_right_to_the_schema(
    reactor_database: ReactorDatabase, producer: TrioConnection, silence: Silence
) -> None:
    """The trigger runs for whoever inserts: it must not ask rights of them that the INSERT did not ask."""
    role = f"via_view_of_{reactor_database.name}"
    await reactor_database.execute("CREATE VIEW public.alerts AS SELECT * FROM pggit.alert_delivery_queue")
    await reactor_database.execute(f"CREATE ROLE {role}")
    try:
        await reactor_database.execute(f"GRANT INSERT ON public.alerts TO {role}")
        await reactor_database.execute(
            f"GRANT USAGE ON SEQUENCE pggit.alert_delivery_queue_delivery_id_seq TO {role}"
        )
        insert = INSERT.replace("pggit.alert_delivery_queue", "public.alerts")

        assert not await silence.of(f"SET ROLE {role}", insert, producer=producer)
    finally:
        await producer.execute("RESET ROLE")
        await reactor_database.execute(f"DROP OWNED BY {role}")
        await reactor_database.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("waited", [0.0, 0.5, 5.0, 3600.0])
def test_the_pause_of_a_drain_grows_with_the_wait_within_its_bounds(waited: float) -> None:
    pause = drain_pause_seconds(waited)

    assert PAUSE_SECONDS_MIN <= pause <= PAUSE_SECONDS_MAX
    assert pause <= max(PAUSE_SECONDS_MIN, waited / 50)


async def test_prepared_transactions_are_waited_for_and_a_crash_leaves_the_gate_closed(
    tmp_path: Path, postgres_bin: Path | None
) -> None:
    settings = {"max_prepared_transactions": "2", "fsync": "off"}
    async with (
        open_embedded_postgres(settings=settings, bin_dir=postgres_bin) as server,
        open_database(server) as database,
    ):
        worker, producer = await database.connect(), await database.connect()
        own = await open_gate(worker, OPEN_SECONDS)
        await producer.execute("BEGIN")
        await producer.execute(INSERT)
        drain = await close_gate(worker, own)
        assert not any(await checks(drain, worker))
        await producer.execute("PREPARE TRANSACTION 'late'")
        assert not await drain.done(worker)
        await producer.execute("COMMIT PREPARED 'late'")
        assert await drain.done(worker)
        assert await database.fetch_value(ROW_COUNT) == 1

        await open_gate(worker, OPEN_SECONDS)
        server.crash()
        await server.start_async()
        again = await connect(database.dsn, application_name="test")
        value = await (await again.execute(VALUE)).fetchone()
        again.close_now()

    # Unlogged: whoever answered for an opening is cut off as well, so recovery had better forget it.
    assert value == (None,)
