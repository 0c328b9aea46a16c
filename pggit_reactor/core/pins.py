"""Pins: the SHA-256 of a receiver's public key, in the words of RFC 7469 (``sha256/`` and base64).

What is hashed is the SubjectPublicKeyInfo exactly as it stands in the certificate, so it is cut out of the
certificate here and never encoded anew: a library that reads a key may write it in another way, and the pin
that people made with OpenSSL would not match. A pin stays when a certificate is renewed with the same key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

PINS_MAX: Final = 8
PIN_PREFIX: Final = "sha256/"
CERTIFICATE_OCTETS_MAX: Final = 1 << 20

_DIGEST_OCTETS: Final = 32
_SEPARATORS: Final = re.compile(r"[\s,]+")
_SEQUENCE: Final = 0x30
_EXPLICIT_VERSION: Final = 0xA0
_LONG_LENGTH: Final = 0x80
_LENGTH_OCTETS_MAX: Final = 4
_FIELDS_BEFORE_KEY: Final = 5
"""Of a TBSCertificate without its version: serial, signature, issuer, validity, subject (RFC 5280, 4.1)."""


def parse_pins(text: str) -> tuple[str, ...] | None:
    """Return the pins of *text*, each once, separated by commas or white space; None where one is none.

    At least one, at most `PINS_MAX`. Each has one spelling, so that pins can be compared as texts.
    """
    pins = tuple(dict.fromkeys(word for word in _SEPARATORS.split(text) if word))
    return pins if 1 <= len(pins) <= PINS_MAX and all(map(is_pin, pins)) else None


def is_pin(text: str) -> bool:
    """Whether *text* is ``sha256/`` and the canonical base64 of 32 octets."""
    if not text.startswith(PIN_PREFIX):
        return False
    encoded = text.removeprefix(PIN_PREFIX)
    try:
        octets = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    # Bits behind the last octet are dropped in decoding: one digest, several texts.
    return len(octets) == _DIGEST_OCTETS and base64.b64encode(octets).decode("ascii") == encoded


def pin_of(certificate: bytes) -> str:
    """Return the pin of the public key in *certificate* (DER); `ValueError` where that is no certificate."""
    digest = hashlib.sha256(_public_key_info(certificate)).digest()
    return PIN_PREFIX + base64.b64encode(digest).decode("ascii")


def _public_key_info(certificate: bytes) -> bytes:
    if len(certificate) > CERTIFICATE_OCTETS_MAX:
        raise ValueError(f"the certificate has more than {CERTIFICATE_OCTETS_MAX} octets")
    start, _ = _content(certificate, 0, _SEQUENCE)  # Certificate
    start, _ = _content(certificate, start, _SEQUENCE)  # TBSCertificate
    if certificate[start : start + 1] == bytes((_EXPLICIT_VERSION,)):
        start = _content(certificate, start)[1]
    for _ in range(_FIELDS_BEFORE_KEY):
        start = _content(certificate, start)[1]
    return certificate[start : _content(certificate, start, _SEQUENCE)[1]]


def _content(der: bytes, at: int, tag: int | None = None) -> tuple[int, int]:
    """Return where the content of the value at *at* begins and ends (X.690, 8.1)."""
    if at + 2 > len(der) or (tag is not None and der[at] != tag):
        raise ValueError("the octets are no certificate")
    start, length = at + 2, der[at + 1]
    if length >= _LONG_LENGTH:
        octets = length - _LONG_LENGTH
        start += octets
        if not 1 <= octets <= _LENGTH_OCTETS_MAX:
            raise ValueError("the octets are no certificate")
        length = int.from_bytes(der[at + 2 : start], "big")
    if start + length > len(der):
        raise ValueError("the certificate is cut short")
    return start, start + length
