from __future__ import annotations

import socket
import traceback

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import connect, open_connection
from pggit_reactor.db.connection import NOTIFIES_KEPT_MAX
from pggit_reactor.db.embedded import open_embedded_postgres
from pggit_reactor.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    ReadOnlyDatabaseError,
    RowLockedError,
)
from pggit_reactor.testing.database import QUICK_SETTINGS

PATIENCE_SECONDS = 5


@pytest.fixture
def changed_dsn(reactor_database):
    def change(**params: object) -> Secret[str]:
        return Secret(make_conninfo(reactor_database.dsn.reveal(), **params))

    return change


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@pytest.fixture
def silent_port():
    """Accepts connections, in its backlog, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield listener.getsockname()[1]


# -- connecting


async def test_a_connection_commits_each_statement_by_itself_and_takes_session_settings(reactor_database):
    async with open_connection(
        reactor_database.dsn,
        application_name="the-worker",
        options={"statement_timeout": "4321", "search_path": "public, a\\b"},
    ) as connection:
        cursor = await connection.execute(
            "SELECT current_setting('application_name'), current_setting('statement_timeout'),"
            " current_setting('search_path'), current_setting('client_encoding')"
        )
        assert await cursor.fetchone() == ("the-worker", "4321ms", "public, a\\b", "UTF8")
        await connection.execute("CREATE TABLE made ()")
    assert connection.closed
    assert await reactor_database.fetch_value("SELECT to_regclass('made')::text") == "made"


async def test_options_in_the_url_are_kept_beside_ours(changed_dsn):
    dsn = changed_dsn(options="-c lock_timeout=1234")
    async with open_connection(
        dsn, application_name="test", options={"statement_timeout": "5s"}
    ) as connection:
        cursor = await connection.execute(
            "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
        )
        assert await cursor.fetchone() == ("1234ms", "5s")


async def test_a_dead_peer_is_noticed_by_tcp(reactor_database):
    connection = await reactor_database.connect()
    with socket.socket(fileno=connection.pgconn.socket) as borrowed:
        try:
            level = socket.IPPROTO_TCP
            idle = borrowed.getsockopt(level, socket.TCP_KEEPIDLE)
            every = borrowed.getsockopt(level, socket.TCP_KEEPINTVL)
            times = borrowed.getsockopt(level, socket.TCP_KEEPCNT)
            unanswered = borrowed.getsockopt(level, socket.TCP_USER_TIMEOUT)
            alive = borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        finally:
            borrowed.detach()

    assert alive
    assert idle + every * times <= 15
    assert unanswered <= 15_000


async def test_the_url_decides_about_keepalives_where_it_speaks(changed_dsn):
    async with open_connection(changed_dsn(keepalives_idle=3), application_name="test") as connection:
        with socket.socket(fileno=connection.pgconn.socket) as borrowed:
            try:
                assert borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 3
            finally:
                borrowed.detach()


async def test_hosts_are_tried_one_after_another_each_within_its_limit(changed_dsn, closed_port, silent_port):
    port = conninfo_to_dict(changed_dsn().reveal())["port"]
    dsn = changed_dsn(host="127.0.0.1,127.0.0.1,127.0.0.1", port=f"{closed_port},{silent_port},{port}")

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_connection(dsn, application_name="test", connect_timeout_seconds=0.2) as connection:
            assert str(connection.info.port) == port


async def test_a_failure_names_every_host_and_no_password(changed_dsn, closed_port, silent_port):
    dsn = changed_dsn(host="127.0.0.1,127.0.0.1", port=f"{closed_port},{silent_port}")
    password = conninfo_to_dict(dsn.reveal())["password"]

    with pytest.raises(DatabaseUnavailableError) as caught:
        await connect(dsn, application_name="test", connect_timeout_seconds=0.2)

    assert str(closed_port) in str(caught.value)
    assert str(silent_port) in str(caught.value)
    assert "no answer within 0.2 s" in str(caught.value)
    assert password not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user@host/?nosuch=hunter2",
        "user=a password=hunter2 stray",
        "hunter2",
        "host=a,b hostaddr=hunter2",
    ],
)
async def test_a_url_that_cannot_be_read_is_a_configuration_error_that_does_not_quote_it(dsn):
    with pytest.raises(ConfigurationError) as caught:
        await connect(Secret(dsn), application_name="test")

    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


async def test_a_wrong_password_is_told_by_the_server(changed_dsn):
    with pytest.raises(DatabaseUnavailableError, match="password authentication failed"):
        await connect(changed_dsn(password="wrong"), application_name="test")


class FakeNames(trio.abc.HostnameResolver):
    """Knows where ``db.example`` is; asking anybody else is an error."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        if host not in {"db.example", b"db.example"}:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0)) for address in self.addresses
        ]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_names_are_resolved_by_trio_and_every_address_is_tried(changed_dsn):
    trio.socket.set_custom_hostname_resolver(FakeNames("127.0.0.2", "127.0.0.1"))

    async with open_connection(changed_dsn(host="db.example"), application_name="test") as connection:
        assert connection.info.host == "db.example"
        assert connection.info.hostaddr == "127.0.0.1"


