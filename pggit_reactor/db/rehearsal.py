"""Migrates a copy of a database, to tell what migrating the original will do: rows, time, locks.

The copy is restored from a dump into a server of our own, which goes afterwards. Times are of this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import trio
from psycopg import sql

from pggit_reactor.db.connect import TrioConnection, open_connection
from pggit_reactor.db.dumps import read_dump, restore_dump
from pggit_reactor.db.embedded import open_embedded_postgres
from pggit_reactor.db.migrate import Migration, migrate

APPLICATION_NAME: Final = "pggit-reactor rehearsal"
DATABASE: Final = "rehearsal"

_RELATIONS: Final = """
    SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text, pg_relation_filenode(c.oid)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm')
"""
_LOCKS: Final = """
    SELECT l.relation, l.mode FROM pg_locks AS l
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.granted
        AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""


@attrs.frozen(kw_only=True)
class RehearsedTable:
    """A table that was there before; *rewritten* tells whether its rows were written anew."""

    name: str
    rows_before: int
    rows_after: int
    rewritten: bool


@attrs.frozen(kw_only=True)
class RehearsedLock:
    """The strongest lock on a relation that was there before; others wait for it until migrate ends."""

    name: str
    mode: str


@attrs.frozen(kw_only=True)
class Rehearsal:
    """What migrating did to the copy; *zone* is that in which old timestamps were read, None: the server's own."""

    server_major: int
    restore_seconds: float
    migrate_seconds: float
    zone: str | None
    applied: tuple[Migration, ...]
    tables: tuple[RehearsedTable, ...]
    locks: tuple[RehearsedLock, ...]

    @property
    def lost(self) -> tuple[RehearsedTable, ...]:
        """The tables of pgGit whose number of rows changed."""
        return tuple(table for table in self.tables if table.rows_before != table.rows_after)


@attrs.frozen(kw_only=True)
class _Relation:
    name: str
    kind: str
    file: int | None


async def rehearse(
    dump: Path, *, legacy_timezone: str | None = None, bin_dir: Path | None = None
) -> Rehearsal:
    """Restore *dump* into a server of our own (its programs in *bin_dir*), migrate it, and return what was seen.

    Raises `ConfigurationError` where the dump cannot be read or needs what the server lacks, and
    `MigrationError` where migrating the original would fail.
    """
    with tempfile.TemporaryDirectory(prefix="pggit-reactor-rehearsal-") as workplace:
        # Nobody minds if the copy is lost in a crash, and fsync would measure this machine's disk.
        async with open_embedded_postgres(bin_dir=bin_dir, settings={"fsync": "off"}) as server:
            async with open_connection(server.dsn, application_name=APPLICATION_NAME) as admin:
                await admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
            dsn = server.dsn_for(DATABASE)
            async with open_connection(dsn, application_name=APPLICATION_NAME) as connection:
                began = trio.current_time()
                read = await read_dump(dump, bin_dir=server.bin_dir, workplace=Path(workplace))
                await restore_dump(read, connection, dsn, bin_dir=server.bin_dir)
                restored = trio.current_time()
                return await _migrate(
                    connection,
                    legacy_timezone,
                    server_major=server.major,
                    restore_seconds=restored - began,
                )


async def _migrate(
    connection: TrioConnection, legacy_timezone: str | None, *, server_major: int, restore_seconds: float
) -> Rehearsal:
    relations = await _relations(connection)
    before = await _counts(connection, relations)
    began = trio.current_time()
    async with connection.transaction():
        # Inside ours, migrate's own is a savepoint: its locks are still held when it returns.
        report = await migrate(connection, legacy_timezone=legacy_timezone)
        locks = await _strongest_locks(connection, relations)
    seconds = trio.current_time() - began
    after = await _counts(connection, relations)
    files = {oid: relation.file for oid, relation in (await _relations(connection)).items()}
    return Rehearsal(
        server_major=server_major,
        restore_seconds=restore_seconds,
        migrate_seconds=seconds,
        zone=legacy_timezone,
        applied=report.applied,
        tables=tuple(
            RehearsedTable(
                name=relations[oid].name,
                rows_before=count,
                rows_after=after[oid],
                rewritten=files.get(oid) != relations[oid].file,
            )
            for oid, count in before.items()
        ),
        locks=locks,
    )


async def _relations(connection: TrioConnection) -> dict[int, _Relation]:
    cursor = await connection.execute(_RELATIONS + " ORDER BY 2")
    return {
        oid: _Relation(name=name, kind=kind, file=file) for oid, name, kind, file in await cursor.fetchall()
    }


async def _counts(connection: TrioConnection, relations: Mapping[int, _Relation]) -> dict[int, int]:
    """Count the rows of the tables, under the names that they had before."""
    counts: dict[int, int] = {}
    for oid, relation in relations.items():
        if relation.kind != "r":
            continue
        # The name was quoted by the server itself.
        cursor = await connection.execute(f"SELECT count(*) FROM {relation.name}".encode())  # noqa: S608
        ((counts[oid],),) = await cursor.fetchall()
    return counts


async def _strongest_locks(
    connection: TrioConnection, relations: Mapping[int, _Relation]
) -> tuple[RehearsedLock, ...]:
    cursor = await connection.execute(_LOCKS)
    modes: dict[int, list[str]] = {}
    for oid, mode in await cursor.fetchall():
        if oid in relations:
            modes.setdefault(oid, []).append(mode)
    order = ("ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
    found = [
        RehearsedLock(name=relations[oid].name, mode=max(held, key=order.index))
        for oid, held in modes.items()
    ]
    return tuple(sorted(found, key=lambda lock: lock.name))
