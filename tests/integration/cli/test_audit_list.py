"""`audit list` and `audit export`."""

from __future__ import annotations

import json

import pytest
import trio

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.audit_chain import open_horizon, seal_segment
from pggit_reactor.db.connect import open_connection
from pggit_reactor.security.audit_seal import AuditSealer
from pggit_reactor.security.keyring import Keyring


@pytest.fixture
def seal(commands, reactor_database):
    async def seal() -> None:
        sealer = AuditSealer(Keyring.parse(Secret(commands.environ["PGGIT_REACTOR_MASTER_KEY"])))
        async with open_connection(reactor_database.dsn, application_name="a worker") as connection:
            horizon = await open_horizon(connection, sealer.key_id)
            if horizon is not None:
                await seal_segment(connection, sealer, horizon)

    return lambda: trio.run(seal)


@pytest.fixture
def log(database):
    def insert(count: int = 1, **columns: object) -> None:
        values = {"operation": "webhook_tested", **columns}
        places = ", ".join(f"%({name})s" for name in values)
        database.execute(
            f"INSERT INTO pggit.webhook_audit_log ({', '.join(values)})"
            f" SELECT {places} FROM generate_series(1, {count})",
            values,
        )

    return insert


def test_a_change_is_listed_with_who_from_where_and_what_joins_the_call(commands, hook):
    commands.ok("--as", "ada", "webhook", "add", hook, "--name", "a")
    rows = commands.ok("audit", "list", "--user", "ada", "--json").json

    assert [row["operation"] for row in rows] == ["secret_added", "webhook_added", "key_added"]
    assert len({row["request_id"] for row in rows[:2]}) == 1
    assert rows[0]["request_id"] is not None
    assert (rows[1]["ip_address"], rows[1]["details"]["database_user"]) == ("127.0.0.1", "reactor")
    assert "webhook_added" in commands.ok("audit", "list").out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--webhook", "7"], [2, 1]),
        (["--delivery", "5"], [2]),
        (["--operation", "erased"], [3]),
        (["--user", "ada"], [4]),
        (["--since", "1h"], [4, 3, 2]),
        (["--until", "1h"], [1]),
        (["--since", "3d", "--until", "2026-11-24"], []),
        (["--limit", "2"], [4, 3]),
        (["--before", "3"], [2, 1]),
    ],
)
def test_rows_are_chosen_by(commands, database, log, arguments, expected):
    log(webhook_id=7, occurred_at="2020-01-01")
    log(webhook_id=7, delivery_id=5)
    log(operation="erased")
    log(details='{"actor": "ada"}')

    assert [row["audit_id"] for row in commands.ok("audit", "list", *arguments, "--json").json] == expected


@pytest.mark.parametrize("wrong", [["--since", "soon"], ["--limit", "0"], ["--since", "7"]])
def test_what_is_no_filter_is_a_usage_error(commands, wrong):
    assert commands("audit", "list", *wrong).status == 2


def test_an_export_has_a_line_a_row_and_goes_on_where_it_ended(commands, log, seal):
    log(2500, error_message="ü\n")
    seal()
    first = commands.ok("audit", "export")
    log(occurred_at="infinity")
    seal()
    second = commands.ok("audit", "export", *first.err.removeprefix("next: ").split())
    third = commands.ok("audit", "export", *second.err.removeprefix("next: ").split())

    lines = [json.loads(line) for line in first.out.splitlines()]
    assert [line["audit_id"] for line in lines] == list(range(1, 2501))
    assert (lines[0]["error_message"], lines[0]["erased"]) == ("ü\n", False)
    assert [json.loads(line)["occurred_at"] for line in second.out.splitlines()] == ["infinity"]
    assert (third.out, third.err) == ("", second.err)


def test_an_export_ends_before_what_may_still_come(commands, database, log, seal, reactor_database):
    import psycopg

    log()
    with psycopg.connect(reactor_database.dsn.reveal()) as slow:
        slow.execute("INSERT INTO pggit.webhook_audit_log (operation) VALUES ('erased')")
        log()
        seal()
        first = commands.ok("audit", "export")
        slow.commit()
    seal()
    second = commands.ok("audit", "export", *first.err.removeprefix("next: ").split())

    assert [json.loads(line)["audit_id"] for line in first.out.splitlines()] == [1]
    assert [json.loads(line)["audit_id"] for line in second.out.splitlines()] == [2, 3]
