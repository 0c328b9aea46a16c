"""``pggit-reactor up``: a PostgreSQL and a worker for daily work, in one folder, until Ctrl-C.

The worker runs in this process: its own loops are supervised, and its log is what the terminal shows. The
database is a child that the kernel stops with us; should it end by itself, it is started again.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.server_programs import require_server_programs
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.cli.up_instance import (
    DEFAULT_DATA,
    MASTER_KEY_NAME,
    PASSFILE_NAME,
    UpInstance,
    forget_up,
    passed_on,
)
from pggit_reactor.errors import ConfigurationError, EmbeddedPostgresError

if TYPE_CHECKING:
    import trio

    from pggit_reactor.config.settings import Settings
    from pggit_reactor.db.embedded import EmbeddedPostgres

PORT_DEFAULT: Final = 54329
START_TRIES_MAX: Final = 5
RESTART_SECONDS: Final = 1.0
KEY_ID: Final = "up"
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PORT_TAKEN: Final = "Address already in use"


@click.command(
    epilog="""\b
Example: pggit-reactor up
Example: pggit-reactor up --data /srv/reactor --port 5433

Stop it with Ctrl-C: it finishes what is being delivered, then stops the database. The data stay, and the next
`up` goes on with them."""
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA,
    show_default=True,
    help="The folder of database, password and master key; made with mode 0700.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    default=PORT_DEFAULT,
    show_default=True,
    help="The port of PostgreSQL, on 127.0.0.1.",
)
@pass_session
def up(session: Session, data: Path, port: int) -> int:
    """Run a reactor for daily work, on a PostgreSQL of its own."""
    import trio

    from pggit_reactor.cli.libpq_variables import forget_libpq_variables

    require_server_programs(session.settings.postgres_bin)
    forget_libpq_variables(os.environ)
    return trio.run(_run, session.settings, data.absolute(), port)


async def _run(settings: Settings, data: Path, port: int) -> int:
    import trio

    status = int(Exit.DONE)
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as working:
                nursery.start_soon(_stop_at_signal, signals, working)
                status = await _work(settings, data, port)
            # Only now: while things are being stopped, another signal must not leave some behind.
            nursery.cancel_scope.cancel()
    return status


async def _stop_at_signal(signals: AsyncIterator[int], working: trio.CancelScope) -> None:
    # Heard before and after the worker runs; in between it hears them itself, and drains.
    async for _ in signals:
        working.cancel()


async def _work(settings: Settings, data: Path, port: int) -> int:
    import trio

    from pggit_reactor.app import run_worker
    from pggit_reactor.config.settings import DatabaseSettings, KeySettings
    from pggit_reactor.core.secret import Secret

    async with _open_server(data, port=port, bin_dir=settings.postgres_bin) as server:
        instance = await _prepare(server)
        own = attrs.evolve(
            settings,
            database=DatabaseSettings(url=Secret(instance.dsn)),
            keys=KeySettings(master_key=instance.master_key()),
        )
        with _announced(instance, data):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep_running, server)
                status = await run_worker(own, tells_deliveries=True)
                nursery.cancel_scope.cancel()
    click.echo("stopped; the data stay, and the next `up` goes on with them", err=True)
    return status


@asynccontextmanager
async def _open_server(data: Path, *, port: int, bin_dir: Path | None) -> AsyncIterator[EmbeddedPostgres]:
    """Run the database for the length of the block; ConfigurationError where data or port are in use."""
    from pggit_reactor.db.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(data, port=port, bin_dir=bin_dir)
    click.echo(f"starting PostgreSQL {server.major} in {server.data}", err=True)
    try:
        try:
            await server.start_async()
        except EmbeddedPostgresError as error:
            if _PORT_TAKEN not in str(error):
                raise
            raise ConfigurationError(
                f"port {port} of 127.0.0.1 is taken; choose another with --port"
            ) from error
        yield server
    finally:
        await server.stop_async()


async def _keep_running(server: EmbeddedPostgres) -> None:
    """Start the database again when it ends by itself; the worker reconnects by itself."""
    from pggit_reactor.observability.logs import get_logger

    log = get_logger("up")
    while True:
        await _wait_end(server.pid)
        log.error("postgres_ended", log_file=str(server.log_path))
        await _start_again(server)
        log.info("postgres_started", pid=server.pid)


async def _wait_end(pid: int) -> None:
    import trio

    descriptor = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def _start_again(server: EmbeddedPostgres) -> None:
    import trio

    for tries_left in reversed(range(START_TRIES_MAX)):
        try:
            await server.start_async()
        except EmbeddedPostgresError:
            # Its orphans may hold on to the shared memory for a moment.
            if not tries_left:
                raise
            await trio.sleep(RESTART_SECONDS)
        else:
            return


async def _prepare(server: EmbeddedPostgres) -> UpInstance:
    """Migrate, make the master key at the first start, and write down how to connect."""
    from pggit_reactor.config.secret_file import write_secret_file
    from pggit_reactor.core.secret import Secret
    from pggit_reactor.db.connect import open_connection
    from pggit_reactor.db.embedded import DATABASE, HOST, SUPERUSER
    from pggit_reactor.db.migrate import migrate
    from pggit_reactor.security.keyring import KEY_OCTETS, new_key_line

    async with open_connection(server.dsn, application_name="pggit-reactor up") as connection:
        await migrate(connection)
    instance = UpInstance(
        pid=os.getpid(),
        host=HOST,
        port=server.port,
        user=SUPERUSER,
        database=DATABASE,
        passfile=server.data / PASSFILE_NAME,
        master_key_file=server.data / MASTER_KEY_NAME,
        bin_dir=server.bin_dir,
        environ=passed_on(os.environ),
    )
    if not instance.master_key_file.exists():
        key = new_key_line(KEY_ID, secrets.token_bytes(KEY_OCTETS))
        write_secret_file(instance.master_key_file, Secret(key))
    password = urlsplit(server.dsn.reveal()).password
    instance.passfile.unlink(missing_ok=True)  # the port may be another this time
    write_secret_file(instance.passfile, Secret(f"{HOST}:{server.port}:*:{SUPERUSER}:{password}"))
    return instance


@contextmanager
def _announced(instance: UpInstance, data: Path) -> Iterator[None]:
    """Let people and other commands know for the length of the block."""
    instance.write(data)
    try:
        is_found = data == DEFAULT_DATA.absolute()
        click.echo(
            _WELCOME.format(
                program=_program(),
                where="in the same folder" if is_found else "with the two settings below",
                psql="psql --up" if is_found else "psql",
                dsn=shlex.quote(instance.dsn),
                master_key_file=shlex.quote(str(instance.master_key_file)),
            )
        )
        yield
    finally:
        forget_up(data)


def _program() -> str:
    """Return how to call this program in another terminal; by its path where no PATH leads to it."""
    called = Path(sys.argv[0])
    if shutil.which(called.name) or called.name != "pggit-reactor":
        return "pggit-reactor"
    return shlex.quote(str(called.absolute()))


_WELCOME: Final = """
The reactor is up. In a second terminal, {where}, register a receiver; the last word printed is the
webhook's id, and the line before it holds the signing secret, which is shown only then:

  {program} webhook add https://hooks.example.com/alerts

Then INSERT, from psql or any other client. When COMMIT returns, the webhook is on its way:

  {program} {psql}
  INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)
  VALUES (7, 1, '{{"alert": "replica lag", "seconds": 42}}');

Programs of yours, and commands in other folders, want to be told where it is:

  export PGGIT_REACTOR_DATABASE_URL={dsn}
  export PGGIT_REACTOR_MASTER_KEY_FILE={master_key_file}

That URL holds no password. It names the file that does, which only you can read; psql, psycopg and whatever else
is built on libpq take it as it is. Other drivers want the password itself: the last field of that file.

Keep a copy of the master key's file: without it nobody can read the registered URLs and secrets again.
Ctrl-C stops all of it. The worker's log follows.
"""
