from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import trio

from pggit_reactor.db import embedded
from pggit_reactor.db.binaries import Binaries, ServerUser, find_binaries, server_user, within_reach
from pggit_reactor.db.embedded import EmbeddedPostgres, embedded_postgres, open_embedded_postgres
from pggit_reactor.db.processes import children_of
from pggit_reactor.errors import ConfigurationError, EmbeddedPostgresError

QUICK = {"fsync": "off"}
NOBODY_ELSE = ServerUser(name="somebody", uid=54321, gid=54321)


@pytest.fixture
def data():
    """A folder for a server's data; pytest's own lie where another user may not go."""
    folder = Path(tempfile.mkdtemp(prefix="embedded-"))
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def passable(data):
    data.parent.chmod(0o755)


def ask(server: EmbeddedPostgres, query: str) -> object:
    with psycopg.connect(server.dsn.reveal()) as connection:
        return connection.execute(query).fetchone()[0]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # Whoever inherited a dead process may not have looked yet.


def running_on(folder: Path) -> list[str]:
    """Return the command lines that name *folder*."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = file.read_text(errors="replace")
            if str(folder) in command:
                found.append(command)
    return found


def test_a_server_starts_answers_and_leaves_nothing_behind(postgres_bin):
    with embedded_postgres(settings=QUICK, bin_dir=postgres_bin) as server:
        pid, folder = server.pid, server.data
        assert ask(server, "SHOW server_encoding") == "UTF8"
        assert ask(server, "SHOW fsync") == "off"
        assert ask(server, "SHOW listen_addresses") == "127.0.0.1"
        assert ask(server, "SELECT 'B' < 'a'") is True, "by code point"
        assert ask(server, "SELECT upper('ä')") == "Ä"
        assert ask(server, "SHOW server_version_num").startswith(str(server.major))

    assert not alive(pid)
    assert not folder.exists()


async def test_in_trio_a_server_starts_without_stopping_other_tasks(postgres_bin):
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.sleep(0.005)
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        async with open_embedded_postgres(settings=QUICK, bin_dir=postgres_bin) as server:
            assert turns > 3
            assert server.is_running
        nursery.cancel_scope.cancel()
    assert not server.is_running


@pytest.mark.parametrize("program", ["initdb", "postgres"])
async def test_a_start_that_is_cancelled_stops_what_it_started(data, postgres_bin, program):
    async def cancel_while_it_runs(scope: trio.CancelScope) -> None:
        while not any(f"bin/{program}\0" in command for command in running_on(data)):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_while_it_runs, nursery.cancel_scope)
        async with open_embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin):
            await trio.sleep_forever()

    assert nursery.cancel_scope.cancelled_caught
    assert running_on(data) == []


def test_data_survive_a_stop_and_a_crash(data, postgres_bin):
    server = EmbeddedPostgres(data, settings=QUICK, bin_dir=postgres_bin)
    server.start()
    try:
        with psycopg.connect(server.dsn.reveal()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.stop()
        server.start()
        assert ask(server, "SELECT one FROM kept") == 1

        family = [server.pid, *children_of(server.pid)]
        server.crash()
        assert len(family) > 3
        assert not any(alive(pid) for pid in family)
        port = server.port
        server.start()
        assert server.port == port
        assert ask(server, "SELECT one FROM kept") == 1
    finally:
        server.stop()


def test_the_data_are_private_and_the_server_is_not_root(data, postgres_bin):
    with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin) as server:
        owner = Path(f"/proc/{server.pid}").stat().st_uid
        for path in (data, data / "cluster", data / "password"):
            assert not path.stat().st_mode & 0o077, path
        assert owner != 0
        socket_file = data / "cluster" / f".s.PGSQL.{server.port}"
        assert stat.S_ISSOCK(socket_file.stat().st_mode)


def test_nobody_connects_without_the_password(data, postgres_bin):
    with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin) as server:
        for host in ("127.0.0.1", str(server.socket_dir)):
            with pytest.raises(
                psycopg.OperationalError, match=r"no password supplied|password authentication"
            ):
                psycopg.connect(
                    host=host, port=server.port, user="reactor", dbname="postgres", passfile="/dev/null"
                )
        assert "<secret>" in repr(server.dsn)


def test_a_path_too_long_for_a_socket_does_without(data, postgres_bin):
    deep = data.parent / ("d" * 100) / "data"
    deep.parent.mkdir(mode=0o755)
    with embedded_postgres(deep, settings=QUICK, bin_dir=postgres_bin) as server:
        assert server.socket_dir is None
        assert ask(server, "SELECT 1") == 1


def test_a_second_start_on_the_same_data_names_the_first(data, postgres_bin):
    with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin):
        second = EmbeddedPostgres(data, bin_dir=postgres_bin)
        with pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()}"):
            second.start()

    with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin) as server:
        assert server.is_running


def test_a_taken_port_is_told_with_what_the_server_said(data, postgres_bin):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedPostgres(data, port=taken.getsockname()[1], settings=QUICK, bin_dir=postgres_bin)
        try:
            with pytest.raises(EmbeddedPostgresError, match="Address already in use"):
                server.start()
        finally:
            server.stop()


def test_a_free_port_that_was_taken_meanwhile_is_chosen_anew(data, postgres_bin, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = embedded._free_port
        offers = iter([taken.getsockname()[1], free()])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(offers))

        with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin) as server:
            assert server.port != taken.getsockname()[1]
            assert ask(server, "SELECT 1") == 1


def test_a_wrong_setting_is_told_with_what_the_server_said(data, postgres_bin):
    server = EmbeddedPostgres(data, settings={"fsync": "sometimes"}, bin_dir=postgres_bin)
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"FATAL: .*fsync"):
            server.start()
    finally:
        server.stop()


def test_data_of_another_version_are_refused(data, postgres_bin):
    with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin):
        pass
    (data / "cluster" / "PG_VERSION").write_text("9.6\n")

    server = EmbeddedPostgres(data, bin_dir=postgres_bin)
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 9\.6"):
            server.start()
    finally:
        server.stop()


def test_a_cluster_that_was_left_half_made_is_made_again(data, postgres_bin):
    (data / "cluster.unfinished" / "base").mkdir(parents=True)
    data.chmod(0o700)

    with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin) as server:
        assert ask(server, "SELECT 1") == 1


LAUNCH = """
import sys
from pathlib import Path
from pggit_reactor.db.embedded import EmbeddedPostgres
BIN = Path(sys.argv[2]) if sys.argv[2] else None
server = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"}, bin_dir=BIN)
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def test_the_server_dies_with_its_parent_and_the_next_one_waits_for_that(data, postgres_bin):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(data), str(postgres_bin or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher:
        pid = int(launcher.stdout.readline())
        launcher.kill()
        launcher.wait()
        with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin) as server:
            assert not alive(pid)
            assert ask(server, "SELECT 1") == 1
    assert "received fast shutdown request" in (data / "server.log").read_text()


