"""What the commands of one call share: settings, the name of who acts, one way to the database.

Commands use the native connection of `db/connect.py`: a single one, for a moment, is quicker to open than a
pool, and nothing of asyncio is imported. No session setting is sent (a pooler refuses them), so waits are
bounded on this side: `DATABASE_SECONDS`, after which the statement is cancelled in the server.

Where no database is configured at all, the `up` that runs in this folder is the database, with its key and its
rules for where requests may go; that is said on standard error each time. The worker and `up` itself do not look
for it.
"""

from __future__ import annotations

import os
import pwd
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

from pggit_reactor.errors import ConfigurationError, DatabaseUnavailableError, NotFoundError

if TYPE_CHECKING:
    from pggit_reactor.cli.up_instance import UpInstance
    from pggit_reactor.config.settings import EgressSettings, Settings
    from pggit_reactor.core.secret import Secret
    from pggit_reactor.db.connect import TrioConnection
    from pggit_reactor.db.registry import By
    from pggit_reactor.security.keyring import Keyring
    from pggit_reactor.security.sealing import Sealer

T = TypeVar("T")

DATABASE_SECONDS: Final = 60.0
DEFAULT_CONFIG: Final = Path("reactor.toml")
ACTOR_CHARACTERS_MAX: Final = 128
APPLICATION_NAME: Final = "pggit-reactor cli"


class Session:
    """One call of the command line. Everything is read when it is first needed."""

    def __init__(
        self, *, config: Path | None = None, log_level: str | None = None, actor_name: str | None = None
    ) -> None:
        self._config = config
        self._log_level = log_level
        self._actor_name = actor_name
        self._warned: set[str] = set()

    # -- settings

    @cached_property
    def settings(self) -> Settings:
        """The settings; warnings go to standard error, once. ConfigurationError lists all that is wrong."""
        return self.load()

    def load(self, *, processes: int | None = None) -> Settings:
        """Read the settings anew, with *processes* as a flag of the command line."""
        from pggit_reactor.config.load import load_settings

        overrides = {"log.level": self._log_level, "worker.processes": processes}
        loaded = load_settings(environ=os.environ, toml_path=self._toml_path(), overrides=overrides)
        for warning in loaded.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                click.echo(f"warning: {warning}", err=True)
        return loaded.settings

    @property
    def egress(self) -> EgressSettings:
        """Where requests may go; as the `up` of this folder was told, where that is the database."""
        found = self.up_instance is not None
        return self.load().egress if found else self.settings.egress

    def _toml_path(self) -> Path | None:
        if self._config is not None:
            return self._config
        return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None

    def global_options(self) -> list[str]:
        """Return the options before the command, for a command that starts this program again."""
        config = [] if self._config is None else ["--config", str(self._config)]
        return config + ([] if self._log_level is None else ["--log-level", self._log_level])

    @property
    def wants_tracebacks(self) -> bool:
        """Whether errors come with tracebacks: at log level debug. Never raises."""
        if self._log_level is not None:
            return self._log_level == "debug"
        if "settings" in self.__dict__:
            return self.settings.log.level == "debug"
        return os.environ.get("PGGIT_REACTOR_LOG_LEVEL", "").strip().lower() == "debug"

    @cached_property
    def actor(self) -> By:
        """The user of the operating system, or who was named by ``--as``; for the audit log."""
        from pggit_reactor.db.registry import By

        return By(
            name=self._actor_name or _os_user(), host=socket.gethostname(), request_id=str(uuid.uuid4())
        )

    # -- database and keys

    @cached_property
    def up_instance(self) -> UpInstance | None:
        """The running `up` of this folder, where no database is configured; None where one is, or none runs."""
        from pggit_reactor.cli.up_instance import DEFAULT_DATA, find_up

        if self.settings.database.url is not None:
            return None
        try:
            instance = find_up()
        except NotFoundError:
            return None
        click.echo(f"note: no database is configured; this is the `up` in {DEFAULT_DATA}", err=True)
        # What this command was told itself goes before.
        os.environ.update({name: value for name, value in instance.environ.items() if name not in os.environ})
        return instance

    def database_url(self) -> Secret[str]:
        """Return the DSN; ConfigurationError where none is set."""
        from pggit_reactor.core.secret import Secret

        if self.settings.database.url is not None:
            return self.settings.database.url
        if self.up_instance is not None:
            return Secret(self.up_instance.dsn)
        raise ConfigurationError(
            "no database is set; set PGGIT_REACTOR_DATABASE_URL (or DATABASE_URL), or database.url in "
            f"{self._config or DEFAULT_CONFIG}"
        )

    def listen_url(self) -> Secret[str]:
        """Return the DSN for LISTEN; ConfigurationError where none is set."""
        return self.settings.database.listen_url or self.database_url()

    def master_key(self) -> Secret[str] | None:
        """Return the text of the master keys, or None."""
        return self._master_key

    @cached_property
    def _master_key(self) -> Secret[str] | None:
        from pggit_reactor.security.key_command import read_master_key

        text = read_master_key(self.settings.keys)
        if text is None and self.up_instance is not None:
            return self.up_instance.master_key()
        return text

    @cached_property
    def keyring(self) -> Keyring:
        """The master keys; KeyringError where none is set."""
        from pggit_reactor.security.keyring import require_keyring

        return require_keyring(self.master_key())

    async def open_sealer(self, connection: TrioConnection) -> Sealer:
        """Return what seals and opens, with keys that were proved to be those of the database.

        The first use of a key registers it. KeyringError names a key that is wrong or missing.
        """
        from pggit_reactor.db.keys import ensure_keys
        from pggit_reactor.security.sealing import Sealer

        await ensure_keys(connection, self.keyring, by=self.actor.name, must_register=True)
        return Sealer(self.keyring)

    @asynccontextmanager
    async def open_database(
        self, *, any_schema: bool = False, seconds: float = DATABASE_SECONDS
    ) -> AsyncIterator[TrioConnection]:
        """Open a connection to the database, whose schema must be one that this program can use.

        *any_schema* leaves the schema unlooked at. The whole block may take *seconds*.
        """
        import trio

        from pggit_reactor.db.connect import open_connection
        from pggit_reactor.db.migrate import require_current

        with trio.move_on_after(seconds) as scope:
            async with open_connection(
                self.database_url(), application_name=APPLICATION_NAME, prepare_threshold=None
            ) as connection:
                if not any_schema:
                    await require_current(connection)
                yield connection
        if scope.cancelled_caught:
            raise DatabaseUnavailableError(f"the database did not finish within {seconds:g} s; try again")

    async def webhook_id(self, connection: TrioConnection, which: int | str) -> int:
        """Return the id that *which* names; an id may be one that nothing has registered. `NotFoundError`."""
        from pggit_reactor.db.registry import read_record

        return which if isinstance(which, int) else (await read_record(connection, which)).webhook_id

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run *main* on Trio."""
        import trio

        return trio.run(main)


def _os_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's arbitrary user
        return f"uid {os.getuid()}"


pass_session = click.make_pass_decorator(Session)
