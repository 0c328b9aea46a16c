"""The server's programs for `demo` and `up`: there, or one line that says which installation mends it."""

from __future__ import annotations

from pathlib import Path

from pggit_reactor.errors import ConfigurationError, EmbeddedPostgresError


def require_server_programs(bin_dir: Path | None) -> None:
    """Raise ConfigurationError where this machine has no PostgreSQL that could be started."""
    from pggit_reactor.db.binaries import find_binaries

    try:
        find_binaries(bin_dir)
    except EmbeddedPostgresError as error:
        raise ConfigurationError(str(error)) from error