async def test_an_unknown_name_is_a_failure_of_its_host_alone(changed_dsn):
    trio.socket.set_custom_hostname_resolver(FakeNames("127.0.0.1"))

    async with open_connection(
        changed_dsn(host="nowhere.example,db.example"), application_name="test"
    ) as connection:
        assert connection.info.host == "db.example"
    with pytest.raises(DatabaseUnavailableError, match=r"nowhere\.example"):
        await connect(changed_dsn(host="nowhere.example"), application_name="test")


async def test_the_unix_socket_serves_as_well(postgres_server, changed_dsn):
    dsn = changed_dsn(host=str(postgres_server.socket_dir))
    async with open_connection(dsn, application_name="test") as connection:
        cursor = await connection.execute("SELECT inet_client_addr()")
        assert await cursor.fetchone() == (None,)


async def test_a_read_write_url_follows_a_failover(postgres_bin):
    standing_by = {**QUICK_SETTINGS, "default_transaction_read_only": "on"}
    async with (
        open_embedded_postgres(settings=QUICK_SETTINGS, bin_dir=postgres_bin) as old,
        open_embedded_postgres(settings=standing_by, bin_dir=postgres_bin) as new,
    ):
        password = conninfo_to_dict(old.dsn.reveal())["password"]
        async with open_connection(new.dsn, application_name="test") as admin:
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute(sql.SQL("ALTER ROLE reactor PASSWORD {}").format(password))
        both = Secret(
            make_conninfo(
                old.dsn.reveal(),
                host="127.0.0.1,127.0.0.1",
                port=f"{new.port},{old.port}",
                target_session_attrs="read-write",
            )
        )
        async with open_connection(both, application_name="test") as connection:
            assert connection.info.port == old.port

        old.crash()
        with pytest.raises(DatabaseUnavailableError, match=str(new.port)):
            await connect(both, application_name="test")
        promoted = Secret(make_conninfo(new.dsn.reveal(), password=password))
        async with open_connection(promoted, application_name="test") as admin:
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute("ALTER ROLE reactor SET default_transaction_read_only = off")

        async with open_connection(both, application_name="test") as connection:
            assert connection.info.port == new.port


# -- errors


@pytest.mark.parametrize(
    ("statement", "expected", "sqlstate"),
    [
        ("SELECT * FROM nowhere", DatabaseError, "42P01"),
        ("SELECT 1 / 0", DatabaseError, "22012"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", DatabaseUnavailableError, "57P01"),
        ("SET statement_timeout = 1; SELECT pg_sleep(60)", DatabaseUnavailableError, "57014"),
        ("BEGIN READ ONLY; CREATE TABLE refused ()", ReadOnlyDatabaseError, "25006"),
        (
            "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '08006'; END $$",
            DatabaseUnavailableError,
            "08006",
        ),
        (
            "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '57P03'; END $$",
            DatabaseUnavailableError,
            "57P03",
        ),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$", DatabaseError, "40001"),
    ],
)
async def test_an_error_of_the_server_becomes_the_one_to_act_on(
    reactor_database, statement, expected, sqlstate
):
    connection = await reactor_database.connect()

    with pytest.raises(DatabaseError) as caught:
        await connection.execute(statement)

    assert type(caught.value) is expected
    assert caught.value.sqlstate == sqlstate


async def test_a_held_lock_is_a_locked_row(reactor_database):
    holder, other = await reactor_database.connect(), await reactor_database.connect(lock_timeout="1")
    await holder.execute("CREATE TABLE held AS SELECT 1 AS one")
    async with holder.transaction():
        await holder.execute("UPDATE held SET one = 2")
        for statement in ("SELECT * FROM held FOR UPDATE NOWAIT", "UPDATE held SET one = 3"):
            with pytest.raises(RowLockedError):
                await other.execute(statement)


async def test_a_broken_deadlock_is_a_locked_row(reactor_database):
    first, second = [await reactor_database.connect(deadlock_timeout="10ms") for _ in range(2)]
    await first.execute("CREATE TABLE forks AS SELECT generate_series(1, 2) AS fork")
    holding = []
    both_hold_one = trio.Event()
    failures = []

    async def dine(connection, mine, theirs):
        try:
            async with connection.transaction():
                await connection.execute("SELECT * FROM forks WHERE fork = %s FOR UPDATE", (mine,))
                holding.append(mine)
                if len(holding) == 2:
                    both_hold_one.set()
                await both_hold_one.wait()
                await connection.execute("SELECT * FROM forks WHERE fork = %s FOR UPDATE", (theirs,))
        except DatabaseError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dine, first, 1, 2)
        nursery.start_soon(dine, second, 2, 1)

    assert [type(failure) for failure in failures] == [RowLockedError]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO vault VALUES (1, 'sesame')",
        "INSERT INTO vault VALUES (2, NULL), (3, 'sesame'), (3, 'sesame')",
        "UPDATE vault SET word = NULL WHERE word = 'sesame'",
        "SELECT 'sesame'::int",
        "SELECT '{\"sesame\": tru}'::jsonb",
        "SELECT 'sesame'::timestamptz",
        "INSERT INTO vault VALUES (9, repeat('sesame', 9))",
    ],
)
async def test_no_error_shows_a_value_of_a_row(reactor_database, statement):
    await reactor_database.execute("CREATE TABLE vault (id int UNIQUE, word varchar(20) NOT NULL)")
    await reactor_database.execute("INSERT INTO vault VALUES (1, 'sesame')")

    with pytest.raises(DatabaseError) as caught:
        await reactor_database.execute(statement)

    shown = "".join(traceback.format_exception(caught.value))
    assert "sesame" not in shown.replace(statement, "")
    assert caught.value.__cause__ is None