def test_a_stubborn_server_is_stopped_at_once_after_its_time(data, postgres_bin, monkeypatch):
    monkeypatch.setattr(embedded, "FAST_STOP_SECONDS_MAX", 0.1)
    monkeypatch.setattr(embedded, "IMMEDIATE_STOP_SECONDS_MAX", 0.1)
    server = EmbeddedPostgres(data, settings=QUICK, bin_dir=postgres_bin)
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop()

    assert not alive(pid)
    server.stop()


# -- binaries and users


def test_given_binaries_are_taken_or_refused_by_name(tmp_path):
    with pytest.raises(EmbeddedPostgresError, match="postgres_bin"):
        find_binaries(tmp_path)


def test_binaries_are_found_without_being_told():
    found = find_binaries()

    assert found.major >= 15
    assert (found.folder / "initdb").exists()


def test_a_folder_that_the_servers_user_may_not_enter_is_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    assert NOBODY_ELSE.barrier(Path("/usr/lib/x")) is None
    assert NOBODY_ELSE.barrier(closed / "x") is not None
    assert ServerUser(name="", uid=-1, gid=-1).barrier(closed / "x") is None


def test_data_where_the_servers_user_may_not_go_are_refused_with_what_to_do(data, postgres_bin):
    data.parent.chmod(0o700)
    if not server_user().is_other:  # Nobody drops to another user, so everything is within reach.
        with embedded_postgres(data, settings=QUICK, bin_dir=postgres_bin) as server:
            assert ask(server, "SELECT 1") == 1
        return
    server = EmbeddedPostgres(data, bin_dir=postgres_bin)
    with pytest.raises(EmbeddedPostgresError, match=r"chmod o\+x"):
        server.start()


def test_the_packages_binaries_are_copied_where_they_are_out_of_reach(data):
    found = find_binaries()
    closed = data.parent / "closed"
    closed.mkdir(mode=0o700)
    package = closed / "embedded_postgres"
    package.mkdir()
    shutil.copytree(found.folder.parent, package / "pginstall")
    libraries = found.folder.parents[2] / "embedded_postgres.libs"
    shutil.copytree(libraries, closed / "embedded_postgres.libs")

    with embedded_postgres(data, settings=QUICK, bin_dir=package / "pginstall" / "bin") as server:
        reached = server.bin_dir
        assert ask(server, "SELECT 1") == 1
    assert reached.is_relative_to(data) == server_user().is_other


def test_other_binaries_out_of_reach_are_refused_with_what_to_do(tmp_path):
    folder = tmp_path / "closed" / "bin"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)

    with pytest.raises(EmbeddedPostgresError, match=r"somebody, who may not enter .*chmod o\+x"):
        within_reach(Binaries(folder=folder, major=18), NOBODY_ELSE, tmp_path)
