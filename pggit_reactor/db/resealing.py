"""Seals all that is sealed anew with the active master key, while workers deliver.

What is to be done stands in the rows themselves: the head of a sealed value names its key. So nothing has to be
remembered, and a run that was killed is gone on with by the next. Each batch is a transaction of its own and writes
only rows whose values are still those that were opened; a row that somebody changes or holds locked meanwhile is
left to the next pass. Workers' copies stay right, since what is inside does not change: revisions stay as they are.

Before anything is written under a new key, every worker must have it: `check_workers`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio

from pggit_reactor.core.resealing import (
    Progress,
    WorkerKeys,
    in_the_way,
    is_round_due,
    pause_seconds,
    retirable,
)
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.keys import read_key_checks, read_sealed_counts, read_worker_keys
from pggit_reactor.db.registry import By
from pggit_reactor.db.statements import statements
from pggit_reactor.errors import RotationError, SealError
from pggit_reactor.security.sealing import Place, Sealer, sealed_key_id

BATCH_ROWS: Final = 100
BATCH_SECONDS_MAX: Final = 60.0
RATE_DEFAULT: Final = 500.0
"""Values a second."""
UNOPENED_NAMED_MAX: Final = 20
HEARING_SECONDS_MAX: Final = 20.0
"""How long workers are given to say that a key which came into use a moment ago is the one that they have."""
RELOADING_SECONDS_MAX: Final = 3.0
"""How long workers are given to take up the key files after a SIGHUP that was sent a moment ago."""
HEARING_RETRY_SECONDS: Final = 0.2

_SQL = statements("keys")


@attrs.frozen(kw_only=True)
class SealedTable:
    """A table with sealed columns: which statements read a page of it and write it, and its key's columns."""

    name: str
    columns: tuple[str, ...]
    read: str
    write: str
    key: tuple[str, ...]

    def place(self, column: str, key: Sequence[int]) -> Place:
        """Where the value of *column* in the row *key* belongs."""
        return Place(schema="pggit", table=self.name, column=column, row=":".join(map(str, key)))


TABLES: Final = (
    SealedTable(
        name="webhook",
        columns=("sealed_url", "sealed_headers", "sealed_ca", "sealed_client_certificate"),
        read="webhooks_to_reseal",
        write="reseal_webhooks",
        key=("webhook_id",),
    ),
    SealedTable(
        name="webhook_secret",
        columns=("sealed_secret",),
        read="secrets_to_reseal",
        write="reseal_secrets",
        key=("webhook_id", "version"),
    ),
)
"""Everything that is sealed; a test compares it with the catalogue."""

_FIRST: Final = -(1 << 63)
_FIRST_OF_INTEGER: Final = -(1 << 31)


@attrs.frozen(kw_only=True)
class Resealed:
    """What a rotation did."""

    key_id: str
    done: int
    """Values that were sealed anew."""
    left: int
    """Values that still need another key."""
    unopened: tuple[str, ...]
    """Which values do not open, the first of them."""
    seconds: float


@asynccontextmanager
async def exclusive_rotation(guard: TrioConnection) -> AsyncIterator[None]:
    """Be the only rotation of this database for the length of the block; `RotationError` where there is one.

    *guard* is a connection that does nothing else but ask questions meanwhile: the lock is its transaction's.
    """
    async with guard.transaction():
        row = await (await guard.execute(_SQL["try_rotation_lock"])).fetchone()
        assert row is not None
        if not row[0]:
            raise RotationError("another key rotation is running on this database; wait for it to end")
        yield


async def check_workers(connection: TrioConnection, key_id: str, *, patience: float = 0.0) -> None:
    """Return once each live worker has *key_id*; `RotationError` names who has not after *patience* seconds."""
    deadline = trio.current_time() + patience
    while True:
        workers = in_the_way(await read_worker_keys(connection, key_id), key_id)
        if not workers:
            return
        if trio.current_time() >= deadline:
            raise RotationError(_complaint(workers, key_id))
        await trio.sleep(HEARING_RETRY_SECONDS)


def _complaint(workers: Sequence[WorkerKeys], key_id: str) -> str:
    silent = [str(worker) for worker in workers if worker.key_ids is None]
    without = [str(worker) for worker in workers if worker.key_ids is not None]
    complaints = []
    if without:
        complaints.append(
            f"the master key {key_id!r} is not in the key file of {', '.join(without)}, or is another there: "
            "put the same line into each key file and send SIGHUP to each worker"
        )
    if silent:
        complaints.append(
            f"{', '.join(silent)}: of a version that does not say which keys it has; upgrade it, or go on with --force"
        )
    return "; ".join(complaints)


