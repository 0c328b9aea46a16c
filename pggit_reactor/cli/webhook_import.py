"""`webhook import-phase7`: takes over the webhooks of pgGit's phase 7."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.judging import judge_url
from pggit_reactor.cli.output import json_option, print_json, print_table
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret
from pggit_reactor.errors import ConfigurationError, SealError, UrlRefusedError

if TYPE_CHECKING:
    from pggit_reactor.db.phase7 import Phase7Webhook

_KEY_FILE_OCTETS_MAX: Final = 4096
_NEW_SECRET_OCTETS: Final = 32
_DISCLOSED: Final = (
    "warning: the key of phase 7 stands in a public source, so these URLs count as disclosed. Have the receivers "
    "make new ones, then: pggit-reactor webhook set ID url=NEW label.url_disclosed="
)


@attrs.frozen(kw_only=True)
class _Opened:
    """A webhook of phase 7 that can be registered, or why it cannot."""

    old: Phase7Webhook
    url: Secret[str] | None = None
    url_origin: str | None = None
    skipped: str | None = None
    refused: str | None = None


@attrs.frozen(kw_only=True)
class _Imported:
    """What became of a webhook of phase 7."""

    webhook_id: int
    name: str
    type: str
    url_origin: str | None
    result: str
    is_trouble: bool
    waiting: int | None = None
    secret: str | None = attrs.field(default=None, repr=False)


@click.command("import-phase7")
@click.option(
    "--phase7-key", metavar="TEXT", help="The constant in the source of phase 7 that its key is made of."
)
@click.option(
    "--phase7-key-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The constant, from a file.",
)  # fmt: skip
@json_option
@pass_session
def import_phase7(
    session: Session, phase7_key: str | None, phase7_key_file: Path | None, as_json: bool
) -> int:
    """Take over the webhooks of pgGit's phase 7, under their ids.

    Each URL is opened with phase 7's key, judged by the URL policy, and sealed with the master key; deliveries
    that wait for the id are delivered. Each gets a signing secret, printed once. Phase 7's table stays as it
    is, and a webhook that is registered already is left alone, so the command may be repeated. Exit 3 where
    a URL does not open or is refused; the others are imported all the same. No role of ours may read phase 7's
    table: do it as its owner.

    \b
    Example: pggit-reactor webhook import-phase7 --phase7-key-file phase7.txt
    """
    if (phase7_key is None) == (phase7_key_file is None):
        raise click.UsageError("give --phase7-key or --phase7-key-file; phase 7's source has the constant")
    constant = phase7_key if phase7_key_file is None else _read_constant(phase7_key_file)
    assert constant is not None
    imported = session.run(lambda: _import(session, constant))
    if as_json:
        print_json(imported)
    else:
        _print(imported)
    if any(one.secret is not None for one in imported):
        click.echo(_DISCLOSED, err=True)
    return Exit.TROUBLE if any(one.is_trouble for one in imported) else Exit.DONE


def _read_constant(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_KEY_FILE_OCTETS_MAX).decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8") from None


async def _import(session: Session, constant: str) -> list[_Imported]:
    from pggit_reactor.db.phase7 import read_phase7_webhooks

    async with session.open_database() as connection:
        found = await read_phase7_webhooks(connection)
    # Judged without a connection that waits for name servers.
    opened = [await _open(session, old, constant) for old in found]
    return [await _register(session, one) for one in opened]


async def _open(session: Session, old: Phase7Webhook, constant: str) -> _Opened:
    from pggit_reactor.security.phase7 import open_phase7_url

    if old.is_registered:
        return _Opened(old=old, skipped="registered already")
    if not old.encrypted_url:
        return _Opened(old=old, skipped="has no URL")
    try:
        url = open_phase7_url(old.encrypted_url, constant)
        if not url.reveal():
            return _Opened(old=old, skipped="has no URL")
        judgement = await judge_url(url.reveal(), session.egress.rules())
    except (SealError, UrlRefusedError) as error:
        return _Opened(old=old, refused=str(error))
    if judgement.unresolved is not None:
        click.echo(
            f"warning: webhook {old.webhook_id}: {judgement.unresolved}; imported all the same", err=True
        )
    return _Opened(old=old, url=url, url_origin=judgement.target.origin)


async def _register(session: Session, opened: _Opened) -> _Imported:
    from pggit_reactor.db.phase7 import register_phase7_webhook
    from pggit_reactor.db.registry import count_waiting

    old = opened.old
    if opened.url is None or opened.url_origin is None:
        return _result(opened, result=opened.skipped or f"refused: {opened.refused}")
    secret = new_secret(secrets.token_bytes(_NEW_SECRET_OCTETS))
    async with session.open_database() as connection:
        sealer = await session.open_sealer(connection)
        name = await register_phase7_webhook(
            connection, sealer, old,
            url=opened.url, url_origin=opened.url_origin, secret=Secret(secret),
            rate_per_s=session.settings.delivery.rate_per_s, by=session.actor,
        )  # fmt: skip
        waiting = await count_waiting(connection, old.webhook_id)
    done = _result(opened, result="imported" if old.is_enabled else "imported, disabled")
    return attrs.evolve(done, name=name, waiting=waiting, secret=secret)


def _result(opened: _Opened, *, result: str) -> _Imported:
    return _Imported(
        webhook_id=opened.old.webhook_id,
        name=opened.old.name,
        type=opened.old.webhook_type,
        url_origin=opened.url_origin,
        result=result,
        is_trouble=opened.refused is not None,
    )


def _print(imported: list[_Imported]) -> None:
    rows = [
        {
            "id": one.webhook_id,
            "name": one.name,
            "type": one.type,
            "url": one.url_origin,
            "waiting": one.waiting,
            "result": one.result,
        }
        for one in imported
    ]
    print_table(rows, when_empty="phase 7 has no webhook")
    for one in imported:
        if one.secret is not None:
            click.echo(f"signing secret of webhook {one.webhook_id}, shown only now: {one.secret}")
