"""What a worker says of itself to the database, and the figures it reads for its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from pggit_reactor.core.breaker import RECOVERY_SECONDS, Phase
from pggit_reactor.core.model import WebhookId
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.statements import statements

FIGURES_ROWS_MAX: Final = 20_000
"""Depths are counted up to here; what is deeper reads as this many."""

LEARNED_ROWS_MAX: Final = 10_000

_SQL = statements("workers")


@attrs.frozen(kw_only=True)
class WorkerIdentity:
    """Who a worker is."""

    instance: str
    """Unique to this process; what `leased_by` holds."""
    worker_id: str
    version: str
    host: str
    pid: int
    capacity: int


@attrs.frozen(kw_only=True)
class Figures:
    """What a scrape wants to know of the database."""

    depth: Mapping[str, int]
    oldest_age_seconds: Mapping[str, float]
    notification_queue_usage: float
    paused_unopenable: int
    unknown_webhook_rows: int
    breakers: Mapping[str, int]
    """Webhooks by the state of their circuit breaker, but for those that are simply closed."""


@attrs.frozen(kw_only=True)
class Heard:
    """What a heartbeat brings back."""

    time: float
    """The database's, in Unix seconds."""
    keys_in_use: tuple[str, ...]
    """Ids of the master keys that something may be sealed with."""


async def heartbeat(
    connection: TrioConnection,
    identity: WorkerIdentity,
    *,
    state: str,
    in_flight: int,
    silence_seconds: float,
    key_ids: Sequence[str] = (),
    proved_key_ids: Sequence[str] = (),
) -> Heard:
    """Say that the worker lives and which master keys it has; return what the database says to it.

    A gap of more than *silence_seconds* since the last heartbeat is remembered: see `claims.claim`.
    """
    cursor = await connection.execute(
        _SQL["heartbeat"],
        {
            "instance": identity.instance,
            "worker_id": identity.worker_id,
            "version": identity.version,
            "host": identity.host,
            "pid": identity.pid,
            "capacity": identity.capacity,
            "state": state,
            "in_flight": in_flight,
            "silence_seconds": silence_seconds,
            "key_ids": list(key_ids),
            "proved_key_ids": list(proved_key_ids),
        },
        prepare=True,
    )
    row = await cursor.fetchone()
    assert row is not None
    return Heard(time=float(row[0]), keys_in_use=tuple(row[1]))


async def write_learned(
    connection: TrioConnection, levels: Mapping[WebhookId, int | None]
) -> frozenset[WebhookId]:
    """Write how many attempts at once receivers were found able to bear; None: their limit is all that counts again.

    Return the webhooks whose row somebody holds locked: they were left out.
    """
    cursor = await connection.execute(
        _SQL["learn"], {"webhook_ids": [*levels], "levels": [*levels.values()]}, prepare=True
    )
    return frozenset(row[0] for row in await cursor.fetchall())


async def read_learned(connection: TrioConnection) -> dict[WebhookId, int]:
    """Return what workers found out in the last hour of receivers that bear less than their limit."""
    cursor = await connection.execute(_SQL["learned"], {"rows_max": LEARNED_ROWS_MAX}, prepare=True)
    return dict(await cursor.fetchall())


async def try_chores_lock(connection: TrioConnection) -> bool:
    """Take the lock of the singleton chores until the end of this transaction; False where another worker has it."""
    row = await (await connection.execute(_SQL["try_chores_lock"])).fetchone()
    assert row is not None
    return bool(row[0])


async def forget_silent_workers(connection: TrioConnection) -> int:
    """Remove workers that were not heard for a day; return how many."""
    return (await connection.execute(_SQL["forget_silent_workers"])).rowcount


async def add_audit_partitions(connection: TrioConnection) -> int:
    """Keep audit partitions ahead of the sequence; return how many were added."""
    row = await (await connection.execute(_SQL["add_audit_partitions"])).fetchone()
    assert row is not None
    return int(row[0])


async def read_figures(connection: TrioConnection) -> Figures:
    """Read what the gauges that come from the database show."""
    bound: dict[str, float] = {"rows_max": FIGURES_ROWS_MAX}
    rows = await (await connection.execute(_SQL["queue_figures"], bound, prepare=True)).fetchall()
    bound["recovery_seconds"] = RECOVERY_SECONDS
    side = await (await connection.execute(_SQL["side_figures"], bound, prepare=True)).fetchone()
    assert side is not None
    return Figures(
        depth={row[0]: row[1] for row in rows},
        oldest_age_seconds={row[0]: row[2] for row in rows},
        notification_queue_usage=side[0],
        paused_unopenable=side[1],
        unknown_webhook_rows=side[2],
        breakers={Phase.OPEN: side[3], Phase.HALF_OPEN: side[4], Phase.RECOVERING: side[5]},
    )
