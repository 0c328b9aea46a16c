"""`key new`, `key status`, `key rotate`, `key url-key`: the master keys."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.output import json_option, print_json, print_table
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.errors import ConfigurationError, KeyringError, NotFoundError

if TYPE_CHECKING:
    from pggit_reactor.db.keys import KeyReport
    from pggit_reactor.security.keyring import Keyring

_KEY_FILE_MODE: Final = 0o600


@click.group()
def key() -> None:
    """Make master keys, and check them against the database.

    Master keys seal webhook URLs and secrets. They live in a file or in the environment, never in the
    database: whoever loses them loses every sealed value, so keep a copy where the database's copies are not.

    \b
    Example: pggit-reactor key new --out reactor.key
    """


@key.command()
@click.option("--id", "key_id", metavar="ID", help="The key's id; by default of the day, as k20261124.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it to a new file of mode 0600, instead of printing it.",
)
def new(key_id: str | None, out: Path | None) -> None:
    """Make a master key.

    Prints one line for the key file, once; it is stored nowhere else. In a file with several lines the first
    is the active key.

    \b
    Example: pggit-reactor key new --out reactor.key
             export PGGIT_REACTOR_MASTER_KEY_FILE=$PWD/reactor.key
    """
    from pggit_reactor.security.keyring import KEY_OCTETS, new_key_id, new_key_line

    today = datetime.fromtimestamp(time.time(), UTC).date()
    line = new_key_line(key_id or new_key_id(today), secrets.token_bytes(KEY_OCTETS))
    if out is None:
        click.echo(line)
        click.echo("keep it in a file of mode 0600, named by PGGIT_REACTOR_MASTER_KEY_FILE", err=True)
        return
    _write_new(out, line)
    click.echo(f"wrote {out}; name it by PGGIT_REACTOR_MASTER_KEY_FILE, and keep a copy elsewhere")


def _write_new(path: Path, line: str) -> None:
    try:
        # Never over a file that exists: it may hold the only copy of a key.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _KEY_FILE_MODE)
    except OSError as error:
        raise ConfigurationError(f"cannot make {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@key.command()
@click.option("--rate", type=click.FloatRange(min=1), metavar="N", help="Values a second; by default 500.")
@click.option("--retire", is_flag=True, help="At the end, retire the keys that nothing needs any more.")
@click.option("--force", is_flag=True, help="Go on although a worker does not say that it has the key.")
@json_option
@pass_session
def rotate(session: Session, rate: float | None, retire: bool, force: bool, as_json: bool) -> None:
    """Seal everything anew with the active master key, the first of the key file.

    Workers go on delivering. The order of a rotation:

    \b
    1. add the new key to each key file, as the second line; SIGHUP to each worker
    2. make it the first line; SIGHUP to each worker
    3. key rotate --retire
    4. take the old line away; SIGHUP to each worker

    A worker without the new key could open nothing any more, so rotate asks first, and names it. A run that was
    stopped is gone on with by the next. A retired key opens nothing and seals nothing: keep it only for old backups.

    \b
    Example: pggit-reactor key rotate --retire
    """
    from pggit_reactor.cli.key_rotation import rotate_keys

    session.run(lambda: rotate_keys(session, rate=rate, retire=retire, force=force, as_json=as_json))


@key.command()
@json_option
@pass_session
def status(session: Session, as_json: bool) -> int:
    """Compare the master keys with what the database was sealed with.

    A key is right (the database knows it), unused (the database has not seen it yet), wrong (another key has
    this id) or missing. Exit 2 where one is wrong or missing. Beside it: how many sealed values need it, and how
    many of the live workers have it.

    \b
    Example: pggit-reactor key status
    """
    return session.run(lambda: _status(session, as_json))


async def _status(session: Session, as_json: bool) -> Exit:
    from pggit_reactor.db.keys import read_sealed_counts, report_keys

    keyring = _keyring_or_none(session)
    async with session.open_database() as connection:
        reports = await report_keys(connection, keyring)
        unreadable = (await read_sealed_counts(connection)).get(None, 0)
    if as_json:
        print_json(reports)
    else:
        print_table([_row(report) for report in reports], when_empty="there is no master key")
    _refuse(reports, keyring, unreadable)
    return Exit.DONE


def _keyring_or_none(session: Session) -> Keyring | None:
    return None if session.master_key() is None else session.keyring


def _row(report: KeyReport) -> Mapping[str, object]:
    return {
        "key": report.key_id,
        "state": report.state,
        "active": report.active,
        "sealed_values": report.sealed_count,
        "workers": f"{report.workers_with} of {report.workers}",
        "first_used": report.first_used_at,
        "retired": report.retired_at,
    }


def _refuse(reports: tuple[KeyReport, ...], keyring: Keyring | None, unreadable: int) -> None:
    wrong = [report.key_id for report in reports if report.is_trouble]
    if wrong:
        raise KeyringError(
            f"master key {', '.join(wrong)}: wrong or missing; right is the key file that this database was "
            "sealed with"
        )
    if unreadable:
        raise KeyringError(f"{unreadable} sealed value(s) are of a form that this version does not know")
    if keyring is None:
        raise KeyringError("no master key is set; `pggit-reactor key new` makes one")


@key.command("url-key")
@pass_session
def url_key(session: Session) -> int:
    """Print what unlocks pggit.get_webhook_decrypted in a session of SQL.

    It is derived from the master keys and opens the URLs of all webhooks, and nothing else: no signing secret,
    no header. Whoever has it and may call the function reads them, so hand it out with care. One ID:KEY for
    each master key that URLs are sealed with, commas between. A new master key makes a new one.

    \b
    Example: pggit-reactor key url-key
             PGOPTIONS="-c pggit.url_key=$(pggit-reactor key url-key)" psql
    """
    return session.run(lambda: _url_key(session))


async def _url_key(session: Session) -> Exit:
    from pggit_reactor.db.keys import derive_url_keys, ensure_keys

    async with session.open_database() as connection:
        await ensure_keys(connection, session.keyring, by=session.actor.name)
        keys = await derive_url_keys(connection, session.keyring)
    if not keys:
        raise NotFoundError("no URL is sealed in this database yet, so there is nothing to unlock")
    click.echo(",".join(key.reveal() for key in keys))
    return Exit.DONE
