"""`doctor`: all checks in their order, and what to do."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.output import json_option, print_json, text
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.errors import DatabaseUnavailableError, KeyringError

if TYPE_CHECKING:
    from pggit_reactor.db.connect import TrioConnection
    from pggit_reactor.db.diagnosis import Check, Finding, Server
    from pggit_reactor.security.keyring import Keyring

_INDENT = " " * 24


@click.command()
@json_option
@pass_session
def doctor(session: Session, as_json: bool) -> int:
    """Look for trouble, and say what to do about it.

    Looks at the database (version, encoding, standby), migrations, roles, rights, triggers, LISTEN (a round
    trip on the workers' URL), keys, clocks, egress, rows and webhooks that wait for somebody, certificates, workers,
    audit partitions, and what slows the database as a whole. Changes nothing. Exit 3 where it found trouble.

    \b
    Example: pggit-reactor doctor
    """
    findings = session.run(lambda: examine(session))
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            click.echo(f"{finding.level:<8}  {finding.check:<12}  {text(finding.what)}")
            if finding.remedy is not None:
                click.echo(f"{_INDENT}do: {text(finding.remedy)}")
    return Exit.TROUBLE if any(finding.level == "trouble" for finding in findings) else Exit.DONE


async def examine(session: Session) -> list[Finding]:
    """Make all checks that can be made; ConfigurationError where the settings themselves are wrong."""
    from pggit_reactor.db import diagnosis

    findings = _egress(session)
    try:
        async with session.open_database(any_schema=True) as connection:
            findings += await _look(session, connection)
    except DatabaseUnavailableError as error:
        remedy = "see that PostgreSQL runs, and that the database URL is right"
        findings.append(diagnosis.trouble("database", str(error), remedy))
    return findings


async def _look(session: Session, connection: TrioConnection) -> list[Finding]:
    from pggit_reactor.db import diagnosis

    before = time.time()
    server = await diagnosis.read_server(connection)
    wall = (before + time.time()) / 2
    findings = [*diagnosis.judge_server(server), *diagnosis.judge_clock(server, wall=wall)]
    schema = await diagnosis.guarded("migrations", partial(diagnosis.check_schema, connection))
    findings += schema
    if any(finding.level is diagnosis.Level.TROUBLE for finding in schema):
        return findings  # What is not there cannot be looked at.
    keyring, complaint = _keyring(session)
    findings += complaint
    for check, run in _checks(session, connection, server, keyring).items():
        if check != "keys" or not complaint:
            findings += await diagnosis.guarded(check, run)
    return findings


def _checks(
    session: Session, connection: TrioConnection, server: Server, keyring: Keyring | None
) -> dict[str, Check]:
    from pggit_reactor.db import diagnosis

    hold = session.settings.delivery.unknown_webhook_hold_seconds
    return {
        "roles": partial(diagnosis.check_roles, connection, server),
        "rights": partial(diagnosis.check_rights, connection, server),
        "triggers": partial(diagnosis.check_triggers, connection, server),
        "listen": partial(diagnosis.check_listen, connection, server, session.listen_url()),
        "keys": partial(diagnosis.check_keys, connection, keyring),
        "queue": partial(diagnosis.check_queue, connection, hold_seconds=hold),
        "webhooks": partial(diagnosis.check_webhooks, connection),
        "certificates": partial(diagnosis.check_certificates, connection),
        "workers": partial(diagnosis.check_workers, connection),
        "audit": partial(diagnosis.check_audit, connection),
        "activity": partial(diagnosis.check_activity, connection),
    }


def _keyring(session: Session) -> tuple[Keyring | None, list[Finding]]:
    """Return the key ring, or what is wrong with its text."""
    from pggit_reactor.db import diagnosis

    if session.master_key() is None:
        return None, []
    try:
        return session.keyring, []
    except KeyringError as error:
        return None, [diagnosis.trouble("keys", str(error), "mend the key file")]


def _egress(session: Session) -> list[Finding]:
    from pggit_reactor.core.egress import PORT_DEFAULT
    from pggit_reactor.db import diagnosis

    rules = session.egress.rules()
    found = []
    if rules.unsafe_allow:
        entries = ", ".join(map(str, rules.unsafe_allow))
        what = f"egress.unsafe_allow frees {entries}: whoever registers a webhook reaches what is there"
        found.append(diagnosis.note("egress", what, "empty it where no private receiver is meant"))
    if rules.ports != {PORT_DEFAULT}:
        ports = ", ".join(map(str, sorted(rules.ports)))
        found.append(diagnosis.note("egress", f"webhooks may have the ports {ports} (egress.ports)"))
    if rules.proxy is not None:
        what = f"requests go through the proxy {rules.proxy} (egress.proxy_url), which no rule judges"
        found.append(diagnosis.note("egress", what))
    return found or [diagnosis.good("egress", "port 443 of public addresses, and nothing else")]
