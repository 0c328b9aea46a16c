from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import trio

from pggit_reactor.db import migrate as module
from pggit_reactor.db.connect import open_connection
from pggit_reactor.db.migrate import (
    check,
    load_migrations,
    migrate,
    migrations_folder,
    newest_version,
    refuse_newer,
    require_current,
)
from pggit_reactor.errors import (
    DatabaseUnavailableError,
    MigrationError,
    PendingMigrationsError,
    SchemaTooNewError,
)
from pggit_reactor.testing.database import DatabaseTemplate


@pytest.fixture
def empty_database(postgres_server):
    """A database that no migration has touched."""
    with DatabaseTemplate(postgres_server, migrations=()) as template, template.clone() as database:
        yield database


@pytest.fixture
def empty_databases(postgres_server):
    """Four of them, on one server."""
    with DatabaseTemplate(postgres_server, migrations=()) as template, ExitStack() as stack:
        yield [stack.enter_context(template.clone()) for _ in range(4)]


@pytest.fixture
def folder(tmp_path):
    """Writes migrations and loads them."""

    def write(**files: str) -> tuple[module.Migration, ...]:
        for name, text in files.items():
            (tmp_path / f"{name.removeprefix('m')}.sql").write_text(text, encoding="utf-8")
        return load_migrations(tmp_path)

    return write


ONE = {"m0001_first": "CREATE TABLE pggit.first (id int);"}
TWO = {**ONE, "m0002_second": "-- breaking\nCREATE TABLE pggit.second (id int);"}


def names(migrations) -> list[str]:
    return [f"{migration.version:04}_{migration.name}" for migration in migrations]


async def test_what_is_pending_is_applied_in_order_and_only_once(empty_database, folder):
    connection = await empty_database.connect()
    report = await migrate(connection, folder(**ONE))
    assert (names(report.applied), report.already_count) == (["0001_first"], 0)

    report = await migrate(connection, folder(**TWO))
    assert (names(report.applied), report.already_count) == (["0002_second"], 1)

    report = await migrate(connection, folder(**TWO))
    assert (names(report.applied), report.already_count) == ([], 2)
    rows = await empty_database.fetch(
        "SELECT version, name, breaking, applied_by, applied_at <= now() FROM pggit.schema_migration ORDER BY version"
    )
    assert rows == [(1, "first", False, "reactor", True), (2, "second", True, "reactor", True)]


async def test_expanding_stops_before_the_first_contract_step(empty_database, folder):
    connection = await empty_database.connect()
    three = folder(**TWO, m0003_third="CREATE TABLE pggit.third (id int);")
    report = await migrate(connection, three, expand_only=True)
    assert (names(report.applied), names(report.left)) == (["0001_first"], ["0002_second", "0003_third"])

    report = await migrate(connection, three, expand_only=True)
    assert (report.applied, names(report.left)) == ((), ["0002_second", "0003_third"])
    report = await migrate(connection, three)
    assert (names(report.applied), report.left) == (["0002_second", "0003_third"], ())


async def test_a_program_works_before_its_own_contract_steps_but_not_without_an_expansion(
    empty_database, folder
):
    connection = await empty_database.connect()
    two = folder(**TWO)
    await migrate(connection, two, expand_only=True)
    await require_current(connection, two)
    three = folder(m0003_third="CREATE TABLE pggit.third (id int);")

    assert (await check(connection, two)).is_current
    with pytest.raises(PendingMigrationsError, match="lacks 0002_second, 0003_third"):
        await require_current(connection, three)


async def test_a_contract_step_beyond_what_is_known_is_refused_and_an_expansion_is_not(reactor_database):
    connection = await reactor_database.connect(role="pggit_worker")
    known = newest_version()
    add = "INSERT INTO pggit.schema_migration (version, name, digest, breaking) VALUES (%s, %s, '', %s)"
    await reactor_database.execute(add, (known + 1, "expand", False))
    await refuse_newer(connection, known)
    await reactor_database.execute(add, (known + 2, "contract", True))
    await reactor_database.execute(add, (known + 3, "more", True))

    with pytest.raises(SchemaTooNewError, match=f"{known + 2:04}_contract, {known + 3:04}_more; upgrade"):
        await refuse_newer(connection, known)
    with pytest.raises(SchemaTooNewError, match=f"program: {known + 3:04}_more;"):
        await refuse_newer(connection, known + 2)
    await refuse_newer(connection, known + 3)


async def test_check_tells_what_is_there_and_changes_nothing(empty_database, folder):
    connection = await empty_database.connect()
    status = await check(connection, folder(**TWO))
    assert (status.applied, names(status.pending), status.is_current) == (
        (),
        ["0001_first", "0002_second"],
        False,
    )
    assert await empty_database.fetch_value("SELECT to_regnamespace('pggit')") is None

    await migrate(connection, folder(**TWO))
    status = await check(connection, folder(m0001_first="SELECT 'edited'"))
    assert names(status.edited) == ["0001_first"]
    assert not status.is_current
    status = await check(connection, folder(**TWO)[:1])
    assert names(status.unknown) == names(status.too_new) == ["0002_second"]


