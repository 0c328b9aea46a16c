"""Changes on a person's behalf: one transaction, in which the database's own audit knows who asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.registry import By


@asynccontextmanager
async def acting(connection: TrioConnection, by: By) -> AsyncIterator[None]:
    """Open a transaction in which audit rows name *by*, beside the database's user.

    It is a claim, as everything that a client says of itself: the database's user is what was proved.
    """
    async with connection.transaction():
        await connection.execute(
            "SELECT set_config('pggit.actor', %s, true), set_config('pggit.actor_host', %s, true),"
            " set_config('pggit.request_id', %s, true)",
            (by.name, by.host, by.request_id or ""),
        )
        yield
