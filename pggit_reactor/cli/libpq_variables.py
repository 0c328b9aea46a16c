"""What libpq would read from the environment: meant for other servers than one of our own."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

_LIBPQ_PREFIX: Final = "PG"
_OUR_PREFIX: Final = "PGGIT_"


def forget_libpq_variables(environ: MutableMapping[str, str]) -> None:
    """Take them out of *environ* (PGSSLMODE, PGOPTIONS, PGSERVICE ...)."""
    for name in list(environ):
        if name.startswith(_LIBPQ_PREFIX) and not name.startswith(_OUR_PREFIX):
            del environ[name]
