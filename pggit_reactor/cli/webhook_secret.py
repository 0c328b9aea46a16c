"""`webhook rotate-secret`, and what `webhook add` shares with it: where a signing secret comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from pggit_reactor.cli.moments import seconds_of
from pggit_reactor.cli.output import json_option, print_json, text
from pggit_reactor.cli.parameters import webhook_argument
from pggit_reactor.cli.private_files import SECRET_FILE_OCTETS_MAX, read_secret_octets
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.core.model import SignatureAlgorithm
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing_keys import algorithm_of
from pggit_reactor.errors import ConfigurationError

if TYPE_CHECKING:
    from pggit_reactor.db.secrets import Rotated

GRACE_SECONDS_MAX: Final = 366 * 86_400.0

algorithm_option = click.option(
    "--algorithm",
    type=click.Choice([algorithm.value for algorithm in SignatureAlgorithm]),
    help="What a secret that is made signs with; ed25519 gives the receiver a public key.",
)


class GraceParameter(click.ParamType[float]):
    """A duration of 0 and more, at most `GRACE_SECONDS_MAX`."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        seconds = seconds_of(value) if isinstance(value, str) else value
        if seconds is None or seconds > GRACE_SECONDS_MAX:
            self.fail(
                f"{value!r} is no duration; right is 0, or such as 12h or 30d, at most 366d", param, ctx
            )
        return seconds


@click.command("rotate-secret")
@webhook_argument
@click.option("--secret-file", metavar="F", help="The new secret, from a file, or from - (standard input).")
@algorithm_option
@click.option(
    "--grace", type=GraceParameter(), metavar="T", help="How long the old ones sign too; 0 ends them at once."
)
@click.option("--finish", is_flag=True, help="Make no new secret: end the grace of the last rotation now.")
@json_option
@pass_session
def rotate_secret(
    session: Session,
    *,
    which: int | str,
    secret_file: str | None,
    algorithm: str | None,
    grace: float | None,
    finish: bool,
    as_json: bool,
) -> None:
    """Give a webhook a new signing secret, and let the old one sign beside it for a time.

    During the grace (30 days, setting secrets.grace_seconds) each request has a signature of each, the new one's first,
    retries of older deliveries too: the receiver changes over when it likes. Then the old one is gone.

    \b
    Example: pggit-reactor webhook rotate-secret alerts --grace 7d
             pggit-reactor webhook rotate-secret alerts --finish
    """
    if finish and (secret_file or algorithm or grace is not None):
        raise click.UsageError("--finish makes no new secret: it goes with no other option")
    if secret_file and algorithm:
        raise click.UsageError("--algorithm is for a secret that is made here; a file's is what it is")
    if finish:
        webhook_id, ended = session.run(lambda: _finish(session, which))
        if as_json:
            print_json({"webhook_id": webhook_id, "ended": ended})
        else:
            _say_ended(ended)
        return
    given = None if secret_file is None else read_secret(secret_file)
    rotated, secret = session.run(
        lambda: _rotate(session, which, given, algorithm=algorithm, grace_seconds=grace)
    )
    shown = shown_secret(secret, rotated.public_key) if given is None else shown_public(rotated.public_key)
    if as_json:
        print_json({**_plain(rotated), **shown})
        return
    click.echo(f"webhook {rotated.webhook_id}: secret {rotated.version} signs first")
    say_secret(shown)
    for version, moment in rotated.signs_on.items():
        click.echo(f"secret {version} signs too until {text(moment)}")
    _say_ended(rotated.ended)


async def _rotate(
    session: Session,
    which: int | str,
    secret: Secret[str] | None,
    *,
    algorithm: str | None,
    grace_seconds: float | None,
) -> tuple[Rotated, Secret[str]]:
    from pggit_reactor.db import secrets

    default = session.settings.secrets.grace_seconds
    async with session.open_database() as connection:
        return await secrets.rotate_secret(
            connection,
            await session.open_sealer(connection),
            which,
            secret=secret,
            algorithm=None if algorithm is None else SignatureAlgorithm(algorithm),
            grace_seconds=default if grace_seconds is None else grace_seconds,
            by=session.actor,
        )


async def _finish(session: Session, which: int | str) -> tuple[int, tuple[int, ...]]:
    from pggit_reactor.db import secrets

    async with session.open_database() as connection:
        return await secrets.finish_rotation(connection, which, by=session.actor)


def _plain(rotated: Rotated) -> dict[str, object]:
    return {
        "webhook_id": rotated.webhook_id,
        "version": rotated.version,
        "algorithm": rotated.algorithm,
        "signs_on": rotated.signs_on,
        "ended": rotated.ended,
    }


def _say_ended(ended: tuple[int, ...]) -> None:
    for version in ended:
        click.echo(f"secret {version} is gone")


# ---- a secret, as it comes and as it is shown ---------------------------------------------------------------


def shown_secret(secret: Secret[str], public_key: str | None) -> dict[str, str]:
    """Return what its receiver needs of a secret that was made here: itself, or its public key."""
    return {"secret": secret.reveal()} if public_key is None else shown_public(public_key)


def shown_public(public_key: str | None) -> dict[str, str]:
    """Return what may be shown of a secret that came from somewhere else."""
    return {} if public_key is None else {"public_key": public_key}


def say_secret(shown: dict[str, str]) -> None:
    """Print it, for people."""
    if "secret" in shown:
        click.echo(f"signing secret, shown only now: {shown['secret']}")
    if "public_key" in shown:
        click.echo(f"public key, for the receiver: {shown['public_key']}")


def read_secret(place: str) -> Secret[str]:
    """Return the signing secret in the file *place*, or on standard input; a line's end is not part of it."""
    octets = read_secret_octets(place, what="the secret")
    try:
        content = octets.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigurationError(f"the secret in {place} is not UTF-8") from None
    if len(octets) > SECRET_FILE_OCTETS_MAX or "\n" in content:
        raise ConfigurationError(f"{place} is no signing secret: it has several lines or is too long")
    algorithm_of(content)  # refuses what cannot sign
    return Secret(content)