async def test_our_own_migrations_make_a_schema_that_is_current(reactor_database):
    connection = await reactor_database.connect()

    assert (await check(connection)).is_current
    assert (await migrate(connection)).applied == ()
    await require_current(connection)


async def test_a_failure_leaves_nothing_and_names_file_and_line(empty_database, folder):
    broken = folder(
        **ONE, m0002_broken="\nCREATE TABLE pggit.half (id int);\n\n-- here\nSELECT 1 / 0;\nSELECT 3;"
    )
    connection = await empty_database.connect()

    with pytest.raises(MigrationError, match=r"0002_broken\.sql, line 5: division by zero"):
        await migrate(connection, broken)

    assert await empty_database.fetch_value("SELECT to_regnamespace('pggit')") is None
    assert not connection.closed


async def test_an_edited_migration_is_refused(empty_database, folder):
    connection = await empty_database.connect()
    await migrate(connection, folder(**ONE))

    with pytest.raises(MigrationError, match="0001_first changed after being applied"):
        await migrate(connection, folder(m0001_first="CREATE TABLE pggit.first (id bigint);"))


async def test_a_migration_that_was_mended_stands_for_the_one_that_it_names(empty_database, folder):
    connection = await empty_database.connect()
    (before,) = folder(**ONE)
    await migrate(connection, (before,))

    mended = folder(m0001_first=f"-- mends {before.digest}\nCREATE TABLE pggit.first (id bigint);")
    assert (await migrate(connection, mended)).applied == ()
    await require_current(connection, mended)


async def test_an_unknown_expansion_is_lived_with_and_an_unknown_contraction_is_not(empty_database, folder):
    connection = await empty_database.connect()
    three = folder(**TWO, m0003_third="SELECT 3")
    await migrate(connection, three)

    await require_current(connection, three[:2])
    assert (await migrate(connection, three[:2])).applied == ()
    for refusing in (migrate, require_current):
        with pytest.raises(SchemaTooNewError, match="0002_second"):
            await refusing(connection, three[:1])


async def test_a_program_refuses_to_start_on_a_schema_that_lacks_something(empty_database, folder):
    connection = await empty_database.connect()
    with pytest.raises(MigrationError, match=r"lacks 0001_first; run `pggit-reactor migrate`"):
        await require_current(connection, folder(**ONE))


async def test_a_migration_that_was_left_out_is_refused(empty_database, folder):
    connection = await empty_database.connect()
    await migrate(connection, folder(**TWO))
    await empty_database.execute("DELETE FROM pggit.schema_migration WHERE version = 1")

    with pytest.raises(MigrationError, match="0001_first was not applied, but migration 0002 was"):
        await migrate(connection, folder(**TWO))


async def test_tables_of_phase_8_are_noticed_until_they_are_adopted(empty_database, folder):
    await empty_database.execute("CREATE SCHEMA pggit")
    await empty_database.execute("CREATE TABLE pggit.alert_delivery_queue (delivery_id bigserial)")
    connection = await empty_database.connect()
    assert (await check(connection, folder(**ONE))).legacy
    await migrate(connection, folder(**ONE))

    assert not (await check(connection, folder(**ONE))).legacy


async def test_a_schema_pggit_of_somebody_else_is_shared(empty_database, folder):
    await empty_database.execute("CREATE SCHEMA pggit")
    await empty_database.execute("CREATE TABLE pggit.commits (id int)")

    assert (await migrate(await empty_database.connect(), folder(**ONE))).applied


async def test_of_two_runs_at_once_the_second_waits_and_finds_nothing_to_do(empty_database, folder):
    slow = folder(m0001_slow="CREATE TABLE pggit.slow (id int); SELECT pg_sleep(0.2);")
    reports = []

    async def run():
        reports.append(await migrate(await empty_database.connect(), slow))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(run)

    assert sorted(len(report.applied) for report in reports) == [0, 0, 1]


async def test_a_cancelled_run_leaves_nothing_and_no_lock(empty_database, folder):
    endless = folder(m0001_endless="CREATE TABLE pggit.half (id int); SELECT pg_sleep(600);")
    connection = await empty_database.connect()

    async def cancel_while_it_sleeps(scope):
        while not await empty_database.fetch_value(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        ):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_while_it_sleeps, nursery.cancel_scope)
        await migrate(connection, endless)

    assert await empty_database.fetch_value("SELECT to_regnamespace('pggit')") is None
    assert await empty_database.fetch_value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_a_lost_database_is_unavailable_and_no_fault_of_the_migration(empty_database, folder):
    fatal = folder(m0001_fatal="SELECT pg_terminate_backend(pg_backend_pid());")

    with pytest.raises(DatabaseUnavailableError):
        await migrate(await empty_database.connect(), fatal)


