"""What one worker does for the signing secrets of all webhooks: rotate by schedule, retire, remind."""

from __future__ import annotations

import math
from typing import Final

import attrs
import trio

from pggit_reactor.config.settings import SecretSettings
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.keys import read_key_checks
from pggit_reactor.db.secrets import read_old_secrets, retire_expired, rotate_due
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.runtime.key_watch import KeyWatch
from pggit_reactor.security.sealing import Sealer

REMINDER_SECONDS: Final = 86_400.0
"""How often a worker says that secrets are old."""

_log = get_logger("secrets")


@attrs.define(eq=False, kw_only=True)
class SecretChores:
    """Chores under the lock of the chores; each call is one round in the caller's transaction."""

    settings: SecretSettings
    keys: KeyWatch
    worker_id: str
    _reminded_at: float = attrs.field(default=-math.inf, init=False)

    async def run(self, connection: TrioConnection) -> None:
        """Do what is due now."""
        retired = await retire_expired(connection, by=self.worker_id)
        if retired:
            _log.info("secrets_retired", count=retired)
        await self._rotate(connection)
        await self._remind(connection)

    async def _rotate(self, connection: TrioConnection) -> None:
        sealer = await self._sealer(connection)
        if sealer is None:
            return
        rotated = await rotate_due(
            connection, sealer, grace_seconds=self.settings.grace_seconds, by=self.worker_id
        )
        for webhook_id in rotated:
            _log.info("secret_rotated", webhook_id=webhook_id)

    async def _sealer(self, connection: TrioConnection) -> Sealer | None:
        """Return what seals with the first key of the ring that is in use here; None where there is none yet.

        Not simply with the first: before `key rotate` has registered it, nobody has proved that it is everybody's.
        """
        in_use = {
            check.key_id for check in await read_key_checks(connection) if check.retired_at is None
        } & set(self.keys.proved_ids)
        ring = self.keys.keyring
        key_id = next((key_id for key_id in ring.ids if key_id in in_use), None)
        return None if key_id is None else Sealer(ring.sealing_with(key_id))

    async def _remind(self, connection: TrioConnection) -> None:
        if trio.current_time() - self._reminded_at < REMINDER_SECONDS:
            return
        old = await read_old_secrets(connection, reminder_seconds=self.settings.reminder_seconds)
        if old.count:
            self._reminded_at = trio.current_time()
            _log.warning(
                "secrets_old",
                count=old.count,
                webhook_ids=list(old.oldest),
                older_than_days=round(self.settings.reminder_seconds / 86_400, 3),
            )
