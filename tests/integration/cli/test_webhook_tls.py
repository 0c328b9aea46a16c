"""Pins, private authorities and client certificates on the command line: set, shown, sealed, audited, taken away."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.webhooks import ca_place, client_certificate_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.rig import MASTER_KEY

PINS = ["sha256/" + base64.b64encode(bytes([number]) * 32).decode() for number in range(3)]


@pytest.fixture
def alerts(commands, hook) -> int:
    return commands.ok("webhook", "add", hook, "--name", "alerts", "--json").json["webhook_id"]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Path:
    """A folder with ca.pem and client.pem."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    write_private(tmp_path / "client.pem", client_pem(authority))
    return tmp_path


def client_pem(authority: trustme.CA, *, days: float = 90) -> bytes:
    leaf = authority.issue_cert("sender", not_after=datetime.now(UTC) + timedelta(days=days))
    return leaf.private_key_and_cert_chain_pem.bytes()


def write_private(path: Path, octets: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(octets)


def shown(commands, *options: str) -> dict:
    return commands.ok("webhook", "show", "alerts", "--json", *options).json


def last_details(database) -> dict:
    query = "SELECT details FROM pggit.webhook_audit_log ORDER BY audit_id DESC LIMIT 1"
    return database.execute(query).fetchone()[0]


def test_pins_are_set_shown_audited_and_taken_away(commands, alerts, database) -> None:
    result = commands.ok("webhook", "set", "alerts", f"pins={PINS[0]},{PINS[1]}")
    assert result.err == ""
    assert shown(commands)["pins"] == PINS[:2]
    assert last_details(database)["pins"] == {"from": None, "to": PINS[:2]}

    commands.ok("webhook", "set", "alerts", "concurrency=8")
    assert shown(commands)["pins"] == PINS[:2], "another change leaves them"

    commands.ok("webhook", "set", "alerts", "pins=")
    assert shown(commands)["pins"] == []


def test_a_single_pin_comes_with_a_word_about_the_next_key(commands, alerts) -> None:
    assert (
        "pin the key that it will use next" in commands.ok("webhook", "set", "alerts", f"pins={PINS[0]}").err
    )


@pytest.mark.parametrize("pins", ["sha256/AAAA", "abc", PINS[0][:-1], PINS[0] + ";" + PINS[1], ","])
def test_what_is_no_pin_is_refused_with_what_would_be_right(commands, alerts, pins) -> None:
    result = commands("webhook", "set", "alerts", f"pins={pins}")

    assert result.status == 2
    assert "right is sha256/BASE64" in result.err


@pytest.mark.parametrize("pins", [["sha256/AAAA"], [], [None], [PINS[0], None], PINS[:1] * 9])
def test_the_database_holds_pins_of_no_other_form(alerts, database, pins) -> None:
    import psycopg

    with pytest.raises(psycopg.errors.CheckViolation):
        database.execute("UPDATE pggit.webhook SET pins = %s::text[]", (pins,))


def test_certificates_are_sealed_for_their_row_and_shown_by_fingerprint_and_expiry(
    commands, hook, files, database
) -> None:
    added = commands.ok(
        "webhook",
        "add",
        hook,
        "--name",
        "alerts",
        f"ca=@{files}/ca.pem",
        f"client_certificate=@{files}/client.pem",
    )
    assert added.err == ""
    row = database.execute(
        "SELECT webhook_id, sealed_ca, sealed_client_certificate FROM pggit.webhook"
    ).fetchone()
    sealer = Sealer(Keyring.parse(Secret(MASTER_KEY)))
    assert sealer.open(row[1], place=ca_place(row[0])) == (files / "ca.pem").read_bytes()
    client = sealer.open(row[2], place=client_certificate_place(row[0]))
    assert b"PRIVATE KEY" in client

    record = shown(commands)
    assert [len(print_) for print_ in record["ca_fingerprints"]] == [64]
    assert len(record["client_certificate_fingerprints"]) == 1
    expires_at = datetime.fromisoformat(record["client_certificate_expires_at"])
    assert timedelta(days=89) < expires_at - datetime.now(UTC) < timedelta(days=91)
    for text in (commands.ok("webhook", "show", "alerts").out, json.dumps(last_details(database))):
        assert "BEGIN" not in text
        assert "PRIVATE" not in text
    assert "PRIVATE" not in commands.printed


def test_a_change_of_certificates_is_audited_by_fingerprint_and_may_be_taken_back(
    commands, alerts, files, database
) -> None:
    commands.ok("webhook", "set", "alerts", f"ca=@{files}/ca.pem")
    fingerprints = shown(commands)["ca_fingerprints"]
    assert last_details(database)["ca"] == {"from": None, "to": fingerprints}
    commands.ok("webhook", "set", "alerts", "concurrency=8")
    assert shown(commands)["ca_fingerprints"] == fingerprints, "another change leaves them"

    commands.ok("webhook", "set", "alerts", "ca=", MASTER_KEY=None)
    record = shown(commands)
    assert (record["ca_fingerprints"], record["ca_expires_at"]) == ([], None)
    assert database.execute("SELECT sealed_ca FROM pggit.webhook").fetchone() == (None,)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("ca=ca.pem", "right is @FILE with authorities"),
        ("ca=@nothing.pem", "cannot read nothing.pem: No such file"),
        ("ca=@client.pem", "holds a private key"),
        ("ca=@leaf.pem", "is no authority's"),
        ("client_certificate=@ca.pem", "holds 0 private keys"),
        ("client_certificate=@old.pem", "the certificate expired on"),
    ],
)
def test_what_may_not_be_registered_is_exit_2_with_its_reason(
    commands, alerts, files, authority, word, why
) -> None:
    (files / "leaf.pem").write_bytes(authority.issue_cert("a.example").cert_chain_pems[0].bytes())
    old = authority.issue_cert(
        "a.example", not_before=datetime(2001, 1, 1, tzinfo=UTC), not_after=datetime(2002, 1, 1, tzinfo=UTC)
    )
    write_private(files / "old.pem", old.private_key_and_cert_chain_pem.bytes())

    result = commands("webhook", "set", "alerts", word)

    assert result.status == 2
    assert why in result.err
    assert shown(commands)["ca_fingerprints"] == []


def test_a_key_that_everybody_may_read_is_warned_of(commands, alerts, files) -> None:
    (files / "client.pem").chmod(0o644)

    result = commands.ok("webhook", "set", "alerts", f"client_certificate=@{files}/client.pem")

    assert "readable by everybody" in result.err


def test_doctor_names_certificates_that_expire_soon_or_have(
    commands, alerts, files, authority, database
) -> None:
    def found() -> list[tuple[str, str]]:
        findings = commands("doctor", "--json").json
        return [(one["level"], one["what"]) for one in findings if one["check"] == "certificates"]

    commands.ok("webhook", "set", "alerts", f"client_certificate=@{files}/client.pem")
    assert [level for level, _ in found()] == ["ok"]

    write_private(files / "soon.pem", client_pem(authority, days=10.5))
    commands.ok("webhook", "set", "alerts", f"client_certificate=@{files}/soon.pem")
    ((level, what),) = found()
    assert level == "note"
    assert f"the client certificate of webhook {alerts} (alerts) expires on" in what
    assert "in 10 days" in what

    database.execute("UPDATE pggit.webhook SET ca_expires_at = now() - interval '1 day'")
    levels = found()
    assert [level for level, _ in levels] == ["trouble", "note"]
    assert "a private authority of webhook" in levels[0][1]
