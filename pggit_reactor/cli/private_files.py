"""Files that hold secrets, as commands read them."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

import click

from pggit_reactor.errors import ConfigurationError

SECRET_FILE_OCTETS_MAX: Final = 4096


def read_secret_octets(place: str, *, what: str) -> bytes:
    """Return what is in the file *place*, or comes on standard input where that is ``-``.

    One octet more than `SECRET_FILE_OCTETS_MAX` at most, which tells that there is too much. `ConfigurationError`,
    which calls it *what*, where it cannot be read.
    """
    if place == "-":
        return sys.stdin.buffer.read(SECRET_FILE_OCTETS_MAX + 1)
    try:
        with Path(place).open("rb") as file:
            warn_of_mode(place, file.fileno())
            return file.read(SECRET_FILE_OCTETS_MAX + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {what} from {place}: {error.strerror}") from None


def warn_of_mode(place: str | Path, descriptor: int) -> None:
    """Say on standard error that everybody may read the open file of *descriptor*, where it is so."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        click.echo(f"warning: {place} is readable by everybody; right is mode 0600", err=True)
