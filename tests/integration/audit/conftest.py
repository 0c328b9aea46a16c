"""What tests of the audit chain share: a keeper that seals as workers do, and a look at the chain."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pggit_reactor.core.audit_chain import Segment
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.audit_chain import (
    SEGMENT_ROWS_MAX,
    ChainReport,
    Horizon,
    open_horizon,
    seal_segment,
    verify_chain,
)
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.lane import SIDE_OPTIONS
from pggit_reactor.security.audit_seal import AuditSealer
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.testing.database import ReactorDatabase


def key_ring(*entries: tuple[str, int]) -> Keyring:
    """Return a ring of raw keys: ids, and what octet each is made of."""
    lines = [f"{key_id}:base64:{base64.b64encode(bytes([octet]) * 32).decode()}" for key_id, octet in entries]
    return Keyring.parse(Secret(",".join(lines)))


class Chain:
    """Seals and verifies in one database; the worker's part with no other rights than the worker's."""

    def __init__(self, database: ReactorDatabase, worker: TrioConnection, reader: TrioConnection) -> None:
        self.database = database
        self.worker = worker
        self.reader = reader
        self.sealer = AuditSealer(key_ring(("test", 1)))

    async def log(self, count: int = 1, **columns: str) -> list[int]:
        """INSERT rows, with columns given as SQL; return their ids."""
        wanted = {"operation": "'webhook_changed'", "user_id": "'ada'", **columns}
        rows = await self.database.fetch(
            f"INSERT INTO pggit.webhook_audit_log ({', '.join(wanted)})"
            f" SELECT {', '.join(wanted.values())} FROM generate_series(1, {count}) AS n RETURNING audit_id"
        )
        return [row[0] for row in rows]

    async def horizon(self) -> Horizon | None:
        return await open_horizon(self.worker, self.sealer.key_id)

    async def seal(
        self, horizon: Horizon | None = None, *, rows_max: int = SEGMENT_ROWS_MAX
    ) -> Segment | None:
        """Seal one segment, as a worker does without waiting for anybody."""
        horizon = horizon or await self.horizon()
        return (
            None
            if horizon is None
            else await seal_segment(self.worker, self.sealer, horizon, rows_max=rows_max)
        )

    async def verify(self, **options: Any) -> ChainReport:
        return await verify_chain(self.reader, **{"check_seal": self.sealer.check, **options})

    async def kinds(self, **options: Any) -> set[str]:
        """Return what kinds of breaks there are."""
        return {found.kind.value for found in (await self.verify(**options)).breaks}


async def open_chain(database: ReactorDatabase) -> Chain:
    worker = await database.connect(**SIDE_OPTIONS, role="pggit_worker")
    reader = await database.connect(role="pggit_operator")
    return Chain(database, worker, reader)


@pytest.fixture
async def chain(reactor_database: ReactorDatabase) -> Chain:
    return await open_chain(reactor_database)


@pytest.fixture
def chain_of() -> Callable[[ReactorDatabase], Awaitable[Chain]]:
    """Opens a `Chain` in a database of the test's own."""
    return open_chain


@pytest.fixture
def ring_of():
    return key_ring
