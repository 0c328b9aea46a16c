"""`webhook rotate-secret`: what signs beside what, until when, and what stays of it."""

from __future__ import annotations

import base64

import psycopg
import pytest

from pggit_reactor.core.signing_keys import algorithm_of, public_key_of
from pggit_reactor.security.sealing import sealed_key_id


@pytest.fixture
def webhook(commands, hook) -> str:
    return commands.ok("webhook", "add", hook, "--name", "alerts").last_word


def history(database: psycopg.Connection) -> list[tuple]:
    return database.execute(
        "SELECT operation, version, details ->> 'why' FROM pggit.rotation_history"
        " WHERE webhook_id IS NOT NULL ORDER BY audit_id"
    ).fetchall()


def versions(commands) -> dict[int, bool]:
    """Return each version, and whether it has an end."""
    record = commands.ok("webhook", "show", "alerts", "--json").json
    return {secret["version"]: secret["expires_at"] is not None for secret in record["secrets"]}


def test_a_new_secret_is_shown_and_the_old_one_gets_an_end_of_30_days(commands, webhook, database):
    result = commands.ok("webhook", "rotate-secret", "alerts")
    (shown,) = [word for word in result.out.split() if word.startswith("whsec_")]

    revealed = commands.ok("webhook", "show", "alerts", "--reveal", "--json").json["revealed"]
    assert [*revealed["secrets"]] == ["2", "1"]
    assert revealed["secrets"]["2"] == shown
    assert "secret 1 signs too until" in result.out
    assert versions(commands) == {2: False, 1: True}
    (left,) = database.execute(
        "SELECT expires_at - created_at FROM pggit.webhook_secret WHERE version = 1"
    ).fetchone()
    assert left.days == 30
    assert history(database) == [
        ("secret_added", "1", None),
        ("secret_rotated", "2", None),
        ("secret_revealed", None, None),
    ]


def test_finishing_takes_the_old_one_away(commands, webhook, database):
    commands.ok("webhook", "rotate-secret", "alerts", "--grace", "7d")
    result = commands.ok("webhook", "rotate-secret", "alerts", "--finish")

    assert result.out == "secret 1 is gone\n"
    assert versions(commands) == {2: False}
    assert history(database)[-1] == ("secret_retired", "1", "finished")
    assert commands("webhook", "rotate-secret", "alerts", "--finish").status == 1


def test_without_a_grace_the_old_one_goes_at_once(commands, webhook, database):
    commands.ok("webhook", "rotate-secret", "alerts", "--grace", "0")

    assert versions(commands) == {2: False}
    assert history(database)[1:] == [("secret_retired", "1", "no grace"), ("secret_rotated", "2", None)]


def test_a_secret_of_ones_own_is_taken_and_not_shown(commands, webhook):
    result = commands.ok(
        "webhook", "rotate-secret", "alerts", "--secret-file", "-", stdin=b"one of our own, long enough\n"
    )
    revealed = commands.ok("webhook", "show", "alerts", "--reveal", "--json").json["revealed"]

    assert "long enough" not in result.out
    assert revealed["secrets"]["2"] == "one of our own, long enough"
    assert commands("webhook", "rotate-secret", "alerts", "--secret-file", "-", stdin=b"short").status == 2


def test_an_ed25519_key_shows_its_public_half_and_stays_of_its_kind(commands, webhook):
    first = commands.ok("webhook", "rotate-secret", "alerts", "--algorithm", "ed25519")
    commands.ok("webhook", "rotate-secret", "alerts")
    record = commands.ok("webhook", "show", "alerts", "--reveal", "--json").json
    secrets = record["revealed"]["secrets"]

    assert "whsk_" not in first.out
    assert [algorithm_of(secrets[version]) for version in ("3", "2", "1")] == [
        "ed25519",
        "ed25519",
        "hmac-sha256",
    ]
    assert {str(secret["version"]): secret["public_key"] for secret in record["secrets"]} == {
        version: public_key_of(secret) for version, secret in secrets.items()
    }
    assert public_key_of(secrets["2"]) in first.out
    assert public_key_of(secrets["3"]) in commands.ok("webhook", "show", "alerts").out


def test_a_webhook_may_begin_with_an_ed25519_key(commands, hook):
    added = commands.ok("webhook", "add", hook, "--algorithm", "ed25519")

    assert "public key, for the receiver: whpk_" in added.out
    assert "whsk_" not in added.out


def test_a_private_key_of_ones_own_is_taken(commands, hook):
    key = "whsk_" + base64.b64encode(bytes(range(32))).decode()
    added = commands.ok("webhook", "add", hook, "--secret-file", "-", "--json", stdin=key.encode())

    assert added.json["public_key"] == public_key_of(key)
    assert "secret" not in added.json


def test_a_receiver_of_the_old_guide_gets_no_ed25519_key(commands, webhook):
    commands.ok("webhook", "set", "alerts", "signature_scope=body-only")
    result = commands("webhook", "rotate-secret", "alerts", "--algorithm", "ed25519")

    assert result.status == 2
    assert "signature_scope=full first" in result.err
    assert versions(commands) == {1: False}


def test_at_most_four_sign_at_a_time(commands, webhook):
    for _ in range(3):
        commands.ok("webhook", "rotate-secret", "alerts")
    result = commands("webhook", "rotate-secret", "alerts")

    assert result.status == 1
    assert "--finish" in result.err
    assert [*versions(commands)] == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "options",
    [
        ("--finish", "--grace", "0"),
        ("--finish", "--algorithm", "ed25519"),
        ("--secret-file", "-", "--algorithm", "ed25519"),
        ("--grace", "soon"),
        ("--grace", "400d"),
        ("--algorithm", "rsa"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(commands, webhook, options):
    assert commands("webhook", "rotate-secret", "alerts", *options).status == 2


def test_an_unknown_webhook_is_not_found(commands):
    assert commands("webhook", "rotate-secret", "nobody").status == 1


def test_a_schedule_is_set_shown_and_taken_away(commands, webhook):
    commands.ok("webhook", "set", "alerts", "rotate_every=90d")
    shown = commands.ok("webhook", "show", "alerts", "--json").json
    commands.ok("webhook", "set", "alerts", "rotate_every=")
    without = commands.ok("webhook", "show", "alerts", "--json").json

    assert shown["rotate_every_seconds"] == 90 * 86_400
    assert shown["next_rotation"] > shown["created_at"]
    assert (without["rotate_every_seconds"], without["next_rotation"]) == (None, None)
    assert commands("webhook", "set", "alerts", "rotate_every=5m").status == 2


def test_a_new_secret_is_sealed_with_the_active_key(commands, webhook, database):
    new = f"new:base64:{'B' * 42}A="
    old = commands.environ["PGGIT_REACTOR_MASTER_KEY"]
    commands.ok("webhook", "rotate-secret", "alerts", MASTER_KEY=f"{new}\n{old}")

    rows = database.execute("SELECT sealed_secret FROM pggit.webhook_secret ORDER BY version").fetchall()
    assert [sealed_key_id(bytes(row[0])) for row in rows] == ["test", "new"]
