"""`receiver check`: does a receiver take what is ours, and nothing else?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.output import json_option, print_json, print_table, text
from pggit_reactor.cli.private_files import SECRET_FILE_OCTETS_MAX, read_secret_octets
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import secret_key
from pggit_reactor.errors import ConfigurationError

if TYPE_CHECKING:
    from pggit_reactor.core.conformance import Check, Report

SECRETS_MAX: Final = 8
_FAMILIES: Final = ("standard", "pggit", "both")


@click.group()
def receiver() -> None:
    """Examine a receiver of webhooks.

    \b
    Example: pggit-reactor receiver check https://hooks.example.com/alerts --secret-file secret
    """


@receiver.command()
@click.argument("url")
@click.option(
    "--secret-file",
    metavar="F",
    required=True,
    help="The signing secret that the receiver has, from a file, or from - (standard input); several lines "
    "are several secrets, newest first.",
)
@click.option(
    "--family",
    type=click.Choice(_FAMILIES),
    help="The headers that it has to verify: webhook-* (standard), X-pgGit-* (pggit), or either (both); by "
    "default this is found out.",
)
@json_option
@pass_session
def check(session: Session, *, url: str, secret_file: str, family: str | None, as_json: bool) -> int:
    """Find out whether a receiver takes what is ours, and nothing else.

    It is sent some hundred requests, one after the other: valid ones, old, altered, repeated, doubly signed and
    malformed ones. The valid ones, whose event type is pggit_reactor.check, it may act on. Nothing is stored here,
    and no database is needed.

    The URL is under the same policy as that of any webhook; egress.unsafe_allow frees a receiver on this machine.
    Exit 0 if all that is required is so, 3 if not.

    \b
    Example: pggit-reactor receiver check https://hooks.example.com/alerts --secret-file secret
    """
    secrets = _read_secrets(secret_file)
    report, origin = session.run(lambda: _examine(session, url, secrets, family))
    if as_json:
        print_json({"url_origin": origin, "passed": report.passed, **_fields(report)})
    else:
        _print(report, origin)
    return Exit.DONE if report.passed else Exit.TROUBLE


async def _examine(
    session: Session, url: str, secrets: tuple[Secret[str], ...], family: str | None
) -> tuple[Report, str]:
    from pggit_reactor.core.conformance_cases import Form
    from pggit_reactor.core.url_policy import parse_target
    from pggit_reactor.delivery.examining import examine_receiver
    from pggit_reactor.delivery.sender import open_transport

    rules = session.settings.egress.rules()
    target = parse_target(url, rules)
    async with open_transport(rules) as transport:
        report = await examine_receiver(
            transport,
            target,
            signing_secrets=secrets,
            family=None if family is None else Form(family),
            deadline_seconds=session.settings.delivery.timeout_seconds,
        )
    return report, target.origin


def _read_secrets(place: str) -> tuple[Secret[str], ...]:
    """Return the secrets in the file *place*, or on standard input, a line each."""
    octets = read_secret_octets(place, what="the secrets")
    try:
        lines = [line for line in octets.decode("utf-8").splitlines() if line]
    except UnicodeDecodeError:
        raise ConfigurationError(f"the secrets in {place} are not UTF-8") from None
    if len(octets) > SECRET_FILE_OCTETS_MAX or not 1 <= len(lines) <= SECRETS_MAX:
        raise ConfigurationError(f"{place} holds no signing secrets: want 1 to {SECRETS_MAX} lines")
    for line in lines:
        secret_key(line)  # refuses what cannot sign
    return tuple(map(Secret, lines))


def _print(report: Report, origin: str) -> None:
    families = ", ".join(report.forms) or "none"
    click.echo(f"{origin} verifies: {families}\n")
    print_table([_row(check) for check in report.checks], when_empty="nothing was tried")
    notes = [check for check in report.checks if check.note]
    if notes:
        click.echo()
    for check in notes:
        click.echo(text(f"{check.verdict}: {check.name} ({check.form}), {check.sends}: {check.note}"))
    if report.cut_short:
        click.echo("\nit stopped answering; the rest was not tried")
    failed = sum(check.required and check.verdict != "pass" for check in report.checks)
    required = sum(check.required for check in report.checks)
    click.echo(f"\n{required - failed} of {required} required checks passed")


def _row(check: Check) -> Mapping[str, object]:
    return {
        "check": check.name,
        "headers": check.form,
        "wanted": check.wants if check.required else f"({check.wants})",
        "got": check.got,
        "verdict": check.verdict,
    }


def _fields(report: Report) -> dict[str, object]:
    return {"families": report.forms, "cut_short": report.cut_short, "checks": report.checks}
