"""The command ``pggit-reactor``: global options, the table of commands, the end of every call."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import click

from pggit_reactor import __version__
from pggit_reactor.cli.exits import Exit, report
from pggit_reactor.cli.lazy import Lazy, LazyGroup
from pggit_reactor.cli.session import ACTOR_CHARACTERS_MAX, Session

PROGRAM: Final = "pggit-reactor"

COMMANDS: Final = MappingProxyType(
    {
        "demo": Lazy("demo", "demo", "See it work: a database, a receiver, a worker and a crash"),
        "up": Lazy("up", "up", "Run a reactor for daily work, on a PostgreSQL of its own"),
        "migrate": Lazy("migrate", "migrate", "Bring the schema up to date, or say what is missing"),
        "worker": Lazy("worker", "worker", "Deliver what is in the queue, until told to stop"),
        "webhook": Lazy("webhook", "webhook", "Register receivers, change, test and remove them"),
        "delivery": Lazy("delivery", "delivery", "Look at deliveries, and replay, requeue or cancel them"),
        "route": Lazy("route", "route", "Say which webhooks get which alerts, and ask why"),
        "queue": Lazy("queue", "queue", "Count the queue, and remove what is over and old"),
        "key": Lazy("key", "key", "Make master keys, and check them against the database"),
        "audit": Lazy("audit", "audit", "Read the audit log, and prove that it is whole"),
        "erase": Lazy("erase", "erase", "Erase payloads and texts of a webhook or of an alert"),
        "url": Lazy("url", "url", "Ask the URL policy"),
        "receiver": Lazy("receiver", "receiver", "Examine a receiver of webhooks"),
        "doctor": Lazy("doctor", "doctor", "Look for trouble, and say what to do about it"),
        "psql": Lazy("psql", "psql", "Open psql on the database"),
    }
)

_EPILOG: Final = """\b
Example: pggit-reactor webhook add https://hooks.example.com/alerts

The database's address is never taken from the command line, where every user of this machine could read it:
set PGGIT_REACTOR_DATABASE_URL (or DATABASE_URL, or the file named by PGGIT_REACTOR_DATABASE_URL_FILE), or
database.url in the configuration file.

\b
Exit status: 0 done, 1 failed, 2 usage or configuration (a wrong or missing key too),
3 found trouble, 4 the schema is newer than this program.
"""


def _actor(_context: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    if name is None or (name.strip() and name.isprintable() and len(name) <= ACTOR_CHARACTERS_MAX):
        return name
    raise click.BadParameter(f"want 1 to {ACTOR_CHARACTERS_MAX} printable characters")


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The configuration file; reactor.toml in this folder where there is one.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    help="Instead of the setting log.level; debug shows tracebacks.",
)
@click.option(
    "--as",
    "actor_name",
    metavar="NAME",
    callback=_actor,
    help="Who acts, for the audit log; by default the user of the operating system.",
)
@click.pass_context
def cli(context: click.Context, config: Path | None, log_level: str | None, actor_name: str | None) -> None:
    """INSERT a row into PostgreSQL; milliseconds after COMMIT a signed HTTPS webhook is delivered."""
    if context.obj is None:
        context.obj = Session(config=config, log_level=log_level, actor_name=actor_name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; errors are on standard error."""
    context: click.Context | None = None
    try:
        context = cli.make_context(PROGRAM, list(arguments))
        with context:
            result = cli.invoke(context)
        sys.stdout.flush()
        return int(result) if isinstance(result, int) else Exit.DONE
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return Exit.FAILED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:  # noqa: BLE001  # the one place where a command's error ends
        return report(error, with_traceback=_wants_traceback(context))


def _wants_traceback(context: click.Context | None) -> bool:
    return context is not None and isinstance(context.obj, Session) and context.obj.wants_tracebacks
