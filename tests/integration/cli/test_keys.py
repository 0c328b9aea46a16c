from __future__ import annotations

import psycopg
import pytest
import trio

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.keys import ensure_keys, verify_keys
from pggit_reactor.errors import DatabaseError, KeyringError
from pggit_reactor.security.keyring import Keyring

PASSPHRASE = "words:passphrase:correct horse battery staple"


def states(result) -> dict[str, str]:
    return {row["key_id"]: row["state"] for row in result.json}


def test_a_new_key_is_one_line_and_a_ring_of_its_own(commands) -> None:
    line = commands.ok("key", "new").out

    assert line.count("\n") == 1
    assert Keyring.parse(Secret(line)).active_id.startswith("k2")


def test_two_new_keys_differ(commands) -> None:
    assert commands.ok("key", "new", "--id", "a").out != commands.ok("key", "new", "--id", "a").out


def test_a_key_file_is_private_new_and_usable(commands, hook, tmp_path) -> None:
    commands.ok("key", "new", "--out", "k")
    before = (tmp_path / "k").read_text()

    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert commands("key", "new", "--out", "k").status == 2
    assert (tmp_path / "k").read_text() == before
    commands.ok("webhook", "add", hook, MASTER_KEY=None, MASTER_KEY_FILE=str(tmp_path / "k"))


def test_a_key_id_of_another_form_is_a_usage_error(commands) -> None:
    assert commands("key", "new", "--id", "No Good").status == 2


def test_status_tells_unused_then_right_with_what_it_seals(commands, hook) -> None:
    assert states(commands.ok("key", "status", "--json")) == {"test": "unused"}
    commands.ok("webhook", "add", hook)

    (row,) = commands.ok("key", "status", "--json").json
    assert (row["state"], row["active"], row["sealed_count"]) == ("right", True, 2)


def test_status_tells_wrong_and_missing_keys_and_exits_2(commands, hook, other_key) -> None:
    commands.ok("webhook", "add", hook)
    wrong = commands("key", "status", "--json", MASTER_KEY=other_key)
    missing = commands("key", "status", "--json", MASTER_KEY=other_key.replace("test:", "new:"))
    none = commands("key", "status", "--json", MASTER_KEY=None)

    assert [result.status for result in (wrong, missing, none)] == [2, 2, 2]
    assert states(wrong) == {"test": "wrong"}
    assert states(missing) == {"new": "unused", "test": "missing"}
    assert states(none) == {"test": "missing"}


def test_a_key_that_seals_is_missed_even_without_its_check_value(commands, hook, database, other_key) -> None:
    commands.ok("webhook", "add", hook)
    database.execute("DELETE FROM pggit.key_check")

    result = commands("key", "status", "--json", MASTER_KEY=other_key.replace("test:", "new:"))
    assert states(result)["test"] == "missing"


def test_sealed_values_of_an_unknown_form_are_told(commands, hook, database) -> None:
    commands.ok("webhook", "add", hook)
    database.execute("UPDATE pggit.webhook SET sealed_url = '\\xff00'")

    result = commands("key", "status")
    assert result.status == 2
    assert "1 sealed value(s)" in result.err


def test_no_command_prints_a_key(commands, hook) -> None:
    commands.ok("webhook", "add", hook)
    commands.ok("key", "status")
    commands("key", "status", MASTER_KEY="test:base64:AAAA")
    commands("--log-level", "debug", "key", "status", MASTER_KEY="s3cret")

    assert "AAEC" not in commands.printed  # the key's first octets
    assert "AAAA" not in commands.printed
    assert "s3cret" not in commands.printed


async def test_two_processes_that_start_at_once_agree_on_one_salt(reactor_database) -> None:
    rings = [Keyring.parse(Secret(PASSPHRASE)) for _ in range(2)]
    connections = [await reactor_database.connect() for _ in rings]
    async with trio.open_nursery() as nursery:
        for ring, connection in zip(rings, connections, strict=True):
            nursery.start_soon(
                lambda r, c: ensure_keys(c, r, by="test", must_register=True), ring, connection
            )

    assert rings[0].salt("words") == rings[1].salt("words")
    assert await reactor_database.fetch_value("SELECT count(*) FROM pggit.key_check") == 1


async def test_a_retired_key_need_not_be_there(reactor_database) -> None:
    connection = await reactor_database.connect()
    old, new = (Keyring.parse(Secret(f"{name}:base64:{'A' * 43}=")) for name in ("old", "new"))
    await ensure_keys(connection, old, by="test")
    with pytest.raises(KeyringError, match="'old' is missing"):
        await verify_keys(connection, new)
    await reactor_database.execute("UPDATE pggit.key_check SET retired_at = now()")

    await verify_keys(connection, new)


async def test_who_may_only_read_verifies_and_registers_nothing(reactor_database) -> None:
    connection = await reactor_database.connect(role="pggit_worker")
    ring = Keyring.parse(Secret(f"a:base64:{'A' * 43}="))
    await ensure_keys(connection, ring, by="worker")

    assert await reactor_database.fetch_value("SELECT count(*) FROM pggit.key_check") == 0
    with pytest.raises(DatabaseError):
        await ensure_keys(connection, ring, by="worker", must_register=True)


async def test_a_refused_registration_does_not_spoil_the_callers_transaction(reactor_database) -> None:
    connection = await reactor_database.connect(role="pggit_worker")
    async with connection.transaction():
        await ensure_keys(connection, Keyring.parse(Secret(f"a:base64:{'A' * 43}=")), by="worker")
        cursor = await connection.execute("SELECT 1")

        assert await cursor.fetchall() == [(1,)]


def test_a_check_value_is_not_the_key(commands, hook, database: psycopg.Connection) -> None:
    commands.ok("webhook", "add", hook)

    (value,) = database.execute("SELECT check_value FROM pggit.key_check").fetchone()
    assert bytes(range(16)) not in bytes(value)
