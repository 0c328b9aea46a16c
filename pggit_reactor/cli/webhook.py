"""`webhook`: the registry of receivers."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import click

from pggit_reactor.cli.judging import judge_url, require_good_url
from pggit_reactor.cli.output import json_option, print_facts, print_json, print_table
from pggit_reactor.cli.parameters import BIGINT, webhook_argument
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.cli.webhook_import import import_phase7
from pggit_reactor.cli.webhook_keys import keys_help, parse_change
from pggit_reactor.cli.webhook_state import disable, enable, pause, reset, resume
from pggit_reactor.cli.webhook_trial import test
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret, secret_key
from pggit_reactor.errors import ConfigurationError

if TYPE_CHECKING:
    from pggit_reactor.core.url_policy import Target
    from pggit_reactor.db.registry import Change, Revealed, WebhookRecord

SECRET_FILE_OCTETS_MAX: Final = 4096
_NEW_SECRET_OCTETS: Final = 32
_KEYS_HELP: Final = (
    "\b\nKeys (KEY= with nothing behind it puts the default back, or takes a header or label away):\n"
    + keys_help()
)


@click.group()
def webhook() -> None:
    """Register receivers, change, test and remove them.

    ID is a webhook's id or its name. URLs, headers and secrets are sealed with the master key and shown to
    nobody who does not ask for them (`show --reveal`, which is audited).

    \b
    Example: pggit-reactor webhook add https://hooks.example.com/alerts --name alerts
    """


for _command in (test, pause, resume, disable, enable, reset, import_phase7):
    webhook.add_command(_command)


@webhook.command(epilog=_KEYS_HELP)
@click.argument("url")
@click.option("--name", metavar="N", help="A unique name; by default webhook-ID.")
@click.option(
    "--id", "webhook_id", type=BIGINT, metavar="N",
    help="This id, which takes over deliveries that wait for it; by default one that nothing ever used.",
)  # fmt: skip
@click.option(
    "--secret-file", metavar="F", help="The signing secret, from a file, or from - (standard input)."
)
@click.option(
    "--rate", metavar="R", help="Attempts a second of all workers together, 0 for no limit; by default 100."
)
@click.option("--burst", metavar="B", help="Attempts at once above that rate; by default 20.")
@click.option("--concurrency", metavar="C", help="Attempts in flight, 1 to 256; by default 32.")
@click.option("--require-dns", is_flag=True, help="Refuse a name that does not resolve now.")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE ...]")
@json_option
@pass_session
def add(
    session: Session,
    *,
    url: str,
    name: str | None,
    webhook_id: int | None,
    secret_file: str | None,
    rate: str | None,
    burst: str | None,
    concurrency: str | None,
    require_dns: bool,
    words: tuple[str, ...],
    as_json: bool,
) -> None:
    """Register a receiver; the last word printed is its id.

    Without --secret-file a signing secret is made and printed, this once. A name that does not resolve now is
    registered with a warning; a URL that the policy refuses is not, and the exit status is 3.

    \b
    Example: pggit-reactor webhook add https://hooks.example.com/alerts --name alerts concurrency=8
    """
    options = {"name": name, "rate": rate, "burst": burst, "concurrency": concurrency}
    given = [f"{option}={value}" for option, value in options.items() if value is not None]
    change = parse_change((f"url={url}", *given, *words))
    made = secret_file is None
    secret = _new_secret() if secret_file is None else _read_secret(secret_file)
    record = session.run(lambda: _add(session, change, secret, webhook_id, require_dns=require_dns))
    shown = secret.reveal() if made else None
    if as_json:
        about = {"name": record.name, "url_origin": record.url_origin}
        print_json(about | ({"secret": shown} if made else {}) | {"webhook_id": record.webhook_id})
        return
    click.echo(f"registered {record.name} for {record.url_origin}")
    if made:
        click.echo(f"signing secret, shown only now: {shown}")
    click.echo(record.webhook_id)


async def _add(
    session: Session, change: Change, secret: Secret[str], webhook_id: int | None, *, require_dns: bool
) -> WebhookRecord:
    from pggit_reactor.db import registry

    change = await _judged(session, change, require_dns=require_dns)
    async with session.open_database() as connection:
        sealer = await session.open_sealer(connection)
        added = await registry.add(
            connection, sealer, change, secret=secret, webhook_id=webhook_id, by=session.actor
        )
        return await registry.read_record(connection, added)


async def _judged(session: Session, change: Change, *, require_dns: bool) -> Change:
    """Return *change* with the origin of its url, which policy does not refuse."""
    if change.url is None:
        return change
    judge = require_good_url if require_dns else judge_url
    judgement = await judge(change.url.reveal(), session.settings.egress.rules())
    if judgement.unresolved is not None:
        click.echo(
            f"warning: {judgement.unresolved}; registered all the same, its addresses are judged at each delivery",
            err=True,
        )
    target: Target = judgement.target
    return attrs.evolve(change, url_origin=target.origin)


def _new_secret() -> Secret[str]:
    return Secret(new_secret(secrets.token_bytes(_NEW_SECRET_OCTETS)))


def _read_secret(place: str) -> Secret[str]:
    """Return the signing secret in the file *place*, or on standard input; a line's end is not part of it."""
    try:
        if place == "-":
            octets = sys.stdin.buffer.read(SECRET_FILE_OCTETS_MAX + 1)
        else:
            with Path(place).open("rb") as file:
                _warn_of_mode(place, file.fileno())
                octets = file.read(SECRET_FILE_OCTETS_MAX + 1)
        content = octets.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"cannot read the secret from {place}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the secret in {place} is not UTF-8") from None
    if len(octets) > SECRET_FILE_OCTETS_MAX or "\n" in content:
        raise ConfigurationError(f"{place} is no signing secret: it has several lines or is too long")
    secret_key(content)  # refuses what cannot sign
    return Secret(content)


