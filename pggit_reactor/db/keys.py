"""Which master keys this database was sealed with, and the proof that a key ring holds them.

The database holds a check value a key (`pggit.key_check`). The first use of a key stores it; from then on a
ring whose key of that id is another, or that lacks it, is refused before anything is sealed or opened.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Final

import attrs
import trio

from pggit_reactor.core.resealing import WorkerKeys
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.statements import statements
from pggit_reactor.db.webhooks import url_place
from pggit_reactor.errors import DatabaseError, KeyringError, ReadOnlyDatabaseError
from pggit_reactor.security.keyring import Keyring

WORKER_SILENCE_SECONDS: Final = 30.0
"""A worker that was silent for longer than six heartbeats is taken for gone."""

_INSUFFICIENT_PRIVILEGE: Final = "42501"
_URL_PURPOSE: Final = url_place(0).purpose
_SQL = statements("keys")


class KeyState(StrEnum):
    """What comparing a key of the ring with the database says."""

    RIGHT = "right"
    WRONG = "wrong"
    MISSING = "missing"
    """The database knows it or holds values sealed with it, and the ring lacks it."""
    UNUSED = "unused"
    """In the ring, and the database has not yet seen it."""


@attrs.frozen(kw_only=True)
class KeyCheck:
    """A master key that this database knows."""

    key_id: str
    check_value: bytes = attrs.field(repr=False)
    created_at: datetime
    retired_at: datetime | None


async def read_key_checks(connection: TrioConnection) -> tuple[KeyCheck, ...]:
    """Return all keys that the database knows, the oldest first."""
    cursor = await connection.execute(_SQL["key_checks"])
    return tuple(
        KeyCheck(key_id=row[0], check_value=bytes(row[1]), created_at=row[2], retired_at=row[3])
        for row in await cursor.fetchall()
    )


async def read_sealed_counts(connection: TrioConnection) -> dict[str | None, int]:
    """Return how many sealed values name each key id; under None those of an unknown form."""
    cursor = await connection.execute(_SQL["sealed_counts"])
    return {row[0]: row[1] for row in await cursor.fetchall()}


async def derive_url_keys(connection: TrioConnection, keyring: Keyring) -> tuple[Secret[str], ...]:
    """Return what opens the URLs of this database and nothing else, an ``ID:base64`` each, for pggit.url_key.

    One for each master key and salt that a URL is sealed with, and for the active one. `KeyringError` where
    the ring lacks one. The ring was verified (`ensure_keys`), which is where it has its salts from.
    """
    used = [(row[0], bytes(row[1])) for row in await (await connection.execute(_SQL["url_keys"])).fetchall()]
    if keyring.active_id in _valid(await read_key_checks(connection)):
        used.insert(0, (keyring.active_id, keyring.salt(keyring.active_id)))
    keys = []
    for key_id, salt in dict.fromkeys(used):
        if len(salt) != len(keyring.salt(key_id)):
            continue  # an altered value, which no key opens
        key = await trio.to_thread.run_sync(partial(keyring.derive, key_id, _URL_PURPOSE, salt=salt))
        keys.append(Secret(f"{key_id}:{base64.b64encode(key).decode()}"))
    return tuple(keys)


async def read_worker_keys(connection: TrioConnection, key_id: str) -> tuple[WorkerKeys, ...]:
    """Return the workers that were heard within `WORKER_SILENCE_SECONDS`, and which keys they have."""
    bound = {"key_id": key_id, "silence_seconds": WORKER_SILENCE_SECONDS}
    cursor = await connection.execute(_SQL["worker_keys"], bound)
    return tuple(
        WorkerKeys(
            worker_id=row[0],
            host=row[1],
            pid=row[2],
            key_ids=None if row[3] is None else tuple(row[3]),
            has_heard=row[4],
        )
        for row in await cursor.fetchall()
    )


async def verify_keys(connection: TrioConnection, keyring: Keyring) -> None:
    """Refuse a ring that has a wrong key, or lacks one; `KeyringError` names the ids. Changes nothing."""
    await keyring.verify_checks(_valid(await read_key_checks(connection)))


async def ensure_keys(
    connection: TrioConnection, keyring: Keyring, *, by: str, must_register: bool = False
) -> None:
    """As `verify_keys`, and register the active key at its first use, audited as done by *by*.

    Where registering is not permitted (a worker's role may only read, a standby takes no writes) nothing is
    registered, which is no harm to who only opens; *must_register* raises then, for who seals. So it does where
    the active key is retired: nothing is sealed with it any more.
    """
    known = await read_key_checks(connection)
    checks = _valid(known)
    await keyring.verify_checks(checks)
    if keyring.active_id in checks:
        return
    if any(check.key_id == keyring.active_id for check in known):
        if must_register:
            raise KeyringError(
                f"master key {keyring.active_id!r} is retired: nothing may be sealed with it; right is a key file "
                f"whose first line is a key in use ({', '.join(map(repr, checks)) or '`key new` makes one'})"
            )
        return
    value = await trio.to_thread.run_sync(keyring.check_value, keyring.active_id)
    try:
        added = await _add(connection, keyring.active_id, value, by=by)
    except DatabaseError as error:
        permitted = not isinstance(error, ReadOnlyDatabaseError) and error.sqlstate != _INSUFFICIENT_PRIVILEGE
        if permitted or must_register:
            raise
        return
    if not added:
        # Another process was first. Its salt counts, if the key is the same.
        await verify_keys(connection, keyring)


async def _add(connection: TrioConnection, key_id: str, value: bytes, *, by: str) -> bool:
    bound = {"key_id": key_id, "check_value": value, "by": by}
    # A block of its own: a refusal inside the caller's transaction shall not spoil it.
    async with connection.transaction():
        cursor = await connection.execute(_SQL["add_key_check"], bound)
        return bool(await cursor.fetchall())


def _valid(checks: Sequence[KeyCheck]) -> Mapping[str, bytes]:
    return {check.key_id: check.check_value for check in checks if check.retired_at is None}


@attrs.frozen(kw_only=True)
class KeyReport:
    """One key id, as the ring and the database see it."""

    key_id: str
    state: KeyState
    active: bool
    sealed_count: int
    workers_with: int
    """How many live workers have it."""
    workers: int
    first_used_at: datetime | None
    retired_at: datetime | None

    @property
    def is_trouble(self) -> bool:
        """Whether something that is sealed, or will be, cannot be opened with the ring's key of this id."""
        if self.retired_at is not None and not self.sealed_count:
            return False
        return self.state in {KeyState.WRONG, KeyState.MISSING}


async def report_keys(connection: TrioConnection, keyring: Keyring | None) -> tuple[KeyReport, ...]:
    """Compare *keyring* (None: there is none) with all that the database knows and holds."""
    checks = {check.key_id: check for check in await read_key_checks(connection)}
    counts = await read_sealed_counts(connection)
    workers = await read_worker_keys(connection, "")
    own = keyring.ids if keyring else ()
    ids = dict.fromkeys((*own, *checks, *(key_id for key_id in counts if key_id is not None)))
    return tuple(
        [
            KeyReport(
                key_id=key_id,
                state=await _state(keyring, key_id, checks.get(key_id)),
                active=bool(own) and key_id == own[0],
                sealed_count=counts.get(key_id, 0),
                workers_with=sum(key_id in (worker.key_ids or ()) for worker in workers),
                workers=len(workers),
                first_used_at=checks[key_id].created_at if key_id in checks else None,
                retired_at=checks[key_id].retired_at if key_id in checks else None,
            )
            for key_id in ids
        ]
    )


async def _state(keyring: Keyring | None, key_id: str, check: KeyCheck | None) -> KeyState:
    if keyring is None or key_id not in keyring.ids:
        return KeyState.MISSING
    if check is None:
        return KeyState.UNUSED
    verify = partial(keyring.verify_check, key_id, check.check_value)
    try:
        right = await trio.to_thread.run_sync(verify)
    except KeyringError:  # the check value itself is malformed
        right = False
    return KeyState.RIGHT if right else KeyState.WRONG
