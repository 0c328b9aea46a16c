from __future__ import annotations

import subprocess
import sys

import pytest

from pggit_reactor.db.embedded import open_embedded_postgres
from pggit_reactor.errors import DatabaseError, DatabaseUnavailableError
from pggit_reactor.testing.database import QUICK_SETTINGS, DatabaseTemplate, open_database


async def test_the_database_of_a_test_is_migrated(reactor_database):
    assert await reactor_database.fetch_value("SELECT count(*) FROM pggit.schema_migration") >= 1


@pytest.mark.parametrize("turn", ["first", "second"])
async def test_no_test_sees_what_another_wrote(reactor_database, turn):
    assert await reactor_database.fetch_value("SELECT to_regclass('left_behind')") is None
    await reactor_database.execute("CREATE TABLE left_behind ()")


def test_a_finished_database_is_dropped_when_the_next_one_is(postgres_server):
    names = []
    with DatabaseTemplate(postgres_server) as template:
        for _ in range(3):
            with template.clone() as database:
                names.append(database.name)
        listed = template._admin.execute("SELECT datname FROM pg_database").fetchall()

    assert {name for (name,) in listed} & set(names) == {names[-1]}


async def test_a_connection_left_open_is_closed_with_its_database(reactor_template):
    with reactor_template.clone() as database:
        connection = await database.connect(statement_timeout="7s")
        cursor = await connection.execute("SHOW statement_timeout")
        assert await cursor.fetchone() == ("7s",)

    assert connection.closed
    with pytest.raises(DatabaseUnavailableError):
        await connection.execute("SELECT 1")


async def test_the_helpers_open_a_new_connection_when_theirs_was_lost(reactor_database):
    pid = await reactor_database.fetch_value("SELECT pg_backend_pid()")
    with pytest.raises(DatabaseError):
        await reactor_database.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    assert await reactor_database.fetch_value("SELECT pg_backend_pid()") != pid


async def test_a_server_of_its_own_may_crash(postgres_bin):
    async with (
        open_embedded_postgres(settings=QUICK_SETTINGS, bin_dir=postgres_bin) as server,
        open_database(server) as database,
    ):
        await database.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.crash()
        with pytest.raises(DatabaseUnavailableError):
            await database.fetch("SELECT * FROM kept")
        await server.start_async()

        assert await database.fetch("SELECT * FROM kept") == [(1,)]


def test_loading_the_plugin_imports_nothing_heavy():
    program = """
import sys
import pggit_reactor.testing.plugin
heavy = {"trio", "psycopg", "httpx", "hypothesis", "trustme", "asyncio", "attrs", "pggit_reactor.db"}
print(sorted(heavy & sys.modules.keys() - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, pytest; before = set(sys.modules)" + program],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "[]\n"
