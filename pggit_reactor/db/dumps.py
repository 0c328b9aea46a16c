"""Reads what pg_dump wrote, for a database that stands in for the original.

A dump names roles that own and may; they are made on the stand-in, without login, so that owners and grants are
those of the original. It names extensions that the stand-in's server must have.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.errors import ConfigurationError, MigrationError

_ARCHIVE: Final = b"PGDMP"
_ARCHIVE_FOLDER: Final = "toc.dat"
_TAR: Final = b"toc.dat\0"
_COMPLAINT_CHARS_MAX: Final = 400

_NAME: Final = r'("(?:[^"]|"")+"|\w+)'
_EXTENSION: Final = re.compile(rf"CREATE EXTENSION (?:IF NOT EXISTS )?{_NAME}", re.IGNORECASE)
_ROLE: Final = re.compile(
    rf"(?:ALTER .* OWNER TO|^GRANT .* TO|^REVOKE .* FROM|^SET SESSION AUTHORIZATION|FOR ROLE) {_NAME}",
    re.IGNORECASE,
)
_COPY: Final = re.compile(r"^COPY .* FROM stdin;$")
_COPY_END: Final = "\\."
_CONNECT: Final = re.compile(r"^\\connect\b")
_WORDS: Final = frozenset({"public", "current_user", "session_user", "default"})


@attrs.frozen(kw_only=True)
class Dump:
    """A dump as plain SQL, and what it takes for granted."""

    script: Path
    roles: frozenset[str]
    extensions: frozenset[str]


async def read_dump(dump: Path, *, bin_dir: Path, workplace: Path) -> Dump:
    """Return *dump* (plain, custom, tar or a directory) as plain SQL, written to *workplace* where it is not."""
    script = dump
    if is_archive(dump):
        script = workplace / "dump.sql"
        await _run([str(bin_dir / "pg_restore"), "--file", str(script), str(dump)], dump, {})
    roles: set[str] = set()
    extensions: set[str] = set()
    for line in _statements_of(script):
        if _CONNECT.match(line):
            raise ConfigurationError(
                f"{dump} connects to databases of its own; make the dump of one database, without --create"
            )
        extensions |= {_plain(name) for name in _EXTENSION.findall(line)}
        roles |= {_plain(name) for name in _ROLE.findall(line)}
    return Dump(script=script, roles=frozenset(roles - _WORDS), extensions=frozenset(extensions))


def is_archive(dump: Path) -> bool:
    """Return whether *dump* is for pg_restore; ConfigurationError where it cannot be read."""
    try:
        if dump.is_dir():
            if (dump / _ARCHIVE_FOLDER).exists():
                return True
            raise ConfigurationError(f"{dump} is a directory without {_ARCHIVE_FOLDER}: no dump of pg_dump")
        with dump.open("rb") as file:
            head = file.read(len(_TAR))
    except OSError as error:
        raise ConfigurationError(f"{dump} cannot be read: {error.strerror}") from None
    return head.startswith(_ARCHIVE) or head == _TAR


def _statements_of(script: Path) -> Iterator[str]:
    """Yield the lines that are not rows."""
    in_rows = False
    with script.open(encoding="utf-8", errors="replace") as lines:
        for raw in lines:
            line = raw.rstrip("\n")
            if in_rows:
                in_rows = line != _COPY_END
                continue
            in_rows = _COPY.match(line) is not None
            yield line


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


async def restore_dump(dump: Dump, connection: TrioConnection, dsn: Secret[str], *, bin_dir: Path) -> None:
    """Restore *dump* into the database that *connection* and *dsn* lead to.

    Raises `ConfigurationError` that names the extensions which the server lacks, and `MigrationError` with
    the first complaint of psql.
    """
    cursor = await connection.execute(
        "SELECT e FROM unnest(%s::text[]) AS e WHERE e NOT IN (SELECT name FROM pg_available_extensions) ORDER BY 1",
        (list(dump.extensions),),
    )
    missing = [name for (name,) in await cursor.fetchall()]
    if missing:
        raise ConfigurationError(
            f"the dump needs {', '.join(missing)}, which the PostgreSQL in {bin_dir} lacks; name a folder of server"
            " programs that has them in PGGIT_REACTOR_POSTGRES_BIN"
        )
    cursor = await connection.execute(
        "SELECT r FROM unnest(%s::text[]) AS r WHERE r NOT IN (SELECT rolname FROM pg_roles)",
        (list(dump.roles),),
    )
    for (role,) in await cursor.fetchall():
        await connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    command = [
        str(bin_dir / "psql"),
        "--no-psqlrc",
        "--quiet",
        "--set",
        "ON_ERROR_STOP=1",
        "--file",
        str(dump.script),
    ]
    await _run(command, dump.script, _libpq_variables(dsn))


def _libpq_variables(dsn: Secret[str]) -> dict[str, str]:
    # In the environment, which other users cannot read.
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
    }
    found = conninfo_to_dict(dsn.reveal())
    return {variable: str(found[name]) for name, variable in names.items()}


async def _run(command: list[str], dump: Path, variables: dict[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    try:
        done = await trio.run_process(
            command,
            env=kept | variables,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise ConfigurationError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        # Only the line of the error itself: the next ones quote rows.
        complaint = next(
            (line for line in lines if "ERROR:" in line or "error:" in line), f"status {done.returncode}"
        )
        raise MigrationError(f"{dump.name} cannot be restored: {complaint[:_COMPLAINT_CHARS_MAX]}")
