"""Brings a database's schema to what this program needs.

Migrations are numbered files of plain SQL (``NNNN_name.sql``), forward only. All that are pending run in one
transaction under an advisory lock, so a failure leaves nothing half done, and of two runs at once the second
waits and finds nothing to do. `pggit.schema_migration` remembers what was applied, with a digest: a file
that was edited afterwards is refused, because nobody could say what the database holds. One that was mended for
databases on which it had failed says which digests it stands for: ``-- mends SHA256``, a line each.

A file whose first line is ``-- breaking`` is a contract step: a program that does not know it would misread
the schema and refuses (`SchemaTooNewError`), at its start and, where it runs on, within a heartbeat
(`refuse_newer`). Other unknown migrations are expansions, which old programs live with. The other way round, a
program lives with the schema before the contract steps that it brings: so two versions work side by side
between the expansions and the contract steps of the newer one (`migrate`, *expand_only*).

Roles belong to the cluster and the lock to the database, so runs in two databases may meet on CREATE ROLE or
GRANT; those few errors are tried again.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import attrs
import trio

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.sql_split import split_statements
from pggit_reactor.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    MigrationError,
    PendingMigrationsError,
    RowLockedError,
    SchemaTooNewError,
)

SERVER_VERSION_MIN: Final = 150000
ENCODING: Final = "UTF8"
LOCK_KEY: Final = 0x7067_6769_7472  # "pggitr", for pg_advisory_xact_lock
TRIES_MAX: Final = 10
RETRY_SECONDS: Final = 0.05

_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_BREAKING: Final = re.compile(r"--\s*breaking\s*$")
_MENDS: Final = re.compile(r"^--\s*mends\s+([0-9a-f]{64})$", re.MULTILINE)
_CONCURRENT_ROLES: Final = frozenset(
    {
        "XX000",  # internal_error: "tuple concurrently updated"
        "23505",  # unique_violation: of pg_authid
        "42710",  # duplicate_object: the role exists by now
    }
)
# The session's own settings shall not decide what a migration does or whether it has the time.
_SESSION: Final = (
    "SET LOCAL search_path = pg_catalog, pg_temp",
    "SET LOCAL client_min_messages = warning",
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "SET LOCAL default_tablespace = ''",
    "SET LOCAL default_table_access_method = heap",
)
_CREATE_TABLE: Final = (
    "CREATE SCHEMA IF NOT EXISTS pggit",
    """
    CREATE TABLE pggit.schema_migration (
        version integer PRIMARY KEY CHECK (version > 0),
        name text NOT NULL,
        digest text NOT NULL,
        breaking boolean NOT NULL DEFAULT false,
        applied_at timestamptz NOT NULL DEFAULT now(),
        applied_by text NOT NULL DEFAULT session_user
    )
    """,
    "COMMENT ON TABLE pggit.schema_migration IS"
    " 'What migrate applied; digest is the SHA-256 of the file, breaking marks a contract step'",
)


@attrs.frozen(kw_only=True)
class Migration:
    """One file; *digest* is the SHA-256 of its octets."""

    version: int
    name: str
    digest: str
    breaking: bool
    text: str = attrs.field(repr=False)
    mends: frozenset[str] = frozenset()
    """Digests of what this file was before it was mended: where they succeeded they made the same."""

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return f"{self.version:04}_{self.name}.sql"


@attrs.frozen(kw_only=True)
class AppliedMigration:
    """One row of pggit.schema_migration."""

    version: int
    name: str
    digest: str
    breaking: bool
    applied_at: datetime
    applied_by: str


@attrs.frozen(kw_only=True)
class MigrateStatus:
    """What a database holds, compared with what this program knows."""

    applied: tuple[AppliedMigration, ...]
    pending: tuple[Migration, ...]
    edited: tuple[Migration, ...]
    unknown: tuple[AppliedMigration, ...]
    legacy: bool  # Tables of pgGit's phase 8 are there, which the first migration will adopt.

    @property
    def is_current(self) -> bool:
        """Whether this program may work on the database as it is."""
        return not (self.lacking or self.edited or self.too_new)

    @property
    def lacking(self) -> tuple[Migration, ...]:
        """The pending ones that this program needs: all but contract steps that come last."""
        return self.pending[: max((n for n, m in enumerate(self.pending, 1) if not m.breaking), default=0)]

    @property
    def too_new(self) -> tuple[AppliedMigration, ...]:
        """The contract steps that this program does not know."""
        return tuple(migration for migration in self.unknown if migration.breaking)


@attrs.frozen(kw_only=True)
class MigrateReport:
    """What a run did: the migrations that it *applied*, how many were there before, and what it *left*."""

    applied: tuple[Migration, ...]
    already_count: int
    left: tuple[Migration, ...] = ()


def migrations_folder() -> Path:
    """Return the folder of the migrations: inside the package (a wheel), else beside it (a checkout)."""
    package = Path(__file__).parent.parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if folder.is_dir():
            return folder
    raise MigrationError("the migrations are missing from this installation of pggit-reactor")


def load_migrations(folder: Path | None = None) -> tuple[Migration, ...]:
    """Read the migrations of *folder*, or our own; refuse gaps, duplicates and names that say no number."""
    migrations = sorted(
        (_read(path) for path in (folder or migrations_folder()).glob("*.sql")),
        key=lambda migration: migration.version,
    )
    for expected, migration in enumerate(migrations, start=1):
        if migration.version != expected:
            what = (
                "is there twice" if migration.version < expected else f"follows a gap; expected {expected:04}"
            )
            raise MigrationError(f"migration {migration.file_name} {what}")
    return tuple(migrations)


def _read(path: Path) -> Migration:
    named = _FILE_NAME.fullmatch(path.name)
    if named is None:
        raise MigrationError(
            f"migration {path.name} is misnamed; right would be NNNN_name.sql, in lower case"
        )
    octets = path.read_bytes()
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise MigrationError(f"migration {path.name} is not UTF-8") from None
    return Migration(
        version=int(named[1]),
        name=named[2],
        digest=hashlib.sha256(octets).hexdigest(),
        breaking=_BREAKING.match(text.partition("\n")[0]) is not None,
        mends=frozenset(_MENDS.findall(text)),
        text=text,
    )


async def check(connection: TrioConnection, migrations: Sequence[Migration] | None = None) -> MigrateStatus:
    """Return how *connection*'s database compares with *migrations* (our own); changes nothing."""
    known = {
        migration.version: migration
        for migration in (load_migrations() if migrations is None else migrations)
    }
    cursor = await connection.execute(
        "SELECT to_regclass('pggit.schema_migration') IS NOT NULL,"
        " to_regclass('pggit.alert_delivery_queue') IS NOT NULL"
    )
    ((has_table, has_queue),) = await cursor.fetchall()
    applied: tuple[AppliedMigration, ...] = ()
    if has_table:
        cursor = await connection.execute(
            "SELECT version, name, digest, breaking, applied_at, applied_by"
            " FROM pggit.schema_migration ORDER BY version"
        )
        names = [field.name for field in attrs.fields(AppliedMigration)]
        applied = tuple(
            AppliedMigration(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall()
        )
    done = {migration.version: migration for migration in applied}
    return MigrateStatus(
        applied=applied,
        pending=tuple(migration for version, migration in known.items() if version not in done),
        edited=tuple(
            migration
            for version, migration in known.items()
            if version in done and done[version].digest not in {migration.digest, *migration.mends}
        ),
        unknown=tuple(migration for migration in applied if migration.version not in known),
        legacy=has_queue and not has_table,
    )


async def require_current(connection: TrioConnection, migrations: Sequence[Migration] | None = None) -> None:
    """Refuse to work on a schema that this program would misread; for the start of every program.

    Raises `SchemaTooNewError`, `PendingMigrationsError`, or another `MigrationError` that says what to do.
    """
    status = await check(connection, migrations)
    _refuse(status)
    if status.lacking:
        raise PendingMigrationsError(
            f"the schema lacks {_names(status.lacking)}; run `pggit-reactor migrate` first"
        )


def newest_version() -> int:
    """Return the number of the last migration that this program brings. Reads files: for its start."""
    return load_migrations()[-1].version


async def refuse_newer(connection: TrioConnection, known_version: int) -> None:
    """Raise `SchemaTooNewError` where a contract step beyond *known_version* was applied; for now and then.

    Other programs migrate while this one runs, and files may be replaced under it: so the version is the
    caller's, of the time when it started.
    """
    cursor = await connection.execute(
        "SELECT string_agg(format('%%s_%%s', lpad(version::text, 4, '0'), name), ', ' ORDER BY version)"
        " FROM pggit.schema_migration WHERE breaking AND version > %s",
        (known_version,),
    )
    ((names,),) = await cursor.fetchall()
    if names is not None:
        raise _too_new(names)


async def migrate(
    connection: TrioConnection,
    migrations: Sequence[Migration] | None = None,
    *,
    legacy_timezone: str | None = None,
    expand_only: bool = False,
) -> MigrateReport:
    """Apply all pending *migrations* (our own) in one transaction, and return what was done.

    With *expand_only* the first contract step and what follows it are left for later.

    Where tables of pgGit's phase 8 are adopted, their plain timestamps are read in *legacy_timezone*, or in
    the database's own zone.

    Raises `MigrationError` with the file and line of the statement that failed, `SchemaTooNewError`, or
    `DatabaseUnavailableError`; in each case, and when cancelled, the database is as it was.
    """
    known = tuple(load_migrations() if migrations is None else migrations)
    await _refuse_server(connection)
    for tries_left in reversed(range(TRIES_MAX)):
        try:
            return await _migrate_once(connection, known, legacy_timezone, expand_only=expand_only)
        except _ConcurrentRolesError as error:
            if not tries_left:
                raise MigrationError(str(error)) from error
        # Spread, so that several databases that met do not meet again.
        await trio.sleep(RETRY_SECONDS * (TRIES_MAX - tries_left) * random.random())  # noqa: S311  # no secret
    raise AssertionError("the last try returns or raises")


class _ConcurrentRolesError(MigrationError):
    """Another database of the cluster changed a role meanwhile."""


async def _refuse_server(connection: TrioConnection) -> None:
    cursor = await connection.execute(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
        " current_setting('server_encoding'), current_database()"
    )
    ((number, version, encoding, database),) = await cursor.fetchall()
    if number < SERVER_VERSION_MIN:
        raise MigrationError(f"PostgreSQL {version} is too old; 15 or later is needed")
    if encoding != ENCODING:
        raise MigrationError(f'database "{database}" has encoding {encoding}; only {ENCODING} is supported')


async def _audit_upgrade(connection: TrioConnection, applied: Sequence[Migration]) -> None:
    """Leave an audit row, where the schema has come that far. The first time, schema_migration says it all."""
    cursor = await connection.execute(
        "SELECT to_regprocedure('pggit.audit_change(text, bigint, bigint, jsonb, uuid)') IS NOT NULL"
    )
    ((can_audit,),) = await cursor.fetchall()
    if can_audit:
        await connection.execute(
            "SELECT pggit.audit_change('schema_migrated', NULL, NULL, jsonb_build_object('versions', %s::integer[]))",
            ([migration.version for migration in applied],),
        )


async def _migrate_once(
    connection: TrioConnection,
    known: tuple[Migration, ...],
    legacy_timezone: str | None,
    *,
    expand_only: bool,
) -> MigrateReport:
    async with connection.transaction():
        for setting in _SESSION:
            await connection.execute(setting)
        await connection.execute(
            "SELECT set_config('pggit.legacy_timezone', %s, true)", (legacy_timezone or "",)
        )
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        status = await check(connection, known)
        _refuse(status)
        first_left = len(status.pending)
        if expand_only:
            first_left = next((n for n, m in enumerate(status.pending) if m.breaking), first_left)
        wanted, left = status.pending[:first_left], status.pending[first_left:]
        if wanted:
            await _prepare_table(connection)
        for migration in wanted:
            await _apply(connection, migration)
        if status.applied and wanted:
            await _audit_upgrade(connection, wanted)
    return MigrateReport(applied=wanted, already_count=len(status.applied), left=left)


def _refuse(status: MigrateStatus) -> None:
    if status.too_new:
        raise _too_new(_names(status.too_new))
    if status.edited:
        raise MigrationError(
            f"{_names(status.edited)} changed after being applied; install the version that applied it, and"
            " put what is new in a migration of its own"
        )
    last = max((migration.version for migration in status.applied), default=0)
    skipped = tuple(migration for migration in status.pending if migration.version < last)
    if skipped:
        raise MigrationError(f"{_names(skipped)} was not applied, but migration {last:04} was")


def _too_new(names: str) -> SchemaTooNewError:
    return SchemaTooNewError(f"the schema is newer than this program: {names}; upgrade pggit-reactor")


def _names(migrations: Sequence[Migration | AppliedMigration]) -> str:
    return ", ".join(f"{migration.version:04}_{migration.name}" for migration in migrations)


async def _prepare_table(connection: TrioConnection) -> None:
    cursor = await connection.execute("SELECT to_regclass('pggit.schema_migration')")
    if await cursor.fetchone() != (None,):
        return
    for statement in _CREATE_TABLE:
        try:
            await connection.execute(statement)
        except DatabaseError as error:
            raise MigrationError(f"schema pggit cannot be created: {error}") from error


async def _apply(connection: TrioConnection, migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO pggit.schema_migration (version, name, digest, breaking) VALUES (%s, %s, %s, %s)",
        (migration.version, migration.name, migration.digest, migration.breaking),
    )
    for statement in split_statements(migration.text):
        try:
            await connection.execute(statement.text, prepare=False)
        except DatabaseUnavailableError:
            raise
        except DatabaseError as error:
            message = f"{migration.file_name}, line {statement.line}: {error} (SQLSTATE {error.sqlstate})"
            raced = error.sqlstate in _CONCURRENT_ROLES or isinstance(error, RowLockedError)
            raise (_ConcurrentRolesError if raced else MigrationError)(message) from error
