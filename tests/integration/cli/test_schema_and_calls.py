"""`migrate`, and what every command does about its database, its settings and its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import psycopg
import pytest
from psycopg import sql

from pggit_reactor.cli.up_instance import DEFAULT_DATA, UpInstance


@pytest.fixture
def empty(commands, postgres_server, reactor_database) -> Iterator[str]:
    """The DSN of a database without a schema, which is the commands' own."""
    name = f"empty_{reactor_database.name}"
    with psycopg.connect(postgres_server.dsn.reveal(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        commands.environ["PGGIT_REACTOR_DATABASE_URL"] = postgres_server.dsn_for(name).reveal()
        yield commands.environ["PGGIT_REACTOR_DATABASE_URL"]
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_migrate_does_all_once_and_check_says_what_is_left(commands, empty) -> None:
    before = commands("migrate", "--check", "--json")
    done = commands.ok("migrate", "--json").json
    again = commands.ok("migrate").out
    after = commands("migrate", "--check")

    assert before.status == 3
    assert before.json["missing"] == done["applied"]
    assert done["applied"][0] == "0001_delivery.sql"
    assert again.startswith("nothing to do")
    assert after.status == 0


def test_check_changes_nothing(commands, empty) -> None:
    commands("migrate", "--check")

    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT to_regnamespace('pggit')").fetchone() == (None,)


@pytest.mark.parametrize("command", [["webhook", "list"], ["delivery", "list"], ["key", "status"]])
def test_a_command_on_an_empty_database_says_to_migrate(commands, empty, command) -> None:
    refused = commands(*command)

    assert refused.status == 1
    assert "pggit-reactor migrate" in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["migrate"], ["migrate", "--check"], ["webhook", "list"], ["key", "status"]]
)
def test_a_newer_schema_is_exit_4(commands, database, command) -> None:
    database.execute(
        "INSERT INTO pggit.schema_migration (version, name, digest, breaking) VALUES (9999, 'later', '', true)"
    )
    refused = commands(*command)

    assert refused.status == 4
    assert "9999_later" in refused.err


def test_an_edited_migration_is_refused(commands, database) -> None:
    database.execute("UPDATE pggit.schema_migration SET digest = 'x' WHERE version = 1")

    assert commands("migrate", "--check").status == 1
    assert commands("migrate").status == 1


def test_no_database_is_exit_2_and_one_that_does_not_answer_exit_1(commands) -> None:
    none = commands("webhook", "list", DATABASE_URL=None)
    silent = commands("webhook", "list", DATABASE_URL="postgresql://me:s3cret@127.0.0.1:1/x")

    assert (none.status, silent.status) == (2, 1)
    assert "PGGIT_REACTOR_DATABASE_URL" in none.err
    assert silent.err.startswith("error: cannot connect")
    assert none.err.count("\n") == silent.err.count("\n") == 1
    assert "s3cret" not in silent.err


def test_the_database_url_is_no_option(commands) -> None:
    refused = commands("webhook", "list", "--database-url", "postgresql://me:s3cret@127.0.0.1/x")

    assert refused.status == 2


def test_tracebacks_come_with_log_level_debug_alone(commands) -> None:
    quiet = commands("webhook", "show", "4711")
    loud = commands("--log-level", "debug", "webhook", "show", "4711")
    from_environment = commands("webhook", "show", "4711", LOG_LEVEL="debug")

    assert "Traceback" not in quiet.err
    assert loud.err.splitlines()[-1] == quiet.err.strip()
    assert "Traceback" in loud.err
    assert "Traceback" in from_environment.err


def test_all_wrong_settings_are_told_in_one_go(commands) -> None:
    refused = commands("webhook", "list", METRICS_PORT="x", WORKER_POLL_SECONDS="0")

    assert refused.status == 2
    assert "PGGIT_REACTOR_METRICS_PORT" in refused.err
    assert "PGGIT_REACTOR_WORKER_POLL_SECONDS" in refused.err


def test_the_file_of_this_folder_is_read_and_a_named_one_instead_of_it(commands, tmp_path) -> None:
    url = commands.environ.pop("PGGIT_REACTOR_DATABASE_URL")
    (tmp_path / "reactor.toml").write_text(f'[database]\nurl = "{url}"\n')
    (tmp_path / "reactor.toml").chmod(0o600)
    (tmp_path / "other.toml").write_text("")

    commands.ok("webhook", "list")
    assert commands("--config", "other.toml", "webhook", "list").status == 2
    assert commands("--config", "missing.toml", "webhook", "list").status == 2


