"""Throw-away databases: each a clone of a template that was migrated once.

A clone takes about 10 ms. It is copied file by file: with fsync off that is quicker than through the WAL.
Dropping a database whose backends still end costs PostgreSQL a pause of 100 ms, so a clone that is done with
is cut off at once and dropped when the next one goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

import psycopg
import trio
from psycopg import sql

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import TrioConnection, connect, open_connection
from pggit_reactor.db.embedded import EmbeddedPostgres
from pggit_reactor.db.migrate import Migration, load_migrations, migrate

APPLICATION_NAME: Final = "reactor-test"

# A test's server may lose everything at a crash of the machine, never at a crash of its own.
QUICK_SETTINGS: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}


# Of the process, for several templates may stand on one server.
_numbers: Final = count(1)


class ReactorDatabase:
    """A migrated database for one test."""

    def __init__(self, name: str, dsn: Secret[str]) -> None:
        self.name: Final = name
        self.dsn: Final = dsn
        self._helper: TrioConnection | None = None
        self._opened: list[TrioConnection] = []

    async def connect(self, **options: str) -> TrioConnection:
        """Open a connection with the session settings *options*; closed with the database at the latest."""
        connection = await connect(self.dsn, application_name=APPLICATION_NAME, options=options)
        self._opened.append(connection)
        return connection

    async def execute(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> int:
        """Run one statement on a connection kept for that; return how many rows it touched."""
        return (await (await self._helping()).execute(query, params)).rowcount

    async def fetch(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement on the same connection and return its rows."""
        return await (await (await self._helping()).execute(query, params)).fetchall()

    async def fetch_value(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Run one statement and return the only column of its only row."""
        ((value,),) = await self.fetch(query, params)
        return value

    async def _helping(self) -> TrioConnection:
        if self._helper is None or self._helper.closed:
            self._helper = await self.connect()
        return self._helper

    def close(self) -> None:
        """Close every connection that was opened here."""
        for connection in self._opened:
            connection.close_now()
        self._opened.clear()


class DatabaseTemplate:
    """Makes clones of a migrated database on *server*; blocking, for fixtures: use it outside of Trio."""

    def __init__(self, server: EmbeddedPostgres, migrations: Sequence[Migration] | None = None) -> None:
        self._server = server
        self._migrations = tuple(load_migrations() if migrations is None else migrations)
        digests = "".join(migration.digest for migration in self._migrations)
        self._key = hashlib.sha256(digests.encode()).hexdigest()[:12]
        self._finished: list[str] = []
        self._admin = psycopg.connect(server.dsn.reveal(), autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admin.close()

    @contextmanager
    def clone(self) -> Iterator[ReactorDatabase]:
        """Provide a fresh database for the length of the block."""
        template = self._template()
        name = f"reactor_test_{next(_numbers)}"
        self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        self._run("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template)
        database = ReactorDatabase(name, self._server.dsn_for(name))
        try:
            yield database
        finally:
            database.close()
            self._drop_later(name)

    def _drop_later(self, name: str) -> None:
        if self._admin.closed:  # The test ended the server, and the data go with it.
            return
        self._admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        while self._finished:
            self._run("DROP DATABASE {} WITH (FORCE)", self._finished.pop())
        self._finished.append(name)

    def _template(self) -> str:
        """Return the name of the template, which is made when it is missing.

        It is migrated under another name first, so that one that exists is whole.
        """
        template, unfinished = f"reactor_template_{self._key}", f"reactor_unfinished_{self._key}"
        if self._admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [template]).fetchone() is None:
            self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)", unfinished)
            self._run("CREATE DATABASE {}", unfinished)
            trio.run(self._migrate, self._server.dsn_for(unfinished))
            self._run("ALTER DATABASE {} RENAME TO {}", unfinished, template)
        return template

    async def _migrate(self, dsn: Secret[str]) -> None:
        async with open_connection(dsn, application_name=APPLICATION_NAME) as connection:
            await migrate(connection, self._migrations)

    def _run(self, statement: str, *names: str) -> None:
        self._admin.execute(sql.SQL(statement).format(*(sql.Identifier(name) for name in names)))


@asynccontextmanager
async def open_database(
    server: EmbeddedPostgres, name: str = "reactor_test"
) -> AsyncIterator[ReactorDatabase]:
    """Make and migrate database *name* on a *server* of the test's own, from inside Trio.

    For tests that crash or stop their server. The database stays when the block ends, and goes with the
    server.
    """
    async with open_connection(server.dsn, application_name=APPLICATION_NAME) as admin:
        await admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    database = ReactorDatabase(name, server.dsn_for(name))
    try:
        await migrate(await database.connect())
        yield database
    finally:
        database.close()
