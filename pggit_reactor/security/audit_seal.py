"""Seals of the audit chain: HMAC-SHA256 with a key derived from a master key.

Layout: ``length of salt (0 or 16), one octet | salt | HMAC (32)``. The salt of a passphrase stands in the seal,
so that whoever has the key can check it without the database.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import attrs
import trio

from pggit_reactor.core.audit_chain import HASH_OCTETS, Segment
from pggit_reactor.errors import KeyringError
from pggit_reactor.security.keyring import SALT_OCTETS, Keyring

_PURPOSE: Final = "audit-chain"


@attrs.frozen
class AuditSealer:
    """Makes and checks seals with the keys of *keyring*."""

    keyring: Keyring

    @property
    def key_id(self) -> str:
        """The id of the key that seals."""
        return self.keyring.active_id

    async def prepare(self) -> None:
        """Derive the active key in a thread where that is slow, so that `seal` is quick."""
        await trio.lowlevel.checkpoint()
        if not self.keyring.is_quick(self.key_id):
            await self.keyring.prepare()

    def seal(self, header: bytes) -> bytes:
        """Return the seal of a segment's header."""
        salt = self.keyring.salt(self.key_id)
        return bytes((len(salt),)) + salt + self._mac(self.key_id, salt, header)

    def check(self, segment: Segment) -> bool | None:
        """Tell whether the seal is right; None where the ring lacks its key. Slow where a salt is new."""
        if segment.key_id not in self.keyring.ids:
            return None
        salt_octets = segment.seal[0] if segment.seal else 0
        if salt_octets not in {0, SALT_OCTETS} or len(segment.seal) != 1 + salt_octets + HASH_OCTETS:
            return False
        salt = segment.seal[1 : 1 + salt_octets]
        try:
            right = self._mac(segment.key_id, salt, segment.header())
        except KeyringError:  # a raw key with a salt, or a passphrase without
            return False
        return hmac.compare_digest(right, segment.seal[1 + salt_octets :])

    async def check_async(self, segment: Segment) -> bool | None:
        """`check`, in a thread where a passphrase may have to be derived."""
        return await trio.to_thread.run_sync(self.check, segment)

    def _mac(self, key_id: str, salt: bytes, header: bytes) -> bytes:
        key = self.keyring.derive(key_id, _PURPOSE, salt=salt)
        return hmac.digest(key, header, hashlib.sha256)
