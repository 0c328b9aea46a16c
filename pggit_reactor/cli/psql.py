"""`psql`: becomes psql on the configured database."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.errors import ConfigurationError

if TYPE_CHECKING:
    from pggit_reactor.core.secret import Secret


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--up", "on_up", is_flag=True, help="On the database of the `up` that runs in this folder.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- PSQL OPTIONS]")
@pass_session
def psql(session: Session, on_up: bool, arguments: tuple[str, ...]) -> None:
    """Open psql on the database.

    The address travels in the environment (PGHOST, PGPASSWORD, ...), which other users cannot read, and never
    on the command line, which they can. Options behind -- are psql's own.

    \b
    Example: pggit-reactor psql
             pggit-reactor psql --up -- -c 'SELECT count(*) FROM pggit.alert_delivery_queue'
    """
    from pggit_reactor.core.secret import Secret

    environment = dict(os.environ)
    if on_up:
        from pggit_reactor.cli.libpq_variables import forget_libpq_variables
        from pggit_reactor.cli.up_instance import find_up

        instance = find_up()
        forget_libpq_variables(environment)
        dsn = Secret(instance.dsn)
        program = _find_psql(instance.bin_dir)
    else:
        dsn = session.database_url()
        program = _find_psql(session.settings.postgres_bin)
    environment |= libpq_environment(dsn)
    os.execve(program, ["psql", *arguments], environment)  # noqa: S606  # no shell, on purpose


def libpq_environment(dsn: Secret[str]) -> dict[str, str]:
    """Return *dsn* as the variables that libpq reads.

    Parameters that have no variable (keepalives, for instance) are left out, and named on standard error.
    """
    from psycopg.pq import Conninfo

    known = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults()}
    variables: dict[str, str] = {}
    for name, value in _parameters(dsn).items():
        variable = known.get(name)
        if variable is None:
            click.echo(f"note: {name} of the database URL has no variable for psql; left out", err=True)
        else:
            variables[variable.decode()] = value
    return variables


def _parameters(dsn: Secret[str]) -> Mapping[str, str]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        found = conninfo_to_dict(dsn.reveal())
    except (psycopg.Error, UnicodeError):
        # libpq's own message quotes the piece that it stumbled over, which may be a password.
        raise ConfigurationError("the database URL cannot be read") from None
    return {name: str(value) for name, value in found.items() if value is not None}


def _find_psql(folder: Path | None) -> str:
    beside = None if folder is None else shutil.which("psql", path=str(folder))
    found = beside or shutil.which("psql")
    if found is None:
        raise ConfigurationError("psql was not found; install the PostgreSQL client, or set postgres_bin")
    return found