@pytest.fixture
def up(commands, postgres_server, tmp_path) -> UpInstance:
    """An `up` that seems to run in this folder; its database is the test's."""
    url = commands.environ.pop("PGGIT_REACTOR_DATABASE_URL")
    data = tmp_path / DEFAULT_DATA
    data.mkdir(parents=True, mode=0o700)
    where = psycopg.conninfo.conninfo_to_dict(url)
    line = f"{where['host']}:{where['port']}:*:{where['user']}:{where['password']}"
    for name, text in (("pgpass", line), ("master.key", commands.environ.pop("PGGIT_REACTOR_MASTER_KEY"))):
        (data / name).touch(mode=0o600)
        (data / name).write_text(text + "\n")
    instance = UpInstance(
        pid=os.getpid(),
        host=str(where["host"]),
        port=int(where["port"]),
        user=str(where["user"]),
        database=str(where["dbname"]),
        passfile=data / "pgpass",
        master_key_file=data / "master.key",
        bin_dir=postgres_server.bin_dir,
    )
    instance.write(data)
    return instance


def test_without_a_database_the_up_of_this_folder_is_used_with_its_key_and_that_is_said(
    commands, up, database, hook
) -> None:
    added = commands.ok("webhook", "add", hook)

    assert "this is the `up` in .reactor/up" in added.err
    assert added.err.count("note:") == 1
    assert database.execute("SELECT count(*) FROM pggit.webhook").fetchone() == (1,)


def test_a_database_of_ones_own_goes_before_the_up_of_this_folder(commands, up) -> None:
    refused = commands("webhook", "list", DATABASE_URL="postgresql://127.0.0.1:1/x")

    assert refused.status == 1
    assert "note:" not in refused.err


def test_an_up_that_has_ended_is_not_used(commands, up) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    attrs.evolve(up, pid=ended.pid).write(Path(DEFAULT_DATA))

    assert commands("webhook", "list").status == 2


@pytest.fixture
def fake_psql(tmp_path, commands, monkeypatch) -> Path:
    """A psql that writes down how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "psql"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" > args\nenv > environment\nexit 7\n")
    program.chmod(0o755)
    commands.environ["PGGIT_REACTOR_POSTGRES_BIN"] = str(folder)
    return tmp_path


def psql(commands, *arguments: str, **environ: str) -> int:
    command = [sys.executable, "-m", "pggit_reactor", "psql", *arguments]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    done = subprocess.run(command, env=plain | commands.environ | environ, check=False, capture_output=True)
    return done.returncode


def test_psql_gets_the_address_in_its_environment_and_never_in_its_arguments(commands, fake_psql) -> None:
    commands.environ["PGGIT_REACTOR_DATABASE_URL"] = (
        "postgresql://me:s3cret@db.example.com:5433/queue?sslmode=require&application_name=x%20y&keepalives=1"
    )

    assert psql(commands, "--", "-c", "SELECT 1") == 7
    assert (fake_psql / "args").read_text() == "-c\nSELECT 1\n"
    environment = (fake_psql / "environment").read_text().splitlines()
    for line in ("PGHOST=db.example.com", "PGPORT=5433", "PGUSER=me", "PGPASSWORD=s3cret", "PGDATABASE=queue",
                 "PGSSLMODE=require", "PGAPPNAME=x y"):  # fmt: skip
        assert line in environment


def test_psql_on_the_up_of_this_folder_forgets_variables_of_other_servers(commands, fake_psql, up) -> None:
    attrs.evolve(up, bin_dir=fake_psql / "bin").write(Path(DEFAULT_DATA))

    assert psql(commands, "--up", PGSSLMODE="verify-full", PGPASSWORD="other") == 7
    environment = (fake_psql / "environment").read_text()
    assert "verify-full" not in environment
    assert "PGPASSWORD" not in environment
    assert f"PGPASSFILE={up.passfile}\n" in environment
    assert f"PGDATABASE={up.database}\n" in environment


def test_psql_without_an_up_says_how_to_start_one(commands) -> None:
    refused = commands("psql", "--up")

    assert refused.status == 1
    assert "pggit-reactor up" in refused.err


@pytest.mark.parametrize("command", [["webhook", "list", "--json"], ["--help"]])
def test_a_reader_that_has_gone_is_exit_1_and_no_traceback(commands, command) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environ = {**os.environ, **commands.environ}
    done = subprocess.run(
        [sys.executable, "-m", "pggit_reactor", *command],
        env=environ, stdout=writer, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(writer)

    assert (done.returncode, done.stderr) == (1, b"")


def test_an_interrupt_is_one_line_and_exit_1(commands, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trio.run", interrupted)
    stopped = commands("webhook", "list")

    assert (stopped.status, stopped.err) == (1, "interrupted\n")
