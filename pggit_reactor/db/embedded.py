"""A PostgreSQL of our own, for `demo`, `up` and the tests.

The folder that we are given holds: ``cluster`` (the server's data), ``password`` (of the superuser),
``server.log`` and ``lock``. All belong to the user that the server runs as, mode 0700.

How it starts and stops is written once, as generators that yield how long to pause (`Steps`): the sync form
sleeps, the async one awaits. So no thread is involved, which matters: the parent-death signal that stops the
server with us fires when the *thread* that started it ends. Start it from the main thread.

A server that outlives us for a moment (its parent-death shutdown still runs) is waited for; a data folder in
use by a living process is refused with its pid.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

import trio

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.binaries import ServerUser, find_binaries, server_user, within_reach
from pggit_reactor.db.processes import kill_family, kill_group, postmaster_lines, postmaster_of
from pggit_reactor.errors import ConfigurationError, EmbeddedPostgresError

SUPERUSER: Final = "reactor"
DATABASE: Final = "postgres"
HOST: Final = "127.0.0.1"

INIT_SECONDS_MAX: Final = 120.0
START_SECONDS_MAX: Final = 60.0  # Recovery after a crash included.
FAST_STOP_SECONDS_MAX: Final = 10.0
IMMEDIATE_STOP_SECONDS_MAX: Final = 5.0
PAUSE_SECONDS: Final = 0.01
PORT_TRIES_MAX: Final = 5
LOG_OCTETS_MAX: Final = 10 * 1024 * 1024
LOG_TAIL_CHARS_MAX: Final = 2_000
SOCKET_PATH_OCTETS_MAX: Final = 107  # sockaddr_un, without its end mark

_SHIM: Final = Path(__file__).with_name("parent_death.py")
_KEPT_ENVIRONMENT: Final = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "TZ")
_READY_LINE: Final = 7  # of postmaster.pid, from 0
_IN_USE: Final = "Address already in use"

Steps = Generator[float, None, None]


class EmbeddedPostgres:
    """One server on one data folder; `open_embedded_postgres` or `embedded_postgres` open it.

    *settings* are settings of postgresql.conf, given at each start. *port* 0 takes any free one, and keeps
    it. In Trio use the methods whose name ends in ``_async``: the others block.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = 0,
        settings: Mapping[str, str] = {},
        bin_dir: Path | None = None,
    ) -> None:
        self.data: Final = data.absolute()
        self.port = port
        self._port_given = port != 0
        self._settings: Final = dict(settings)
        self._binaries = find_binaries(bin_dir)
        self._user: Final[ServerUser] = server_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._log_start = 0

    # -- what it is

    @property
    def major(self) -> int:
        """The server's major version."""
        return self._binaries.major

    @property
    def bin_dir(self) -> Path:
        """The folder of the binaries in use (``psql`` may be among them)."""
        return self._binaries.folder

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._process is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the postmaster lives."""
        return self._lives()

    @property
    def log_path(self) -> Path:
        """What the server writes to its standard error."""
        return self.data / "server.log"

    @property
    def socket_dir(self) -> Path | None:
        """The folder of the Unix socket; None where its path would be too long for one."""
        longest = self._cluster / ".s.PGSQL.65535"
        return self._cluster if len(os.fsencode(longest)) <= SOCKET_PATH_OCTETS_MAX else None

    @property
    def dsn(self) -> Secret[str]:
        """Where the superuser connects, over TCP."""
        return self.dsn_for(DATABASE)

    def dsn_for(self, database: str) -> Secret[str]:
        """Return where the superuser connects to *database*; its name holds letters, digits, underscores."""
        assert database.replace("_", "").isalnum()
        password = self._password_file.read_text(encoding="ascii").strip()
        return Secret(f"postgresql://{SUPERUSER}:{password}@{HOST}:{self.port}/{database}")

    # -- start, stop, crash

    def start(self) -> None:
        """Start the server, making its data where there are none; returns when it accepts connections."""
        _run(self._starting())

    async def start_async(self) -> None:
        """As `start`; a cancelled start stops what it started."""
        try:
            await _run_async(self._starting())
        except BaseException:
            await self.stop_async()
            raise

    def stop(self) -> None:
        """Stop the server: fast, then immediate, then killed, each within its limit; may be repeated."""
        _run(self._stopping())

    async def stop_async(self) -> None:
        """As `stop`, shielded: its limits are those of `stop`."""
        with trio.CancelScope(shield=True):
            await _run_async(self._stopping())

    def crash(self) -> None:
        """Kill the postmaster and its children with SIGKILL; blocks briefly. `start` then recovers."""
        kill_family(self.pid)
        assert self._process is not None
        self._process.wait()

    def _starting(self) -> Steps:
        if self._lives():
            raise EmbeddedPostgresError(f"the embedded PostgreSQL in {self.data} runs already")
        self._take_folder()
        self._binaries = within_reach(self._binaries, self._user, self.data / "binaries")
        yield from self._ending_predecessor()
        if not self._cluster.exists():
            yield from self._initialising()
        self._check_version()
        for remaining in reversed(range(PORT_TRIES_MAX)):
            if not self._port_given:
                self.port = self.port or _free_port()
            self._launch()
            yield from self._awaiting_ready()
            if self._lives():
                return
            failure = self._log_tail()
            if self._port_given or _IN_USE not in failure or not remaining:
                raise EmbeddedPostgresError(f"PostgreSQL did not start in {self.data}: {failure}")
            self.port = 0  # Somebody took it between our look and the server's.

    def _stopping(self) -> Steps:
        try:
            if self._process is not None:
                yield from self._ending(self._process)
        finally:
            self._process = None
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _ending(self, process: subprocess.Popen[bytes]) -> Steps:
        for wish, seconds in (
            (signal.SIGINT, FAST_STOP_SECONDS_MAX),
            (signal.SIGQUIT, IMMEDIATE_STOP_SECONDS_MAX),
        ):
            if process.poll() is None:
                process.send_signal(wish)
                yield from _until(lambda: process.poll() is not None, seconds)
        if process.poll() is None:
            self.crash()

    def _lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # -- the folder

    @property
    def _cluster(self) -> Path:
        return self.data / "cluster"

    @property
    def _password_file(self) -> Path:
        return self.data / "password"

    def _take_folder(self) -> None:
        if self._lock is not None:
            return  # A start after a crash.
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.data.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
            self._give(self.data)  # It is private, so it is ours; a folder that others use keeps its owner.
        barrier = self._user.barrier(self._cluster)
        if barrier is not None:
            raise EmbeddedPostgresError(
                f"PostgreSQL runs as user {self._user.name}, who may not enter {barrier};"
                f" choose data elsewhere, or run `chmod o+x {barrier}`"
            )
        lock = (self.data / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise ConfigurationError(f"the data in {self.data} are in use by process {holder}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _give(self, path: Path) -> None:
        if self._user.is_other:
            os.chown(path, self._user.uid, self._user.gid)

    def _check_version(self) -> None:
        made_by = (self._cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        if made_by != str(self.major):
            raise EmbeddedPostgresError(
                f"the data in {self.data} were made by PostgreSQL {made_by},"
                f" and {self.bin_dir} holds {self.major}"
            )

    def _ending_predecessor(self) -> Steps:
        """Wait for a server that was told to stop when its parent died, and help it where it does not."""
        pid = postmaster_of(self._cluster)
        for wish in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if pid is None:
                return
            with suppress(ProcessLookupError):
                os.kill(pid, wish)
            yield from _until(lambda: postmaster_of(self._cluster) is None, FAST_STOP_SECONDS_MAX)
            pid = postmaster_of(self._cluster)

    def _initialising(self) -> Steps:
        """Make the cluster beside its place, then move it there: nothing is ever half made."""
        unfinished = self.data / "cluster.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give(unfinished)
        if not self._password_file.exists():
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(secrets.token_urlsafe(24) + "\n", encoding="ascii")
        # A file and not standard input: as another user, initdb could not open /dev/stdin.
        self._give(self._password_file)
        process = self._spawn(
            "initdb",
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-instructions",
            *_locale_arguments(self.major),
            *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
        )
        try:
            yield from _until(lambda: process.poll() is not None, INIT_SECONDS_MAX)
        finally:
            if process.poll() is None:
                kill_group(process.pid)  # Its children too: they would go on writing into the folder.
            process.wait()
        if process.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed in {self.data}: {self._log_tail()}")
        unfinished.rename(self._cluster)

    # -- the process

    def _launch(self) -> None:
        socket_dir = self.socket_dir
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(socket_dir) if socket_dir else "",
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "log_destination": "stderr",
            **self._settings,
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        self._process = self._spawn("postgres", "-D", str(self._cluster), *arguments)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Run *program* as the server's user; it writes to our log, and our death is its fast shutdown."""
        with suppress(FileNotFoundError):
            if self.log_path.stat().st_size > LOG_OCTETS_MAX:
                self.log_path.unlink()
        identity = (os.getpid(), int(signal.SIGINT), self._user.uid, self._user.gid)
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(  # noqa: S603  # our shim and the binaries that we found
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(_SHIM),
                    *(str(number) for number in identity),
                    str(self.bin_dir / program),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
                process_group=0,  # Ctrl-C at the terminal is for us; the server stops when we say so.
            )

    def _awaiting_ready(self) -> Steps:
        """Wait until the server accepts connections or has ended."""
        yield from _until(lambda: self._is_ready() or not self._lives(), START_SECONDS_MAX)
        if self._lives() and not self._is_ready():
            self.crash()
            raise EmbeddedPostgresError(
                f"PostgreSQL in {self.data} was not ready after {START_SECONDS_MAX:.0f} s: {self._log_tail()}"
            )

    def _is_ready(self) -> bool:
        lines = postmaster_lines(self._cluster)
        return (
            len(lines) > _READY_LINE and lines[0] == str(self.pid) and lines[_READY_LINE].strip() == "ready"
        )

    def _log_tail(self) -> str:
        # Only since this start: older lines may quote statements, and those hold what is nobody's business.
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            text = log.read(LOG_OCTETS_MAX).decode("utf-8", "replace").strip()
        return text[-LOG_TAIL_CHARS_MAX:] or "it said nothing"