def _warn_of_mode(place: str, descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        click.echo(f"warning: {place} is readable by everybody; right is mode 0600", err=True)


@webhook.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """List the registered webhooks.

    \b
    Example: pggit-reactor webhook list --json
    """
    records = session.run(lambda: _list(session))
    if as_json:
        print_json(records)
        return
    rows = [
        {
            "id": record.webhook_id,
            "name": record.name,
            "url": record.url_origin,
            "state": record.state,
            "health": record.health_status or "unknown",
            "breaker": record.breaker,
            "attempts": record.attempts,
            "concurrency": record.concurrency,
        }
        for record in records
    ]
    print_table(rows, when_empty="no webhook is registered; `pggit-reactor webhook add URL` registers one")


async def _list(session: Session) -> tuple[WebhookRecord, ...]:
    from pggit_reactor.db.registry import read_records

    async with session.open_database() as connection:
        return await read_records(connection)


@webhook.command()
@webhook_argument
@click.option("--reveal", is_flag=True, help="Show URL, headers and secrets too; this is audited.")
@json_option
@pass_session
def show(session: Session, which: int | str, reveal: bool, as_json: bool) -> None:
    """Show a webhook.

    \b
    Example: pggit-reactor webhook show alerts
    """
    record, revealed, waiting = session.run(lambda: _show(session, which, reveal=reveal))
    if as_json:
        opened = {} if revealed is None else {"revealed": _opened(revealed)}
        print_json({**_fields(record), "waiting": waiting, **opened})
        return
    facts = {name: value for name, value in _fields(record).items() if name != "secrets"}
    facts["secret_versions"] = [secret.version for secret in record.secrets]
    facts["waiting"] = waiting
    print_facts(facts)
    if revealed is not None:
        _print_revealed(revealed)


async def _show(
    session: Session, which: int | str, *, reveal: bool
) -> tuple[WebhookRecord, Revealed | None, int]:
    from pggit_reactor.db import registry

    async with session.open_database() as connection:
        record = await registry.read_record(connection, which)
        waiting = await registry.count_waiting(connection, record.webhook_id)
        if not reveal:
            return record, None, waiting
        sealer = await session.open_sealer(connection)
        opened = await registry.reveal(connection, sealer, record.webhook_id, by=session.actor)
        return record, opened, waiting


def _print_revealed(revealed: Revealed) -> None:
    facts: dict[str, object] = {"url": revealed.url.reveal()}
    facts |= {f"header {name}": value.reveal() for name, value in revealed.headers.items()}
    facts |= {f"secret {version}": secret.reveal() for version, secret in revealed.secrets.items()}
    print_facts(facts)


def _fields(record: WebhookRecord) -> dict[str, object]:
    return {field.name: getattr(record, field.name) for field in attrs.fields(type(record))}


def _opened(revealed: Revealed) -> dict[str, object]:
    return {
        "url": revealed.url.reveal(),
        "headers": {name: value.reveal() for name, value in revealed.headers.items()},
        "secrets": {str(version): secret.reveal() for version, secret in revealed.secrets.items()},
    }


@webhook.command("set", epilog=_KEYS_HELP)
@webhook_argument
@click.argument("words", nargs=-1, required=True, metavar="KEY=VALUE ...")
@click.option("--require-dns", is_flag=True, help="Refuse a new url whose name does not resolve now.")
@pass_session
def set_(session: Session, which: int | str, words: tuple[str, ...], require_dns: bool) -> None:
    """Change a webhook; workers take the change up at once.

    \b
    Example: pggit-reactor webhook set alerts concurrency=8 header.Authorization=@token.txt
    """
    change = parse_change(words)
    webhook_id = session.run(lambda: _set(session, which, change, require_dns=require_dns))
    click.echo(f"changed webhook {webhook_id}")


async def _set(session: Session, which: int | str, change: Change, *, require_dns: bool) -> int:
    from pggit_reactor.db import registry

    change = await _judged(session, change, require_dns=require_dns)
    async with session.open_database() as connection:
        sealer = await session.open_sealer(connection) if change.seals else None
        return await registry.change_webhook(connection, sealer, which, change, by=session.actor)


@webhook.command()
@webhook_argument
@pass_session
def remove(session: Session, which: int | str) -> None:
    """Remove a webhook and its secrets.

    Deliveries that are queued for it wait for its id to be registered again, as for any unknown id, and are
    given up after the hold (setting delivery.unknown_webhook_hold_seconds).

    \b
    Example: pggit-reactor webhook remove alerts
    """
    record, waiting = session.run(lambda: _remove(session, which))
    click.echo(f"removed webhook {record.webhook_id} ({record.name})")
    if waiting:
        hold = session.settings.delivery.unknown_webhook_hold_seconds
        click.echo(
            f"{waiting} deliveries wait for id {record.webhook_id}; they are given up after {hold:g} s unless "
            f"it is registered again (webhook add URL --id {record.webhook_id})"
        )


async def _remove(session: Session, which: int | str) -> tuple[WebhookRecord, int]:
    from pggit_reactor.db import registry

    async with session.open_database() as connection:
        record = await registry.remove(connection, which, by=session.actor)
        return record, await registry.count_waiting(connection, record.webhook_id)
