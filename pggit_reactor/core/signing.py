"""Signatures on deliveries: both header families, for senders and for receivers.

- ``webhook-signature`` (Standard Webhooks 1.0): ``v1,`` and base64 of HMAC-SHA256 over
  ``id.timestamp.body``, the timestamp in Unix seconds;
- ``X-pgGit-Signature``: ``sha256=`` and lower-case hex of HMAC-SHA256 over ``id.timestamp.body``, the
  timestamp in ISO 8601, UTC, whole seconds, ``Z``.

Both hold one signature for each valid secret, newest first, separated by a space, so that a receiver may
change its secret at any moment of a rotation. A secret that is an Ed25519 key signs in the first family only, as
``v1a,`` and base64; where there is no other, the second family is left out whole. An id holds no full stop: else
``a.1`` at time 2 and ``a`` at time 1 could be the same octets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import attrs

from pggit_reactor.core.model import SignatureScope
from pggit_reactor.core.signing_keys import (
    HmacKey,
    PrivateKey,
    PublicKey,
    any_same,
    new_secret,
    secret_key,
    signing_key,
    verifying_key,
)
from pggit_reactor.errors import ConfigurationError, VerificationError

__all__ = ["new_secret", "secret_key", "sign", "verify"]

TOLERANCE_SECONDS: Final = 300
SIGNATURE_CHARS_MAX: Final = 4096
"""Of one received signature header: some forty signatures. What is longer is refused unread."""

STANDARD_ID: Final = "webhook-id"
STANDARD_TIMESTAMP: Final = "webhook-timestamp"
STANDARD_SIGNATURE: Final = "webhook-signature"
PGGIT_ID: Final = "X-pgGit-Delivery-ID"
PGGIT_TIMESTAMP: Final = "X-pgGit-Timestamp"
PGGIT_SIGNATURE: Final = "X-pgGit-Signature"

# The last second that ISO 8601 can write in four digits of year.
_TIMESTAMP_MAX: Final = 253_402_300_799
_ID: Final = re.compile(r"[!-\-/-~]{1,256}")  # Visible ASCII without the full stop.
_UNIX_SECONDS: Final = re.compile(r"[0-9]{1,12}")
_ISO_SECONDS: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def sign(
    body: bytes,
    *,
    id: str,  # noqa: A002  # the contract's name, and that of the header
    timestamp: int,
    secrets: Sequence[str],
    scope: SignatureScope = SignatureScope.FULL,
) -> dict[str, str]:
    """Return the headers that sign *body*: six, of both families, or three where all secrets are Ed25519 keys.

    *timestamp* is in Unix seconds; *secrets* are all that are valid now, newest first.
    `SignatureScope.BODY_ONLY` changes ``X-pgGit-Signature`` alone: one HMAC over the body, made with the
    oldest of the secrets. `ValueError` for an id or a timestamp that cannot be signed, `ConfigurationError`
    for a secret that cannot sign.
    """
    if not _ID.fullmatch(id):
        raise ValueError("the id must be 1 to 256 visible ASCII characters other than the full stop")
    if not 0 <= timestamp <= _TIMESTAMP_MAX:
        raise ValueError("the timestamp must be in Unix seconds, from 1970 to 9999")
    keys = [signing_key(secret) for secret in _listed(secrets)]
    unix = str(timestamp)
    headers = {
        STANDARD_ID: id,
        STANDARD_TIMESTAMP: unix,
        STANDARD_SIGNATURE: " ".join(_STANDARD.signatures(keys, id, unix, body)),
    }
    shared = [key for key in keys if isinstance(key, HmacKey)]
    if not shared:
        return headers
    iso = _iso_seconds(timestamp)
    if scope is SignatureScope.BODY_ONLY:
        pggit_signatures = ["sha256=" + shared[-1].digest(body).hex()]
    else:
        pggit_signatures = _PGGIT.signatures(shared, id, iso, body)
    return headers | {
        PGGIT_ID: id,
        PGGIT_TIMESTAMP: iso,
        PGGIT_SIGNATURE: " ".join(pggit_signatures),
    }


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    *,
    now: float,
    tolerance_seconds: int = TOLERANCE_SECONDS,
) -> None:
    """Return if one of *secrets* signed *body*, within *tolerance_seconds* of *now* (Unix time).

    A secret is a shared one, or the ``whpk_`` key of a sender who signs with Ed25519.
    *body* is the octets as received, before any parsing. *headers* may spell their names in any case;
    either family will do, and where both are there, one must verify and both must name the same id and
    second. Signatures of schemes that are not ours are ignored. All comparisons take constant time, and how
    many are made does not depend on which one is right.

    `VerificationError` says what is wrong; `ConfigurationError` is for a secret that cannot sign.
    """
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(
            "body must be the octets as received: text that was decoded may differ from what was signed"
        )
    keys = [verifying_key(secret) for secret in _listed(secrets)]
    received = _lower_names(headers)
    families = [family for family in (_STANDARD, _PGGIT) if family.is_in(received)]
    if not families:
        raise VerificationError(f"no signature: want {_STANDARD.wanted()}, or {_PGGIT.wanted()}")
    _check_one_id(received)
    timestamps = {family.seconds(received) for family in families}
    if len(timestamps) > 1:
        raise VerificationError("the two timestamps differ: one of them was altered")
    _check_age(timestamps.pop(), now=now, tolerance_seconds=tolerance_seconds)
    octets = bytes(body)
    # A list, not a generator: any() would stop at the first that is right.
    matches = [family.matches(received, keys, octets) for family in families]
    if not any(matches):
        raise VerificationError("no signature is right: another secret signed this, or something was altered")


@attrs.frozen(kw_only=True)
class _Family:
    """One set of three headers and its way of writing time and signature."""

    id_name: str
    timestamp_name: str
    signature_name: str
    is_standard: bool

    def wanted(self) -> str:
        return f"{self.id_name}, {self.timestamp_name} and {self.signature_name}"

    def is_in(self, received: Mapping[str, str]) -> bool:
        return all(
            name.lower() in received for name in (self.id_name, self.timestamp_name, self.signature_name)
        )

    def signatures(
        self, keys: Sequence[HmacKey | PrivateKey], id_: str, timestamp: str, body: bytes
    ) -> list[str]:
        signed = self.signed(id_, timestamp, body)
        if self.is_standard:
            return [key.standard_signature(signed) for key in keys]
        return ["sha256=" + key.digest(signed).hex() for key in keys if isinstance(key, HmacKey)]

    def signed(self, id_: str, timestamp: str, body: bytes) -> bytes:
        return f"{id_}.{timestamp}.".encode("ascii") + body

    def seconds(self, received: Mapping[str, str]) -> int:
        text = received[self.timestamp_name.lower()]
        if self.is_standard and _UNIX_SECONDS.fullmatch(text):
            return int(text)
        if not self.is_standard and _ISO_SECONDS.fullmatch(text):
            try:
                return int(datetime.fromisoformat(text).timestamp())
            except ValueError:
                pass  # Well formed, but no such day or time.
        form = "Unix seconds" if self.is_standard else "a UTC time such as 2026-01-31T12:00:00Z"
        raise VerificationError(f"{self.timestamp_name} is malformed: want {form}")

    def matches(self, received: Mapping[str, str], keys: Sequence[HmacKey | PublicKey], body: bytes) -> bool:
        offered = received[self.signature_name.lower()]
        if len(offered) > SIGNATURE_CHARS_MAX:
            raise VerificationError(f"{self.signature_name} has more than {SIGNATURE_CHARS_MAX} characters")
        signed = self.signed(received[self.id_name.lower()], received[self.timestamp_name.lower()], body)
        # Whole signatures are compared, scheme and all: one of an unknown scheme is simply not equal.
        candidates = offered.split(" ")
        right = False
        for key in keys:
            right |= self._is_by(key, signed, candidates)
        return right

    def _is_by(self, key: HmacKey | PublicKey, signed: bytes, candidates: Sequence[str]) -> bool:
        if self.is_standard:
            return key.verifies(signed, candidates)
        return isinstance(key, HmacKey) and any_same("sha256=" + key.digest(signed).hex(), candidates)


_STANDARD: Final = _Family(
    id_name=STANDARD_ID,
    timestamp_name=STANDARD_TIMESTAMP,
    signature_name=STANDARD_SIGNATURE,
    is_standard=True,
)
_PGGIT: Final = _Family(
    id_name=PGGIT_ID, timestamp_name=PGGIT_TIMESTAMP, signature_name=PGGIT_SIGNATURE, is_standard=False
)
_NAMES: Final = frozenset(
    name.lower()
    for family in (_STANDARD, _PGGIT)
    for name in (family.id_name, family.timestamp_name, family.signature_name)
)


def _listed(secrets: str | Sequence[str]) -> Sequence[str]:
    listed = [secrets] if isinstance(secrets, str) else secrets
    if not listed:
        raise ConfigurationError("no signing secret was given; there must be at least one")
    return listed


@lru_cache(maxsize=4)  # Attempts of the same second share it.
def _iso_seconds(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None).isoformat() + "Z"


def _lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    received: dict[str, str] = {}
    for name, value in headers.items():
        folded = name.lower()
        if folded not in _NAMES:
            continue
        if folded in received:
            raise VerificationError(f"{folded} occurs twice, in different case")
        received[folded] = value.strip(" \t")
    return received


def _check_one_id(received: Mapping[str, str]) -> None:
    """Refuse a second id beside the signed one: who drops repeats by it would take a replay for new.

    So it counts even where the rest of its family is missing.
    """
    ids = {received[name] for name in (STANDARD_ID, PGGIT_ID.lower()) if name in received}
    if len(ids) > 1:
        raise VerificationError(f"{STANDARD_ID} and {PGGIT_ID} differ: one of them was altered")
    if not all(_ID.fullmatch(id_) for id_ in ids):
        raise VerificationError("the id is malformed: want visible ASCII characters other than the full stop")


def _check_age(timestamp: int, *, now: float, tolerance_seconds: int) -> None:
    if now - timestamp > tolerance_seconds:
        raise VerificationError(
            f"the timestamp is more than {tolerance_seconds} s old: a replay, or a wrong clock"
        )
    # Written so that a `now` that is not a number fails too.
    if not timestamp - now <= tolerance_seconds:
        raise VerificationError(
            f"the timestamp is more than {tolerance_seconds} s in the future: a wrong clock"
        )
