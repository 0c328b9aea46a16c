"""The composition root: settings in, a running worker out. The only module that knows every room."""

from __future__ import annotations

import gc
import os
import secrets
import socket
from collections.abc import Callable
from functools import partial

import trio

from pggit_reactor import __version__
from pggit_reactor.config.settings import LogLevel, Settings
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import open_connection
from pggit_reactor.db.keys import verify_keys
from pggit_reactor.db.migrate import require_current
from pggit_reactor.db.workers import WorkerIdentity
from pggit_reactor.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    MigrationError,
    PendingMigrationsError,
    SchemaTooNewError,
)
from pggit_reactor.observability.health import Health
from pggit_reactor.observability.logs import configure_logging, get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.clock import SystemClock
from pggit_reactor.runtime.signals import Command, Commands, open_commands
from pggit_reactor.runtime.worker import Worker
from pggit_reactor.security.key_command import read_master_key
from pggit_reactor.security.keyring import Keyring, require_keyring
from pggit_reactor.security.sealing import Sealer

START_RETRY_SECONDS = 1.0
GC_THRESHOLDS = (10_000, 20, 20)
"""New containers before a young collection, and how many of those before an older one; a delivery makes some 100,
hardly any of them in circles."""

_log = get_logger("app")


def worker_identity(settings: Settings) -> WorkerIdentity:
    """Return who this process is. The instance is unique even where a worker id is used again after a crash."""
    worker_id = settings.worker.worker_id
    return WorkerIdentity(
        instance=f"{worker_id}#{secrets.token_hex(4)}",
        worker_id=worker_id,
        version=__version__,
        host=socket.gethostname(),
        pid=os.getpid(),
        capacity=settings.worker.attempts_max,
    )


async def run_worker(
    settings: Settings, *, reread: Callable[[], Settings] | None = None, tells_deliveries: bool = False
) -> int:
    """Run one worker until SIGTERM or SIGINT; return its exit status.

    Raises `ConfigurationError` (a wrong or missing key too) and `SchemaTooNewError` before anything is claimed. A
    database that does not answer or is not migrated yet is waited for: the worker is healthy, and not ready.
    *reread* gives the settings anew at SIGHUP; keys and log level follow it. *tells_deliveries*: what was delivered
    is logged too, a line an attempt.
    """
    _configure_logging(settings)
    keyring = await _read_keyring(settings)
    if settings.database.url is None:
        raise ConfigurationError("no database is set; set PGGIT_REACTOR_DATABASE_URL (or DATABASE_URL)")
    identity = worker_identity(settings)
    metrics = Metrics(worker_id=identity.worker_id, version=identity.version)
    relaxations = settings.egress.rules().unsafe_allow
    metrics.set_egress_relaxations(len(relaxations))
    if relaxations:
        _log.warning("egress_relaxed", setting="egress.unsafe_allow", entries=settings.egress.unsafe_allow)

    async def reload() -> Sealer:
        fresh = settings if reread is None else reread()
        _configure_logging(fresh)
        fresh_keys = await _read_keyring(fresh)
        await _check_database(fresh, fresh_keys)
        return Sealer(fresh_keys)

    with open_commands() as commands:
        worker = Worker(
            settings=settings,
            identity=identity,
            sealer=Sealer(keyring),
            clock=SystemClock(),
            metrics=metrics,
            health=Health(),
            debug=settings.log.level is LogLevel.DEBUG,
            tells_deliveries=tells_deliveries,
            reload=reload,
            before_work=partial(_wait_for_database, settings, keyring),
        )
        _spare_collector()
        return await worker.run(commands)


async def _read_keyring(settings: Settings) -> Keyring:
    # In a thread: a command may take its time, and deliveries shall not wait for it.
    return require_keyring(await trio.to_thread.run_sync(read_master_key, settings.keys))


def _spare_collector() -> None:
    """Keep the garbage collector off what lives as long as the process: looking through the modules alone takes
    15 ms, in which nothing is delivered."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _configure_logging(settings: Settings) -> None:
    log_format = settings.log.format.value
    configure_logging(
        level=settings.log.level.value,
        log_format=None if log_format == "auto" else log_format,
        worker_id=settings.worker.worker_id,
    )


async def _wait_for_database(settings: Settings, keyring: Keyring, commands: Commands) -> bool:
    """Return whether the database is there and right; False where a signal said to stop before it was."""
    while True:
        try:
            await _check_database(settings, keyring)
        except (DatabaseUnavailableError, PendingMigrationsError) as error:
            _log.warning("waiting_for_database", reason=str(error))
        else:
            return True
        with trio.move_on_after(START_RETRY_SECONDS):
            if await commands.receive() is not Command.RELOAD:
                return False


async def _check_database(settings: Settings, keyring: Keyring) -> None:
    dsn = settings.database.listen_url or settings.database.url or Secret("")
    async with open_connection(dsn, application_name="pggit-reactor start") as connection:
        try:
            await require_current(connection)
        except (SchemaTooNewError, PendingMigrationsError):
            raise
        except MigrationError as error:
            # An edited migration, or a schema that is not ours: nothing that waiting would cure.
            raise ConfigurationError(str(error)) from error
        await verify_keys(connection, keyring)