async def test_a_wrong_number_of_parameters_is_our_error_too(reactor_database):
    with pytest.raises(DatabaseError, match="placeholder"):
        await reactor_database.execute("SELECT %s, %s", (1,))


async def test_a_server_that_goes_away_is_unavailable_and_the_connection_closed(reactor_database):
    connection = await reactor_database.connect()
    await reactor_database.execute("SELECT pg_terminate_backend(%s)", (connection.pgconn.backend_pid,))

    for _ in range(2):
        with pytest.raises(DatabaseUnavailableError):
            await connection.execute("SELECT 1")
    assert connection.closed


async def test_an_error_in_a_pipeline_is_ours_and_leaves_the_connection_usable(reactor_database):
    connection = await reactor_database.connect()
    with pytest.raises(DatabaseError) as caught:  # noqa: PT012  # what is sent and what is raised are apart
        async with connection.pipeline():
            await connection.execute("SELECT 1")
            await connection.execute("SELECT * FROM nowhere")
            await connection.execute("SELECT 2")

    assert caught.value.sqlstate == "42P01"
    cursor = await connection.execute("SELECT 3")
    assert await cursor.fetchone() == (3,)


async def test_a_deferred_constraint_fails_the_transaction_with_our_error(reactor_database):
    connection = await reactor_database.connect()
    await connection.execute("CREATE TABLE once (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    with pytest.raises(DatabaseError) as caught:
        async with connection.transaction():
            await connection.execute("INSERT INTO once VALUES (1), (1)")

    assert caught.value.sqlstate == "23505"
    assert await reactor_database.fetch("SELECT * FROM once") == []


async def test_an_exception_in_a_transaction_rolls_back_and_comes_through(reactor_database):
    connection = await reactor_database.connect()
    with pytest.raises(KeyError):  # noqa: PT012  # the exception has to leave a block
        async with connection.transaction():
            await connection.execute("CREATE TABLE undone ()")
            raise KeyError

    assert await reactor_database.fetch_value("SELECT to_regclass('undone')") is None


async def test_a_failed_savepoint_spares_the_transaction_around_it(reactor_database):
    connection = await reactor_database.connect()
    async with connection.transaction():
        await connection.execute("CREATE TABLE kept ()")
        with pytest.raises(DatabaseError):
            async with connection.transaction():
                await connection.execute("SELECT 1 / 0")

    assert await reactor_database.fetch_value("SELECT to_regclass('kept')::text") == "kept"


# -- notifications


async def test_notifications_arrive_with_channel_payload_and_sender(reactor_database):
    connection = await reactor_database.connect()
    await connection.execute("LISTEN here")
    sender = await reactor_database.fetch_value("SELECT pg_backend_pid()")
    await reactor_database.execute("NOTIFY here, 'hello'")

    assert await connection.wait_notifies() == [psycopg.Notify("here", "hello", sender)]


async def test_a_waiting_task_is_woken_by_a_notification(reactor_database):
    connection = await reactor_database.connect()
    await connection.execute("LISTEN here")
    heard = []

    async def wait():
        heard.extend(await connection.wait_notifies())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert heard == []
        await reactor_database.execute("NOTIFY here")

    assert [notify.channel for notify in heard] == ["here"]


async def test_notifications_that_came_while_statements_ran_are_kept_in_order(reactor_database):
    connection = await reactor_database.connect()
    await connection.execute("LISTEN here")
    for number in range(5):
        await reactor_database.execute("SELECT pg_notify('here', %s)", (str(number),))
        await connection.execute("SELECT 1")

    heard = []
    while len(heard) < 5:
        heard += [notify.payload for notify in await connection.wait_notifies()]
    assert heard == list("01234")
    assert connection._notified.maxlen == NOTIFIES_KEPT_MAX


async def test_a_lost_connection_ends_the_wait_for_notifications(reactor_database):
    connection = await reactor_database.connect()
    await connection.execute("LISTEN here")

    async def cut():
        await reactor_database.execute("SELECT pg_terminate_backend(%s)", (connection.pgconn.backend_pid,))

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the wait has to run beside the cut
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.wait_notifies)
            await trio.testing.wait_all_tasks_blocked()
            await cut()

    assert [type(error) for error in caught.value.exceptions] == [DatabaseUnavailableError]


