from __future__ import annotations

import subprocess
import sys

import pytest
import trio
from psycopg.conninfo import make_conninfo

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.pool import open_pool
from pggit_reactor.errors import ConfigurationError, DatabaseError, DatabaseUnavailableError


@pytest.fixture
async def pool(reactor_database):
    async with open_pool(reactor_database.dsn, application_name="the-pool", size_max=2) as pool:
        yield pool


async def test_statements_run_commit_and_return_what_they_say(pool, reactor_database):
    assert await pool.execute("CREATE TABLE things AS SELECT generate_series(1, 3) AS thing") == 3
    assert await pool.fetch("SELECT thing FROM things WHERE thing > %s ORDER BY thing", (1,)) == [(2,), (3,)]
    assert await pool.fetch_one("SELECT thing FROM things WHERE thing = %(thing)s", {"thing": 3}) == (3,)
    assert await pool.fetch_one("SELECT thing FROM things WHERE thing = 4") is None
    assert await pool.fetch_one("SHOW application_name") == ("the-pool",)

    assert await reactor_database.fetch_value("SELECT count(*) FROM things") == 3


async def test_a_transaction_commits_whole_or_not_at_all(pool, reactor_database):
    await pool.execute("CREATE TABLE written (number int)")
    async with pool.transaction() as transaction:
        await transaction.execute("INSERT INTO written VALUES (1)")
        assert await transaction.fetch_one("SELECT count(*) FROM written") == (1,)
        assert await transaction.fetch("SELECT number FROM written") == [(1,)]
        assert await reactor_database.fetch_value("SELECT count(*) FROM written") == 0
    with pytest.raises(KeyError):  # noqa: PT012  # the exception has to leave a block
        async with pool.transaction() as transaction:
            await transaction.execute("INSERT INTO written VALUES (2)")
            raise KeyError

    assert await reactor_database.fetch("SELECT number FROM written") == [(1,)]


async def test_a_cancelled_transaction_is_rolled_back_and_its_connection_serves_on(pool, reactor_database):
    await pool.execute("CREATE TABLE written (number int)")
    for _ in range(4):
        with trio.CancelScope() as scope:
            async with pool.transaction() as transaction:
                await transaction.execute("INSERT INTO written VALUES (2)")
                scope.cancel()
                await transaction.execute("INSERT INTO written VALUES (3)")
        assert scope.cancelled_caught

    assert await pool.fetch("SELECT number FROM written") == []
    assert await reactor_database.fetch_value(IN_TRANSACTION) == 0


IN_TRANSACTION = """
    SELECT count(*) FROM pg_stat_activity
    WHERE application_name = 'the-pool' AND state LIKE 'idle in transaction%'
"""
ASLEEP = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the-pool' AND wait_event = 'PgSleep'"
)


async def test_a_cancelled_statement_is_cancelled_in_the_server(pool, reactor_database):
    async def cancel_while_it_sleeps(scope):
        while not await reactor_database.fetch_value(ASLEEP):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_while_it_sleeps, nursery.cancel_scope)
        await pool.fetch("SELECT pg_sleep(600)")

    while await reactor_database.fetch_value(ASLEEP):
        await trio.lowlevel.checkpoint()
    assert await pool.fetch("SELECT 'fresh'") == [("fresh",)]


async def test_more_tasks_than_connections_take_turns(pool, reactor_database):
    answers = set()

    async def ask(number):
        answers.add(await pool.fetch_one("SELECT %s::int", (number,)))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)

    assert answers == {(number,) for number in range(20)}
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the-pool'"
    assert await reactor_database.fetch_value(sessions) <= 2


async def test_errors_are_ours(pool):
    with pytest.raises(DatabaseError) as caught:
        await pool.fetch("SELECT * FROM nowhere")
    assert caught.value.sqlstate == "42P01"

    async with pool.transaction() as transaction:
        with pytest.raises(DatabaseError):
            await transaction.fetch("SELECT 1 / 0")


async def test_a_pool_outlives_the_loss_of_its_connections(pool, reactor_database):
    await pool.fetch("SELECT 1")
    await reactor_database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'the-pool'"
    )

    assert await pool.fetch("SELECT 2") == [(2,)]


async def test_waiting_for_a_connection_has_an_end(reactor_database):
    async with (
        open_pool(reactor_database.dsn, application_name="test", size_max=1, timeout_seconds=0.2) as pool,
        pool.transaction(),
    ):
        with pytest.raises(DatabaseUnavailableError):
            await pool.fetch("SELECT 1")


async def test_a_server_that_is_not_there_is_told_at_once(reactor_database):
    dsn = Secret(make_conninfo(reactor_database.dsn.reveal(), port="1"))
    with trio.fail_after(5), pytest.raises(DatabaseUnavailableError, match="port 1 failed"):
        async with open_pool(dsn, application_name="test"):
            pytest.fail("there is nobody")
    with pytest.raises(ConfigurationError):
        async with open_pool(Secret("nonsense"), application_name="test"):
            pytest.fail("there is nobody")


def test_a_pool_works_where_psycopg_was_imported_first(reactor_database):
    program = """
import sys, psycopg, trio
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.pool import open_pool
async def main():
    async with open_pool(Secret(sys.stdin.read()), application_name="test") as pool:
        print(await pool.fetch("SELECT 1"))
trio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=reactor_database.dsn.reveal(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.stdout, done.stderr) == ("[(1,)]\n", "")
