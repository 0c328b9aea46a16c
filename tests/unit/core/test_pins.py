"""Pins: one spelling for each, and the same digest as OpenSSL's own way of making one."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st

from pggit_reactor.core.pins import PINS_MAX, is_pin, parse_pins, pin_of

ONE = "sha256/" + base64.b64encode(bytes(32)).decode()
TWO = "sha256/" + base64.b64encode(bytes(range(32))).decode()


def certificate(key, *, name: str = "receiver", old_form: bool = False) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(2**150 if old_form else 1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2030, 1, 1, tzinfo=UTC))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())
        .public_bytes(Encoding.DER)
    )


KEYS = [
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP521R1()),
    ed25519.Ed25519PrivateKey.generate(),
    rsa.generate_private_key(65537, 2048),
]


@pytest.mark.parametrize("key", KEYS, ids=["p256", "p521", "ed25519", "rsa"])
@pytest.mark.parametrize("name", ["a", "a" * 64])
def test_a_pin_is_the_digest_of_the_key_as_it_stands_in_the_certificate(key, name):
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    pin = pin_of(certificate(key, name=name, old_form=name == "a"))

    assert pin == "sha256/" + base64.b64encode(hashlib.sha256(info).digest()).decode()
    assert is_pin(pin)


def test_the_commands_of_the_page_give_the_same_pin(tmp_path):
    path = tmp_path / "receiver.der"
    path.write_bytes(certificate(KEYS[0]))
    commands = (
        f"openssl x509 -inform der -in {path} -noout -pubkey | openssl pkey -pubin -outform der"
        " | openssl dgst -sha256 -binary | openssl base64"
    )
    done = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, check=True)

    assert pin_of(path.read_bytes()) == f"sha256/{done.stdout.strip()}"


@given(cut=st.integers(0, 10**6), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255))))
@example(cut=0, flips=[])
def test_octets_that_are_no_certificate_are_refused_or_have_a_pin_and_nothing_else(cut, flips):
    octets = bytearray(certificate(KEYS[0]))
    for place, mask in flips:
        octets[place % len(octets)] ^= mask

    try:
        pin = pin_of(bytes(octets[: cut % (len(octets) + 1)]))
    except ValueError:
        return
    assert is_pin(pin)


@pytest.mark.parametrize(
    "octets", [b"", b"\x30", b"\x30\x80", b"\x30\x85\0\0\0\0\0", b"\x31\x00", b"\x30\x02\x30"]
)
def test_what_is_no_certificate_is_refused(octets):
    with pytest.raises(ValueError, match="certificate"):
        pin_of(octets)


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        (ONE, (ONE,)),
        (f"{ONE},{TWO}", (ONE, TWO)),
        (f" {ONE} , {TWO}\n", (ONE, TWO)),
        (f"{ONE} {ONE}", (ONE,)),
    ],
)
def test_pins_are_read_each_once(text, pins):
    assert parse_pins(text) == pins


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "sha256/",
        ONE.removeprefix("sha256/"),
        ONE.replace("sha256", "SHA256"),
        ONE.replace("sha256", "sha1"),
        ONE[:-1],
        ONE[:-2] + "B=",  # bits behind the last octet: the same digest in another spelling
        ONE + "=",
        ONE.replace("/A", "/-"),
        ONE + "\0",
        f"{ONE};{TWO}",
        "sha256/" + base64.b64encode(bytes(31)).decode(),
        "sha256/" + base64.b64encode(bytes(33)).decode(),
        " ".join("sha256/" + base64.b64encode(bytes([n]) * 32).decode() for n in range(PINS_MAX + 1)),
    ],
)
def test_what_is_no_list_of_pins_is_refused(text):
    assert parse_pins(text) is None


@given(text=st.text())
def test_a_text_that_is_a_pin_has_no_other_spelling(text):
    for candidate in (text, "sha256/" + text):
        if is_pin(candidate):
            digest = base64.b64decode(candidate.removeprefix("sha256/"))
            assert candidate == "sha256/" + base64.b64encode(digest).decode()