@contextmanager
def embedded_postgres(
    data: Path | None = None,
    *,
    port: int = 0,
    settings: Mapping[str, str] = {},
    bin_dir: Path | None = None,
) -> Iterator[EmbeddedPostgres]:
    """Run a server for the length of a block, blocking; without *data* in a temporary folder."""
    with _folder(data) as folder:
        server = EmbeddedPostgres(folder, port=port, settings=settings, bin_dir=bin_dir)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@asynccontextmanager
async def open_embedded_postgres(
    data: Path | None = None,
    *,
    port: int = 0,
    settings: Mapping[str, str] = {},
    bin_dir: Path | None = None,
) -> AsyncIterator[EmbeddedPostgres]:
    """As `embedded_postgres`, without blocking Trio."""
    with _folder(data) as folder:
        server = EmbeddedPostgres(folder, port=port, settings=settings, bin_dir=bin_dir)
        try:
            await server.start_async()
            yield server
        finally:
            await server.stop_async()


@contextmanager
def _folder(data: Path | None) -> Iterator[Path]:
    if data is not None:
        yield data
        return
    folder = Path(tempfile.mkdtemp(prefix="pggit-reactor-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Closed by us: a generator that an exception left behind ends, and cleans up, only when the exception is forgotten.
def _run(steps: Steps) -> None:
    with closing(steps):
        for pause in steps:
            time.sleep(pause)


async def _run_async(steps: Steps) -> None:
    with closing(steps):
        for pause in steps:
            await trio.sleep(pause)


def _until(condition: Callable[[], bool], seconds: float) -> Steps:
    """Pause until *condition* holds, for at most *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        yield PAUSE_SECONDS


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _locale_arguments(major: int) -> list[str]:
    # The same order on both, by code point; from 17 on it needs no locale of the machine.
    if major >= 17:
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C.UTF-8"]