@attrs.define(eq=False, kw_only=True)
class Resealing:
    """One run. *connection* writes, *guard* holds the lock of `exclusive_rotation` and is asked before each batch."""

    connection: TrioConnection
    guard: TrioConnection
    sealer: Sealer
    by: By
    rate: float = RATE_DEFAULT
    force: bool = False
    """Whether workers may lack the key."""
    on_progress: Callable[[Progress], None] = lambda _: None
    sleep: Callable[[float], Awaitable[None]] = trio.sleep
    now: Callable[[], float] = trio.current_time
    _done: int = attrs.field(default=0, init=False)
    _unopened: dict[str, None] = attrs.field(factory=dict, init=False)

    async def run(self) -> Resealed:
        """Seal all with the active key; return what was done. `RotationError` where it must stop.

        Whatever stops it, what was sealed anew stays so, and the next run does the rest.
        """
        key_id = self.sealer.keyring.active_id
        await self.sealer.keyring.prepare()
        counts = await read_sealed_counts(self.connection)
        total = _others(counts, key_id)
        if total:
            await self._audit("begun", values=total, of={str(k): n for k, n in counts.items()})
        started = self.now()
        number, left, last = 0, total, total
        while is_round_due(number=number, left=left, done=last):
            before = self._done
            for table in TABLES:
                await self._pass(table, key_id, total, started)
            left = _others(await read_sealed_counts(self.connection), key_id)
            number, last = number + 1, self._done - before
        if total:
            await self._audit("finished", values=self._done, left=left)
        return Resealed(
            key_id=key_id,
            done=self._done,
            left=left,
            unopened=tuple(self._unopened)[:UNOPENED_NAMED_MAX],
            seconds=self.now() - started,
        )

    async def _pass(self, table: SealedTable, key_id: str, total: int, started: float) -> None:
        after: Sequence[int] = (_FIRST, _FIRST_OF_INTEGER)[: len(table.key)]
        while True:
            reached: Sequence[int] | None = None
            with trio.move_on_after(BATCH_SECONDS_MAX) as scope:
                reached = await self._page(table, key_id, after)
            if scope.cancelled_caught:
                raise RotationError(
                    f"the database took more than {BATCH_SECONDS_MAX:g} s for a batch; run it again"
                )
            if reached is None:
                return
            after = reached
            progress = Progress(done=self._done, total=total, elapsed_seconds=self.now() - started)
            self.on_progress(progress)
            await self.sleep(pause_seconds(progress, rate=self.rate))

    async def _page(self, table: SealedTable, key_id: str, after: Sequence[int]) -> Sequence[int] | None:
        """Seal the next page anew; return where it ended, None where there was none."""
        await self._may_go_on(key_id)
        bound: dict[str, object] = {"key_id": key_id, "rows_max": BATCH_ROWS}
        bound |= {f"after_{name}": value for name, value in zip(table.key, after, strict=True)}
        rows = await (await self.connection.execute(_SQL[table.read], bound)).fetchall()
        if not rows:
            return None
        self._done += await self._batch(table, rows, key_id)
        return rows[-1][: len(table.key)]

    async def _may_go_on(self, key_id: str) -> None:
        # The question also shows that the guard, and so the lock, is still there.
        workers = in_the_way(await read_worker_keys(self.guard, key_id), key_id)
        if workers and not self.force:
            raise RotationError(f"stopped, to be gone on with by another run: {_complaint(workers, key_id)}")

    async def _batch(self, table: SealedTable, rows: Sequence[tuple[Any, ...]], key_id: str) -> int:
        """Seal a page anew; return how many values were written."""
        width = len(table.key)
        bound: dict[str, list[object]] = {f"{name}s": [] for name in table.key}
        bound |= {f"{age}_{column}": [] for column in table.columns for age in ("old", "new")}
        changed: dict[tuple[int, ...], int] = {}
        for row in rows:
            key = tuple(row[:width])
            old = {
                column: None if value is None else bytes(value)
                for column, value in zip(table.columns, row[width:], strict=True)
            }
            new = {column: await self._anew(table.place(column, key), old[column], key_id) for column in old}
            changed[key] = sum(new[column] != old[column] for column in old)
            if not changed[key]:
                continue
            for name, part in zip(table.key, key, strict=True):
                bound[f"{name}s"].append(part)
            for column in table.columns:
                bound[f"old_{column}"].append(old[column])
                bound[f"new_{column}"].append(new[column])
        async with self.connection.transaction():
            await self.connection.execute(_SQL["begin_resealing"])
            written = await (await self.connection.execute(_SQL[table.write], bound)).fetchall()
        return sum(changed[tuple(key)] for key in written)

    async def _anew(self, place: Place, sealed: bytes | None, key_id: str) -> bytes | None:
        """Return what is in *sealed*, sealed with the active key; as it is where it need not or cannot be."""
        try:
            if sealed is None or sealed_key_id(sealed) == key_id:
                return sealed
            plain = await self.sealer.open_async(sealed, place=place)
        except SealError as error:
            self._unopened[str(error)] = None
            return sealed
        return await self.sealer.seal_async(plain, place=place)

    async def _audit(self, state: str, **details: object) -> None:
        await _audit(
            self.connection,
            "key_rotated",
            self.by,
            {"key_id": self.sealer.keyring.active_id, "state": state, **details},
        )


async def retire_keys(connection: TrioConnection, *, active_id: str, by: By) -> tuple[str, ...]:
    """Retire every key that no sealed value needs, but the active one; return their ids.

    Each is looked at once more under its row's lock: whoever seals with it meanwhile is either seen, or refused.
    """
    known = await read_key_checks(connection)
    in_use = [check.key_id for check in known if check.retired_at is None]
    retired = []
    counts = await read_sealed_counts(connection)
    for key_id in retirable(in_use=in_use, counts=counts, active_id=active_id):
        async with connection.transaction():
            await connection.execute(_SQL["lock_key"], {"key_id": key_id})
            fresh = await read_sealed_counts(connection)
            if not retirable(in_use=[key_id], counts=fresh, active_id=active_id):
                continue
            cursor = await connection.execute(_SQL["retire_key"], {"key_id": key_id, "by": by.name})
            if cursor.rowcount:
                await _audit(connection, "key_retired", by, {"key_id": key_id})
                retired.append(key_id)
    return tuple(retired)


def _others(counts: Mapping[str | None, int], key_id: str) -> int:
    """Count the values that name another key; those of an unknown form name none."""
    return sum(count for other, count in counts.items() if other is not None and other != key_id)


async def _audit(connection: TrioConnection, operation: str, by: By, details: Mapping[str, object]) -> None:
    bound = {"operation": operation, "by": by.name, "details": json.dumps({**details, "host": by.host})}
    await connection.execute(_SQL["audit_key"], bound)
