"""Which master keys this worker has, proved against the database as keys come into use there.

Two files may hold different keys under one id, and nobody would notice before something is sealed with one of them.
So a worker reports an id only while the database does not know it, or once its key was proved to be the database's;
`key rotate` seals nothing before every worker has reported the new id.
"""

from __future__ import annotations

from collections.abc import Collection

import attrs
import trio

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.keys import read_key_checks
from pggit_reactor.errors import KeyringError
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.security.keyring import Keyring

_log = get_logger("keys")


@attrs.define(eq=False)
class KeyWatch:
    """The key ring of a worker, and what is proved of it."""

    keyring: Keyring
    _proved: set[str] = attrs.field(factory=set, init=False)
    _judged: set[str] = attrs.field(factory=set, init=False)

    def replace(self, keyring: Keyring) -> None:
        """Watch another ring from now on; nothing of it is proved."""
        self.keyring = keyring
        self._proved, self._judged = set(), set()

    @property
    def proved_ids(self) -> list[str]:
        """The ids whose key is the one that the database knows."""
        return sorted(self._proved)

    async def judge(self, connection: TrioConnection, in_use: Collection[str]) -> bool:
        """Prove what is new among the ids that are *in_use* in the database; tell whether there was anything new.

        Loud, once, for each that this worker lacks, or has another key under.
        """
        new = set(in_use) - self._judged
        if not new:
            return False
        for check in await read_key_checks(connection):
            if check.key_id in new:
                await self._judge(check.key_id, check.check_value)
        # What was removed in between is not asked for again and again.
        self._judged |= new
        return True

    async def _judge(self, key_id: str, value: bytes) -> None:
        if key_id not in self.keyring.ids:
            _log.error("master_key_missing", key_id=key_id)
            return
        try:
            right = await trio.to_thread.run_sync(self.keyring.verify_check, key_id, value)
        except KeyringError:  # the check value itself is malformed
            right = False
        if right:
            self._proved.add(key_id)
        else:
            _log.error("master_key_wrong", key_id=key_id)
