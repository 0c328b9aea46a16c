"""`key url-key`: what unlocks get_webhook_decrypted. integration/legacy/test_url_unlock.py opens with it in SQL."""

from __future__ import annotations

import base64

import psycopg
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.webhooks import url_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Place, Sealer

PASSPHRASE = "words:passphrase:correct horse battery staple"


def keys(result) -> dict[str, bytes]:
    assert result.out.count("\n") == 1
    entries = (entry.split(":") for entry in result.out.strip().split(","))
    return {key_id: base64.b64decode(key, validate=True) for key_id, key in entries}


def opens(key: bytes, sealed: bytes, head_octets: int, place: Place) -> bytes:
    """What *key* itself opens, without a key ring."""
    parts = [text.encode() for text in (place.schema, place.table, place.column, place.row)]
    associated = sealed[:head_octets] + b"".join(len(part).to_bytes(4) + part for part in parts)
    nonce, text = sealed[head_octets : head_octets + 12], sealed[head_octets + 12 :]
    return AESGCM(key).decrypt(nonce, text, associated)


def test_it_opens_urls_and_no_secret(commands, hook, database: psycopg.Connection) -> None:
    webhook_id = commands.ok("webhook", "add", hook).last_word
    (key,) = keys(commands.ok("key", "url-key")).values()

    row = database.execute(
        "SELECT sealed_url, sealed_secret FROM pggit.webhook JOIN pggit.webhook_secret USING (webhook_id)"
    )
    sealed_url, sealed_secret = row.fetchone()
    head_octets = 3 + len("test")
    assert opens(key, sealed_url, head_octets, url_place(int(webhook_id))) == hook.encode()
    secret_place = Place(
        schema="pggit", table="webhook_secret", column="sealed_secret", row=f"{webhook_id}:1"
    )
    with pytest.raises(InvalidTag):
        opens(key, sealed_secret, head_octets, secret_place)


def test_it_is_not_the_master_key(commands, hook) -> None:
    commands.ok("webhook", "add", hook)

    assert keys(commands.ok("key", "url-key")) != {"test": bytes(range(32))}


def test_every_key_that_seals_a_url_is_there_the_active_one_first(commands, hook, other_key) -> None:
    commands.ok("webhook", "add", hook)
    both = (
        f"{PASSPHRASE}\n{other_key.replace('test:', 'idle:')}\n{commands.environ['PGGIT_REACTOR_MASTER_KEY']}"
    )
    commands.ok("webhook", "add", hook, MASTER_KEY=both)

    assert list(keys(commands.ok("key", "url-key", MASTER_KEY=both))) == ["words", "test"]


def test_a_passphrases_key_is_that_of_its_salt_in_this_database(commands, hook, database) -> None:
    webhook_id = int(commands.ok("webhook", "add", hook, MASTER_KEY=PASSPHRASE).last_word)
    printed = keys(commands.ok("key", "url-key", MASTER_KEY=PASSPHRASE))

    (sealed,) = database.execute("SELECT sealed_url FROM pggit.webhook").fetchone()
    assert opens(printed["words"], sealed, 3 + len("words") + 16, url_place(webhook_id)) == hook.encode()


def test_a_value_with_another_salt_than_the_databases_gets_an_entry_of_its_own(
    commands, hook, database
) -> None:
    webhook_id = int(commands.ok("webhook", "add", hook, MASTER_KEY=PASSPHRASE).last_word)
    foreign = Sealer(Keyring.parse(Secret(PASSPHRASE))).seal(hook.encode(), place=url_place(webhook_id))
    database.execute("UPDATE pggit.webhook SET sealed_url = %s", (foreign,))
    out = commands.ok("key", "url-key", MASTER_KEY=PASSPHRASE).out

    one, other = (base64.b64decode(entry.split(":")[1]) for entry in out.strip().split(","))
    assert one != other
    assert opens(other, foreign, 3 + len("words") + 16, url_place(webhook_id)) == hook.encode()


def test_it_is_printed_before_the_first_webhook_too(commands, hook) -> None:
    early = commands.ok("key", "url-key").out
    commands.ok("webhook", "add", hook)

    assert commands.ok("key", "url-key").out == early


def test_a_wrong_or_missing_key_is_exit_2(commands, hook, other_key) -> None:
    commands.ok("webhook", "add", hook)
    wrong = commands("key", "url-key", MASTER_KEY=other_key)
    missing = commands("key", "url-key", MASTER_KEY=other_key.replace("test:", "new:"))
    none = commands("key", "url-key", MASTER_KEY=None)

    assert [(result.status, result.out) for result in (wrong, missing, none)] == [(2, "")] * 3
    assert "'test'" in wrong.err
    assert "'test'" in missing.err


def test_values_of_a_form_that_it_does_not_know_are_passed_over(commands, hook, database) -> None:
    commands.ok("webhook", "add", hook)
    for sealed in (
        b"",
        b"\x01",
        b"\x01\x20abc",
        b"\x02\x01a\x00",
        b"\x01\x00\x00\x00\x00",
        b"\x01\x04test\x09" + b"x" * 40,
    ):
        database.execute("UPDATE pggit.webhook SET sealed_url = %s", (sealed,))

        assert list(keys(commands.ok("key", "url-key"))) == ["test"]
