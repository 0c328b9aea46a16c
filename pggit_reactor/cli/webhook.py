"""`webhook`: the registry of receivers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import click

from pggit_reactor.cli.judging import judge_url, require_good_url
from pggit_reactor.cli.output import json_option, print_facts, print_json, print_table
from pggit_reactor.cli.parameters import BIGINT, webhook_argument
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.cli.webhook_import import import_phase7
from pggit_reactor.cli.webhook_keys import keys_help, parse_change
from pggit_reactor.cli.webhook_secret import (
    algorithm_option,
    read_secret,
    rotate_secret,
    say_secret,
    shown_public,
    shown_secret,
)
from pggit_reactor.cli.webhook_state import disable, enable, pause, reset, resume
from pggit_reactor.cli.webhook_trial import test
from pggit_reactor.core.model import SignatureAlgorithm
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing_keys import public_key_of

if TYPE_CHECKING:
    from pggit_reactor.config.settings import DeliverySettings
    from pggit_reactor.core.url_policy import Target
    from pggit_reactor.db.registry import Change, Revealed, SecretRecord, WebhookRecord

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


for _command in (test, pause, resume, disable, enable, reset, rotate_secret, import_phase7):
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
@algorithm_option
@click.option(
    "--rate", metavar="R", help="Attempts a second, 0 for no limit; by default delivery.rate_per_s."
)
@click.option("--burst", metavar="B", help="Attempts that may begin at once; by default 20.")
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
    algorithm: str | None,
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
    change = _with_rate(session, change)
    _warn_of_single_pin(change)
    secret = _secret(secret_file, algorithm)
    record = session.run(lambda: _add(session, change, secret, webhook_id, require_dns=require_dns))
    public_key = public_key_of(secret.reveal())
    shown = shown_secret(secret, public_key) if secret_file is None else shown_public(public_key)
    if as_json:
        about = {"name": record.name, "url_origin": record.url_origin}
        print_json(about | shown | {"webhook_id": record.webhook_id})
        return
    click.echo(f"registered {record.name} for {record.url_origin}")
    say_secret(shown)
    click.echo(record.webhook_id)


def _secret(secret_file: str | None, algorithm: str | None) -> Secret[str]:
    from pggit_reactor.db.secrets import draw_secret

    if secret_file is None:
        return draw_secret(SignatureAlgorithm(algorithm or SignatureAlgorithm.HMAC_SHA256))
    if algorithm is not None:
        raise click.UsageError("--algorithm is for a secret that is made here; a file's is what it is")
    return read_secret(secret_file)


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
    judgement = await judge(change.url.reveal(), session.egress.rules())
    if judgement.unresolved is not None:
        click.echo(
            f"warning: {judgement.unresolved}; registered all the same, its addresses are judged at each delivery",
            err=True,
        )
    target: Target = judgement.target
    return attrs.evolve(change, url_origin=target.origin)


def _with_rate(session: Session, change: Change) -> Change:
    """Return *change* of a new webhook with the rate that the settings say, where it names none."""
    if change.policy.get("rate_per_s") is not None:
        return change
    return attrs.evolve(change, policy={**change.policy, "rate_per_s": session.settings.delivery.rate_per_s})


def _warn_of_single_pin(change: Change) -> None:
    pins = change.policy.get("pins")
    if isinstance(pins, tuple) and len(pins) == 1:
        click.echo(
            "note: one pin alone: when the receiver changes its key, deliveries fail until the pin is changed; "
            "pin the key that it will use next as well",
            err=True,
        )


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
    facts |= {f"secret_{secret.version}": _secret_fact(secret) for secret in record.secrets}
    facts["waiting"] = waiting
    print_facts(_with_defaults(facts, session.settings.delivery))
    if revealed is not None:
        _print_revealed(revealed)


def _secret_fact(secret: SecretRecord) -> str:
    until = "" if secret.expires_at is None else f", until {secret.expires_at}"
    public = "" if secret.public_key is None else f", public key {secret.public_key}"
    return f"{secret.algorithm}, since {secret.not_before}{until}, by {secret.created_by or '-'}{public}"


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


def _with_defaults(facts: dict[str, object], delivery: DeliverySettings) -> dict[str, object]:
    """Return *facts* with what holds where nothing is set: a worker's settings are taken for those here."""
    defaults = {
        "attempt_timeout_seconds": f"{delivery.timeout_seconds:g}",
        "max_attempts": "max_retries of the delivery + 1",
        "max_body_bytes": str(delivery.max_body_bytes),
    }
    return facts | {name: f"{value} (default)" for name, value in defaults.items() if facts.get(name) is None}


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
    _warn_of_single_pin(change)
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
