"""Whoever is cancelled, and wherever: the connection is settled or closed, and no answer meets another question."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count

import attrs
import psycopg
import pytest
import trio
from psycopg.pq import PipelineStatus, TransactionStatus

from pggit_reactor.core.secret import Secret
from pggit_reactor.db import connection as module
from pggit_reactor.db.connect import TrioConnection, connect
from pggit_reactor.errors import DatabaseUnavailableError
from pggit_reactor.testing.faults import open_proxy

STEPS_MAX = 400
STORM_OPERATIONS = 400
STORM_TASKS = 6


class CancelAtStep(trio.abc.Instrument):
    """Cancels the task at its k-th wait, before anything can have woken it."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int) -> None:
        self.task, self.scope, self.step = task, scope, step
        self.steps = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.steps += 1
            if self.steps == self.step:
                self.scope.cancel()


@attrs.define
class Trial:
    """One run of an operation, and how far it came."""

    step: int
    reached: bool = False
    cancelled: bool = False
    finished: bool = False


@asynccontextmanager
async def cancelled_at(step: int) -> AsyncIterator[Trial]:
    trial = Trial(step)
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield trial
            trial.finished = True
        finally:
            trio.lowlevel.remove_instrument(instrument)
    trial.reached = scope.cancel_called
    trial.cancelled = scope.cancelled_caught


async def at_every_step(
    connection_of: Callable[[], Awaitable[TrioConnection]],
    operation: Callable[[TrioConnection], Awaitable[None]],
    check: Callable[[TrioConnection, Trial], Awaitable[None]] | None = None,
) -> int:
    """Cancel *operation* at each of its waits; return how many there were."""
    connection = await connection_of()
    for step in range(1, STEPS_MAX):
        async with cancelled_at(step) as trial:
            await operation(connection)
        assert trial.finished or trial.cancelled
        await assert_whole(connection, f"after a cancel at step {step}")
        if connection.closed:
            connection = await connection_of()
        if check is not None:
            await check(connection, trial)
        if not trial.reached:
            return step - 1
    return STEPS_MAX


async def assert_whole(connection: TrioConnection, where: str) -> None:
    if connection.closed:
        return
    assert connection.pgconn.transaction_status == TransactionStatus.IDLE, where
    assert connection.pgconn.pipeline_status == PipelineStatus.OFF, where
    assert connection._num_transactions == 0, where
    assert connection._pipeline is None, where
    cursor = await connection.execute("SELECT %s", (where,))
    assert await cursor.fetchall() == [(where,)]


@pytest.fixture
def keep(reactor_database):
    """Opens a connection once, and again when that was closed; counts how often."""

    async def connection_of() -> TrioConnection:
        connection_of.opened += 1
        return await reactor_database.connect()

    connection_of.opened = 0
    return connection_of


async def simple(connection: TrioConnection) -> None:
    await connection.execute("SELECT 'simple'", prepare=False)


async def prepared(connection: TrioConnection, fresh: Iterator[int] = count()) -> None:  # noqa: B008  # one for all
    query = f"SELECT %s::int + {next(fresh)}"
    for _ in range(2):
        await connection.execute(query, (41,), prepare=True)


async def much(connection: TrioConnection) -> None:
    await connection.execute("SELECT repeat('x', 4000) FROM generate_series(1, 100)")


async def nested(connection: TrioConnection) -> None:
    async with connection.transaction():
        await connection.execute("SELECT 'outer'")
        async with connection.transaction():
            await connection.execute("SELECT 'inner'")


async def rolled_back(connection: TrioConnection) -> None:
    async with connection.transaction():
        await connection.execute("SELECT 'in vain'")
        raise psycopg.Rollback


async def piped(connection: TrioConnection) -> None:
    async with connection.pipeline():
        cursors = [await connection.execute("SELECT %s::text", (number,), prepare=True) for number in "abc"]
        assert [await cursor.fetchone() for cursor in cursors] == [("a",), ("b",), ("c",)]
        await connection.execute("SELECT 'left in the pipe'")


async def piped_transaction(connection: TrioConnection) -> None:
    async with connection.pipeline(), connection.transaction():
        await connection.execute("SELECT 1")
        await connection.execute("SELECT 2")


