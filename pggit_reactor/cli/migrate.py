"""`migrate`: the schema."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.output import json_option, print_json
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.errors import MigrationError, SchemaTooNewError

if TYPE_CHECKING:
    from pggit_reactor.db.rehearsal import Rehearsal


@click.command()
@click.option("--check", "check_only", is_flag=True, help="Change nothing; exit 3 where work is left.")
@click.option(
    "--expand",
    "expand_only",
    is_flag=True,
    help="Leave out what older workers cannot live with, for a rolling upgrade.",
)
@click.option(
    "--legacy-timezone",
    metavar="ZONE",
    help="Read the plain timestamps of pgGit's tables in this zone; default: the database's own.",
)
@click.option(
    "--rehearse",
    "dump",
    metavar="DUMP",
    type=click.Path(path_type=Path),
    help="Migrate a copy restored from a file of pg_dump, in a server of our own; exit 1 where it fails.",
)
@json_option
@pass_session
def migrate(
    session: Session,
    *,
    check_only: bool,
    expand_only: bool,
    legacy_timezone: str | None,
    dump: Path | None,
    as_json: bool,
) -> int:
    """Bring the schema up to date, or say what is missing.

    All that is pending runs in one transaction: a failure leaves nothing half done, and of two runs at once
    the second waits and finds nothing to do. Needs PostgreSQL 15 or later and a UTF-8 database.

    Contract steps take away what older workers use: such a worker finishes what it sends and exits with 4. To
    upgrade without that, run it with --expand, replace the workers, and run it once more.

    Tables of pgGit's phase 8 are adopted in place, with their rows; views on them are made again.

    \b
    Example: pggit-reactor migrate --check || pggit-reactor migrate
             pg_dump -Fc pggit > pggit.dump && pggit-reactor migrate --rehearse pggit.dump
    """
    if sum((check_only, expand_only, dump is not None)) > 1:
        raise click.UsageError(
            "--rehearse looks at a dump, --check changes nothing, --expand does; give one of them"
        )
    if dump is not None:
        rehearsed = dump
        return session.run(lambda: _rehearse(session, rehearsed, legacy_timezone, as_json))
    if check_only:
        return session.run(lambda: _check(session, as_json))
    return session.run(lambda: _migrate(session, legacy_timezone, as_json, expand_only=expand_only))


async def _migrate(
    session: Session, legacy_timezone: str | None, as_json: bool, *, expand_only: bool
) -> Exit:
    from pggit_reactor.db.migrate import migrate as run

    # A rewrite of a large table takes what it takes.
    async with session.open_database(any_schema=True, seconds=math.inf) as connection:
        report = await run(connection, legacy_timezone=legacy_timezone, expand_only=expand_only)
    applied = [migration.file_name for migration in report.applied]
    left = [migration.file_name for migration in report.left]
    if as_json:
        print_json({"applied": applied, "already_count": report.already_count, "left": left})
        return Exit.DONE
    for name in applied:
        click.echo(f"applied {name}")
    for name in left:
        click.echo(f"left {name} for `migrate` without --expand, when the last old worker is gone")
    if not applied and not left:
        click.echo(f"nothing to do: {report.already_count} migration(s) are applied")
    return Exit.DONE


async def _rehearse(session: Session, dump: Path, legacy_timezone: str | None, as_json: bool) -> Exit:
    from pggit_reactor.db.rehearsal import rehearse

    found = await rehearse(dump, legacy_timezone=legacy_timezone, bin_dir=session.settings.postgres_bin)
    if as_json:
        print_json(_as_record(found))
    else:
        _print(found)
    if found.lost:
        raise MigrationError(
            f"rows are not what they were in {', '.join(table.name for table in found.lost)}"
        )
    return Exit.DONE


def _as_record(found: Rehearsal) -> dict[str, object]:
    return {
        "server_major": found.server_major,
        "restore_seconds": round(found.restore_seconds, 3),
        "migrate_seconds": round(found.migrate_seconds, 3),
        "legacy_timezone": found.zone,
        "applied": [migration.file_name for migration in found.applied],
        "tables": [
            {
                "name": table.name,
                "rows_before": table.rows_before,
                "rows_after": table.rows_after,
                "rewritten": table.rewritten,
            }
            for table in found.tables
        ],
        "locks": [{"name": lock.name, "mode": lock.mode} for lock in found.locks],
    }


def _print(found: Rehearsal) -> None:
    click.echo(f"restored in {found.restore_seconds:.1f} s into PostgreSQL {found.server_major}")
    for table in found.tables:
        rows = f"{table.rows_before} rows"
        if table.rows_after != table.rows_before:
            rows += f", {table.rows_after} AFTERWARDS"
        click.echo(f"  {table.name}: {rows}{', rewritten' if table.rewritten else ''}")
    for lock in found.locks:
        click.echo(f"  locked to the end: {lock.name} ({lock.mode})")
    for migration in found.applied:
        click.echo(f"applied {migration.file_name}")
    click.echo(
        f"migrated in {found.migrate_seconds:.1f} s on this machine; others wait that long for what is locked"
    )
    if found.zone is None:
        click.echo(
            "note: a dump does not tell the database's zone, so old timestamps were read in this machine's;"
            " the real run reads them in the database's own, or in --legacy-timezone"
        )


async def _check(session: Session, as_json: bool) -> Exit:
    from pggit_reactor.db.migrate import check

    async with session.open_database(any_schema=True) as connection:
        status = await check(connection)
    if status.too_new:
        names = ", ".join(f"{migration.version:04}_{migration.name}" for migration in status.too_new)
        raise SchemaTooNewError(f"the schema is newer than this program: {names}; upgrade pggit-reactor")
    missing = [migration.file_name for migration in status.pending]
    edited = [migration.file_name for migration in status.edited]
    if as_json:
        print_json({"missing": missing, "edited": edited, "applied_count": len(status.applied)})
    if edited:
        raise MigrationError(
            f"{', '.join(edited)} changed after being applied; install the version that applied it"
        )
    if not as_json:
        for name in missing:
            click.echo(f"missing {name}")
        if not missing:
            click.echo(f"up to date: {len(status.applied)} migration(s) are applied")
    return Exit.TROUBLE if missing else Exit.DONE
