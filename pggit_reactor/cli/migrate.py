"""`migrate`: the schema."""

from __future__ import annotations

import math

import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.output import json_option, print_json
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.errors import MigrationError, SchemaTooNewError


@click.command()
@click.option("--check", "check_only", is_flag=True, help="Change nothing; exit 3 where work is left.")
@json_option
@pass_session
def migrate(session: Session, check_only: bool, as_json: bool) -> int:
    """Bring the schema up to date, or say what is missing.

    All that is pending runs in one transaction: a failure leaves nothing half done, and of two runs at once
    the second waits and finds nothing to do. Needs PostgreSQL 15 or later and a UTF-8 database.

    \b
    Example: pggit-reactor migrate --check || pggit-reactor migrate
    """
    return session.run(lambda: _check(session, as_json) if check_only else _migrate(session, as_json))


async def _migrate(session: Session, as_json: bool) -> Exit:
    from pggit_reactor.db.migrate import migrate as run

    # A rewrite of a large table takes what it takes.
    async with session.open_database(any_schema=True, seconds=math.inf) as connection:
        report = await run(connection)
    applied = [migration.file_name for migration in report.applied]
    if as_json:
        print_json({"applied": applied, "already_count": report.already_count})
        return Exit.DONE
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo(f"nothing to do: {report.already_count} migration(s) are applied")
    return Exit.DONE


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