async def many(connection: TrioConnection) -> None:
    cursor = connection.cursor()
    await cursor.executemany("SELECT %s::int", [(number,) for number in range(20)], returning=True)


async def copied_out(connection: TrioConnection) -> None:
    async with connection.cursor().copy(
        "COPY (SELECT repeat('y', 1000), generate_series(1, 100)) TO STDOUT"
    ) as copy:
        async for _ in copy:
            pass


@pytest.mark.parametrize(
    ("operation", "steps_min"),
    [
        (simple, 1),
        (prepared, 3),
        (much, 2),
        (nested, 6),
        (rolled_back, 3),
        (piped, 4),
        (piped_transaction, 4),
        (many, 1),
        (copied_out, 2),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_an_operation_cancelled_at_each_of_its_waits_leaves_the_connection_whole(
    keep, operation, steps_min
):
    steps = await at_every_step(keep, operation)

    assert steps_min <= steps < STEPS_MAX
    closed_max = 1 if operation is copied_out else 0  # Between asking for a COPY and being in it.
    assert keep.opened - 1 <= closed_max


async def test_a_transaction_cancelled_at_each_of_its_waits_commits_or_raises(keep, reactor_database):
    await reactor_database.execute("CREATE TABLE written (number int)")
    numbers = count()

    async def write(connection: TrioConnection) -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO written VALUES (%s)", (next(numbers),))

    expected = []

    async def check(_: TrioConnection, trial: Trial) -> None:
        number = next(numbers) - 1
        if trial.finished:
            expected.append((number,))
        assert await reactor_database.fetch("SELECT number FROM written ORDER BY number") == expected

    await at_every_step(keep, write, check)

    assert len(expected) >= 2, "also a cancel during COMMIT lets it happen"


async def test_a_copy_into_a_table_cancelled_at_each_of_its_waits_writes_all_or_nothing(
    keep, reactor_database
):
    await reactor_database.execute("CREATE TABLE copied (number int, filler text)")
    filler = "z" * 20_000

    async def copy_in(connection: TrioConnection) -> None:
        async with connection.cursor().copy("COPY copied FROM STDIN") as copy:
            for number in range(10):
                await copy.write_row((number, filler))

    async def check(_: TrioConnection, trial: Trial) -> None:
        rows = await reactor_database.fetch_value("SELECT count(*) FROM copied")
        assert rows in ((10,) if trial.finished else (0, 10))
        await reactor_database.execute("TRUNCATE copied")

    steps = await at_every_step(keep, copy_in, check)

    assert 2 <= steps < STEPS_MAX


async def test_a_wait_for_notifications_cancelled_at_each_of_its_waits_loses_none(keep, reactor_database):
    connection = await keep()
    await connection.execute("LISTEN harbour")
    for sent_before in (False, True):
        payload = f"sent before: {sent_before}"
        heard: list[str] = []
        if sent_before:
            await reactor_database.execute("SELECT pg_notify('harbour', %s)", (payload,))
        async with cancelled_at(1) as trial:
            heard.extend(notify.payload for notify in await connection.wait_notifies())
        assert trial.cancelled
        if not sent_before:
            await reactor_database.execute("SELECT pg_notify('harbour', %s)", (payload,))
        await assert_whole(connection, "between")
        heard.extend(notify.payload for notify in await connection.wait_notifies())
        assert heard == [payload]

    assert keep.opened == 1


async def test_connecting_cancelled_at_each_of_its_waits_leaves_no_session(reactor_database):
    for step in range(1, STEPS_MAX):
        async with cancelled_at(step) as trial:
            connection = await connect(reactor_database.dsn, application_name="cut off")
            connection.close_now()
        if not trial.reached:
            break

    assert 2 < step < STEPS_MAX
    await until_nobody_is(reactor_database, "application_name = 'cut off'")


async def test_a_running_statement_is_cancelled_in_the_server(reactor_database):
    connection = await reactor_database.connect()
    await cancel_once_it_runs(reactor_database, connection, "SELECT pg_sleep(600)")

    await until_nobody_is(reactor_database, "query LIKE 'SELECT pg_sleep(600)' AND state = 'active'")
    assert not connection.closed
    await assert_whole(connection, "after the sleep")


async def test_a_statement_that_waits_for_a_lock_is_cancelled_and_its_transaction_rolled_back(
    reactor_database,
):
    await reactor_database.execute("CREATE TABLE guarded AS SELECT 1 AS one")
    holder, connection = await reactor_database.connect(), await reactor_database.connect()
    async with holder.transaction():
        await holder.execute("SELECT * FROM guarded FOR UPDATE")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_it_waits, reactor_database, connection, scope)
                async with connection.transaction():
                    await connection.execute("CREATE TABLE half_done ()")
                    await connection.execute("UPDATE guarded SET one = 2")

        await assert_whole(connection, "while the lock is still held")
        assert not connection.closed
    assert await reactor_database.fetch_value("SELECT to_regclass('half_done')") is None


@pytest.fixture
def short_bounds(monkeypatch):
    monkeypatch.setattr(module, "ABANDON_SECONDS_MAX", 0.2)
    monkeypatch.setattr(module, "BOUNDARY_SECONDS_MAX", 0.2)


async def test_a_server_that_answers_nothing_costs_a_cancelled_task_no_more_than_the_bound(
    reactor_database, short_bounds
):
    dsn = reactor_database.dsn.reveal()
    port = int(psycopg.conninfo.conninfo_to_dict(dsn)["port"])
    async with open_proxy("127.0.0.1", port) as proxy:
        connection = await connect(
            Secret(dsn.replace(f":{port}/", f":{proxy.port}/")), application_name="stalled"
        )
        proxy.stall()
        started = trio.current_time()
        with trio.move_on_after(0.05):
            await connection.execute("SELECT 1")
        taken = trio.current_time() - started
        proxy.heal()
        await proxy.wait_open(0)

    assert connection.closed
    assert 0.25 <= taken < 5


async def test_a_transaction_whose_server_went_silent_ends_with_an_error_within_the_bounds(
    reactor_database, short_bounds
):
    dsn = reactor_database.dsn.reveal()
    port = int(psycopg.conninfo.conninfo_to_dict(dsn)["port"])
    async with open_proxy("127.0.0.1", port) as proxy:
        connection = await connect(
            Secret(dsn.replace(f":{port}/", f":{proxy.port}/")), application_name="stalled"
        )
        transaction = connection.transaction()
        await transaction.__aenter__()
        proxy.stall()
        with (
            trio.fail_after(5),
            pytest.raises(DatabaseUnavailableError, match="COMMIT had no answer"),
        ):
            await transaction.__aexit__(None, None, None)
        proxy.heal()
        await proxy.wait_open(0)

    assert connection.closed


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_of_cancels_crosses_no_results(reactor_database, seed):
    tally = {"finished": 0, "cancelled": 0}
    numbers = count()
    shared = await reactor_database.connect()
    await reactor_database.execute("CREATE TABLE stormed (number int PRIMARY KEY)")

    async def sail(dice: random.Random, *, alone: bool) -> None:
        connection = shared
        for _ in range(STORM_OPERATIONS // STORM_TASKS):
            if alone and (connection is shared or connection.closed):
                connection = await reactor_database.connect()
            with trio.move_on_after(dice.choice([0, 0.001, 0.003, 0.01]) * dice.random()) as scope:
                await dice.choice(FOR_ONE if alone else FOR_ANY)(
                    connection, next(numbers), dice.random() * 0.003
                )
            tally["cancelled" if scope.cancelled_caught else "finished"] += 1
            if alone and not connection.closed:
                assert connection.pgconn.transaction_status == TransactionStatus.IDLE

    async with trio.open_nursery() as nursery:
        for task in range(STORM_TASKS):
            # Two of them quarrel about one connection.
            nursery.start_soon(lambda task=task: sail(random.Random(f"{seed}.{task}"), alone=task >= 2))

    assert not shared.closed
    await assert_whole(shared, "after the storm")
    assert min(tally.values()) > STORM_OPERATIONS // 10, tally


async def ask(connection: TrioConnection, number: int, seconds: float) -> None:
    cursor = await connection.execute("SELECT %s, pg_sleep(%s)::text", (number, seconds))
    assert await cursor.fetchall() == [(number, "")]


async def ask_prepared(connection: TrioConnection, number: int, seconds: float) -> None:
    cursor = await connection.execute("SELECT %s::int", (number,), prepare=True)
    assert await cursor.fetchall() == [(number,)]


async def write_in_transaction(connection: TrioConnection, number: int, seconds: float) -> None:
    async with connection.transaction():
        cursor = await connection.execute("INSERT INTO stormed VALUES (%s) RETURNING number", (number,))
        assert await cursor.fetchall() == [(number,)]


async def ask_in_pipeline(connection: TrioConnection, number: int, seconds: float) -> None:
    async with connection.pipeline():
        cursors = [await connection.execute("SELECT %s::int, %s::int", (number, part)) for part in range(5)]
        assert [await cursor.fetchone() for cursor in cursors] == [(number, part) for part in range(5)]


FOR_ANY = (ask, ask_prepared)
FOR_ONE = (ask, ask_prepared, write_in_transaction, ask_in_pipeline)  # A block belongs to one task.


async def cancel_once_it_runs(database, connection: TrioConnection, query: str) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_it_runs, database, connection, scope)
            await connection.execute(query)
    assert scope.cancelled_caught


async def cancel_when_it_runs(database, connection: TrioConnection, scope: trio.CancelScope) -> None:
    await until_somebody_is(database, f"pid = {connection.pgconn.backend_pid} AND state = 'active'")
    scope.cancel()


async def cancel_when_it_waits(database, connection: TrioConnection, scope: trio.CancelScope) -> None:
    await until_somebody_is(database, f"pid = {connection.pgconn.backend_pid} AND wait_event_type = 'Lock'")
    scope.cancel()


async def until_somebody_is(database, condition: str) -> None:
    while not await database.fetch_value(f"SELECT count(*) FROM pg_stat_activity WHERE {condition}"):
        await trio.lowlevel.checkpoint()


async def until_nobody_is(database, condition: str) -> None:
    while await database.fetch_value(f"SELECT count(*) FROM pg_stat_activity WHERE {condition}"):
        await trio.lowlevel.checkpoint()


async def test_an_old_libpq_cancels_in_a_thread(reactor_database, monkeypatch):
    monkeypatch.setattr(type(module.capabilities), "has_cancel_safe", lambda *_, **__: False)
    connection = await reactor_database.connect()
    await cancel_once_it_runs(reactor_database, connection, "SELECT pg_sleep(600)")

    assert not connection.closed
    await assert_whole(connection, "after the sleep")


async def test_another_task_may_cancel_a_statement_which_then_raises(reactor_database):
    connection = await reactor_database.connect()

    async def cancel():
        await until_somebody_is(
            reactor_database, f"pid = {connection.pgconn.backend_pid} AND state = 'active'"
        )
        await connection.cancel_safe()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with pytest.raises(DatabaseUnavailableError, match="canceling statement due to user request"):
            await connection.execute("SELECT pg_sleep(600)")
    await assert_whole(connection, "after that")

    connection.close_now()
    await connection.cancel_safe()


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_without_autocommit_a_transaction_is_ended_by_hand(keep, reactor_database, end):
    await reactor_database.execute("CREATE TABLE written (number int)")
    numbers = count()

    async def write(connection: TrioConnection) -> None:
        await connection.set_autocommit(True)
        await connection.set_autocommit(False)
        try:
            await connection.execute("INSERT INTO written VALUES (%s)", (next(numbers),))
        except BaseException:
            connection.close_now()  # Nobody else would roll back.
            raise
        await getattr(connection, end)()

    async def check(connection: TrioConnection, trial: Trial) -> None:
        rows = await reactor_database.fetch_value("SELECT count(*) FROM written")
        assert rows == (1 if trial.finished and end == "commit" else 0)
        await reactor_database.execute("TRUNCATE written")

    connection = await keep()
    for step in count(1):
        if connection.closed:
            connection = await keep()
        async with cancelled_at(step) as trial:
            await write(connection)
        if connection.closed:
            assert trial.cancelled
        await check(connection, trial)
        if not trial.reached:
            break

    assert step > 2