async def test_the_sessions_settings_decide_nothing(empty_database, folder):
    stubborn = await empty_database.connect(statement_timeout="50", search_path="information_schema, public")
    migrations = folder(
        m0001_slow="SELECT pg_sleep(0.2); CREATE TABLE pggit.seen AS SELECT current_setting('search_path') AS path;"
    )
    await migrate(stubborn, migrations)

    assert await empty_database.fetch("SELECT path FROM pggit.seen") == [("pg_catalog, pg_temp",)]
    cursor = await stubborn.execute("SHOW search_path")
    assert await cursor.fetchone() == ("information_schema, public",)


ROLES = """
DO $$ BEGIN
    CREATE ROLE migrate_race_{n} NOLOGIN;
EXCEPTION WHEN duplicate_object THEN NULL;
END $$;
GRANT pg_monitor TO migrate_race_{n};
ALTER ROLE migrate_race_{n} SET work_mem = '5MB';
"""


async def test_databases_that_meet_on_the_clusters_roles_try_again(empty_databases, folder):
    migrations = folder(m0001_roles="".join(ROLES.format(n=number) for number in range(5)))
    for _ in range(5):
        for database in empty_databases:
            await database.execute("DROP SCHEMA IF EXISTS pggit CASCADE")
        for number in range(5):
            await empty_databases[0].execute(f"DROP ROLE IF EXISTS migrate_race_{number}")
        async with trio.open_nursery() as nursery:
            for database in empty_databases:
                nursery.start_soon(migrate, await database.connect(), migrations)
        for database in empty_databases:
            assert await database.fetch_value("SELECT count(*) FROM pggit.schema_migration") == 1


@pytest.mark.parametrize("failures", [1, module.TRIES_MAX])
async def test_meeting_somebody_on_a_role_is_tried_again_a_bounded_number_of_times(
    empty_database, folder, failures
):
    """A sequence is outside of transactions, so it counts the tries that were rolled back."""
    await empty_database.execute("CREATE SEQUENCE public.tries")
    meets = folder(
        m0001_meets=f"""DO $$ BEGIN
            IF nextval('public.tries') <= {failures} THEN
                RAISE EXCEPTION 'tuple concurrently updated' USING ERRCODE = 'XX000';
            END IF;
        END $$;"""
    )
    connection = await empty_database.connect()
    if failures < module.TRIES_MAX:
        await migrate(connection, meets)
    else:
        with pytest.raises(MigrationError, match=r"0001_meets\.sql, line 1: tuple concurrently updated"):
            await migrate(connection, meets)

    tries = await empty_database.fetch_value("SELECT last_value FROM public.tries")
    assert tries == min(failures + 1, module.TRIES_MAX)


async def test_a_database_that_is_not_utf8_is_refused(postgres_server, folder):
    with psycopg.connect(postgres_server.dsn.reveal(), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS not_utf8")
        admin.execute(
            "CREATE DATABASE not_utf8 TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
        )
    async with open_connection(postgres_server.dsn_for("not_utf8"), application_name="test") as connection:
        with pytest.raises(MigrationError, match="encoding SQL_ASCII; only UTF8"):
            await migrate(connection, folder(**ONE))


async def test_an_old_server_is_refused(empty_database, folder, monkeypatch):
    monkeypatch.setattr(module, "SERVER_VERSION_MIN", 990000)
    with pytest.raises(MigrationError, match="too old"):
        await migrate(await empty_database.connect(), folder(**ONE))


# -- files


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"m0002_late": ""}, "follows a gap; expected 0001"),
        ({"m0001_a": "", "m0003_c": ""}, "0003_c.sql follows a gap; expected 0002"),
        ({"m0001_a": "", "m0001_b": ""}, "is there twice"),
        ({"m1_short": ""}, "misnamed"),
        ({"m0001_Upper": ""}, "misnamed"),
    ],
)
def test_files_whose_numbers_say_nothing_are_refused(folder, files, message):
    with pytest.raises(MigrationError, match=message):
        folder(**files)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "0001_latin.sql").write_bytes(b"-- \xe4")
    with pytest.raises(MigrationError, match="not UTF-8"):
        load_migrations(tmp_path)


@pytest.mark.parametrize(
    ("text", "breaking"),
    [
        ("-- breaking\nSELECT 1", True),
        ("--breaking  ", True),
        ("-- breaking news", False),
        ("SELECT 1\n-- breaking", False),
    ],
)
def test_only_the_first_line_marks_a_contract_step(folder, text, breaking):
    (migration,) = folder(m0001_one=text)
    assert migration.breaking is breaking


def test_the_migrations_of_a_checkout_are_beside_the_package():
    assert migrations_folder() == Path(__file__).parents[3] / "migrations"
    assert load_migrations()


def test_an_installation_without_migrations_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "package" / "db" / "migrate.py"))
    with pytest.raises(MigrationError, match="missing from this installation"):
        load_migrations()
    (tmp_path / "package" / "migrations").mkdir(parents=True)
    assert load_migrations() == ()
