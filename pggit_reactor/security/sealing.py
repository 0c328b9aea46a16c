"""Sealed values: AES-256-GCM, bound to the one place in the database where they belong.

Layout, all lengths in one octet::

    format 1 | length of key id | key id | length of salt (0 or 16) | salt | nonce (12) | text and tag (16)

The associated data are the octets before the nonce, then schema, table, column and row in UTF-8, each with
its length before it in four octets, most significant first. So a value that is moved to another row, column
or table, or whose head is altered, does not open, and no two places have the same associated data. The key is
derived for the column's purpose (`Place.purpose`): a key that opens URLs opens no secrets.

Nonces are random. That is sound for the 2**32 values a key that a registry will never hold (NIST SP 800-38D,
8.3).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import attrs
import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pggit_reactor.errors import KeyringError, SealError
from pggit_reactor.security.keyring import SALT_OCTETS, Keyring, is_key_id

FORMAT: Final = 1
NONCE_OCTETS: Final = 12
TAG_OCTETS: Final = 16
PLAIN_OCTETS_MAX: Final = 1_048_576
_LENGTH_OCTETS: Final = 4
_COLUMN_PREFIX: Final = "sealed_"


@attrs.frozen(kw_only=True)
class Place:
    """Where a sealed value belongs. *row* is the text of its primary key."""

    schema: str
    table: str
    column: str
    row: str

    @property
    def purpose(self) -> str:
        """What the key is derived for: ``seal-url`` for the column ``sealed_url``."""
        return f"seal-{self.column.removeprefix(_COLUMN_PREFIX).replace('_', '-')}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.column} of row {self.row}"


@attrs.frozen(kw_only=True)
class _Sealed:
    head: bytes
    key_id: str
    salt: bytes
    nonce: bytes
    text: bytes = attrs.field(repr=False)


@attrs.frozen
class Sealer:
    """Seals with the active key of *keyring* and opens with any. Any failure to open is a SealError."""

    keyring: Keyring
    random_octets: Callable[[int], bytes] = attrs.field(default=os.urandom, kw_only=True, repr=False)

    def seal(self, plain: bytes, *, place: Place) -> bytes:
        """Return *plain* sealed for *place*, different each time. Slow before a passphrase is prepared."""
        if len(plain) > PLAIN_OCTETS_MAX:
            raise SealError(f"{place}: {len(plain)} octets are too many to seal; at most {PLAIN_OCTETS_MAX}")
        key_id = self.keyring.active_id
        salt = self.keyring.salt(key_id)
        head = bytes((FORMAT, len(key_id))) + key_id.encode("ascii") + bytes((len(salt),)) + salt
        nonce = self.random_octets(NONCE_OCTETS)
        assert len(nonce) == NONCE_OCTETS
        cipher = AESGCM(self.keyring.derive(key_id, place.purpose, salt=salt))
        return head + nonce + cipher.encrypt(nonce, plain, _associated_data(head, place))

    def open(self, sealed: bytes, *, place: Place) -> bytes:
        """Return what was sealed for *place*. Slow where a passphrase's salt is new: `is_quick`.

        SealError where the ring lacks the key, the key is another, the value belongs elsewhere, or any octet
        was altered; which of the last three, nobody can tell.
        """
        parts = _split(sealed, str(place))
        try:
            cipher = AESGCM(self.keyring.derive(parts.key_id, place.purpose, salt=parts.salt))
        except KeyringError as exc:
            raise SealError(f"{place} does not open: {exc}") from exc
        try:
            return cipher.decrypt(parts.nonce, parts.text, _associated_data(parts.head, place))
        except InvalidTag:
            raise SealError(
                f"{place} does not open with master key {parts.key_id!r}: another key sealed it, it was "
                "altered, or it was moved from another row"
            ) from None

    def is_quick(self, sealed: bytes) -> bool:
        """Tell whether `open` needs no derivation of a passphrase first."""
        parts = _split(sealed, "the sealed value")
        return self.keyring.is_quick(parts.key_id, salt=parts.salt)

    async def seal_async(self, plain: bytes, *, place: Place) -> bytes:
        """`seal`, in a thread where that is slow."""
        if not self.keyring.is_quick(self.keyring.active_id):
            await self.keyring.prepare()
        await trio.lowlevel.checkpoint()
        return self.seal(plain, place=place)

    async def open_async(self, sealed: bytes, *, place: Place) -> bytes:
        """`open`, in a thread where that is slow."""
        await trio.lowlevel.checkpoint()
        if self.is_quick(sealed):
            return self.open(sealed, place=place)
        return await trio.to_thread.run_sync(lambda: self.open(sealed, place=place))


def sealed_key_id(sealed: bytes) -> str:
    """Return the id of the master key that *sealed* names; SealError where it is no sealed value."""
    return _split(sealed, "the sealed value").key_id


def _associated_data(head: bytes, place: Place) -> bytes:
    texts = [text.encode() for text in (place.schema, place.table, place.column, place.row)]
    return head + b"".join(len(text).to_bytes(_LENGTH_OCTETS) + text for text in texts)


def _split(sealed: bytes, what: str) -> _Sealed:
    if sealed[:1] != bytes((FORMAT,)):
        raise SealError(f"{what} is not of a format that this version knows; right is format {FORMAT}")
    key_id_end = 2 + (sealed[1] if len(sealed) > 1 else 0)
    salt_start = key_id_end + 1
    salt_octets = sealed[key_id_end] if len(sealed) > key_id_end else 0
    head_end = salt_start + salt_octets
    key_id = sealed[2:key_id_end].decode("latin-1")
    too_short = len(sealed) < head_end + NONCE_OCTETS + TAG_OCTETS
    if too_short or salt_octets not in {0, SALT_OCTETS} or not is_key_id(key_id):
        raise SealError(f"{what} is malformed: it was cut short or altered")
    return _Sealed(
        head=sealed[:head_end],
        key_id=key_id,
        salt=sealed[salt_start:head_end],
        nonce=sealed[head_end : head_end + NONCE_OCTETS],
        text=sealed[head_end + NONCE_OCTETS :],
    )
