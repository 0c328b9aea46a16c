"""The reactor that `pggit-reactor up` runs, as other commands find it: the file ``running.json`` in its data.

The file holds no secret. It names two files that do, each readable by its owner alone: ``pgpass`` (libpq's
password file) and ``master.key``. The DSN that is made of it names the password file instead of holding the
password, so it may be shown, typed and kept in an environment; libpq and all that is built on it read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

import attrs

from pggit_reactor.config.secret_file import read_secret_file
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError, NotFoundError

DEFAULT_DATA: Final = Path(".reactor/up")
FILE_NAME: Final = "running.json"
PASSFILE_NAME: Final = "pgpass"
MASTER_KEY_NAME: Final = "master.key"
PASSED_ON: Final = (
    "PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW",
    "PGGIT_REACTOR_EGRESS_ALLOW",
    "PGGIT_REACTOR_EGRESS_DENY",
    "PGGIT_REACTOR_EGRESS_PORTS",
    "SSL_CERT_FILE",
)
"""Variables of `up` that other commands take over: where requests may go and whom to trust. None holds a secret."""


@attrs.frozen(kw_only=True)
class UpInstance:
    """A running `up`."""

    pid: int
    host: str
    port: int
    user: str
    database: str
    passfile: Path
    master_key_file: Path
    bin_dir: Path
    """The folder of the server's programs; psql may be among them."""
    environ: Mapping[str, str] = MappingProxyType({})
    """Those of `PASSED_ON` that it was started with."""

    @property
    def dsn(self) -> str:
        """The URL to connect with; it holds no password."""
        passfile = quote(str(self.passfile), safe="/")
        return f"postgresql://{self.user}@{self.host}:{self.port}/{self.database}?passfile={passfile}"

    def master_key(self) -> Secret[str]:
        """Return the text of its key file; ConfigurationError where it cannot be read."""
        return read_secret_file(self.master_key_file)

    def write(self, data: Path) -> None:
        """Say in *data* that it runs; a reader never sees half of it."""
        fields = {name: _plain(value) for name, value in attrs.asdict(self).items()}
        fields["environ"] = dict(self.environ)
        fresh = data / f"{FILE_NAME}.fresh"
        fresh.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        fresh.replace(data / FILE_NAME)


def find_up(data: Path = DEFAULT_DATA) -> UpInstance:
    """Return the `up` that runs on *data*; NotFoundError where none does."""
    try:
        fields = json.loads((data / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"no `up` runs on {data}; start one with `pggit-reactor up`") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{data / FILE_NAME} cannot be read: {type(error).__name__}") from None
    instance = _instance(fields)
    if not _lives(instance.pid):
        raise NotFoundError(
            f"the `up` on {data} (process {instance.pid}) has ended; start it again with `pggit-reactor up`"
        )
    return instance


def forget_up(data: Path) -> None:
    """Say in *data* that nothing runs any more."""
    with suppress(OSError):
        (data / FILE_NAME).unlink()


def _instance(fields: Mapping[str, object]) -> UpInstance:
    try:
        return UpInstance(
            pid=int(str(fields["pid"])),
            host=str(fields["host"]),
            port=int(str(fields["port"])),
            user=str(fields["user"]),
            database=str(fields["database"]),
            passfile=Path(str(fields["passfile"])),
            master_key_file=Path(str(fields["master_key_file"])),
            bin_dir=Path(str(fields["bin_dir"])),
            environ=_passed_on(fields.get("environ", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{FILE_NAME} was not written by this version of `up`: {error!r}") from None


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of *environ* other commands take over; a file by its full path, for they may run elsewhere."""
    found = {name: environ[name] for name in PASSED_ON if environ.get(name)}
    if "SSL_CERT_FILE" in found:
        found["SSL_CERT_FILE"] = str(Path(found["SSL_CERT_FILE"]).absolute())
    return found


def _passed_on(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("environ")
    return {name: str(text) for name, text in value.items() if name in PASSED_ON}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, who lives
        return True
    return True
