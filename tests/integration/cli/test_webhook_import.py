"""`webhook import-phase7`, on phase 7's own table."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CONSTANT = "a constant of a public source"


def encrypted(url: str, constant: str = CONSTANT) -> bytes:
    """What pgcrypto's encrypt makes of it; tests/unit/security has known answers."""
    octets = url.encode()
    octets += bytes([16 - len(octets) % 16]) * (16 - len(octets) % 16)
    cipher = Cipher(
        algorithms.AES256(hashlib.sha256(constant.encode()).digest()), modes.CBC(bytes(16))
    ).encryptor()
    return cipher.update(octets) + cipher.finalize()


@pytest.fixture
def phase7(database):
    """Phase 7's table, with one webhook of each fate."""
    database.execute("""
        CREATE TABLE pggit.alert_notification_webhooks (
            webhook_id bigserial PRIMARY KEY, webhook_type text NOT NULL, name text NOT NULL, channel_or_recipient text,
            webhook_url_encrypted bytea, webhook_url_iv bytea, enabled boolean DEFAULT true)
    """)

    def add(
        webhook_id: int, url: bytes | None, *, name: str, type_: str = "slack", enabled: bool = True
    ) -> None:
        database.execute(
            "INSERT INTO pggit.alert_notification_webhooks"
            " (webhook_id, webhook_type, name, channel_or_recipient, webhook_url_encrypted, enabled)"
            " VALUES (%s, %s, %s, '#ops', %s, %s)",
            (webhook_id, type_, name, url, enabled),
        )

    return add


def imported(commands, *options: str):
    return commands("webhook", "import-phase7", "--phase7-key", CONSTANT, *options)


def test_webhooks_are_taken_over_under_their_ids_with_what_waits_for_them(
    commands, phase7, hook, enqueued
) -> None:
    phase7(41, encrypted(hook), name="alerts")
    enqueued(41)
    result = imported(commands, "--json")

    assert result.status == 0
    (one,) = result.json
    assert (one["webhook_id"], one["name"], one["result"], one["waiting"]) == (41, "alerts", "imported", 1)
    assert one["secret"].startswith("whsec_")
    assert "count as disclosed" in result.err
    shown = commands.ok("webhook", "show", "41", "--reveal", "--json").json
    assert shown["revealed"]["url"] == hook
    assert list(shown["revealed"]["secrets"].values()) == [one["secret"]]
    assert shown["labels"] == {"type": "slack", "channel": "#ops", "url_disclosed": "phase 7"}
    assert shown["state"] == "active"


def test_no_path_of_a_url_is_printed(commands, phase7, hook) -> None:
    phase7(1, encrypted(hook), name="a")
    phase7(2, encrypted("http://plain.example/tok3n"), name="b")
    imported(commands)
    imported(commands, "--json")

    assert "tok3n" not in commands.printed


def test_what_was_disabled_is_never_active(commands, phase7, hook, database) -> None:
    phase7(1, encrypted(hook), name="off", enabled=False)
    assert imported(commands).status == 0

    row = database.execute("SELECT state, state_reason FROM pggit.webhook").fetchone()
    assert row == ("disabled", "disabled in phase 7")


def test_a_second_run_and_rows_without_a_url_change_nothing(commands, phase7, hook, database) -> None:
    phase7(1, encrypted(hook), name="a")
    phase7(2, encrypted(""), name="slack-default")
    phase7(3, b"", name="b")
    phase7(4, None, name="c")
    assert imported(commands).status == 0
    before = database.execute("SELECT revision FROM pggit.webhook").fetchall()
    again = imported(commands, "--json")

    assert again.status == 0
    assert [one["result"] for one in again.json] == [
        "registered already",
        "has no URL",
        "has no URL",
        "has no URL",
    ]
    assert database.execute("SELECT revision FROM pggit.webhook").fetchall() == before
    assert "disclosed" not in again.err


def test_what_does_not_open_or_is_refused_is_told_and_stops_no_other(commands, phase7, hook) -> None:
    phase7(1, encrypted(hook, "another constant"), name="a")
    phase7(2, encrypted("http://plain.example/x"), name="b")
    phase7(3, encrypted("ops@example.com"), name="c", type_="email")
    phase7(4, encrypted(hook), name="d")
    result = imported(commands, "--json")

    assert result.status == 3
    assert [one["is_trouble"] for one in result.json] == [True, True, True, False]
    assert result.json[0]["result"] == "refused: the phase 7 key does not open it"


def test_names_that_are_taken_or_cannot_name_a_webhook_get_another(commands, phase7, hook) -> None:
    phase7(1, encrypted(hook), name="alerts")
    phase7(2, encrypted(hook), name="alerts", type_="mattermost")
    phase7(3, encrypted(hook), name="7")
    phase7(4, encrypted(hook), name="a\nb")
    phase7(5, encrypted(hook), name=" ")

    names = [one["name"] for one in imported(commands, "--json").json]
    assert names == ["alerts", "mattermost alerts", "slack 7", "a b", "slack"]


def test_the_defaults_of_routing_find_imported_webhooks(commands, phase7, hook, database) -> None:
    phase7(9, encrypted(hook), name="a")
    imported(commands)
    database.execute("DROP TABLE pggit.alert_notification_webhooks")

    assert len(database.execute("SELECT * FROM pggit.publish('1', 'INFO')").fetchall()) == 1


def test_the_constant_may_come_from_a_file(commands, phase7, hook, tmp_path) -> None:
    phase7(1, encrypted(hook), name="a")
    (tmp_path / "constant").write_text(CONSTANT + "\n")

    commands.ok("webhook", "import-phase7", "--phase7-key-file", "constant")


@pytest.mark.parametrize(
    "options", [(), ("--phase7-key", "a", "--phase7-key-file", "b"), ("--phase7-key-file", "missing")]
)
def test_without_one_constant_it_is_a_usage_error(commands, options) -> None:
    assert commands("webhook", "import-phase7", *options).status == 2


def test_without_phase_7_it_says_so(commands) -> None:
    result = imported(commands)

    assert (result.status, "phase 7 is not installed" in result.err) == (1, True)
