"""The exit statuses, and which error ends in which: the only place that knows."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from enum import IntEnum

import click

from pggit_reactor.errors import (
    BadHeadersError,
    ConfigurationError,
    ReactorError,
    SchemaTooNewError,
    UrlRefusedError,
)


class Exit(IntEnum):
    """What the caller of a command may tell apart."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """Usage or configuration; a wrong or missing master key too."""
    TROUBLE = 3
    """The command worked and found trouble: `doctor`, `migrate --check`, a URL that is refused."""
    SCHEMA_TOO_NEW = 4


_EXITS = (
    (SchemaTooNewError, Exit.SCHEMA_TOO_NEW),
    (UrlRefusedError, Exit.TROUBLE),
    (ConfigurationError, Exit.USAGE),
    (BadHeadersError, Exit.USAGE),
)


def exit_of(error: ReactorError) -> Exit:
    """Return the exit status of *error*."""
    return next((status for kind, status in _EXITS if isinstance(error, kind)), Exit.FAILED)


def report(error: Exception, *, with_traceback: bool) -> Exit:
    """Say on standard error what *error* is, and return the exit status.

    Our own errors are written to be read, so each is one line. Anything else is a bug here; its text is not
    shown, since nobody vouches for what is in it, except *with_traceback*.
    """
    leaf = the_error(error)
    if with_traceback:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(leaf, ReactorError):
        click.echo(f"error: {' '.join(str(leaf).split())}", err=True)
        return exit_of(leaf)
    click.echo(
        f"error: unexpected {type(leaf).__name__}, a bug in pggit-reactor; --log-level debug shows where",
        err=True,
    )
    return Exit.FAILED


def the_error(error: Exception) -> Exception:
    """Return the one error that a person should read of *error*, which may be a nursery's group."""
    leaves = list(_leaves(error))
    ours = [leaf for leaf in leaves if isinstance(leaf, ReactorError)]
    # The status that says most: a wrong key beside a lost connection is a wrong key.
    return max(ours, key=exit_of, default=leaves[0])


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
