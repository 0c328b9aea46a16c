"""The key ring: reading keys, deriving from them, and telling a right key from a wrong one."""

import base64
import datetime
import hashlib
import hmac

import pytest

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import KeyringError
from pggit_reactor.security import keyring
from pggit_reactor.security.keyring import Keyring, new_key_id, new_key_line

RAW = bytes(range(32))
LINE = new_key_line("k1", RAW)
PASSPHRASE = "correct horse battery staple"


def ring(*lines: str, salt: bytes = b"s" * 16) -> Keyring:
    return Keyring.parse(Secret("\n".join(lines)), random_octets=lambda count: salt[:count])


def hkdf(root: bytes, info: bytes) -> bytes:
    """RFC 5869 with one block and no salt, written out: an oracle that shares no code with ours."""
    extracted = hmac.digest(bytes(32), root, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Make a derivation quick; returns the salts that were derived with."""
    salts: list[bytes] = []
    original = hashlib.pbkdf2_hmac

    def pbkdf2(name: str, password: bytes, salt: bytes, rounds: int, length: int) -> bytes:
        salts.append(salt)
        return original(name, password, salt, 1, length)

    monkeypatch.setattr(keyring.hashlib, "pbkdf2_hmac", pbkdf2)
    return salts


def test_the_first_key_is_the_active_one_and_the_order_is_kept():
    keys = ring(new_key_line("new", RAW), new_key_line("old", bytes(32)))

    assert keys.active_id == "new"
    assert keys.ids == ("new", "old")


@pytest.mark.parametrize("separator", ["\n", ",", "\r\n", " , ", "\n\n# the old one, kept to open\n"])
def test_keys_are_separated_by_lines_or_commas_and_comments_are_skipped(separator):
    text = separator.join([new_key_line("a", RAW), new_key_line("b", bytes(32))])

    assert Keyring.parse(Secret(f"# keys\n{text}\n")).ids == ("a", "b")


def test_a_raw_key_is_never_used_itself_but_derived_by_purpose():
    keys = ring(LINE)

    assert keys.derive("k1", "seal-url") == hkdf(RAW, b"pggit-reactor/1/seal-url")
    assert (
        keys.derive("k1", "seal-url").hex()
        == "49d86c9af52d3582050443cb81e7d802c4c8f382d81fd4d22d844b88fd78bf87"
    )
    assert keys.derive("k1", "seal-secret") != keys.derive("k1", "seal-url")


def test_a_passphrase_is_stretched_by_pbkdf2_with_600_000_rounds():
    keys = ring(f"p:passphrase:{PASSPHRASE}")

    root = hashlib.pbkdf2_hmac("sha256", PASSPHRASE.encode(), b"s" * 16, 600_000, 32)
    assert keys.derive("p", "seal-url") == hkdf(root, b"pggit-reactor/1/seal-url")


def test_a_passphrase_may_hold_colons_and_spaces():
    keys = ring("p:passphrase:one: two:three")

    assert keys.ids == ("p",)


def test_a_passphrase_is_derived_once_for_each_salt(few_rounds):
    keys = ring(f"p:passphrase:{PASSPHRASE}")

    assert not keys.is_quick("p")
    for purpose in ("seal-url", "seal-secret", "check"):
        keys.derive("p", purpose)
    keys.derive("p", "seal-url", salt=b"t" * 16)

    assert keys.is_quick("p")
    assert few_rounds == [b"s" * 16, b"t" * 16]


def test_foreign_salts_cannot_fill_the_memory(few_rounds, monkeypatch):
    monkeypatch.setattr(keyring, "ROOTS_MAX", 3)
    keys = ring(f"p:passphrase:{PASSPHRASE}")

    for number in range(10):
        keys.derive("p", "seal-url", salt=bytes([number]) * 16)

    quick = [number for number in range(10) if keys.is_quick("p", salt=bytes([number]) * 16)]
    assert quick == [7, 8, 9]


def test_a_raw_key_and_an_unknown_id_are_quick():
    keys = ring(LINE)

    assert keys.is_quick("k1")
    assert keys.is_quick("other")


def test_a_salt_of_the_wrong_kind_is_refused():
    keys = ring(LINE, f"p:passphrase:{PASSPHRASE}")

    with pytest.raises(KeyringError, match="salt of 16 octets"):
        keys.derive("k1", "seal-url", salt=b"s" * 16)
    with pytest.raises(KeyringError, match="salt of 3 octets"):
        keys.derive("p", "seal-url", salt=b"abc")


def test_an_unknown_id_is_named_with_those_that_are_there():
    with pytest.raises(KeyringError, match="lacks the master key 'k9'; it has 'k1'"):
        ring(LINE).derive("k9", "seal-url")


def test_a_check_value_proves_the_key_and_does_not_hold_it():
    value = ring(LINE).check_value("k1")

    assert ring(LINE).verify_check("k1", value)
    assert not ring(new_key_line("k1", b"x" * 32)).verify_check("k1", value)
    assert RAW not in value


def test_a_check_value_of_the_other_kind_of_key_is_wrong(few_rounds):
    passphrase = f"k1:passphrase:{PASSPHRASE}"

    assert not ring(LINE).verify_check("k1", ring(passphrase).check_value("k1"))
    assert not ring(passphrase).verify_check("k1", ring(LINE).check_value("k1"))


def test_a_verified_check_value_lends_its_salt_to_what_is_sealed(few_rounds):
    line = f"p:passphrase:{PASSPHRASE}"
    first, second = ring(line, salt=b"a" * 16), ring(line, salt=b"b" * 16)
    assert second.salt("p") == b"b" * 16

    assert second.verify_check("p", first.check_value("p"))

    assert second.salt("p") == b"a" * 16
    assert second.is_quick("p")


def test_a_wrong_check_value_lends_nothing(few_rounds):
    keys = ring(f"p:passphrase:{PASSPHRASE}", salt=b"b" * 16)

    assert not keys.verify_check("p", ring("p:passphrase:another one", salt=b"a" * 16).check_value("p"))

    assert keys.salt("p") == b"b" * 16


@pytest.mark.parametrize(
    "value", [b"", b"\x01", b"\x02\x00" + bytes(32), b"\x01\x08" + bytes(40), bytes(34), b"\x01\x00"]
)
def test_a_malformed_check_value_is_named_as_the_fault_of_the_row(value):
    with pytest.raises(KeyringError, match="check value of master key 'k1' in the database is malformed"):
        ring(LINE).verify_check("k1", value)


async def test_wrong_and_missing_keys_are_all_named_at_once():
    checks = {
        key_id: ring(new_key_line(key_id, RAW)).check_value(key_id) for key_id in ("good", "bad", "gone")
    }
    keys = ring(new_key_line("good", RAW), new_key_line("bad", b"x" * 32))

    with pytest.raises(KeyringError) as caught:
        await keys.verify_checks(checks)

    assert "master key 'bad' is not what this database was sealed with" in str(caught.value)
    assert "master key 'gone' is missing" in str(caught.value)
    assert "'good'" not in str(caught.value)


async def test_right_keys_pass_and_are_ready(few_rounds):
    line = f"p:passphrase:{PASSPHRASE}"
    keys = ring(line, LINE, salt=b"b" * 16)

    await keys.verify_checks({"p": ring(line).check_value("p"), "k1": ring(LINE).check_value("k1")})

    assert keys.is_quick("p")


async def test_preparing_makes_sealing_quick(few_rounds):
    keys = ring(f"p:passphrase:{PASSPHRASE}")

    await keys.prepare()

    assert keys.is_quick("p")


SECRET_TEXT = "Zm9vYmFyLXNlY3JldC1tYXRlcmlhbA"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("\n# only a comment\n", "is empty"),
        (SECRET_TEXT, "master key 1 is not of the form ID:KIND:KEY"),
        (base64.b64encode(RAW).decode(), "master key 1 is not of the form ID:KIND:KEY"),
        (f"k1:{SECRET_TEXT}", "master key 1 is not of the form"),
        (f"k1:hex:{SECRET_TEXT}", "master key 1 is not of the form"),
        (f"{SECRET_TEXT}:base64:{SECRET_TEXT}", "master key 1: its id is not"),
        (f":passphrase:{SECRET_TEXT}", "master key 1: its id is not"),
        (f"{'k' * 33}:passphrase:{SECRET_TEXT}", "master key 1: its id is not"),
        (f"k1:base64:{SECRET_TEXT}", "master key 'k1' is not base64"),
        (f"k1:base64:{SECRET_TEXT}==", "master key 'k1' has 22 octets, not 32"),
        (f"k1:base64:{SECRET_TEXT}\N{SNOWMAN}", "master key 'k1' is not base64"),
        ("k1:base64:" + base64.urlsafe_b64encode(b"\xff" * 32).decode(), "master key 'k1' is not base64"),
        ("k1:passphrase:short", "passphrase is too short; right is 8 characters"),
        (f"k1:passphrase:{SECRET_TEXT}\udcff", "master key 'k1': its passphrase is not text; right is UTF-8"),
        (f"{LINE}\nk1:passphrase:{SECRET_TEXT}", "master key 2: the id 'k1' stands twice"),
        (f"{LINE}\nk2:passphrase:one,{SECRET_TEXT}", "passphrase"),
        ("\n".join(new_key_line(f"k{number}", RAW) for number in range(33)), "at most 32"),
    ],
)
def test_a_malformed_key_is_refused_with_what_would_be_right_and_never_quoted(text, complaint):
    with pytest.raises(KeyringError) as caught:
        Keyring.parse(Secret(text))

    assert complaint in str(caught.value)
    assert "right is" in str(caught.value)
    assert SECRET_TEXT not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_ring_shows_only_its_ids():
    keys = ring(LINE, f"p:passphrase:{PASSPHRASE}")

    assert repr(keys) == "<Keyring k1, p>"
    for text in (repr(keys), str(keys), repr(keys._keys), repr(keys._roots)):
        assert PASSPHRASE not in text
        assert base64.b64encode(RAW).decode() not in text


def test_a_new_key_is_one_line_that_can_be_read_back():
    line = new_key_line("k20261124", RAW)

    assert line == "k20261124:base64:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert Keyring.parse(Secret(line)).active_id == "k20261124"


def test_a_new_key_needs_a_lower_case_id():
    with pytest.raises(KeyringError, match="'K1' is not a key id; right is a lower-case name"):
        new_key_line("K1", RAW)


def test_a_key_id_is_the_day_with_a_number_where_that_is_taken():
    day = datetime.date(2026, 11, 24)

    assert new_key_id(day) == "k20261124"
    assert new_key_id(day, taken=["k20261124", "k20261124-2"]) == "k20261124-3"
