"""A pool of connections for commands and the API, where speed matters less than a well-kept pool does.

It is psycopg_pool's AsyncConnectionPool, which needs asyncio, on the loop of trio-asyncio. Each call crosses
over once and runs to its end there; cancelling the Trio task cancels the asyncio one, and psycopg then
cancels the statement in the server. Errors are ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, ParamSpec, TypeVar

import psycopg
import psycopg.waiting
import trio
import trio_asyncio
from psycopg import AsyncConnection
from psycopg.abc import QueryNoTemplate as Query
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import CONNECT_SECONDS, connect, connection_parameters
from pggit_reactor.db.connection import BOUNDARY_SECONDS_MAX
from pggit_reactor.db.translate import translate_errors
from pggit_reactor.errors import DatabaseUnavailableError

T = TypeVar("T")
P = ParamSpec("P")
Values = Sequence[Any] | Mapping[str, Any] | None

SIZE_MAX: Final = 4
CLOSE_SECONDS_MAX: Final = 5.0

# psycopg took this function by value. Where it was imported before trio_asyncio replaced it, which in a
# process of users' own nobody can prevent, it would find "no running event loop" for ever.
psycopg.waiting.get_running_loop = asyncio.get_running_loop  # type: ignore[attr-defined]  # not exported


class PoolTransaction:
    """The statements of one transaction; from `Pool.transaction`."""

    def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
        self._connection = connection

    async def fetch(self, query: Query, params: Values = None) -> list[TupleRow]:
        """Run one statement and return its rows."""
        return await _crossing(_fetch, self._connection, query, params)

    async def fetch_one(self, query: Query, params: Values = None) -> TupleRow | None:
        """Run one statement and return its first row, or None."""
        return next(iter(await self.fetch(query, params)), None)

    async def execute(self, query: Query, params: Values = None) -> int:
        """Run one statement and return how many rows it touched."""
        return await _crossing(_execute, self._connection, query, params)


class Pool:
    """The pool; from `open_pool`. Any number of tasks may use it at once."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        self._pool = pool

    async def fetch(self, query: Query, params: Values = None) -> list[TupleRow]:
        """Run one statement in a transaction of its own and return its rows."""

        async def run() -> list[TupleRow]:
            async with self._pool.connection() as connection:
                return await _fetch(connection, query, params)

        return await _crossing(run)

    async def fetch_one(self, query: Query, params: Values = None) -> TupleRow | None:
        """Run one statement in a transaction of its own and return its first row, or None."""
        return next(iter(await self.fetch(query, params)), None)

    async def execute(self, query: Query, params: Values = None) -> int:
        """Run one statement in a transaction of its own and return how many rows it touched."""

        async def run() -> int:
            async with self._pool.connection() as connection:
                return await _execute(connection, query, params)

        return await _crossing(run)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PoolTransaction]:
        """Run the block's statements in one transaction, rolled back when an exception or a cancel leaves it.

        Its end is shielded and bounded: it commits or raises, whoever cancels meanwhile.
        """
        connection = await _crossing(self._pool.getconn)
        try:
            await _crossing(connection.execute, "BEGIN")
            try:
                yield PoolTransaction(connection)
            except BaseException:
                with suppress(
                    DatabaseUnavailableError
                ):  # It is closed then; the block's own error tells more.
                    await self._end(connection, "ROLLBACK")
                raise
            await self._end(connection, "COMMIT")
        finally:
            # Whatever state it is in: the pool rolls back or throws away.
            with trio.move_on_after(BOUNDARY_SECONDS_MAX, shield=True):
                await _crossing(self._pool.putconn, connection)

    async def _end(self, connection: AsyncConnection[TupleRow], how: str) -> None:
        with trio.move_on_after(BOUNDARY_SECONDS_MAX, shield=True) as scope:
            await _crossing(connection.execute, how)
        if scope.cancelled_caught:
            connection.pgconn.finish()
            raise DatabaseUnavailableError(f"{how} had no answer within {BOUNDARY_SECONDS_MAX:.0f} s")


@asynccontextmanager
async def open_pool(
    dsn: Secret[str],
    *,
    application_name: str,
    options: Mapping[str, str] = {},
    size_max: int = SIZE_MAX,
    timeout_seconds: float = CONNECT_SECONDS,
) -> AsyncIterator[Pool]:
    """Keep up to *size_max* connections to *dsn* for the length of the block.

    Connects once before anything else, so that a wrong URL or a server that is down is told at once and by
    name. *timeout_seconds* bounds that, each later connect, and the wait for a free connection. Raises as
    `connect` does.
    """
    probe = await connect(
        dsn, application_name=application_name, options=options, connect_timeout_seconds=timeout_seconds
    )
    probe.close_now()
    async with trio_asyncio.open_loop():
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]] = AsyncConnectionPool(
            kwargs={
                **connection_parameters(dsn, application_name, options),
                "autocommit": True,
                "connect_timeout": max(2, round(timeout_seconds)),  # libpq knows none shorter.
            },
            min_size=0,
            max_size=size_max,
            timeout=timeout_seconds,
            check=AsyncConnectionPool.check_connection,  # A server that restarted costs the caller nothing.
            open=False,
        )
        await _crossing(pool.open)
        try:
            yield Pool(pool)
        finally:
            with trio.move_on_after(CLOSE_SECONDS_MAX + 1, shield=True):
                await _crossing(pool.close, CLOSE_SECONDS_MAX)


async def _crossing(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call *function* of asyncio from Trio."""
    with translate_errors():
        result: T = await trio_asyncio.aio_as_trio(function)(*args, **kwargs)
    return result


async def _fetch(connection: AsyncConnection[TupleRow], query: Query, params: Values) -> list[TupleRow]:
    return await (await connection.execute(query, params)).fetchall()


async def _execute(connection: AsyncConnection[TupleRow], query: Query, params: Values) -> int:
    return (await connection.execute(query, params)).rowcount