# -- closing


async def test_closing_wakes_the_task_that_waits(reactor_database):
    connection = await reactor_database.connect()
    outcomes = []

    async def wait():
        try:
            await connection.execute("SELECT pg_sleep(600)")
        except DatabaseUnavailableError as error:
            outcomes.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        connection.close_now()

    assert outcomes == ["the socket of the connection was closed"]


async def test_close_closes_even_when_cancelled_and_twice(reactor_database):
    connection = await reactor_database.connect()
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.close()
    assert scope.cancelled_caught
    assert connection.closed

    await connection.close()
    for use in (connection.execute("SELECT 1"), connection.wait_notifies(), connection.commit()):
        with pytest.raises(DatabaseUnavailableError):
            await use
    with pytest.raises(DatabaseUnavailableError):
        async with connection.transaction():
            pytest.fail("there is no connection to begin on")


def test_a_connection_can_be_closed_after_its_trio_has_ended(reactor_database):
    connection = trio.run(reactor_database.connect)
    connection.close_now()

    assert connection.closed


async def test_a_connection_closed_inside_a_transaction_does_not_pass_for_a_commit(reactor_database):
    connection = await reactor_database.connect()
    with pytest.raises(DatabaseUnavailableError, match="inside a transaction"):
        async with connection.transaction():
            connection.close_now()


# -- other tasks


async def test_a_statement_lets_other_tasks_run_and_is_a_checkpoint(reactor_database):
    connection = await reactor_database.connect()
    with trio.testing.assert_checkpoints():
        await connection.execute("SELECT 1")
    async with connection.pipeline():
        with trio.testing.assert_checkpoints():
            await connection.execute("SELECT 1")


async def test_tasks_that_share_a_connection_take_turns(reactor_database):
    connection = await reactor_database.connect()
    answers = {}

    async def ask(number):
        cursor = await connection.execute("SELECT %s::int", (number,))
        answers[number] = await cursor.fetchone()

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)

    assert answers == {number: (number,) for number in range(20)}


async def test_a_statement_larger_than_the_socket_takes_at_once_goes_through(reactor_database):
    connection = await reactor_database.connect()
    cursor = await connection.execute("SELECT length(%s)", ("x" * 20_000_000,))

    assert await cursor.fetchone() == (20_000_000,)


async def test_large_questions_and_answers_in_a_pipeline_do_not_wait_for_each_other(reactor_database):
    connection = await reactor_database.connect()
    text = "x" * 3_000_000
    with trio.fail_after(PATIENCE_SECONDS * 4):
        async with connection.pipeline():
            cursors = [await connection.execute("SELECT %s::text", (text,)) for _ in range(6)]
            assert [await cursor.fetchone() for cursor in cursors] == [(text,)] * 6


async def test_what_cannot_be_cleaned_up_within_a_bound_is_refused(reactor_database):
    connection = await reactor_database.connect()
    for refused in (connection.notifies, connection.cursor().stream, lambda: connection.cursor(name="walk")):
        with pytest.raises(NotImplementedError):
            refused()


async def test_a_copy_in_brings_rows_and_an_exception_in_it_none(reactor_database):
    connection = await reactor_database.connect()
    await connection.execute("CREATE TABLE copied (number int)")
    for failing in (False, True):
        try:
            async with connection.cursor().copy("COPY copied FROM STDIN") as copy:
                await copy.write_row((1,))
                if failing:
                    raise KeyError
        except KeyError:
            pass

    assert await reactor_database.fetch("SELECT number FROM copied") == [(1,)]
    cursor = await connection.execute("SELECT 2")
    assert await cursor.fetchone() == (2,)
