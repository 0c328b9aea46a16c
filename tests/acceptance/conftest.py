"""The command as a user runs it: a process of its own, in an environment and folders of its own.

Every process that a command starts, and theirs, has the TMPDIR of the command in its environment: that is how
those it leaves behind are found, whatever session or group they are in.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import attrs
import pytest

PATIENCE_SECONDS = 60.0
ORDINARY_USER = 65534
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PGGIT_REACTOR_POSTGRES_BIN")


@attrs.define(eq=False, kw_only=True)
class Home:
    """The folders of one user: a working directory that is HOME as well, and one for temporary files."""

    folder: Path
    is_ordinary: bool = False
    environ: dict[str, str] = attrs.field(init=False)
    started: list[subprocess.Popen[bytes]] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        for place in (self.work, self.temporary):
            place.mkdir(mode=0o755)
            if self.is_ordinary and _python_is_reachable():
                os.chown(place, ORDINARY_USER, ORDINARY_USER)
        self.environ = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.environ |= {"HOME": str(self.work), "TMPDIR": str(self.temporary)}

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def temporary(self) -> Path:
        return self.folder / "temporary"

    def start(self, *arguments: str, stdout: IO[bytes] | None = None, **environ: str) -> Running:
        """Start ``pggit-reactor`` with *arguments*; its output can be read from what is returned."""
        command = [sys.executable, "-m", "pggit_reactor", *arguments]
        options: dict[str, int | list[int]] = {}
        if self.is_ordinary and _python_is_reachable():
            options = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}
        elif self.is_ordinary:
            command = [*_UNSHARED, *command]
        with (self.folder / "stdout").open("wb") as kept, (self.folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                command,
                cwd=self.work,
                env=self.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=stdout or kept,
                stderr=stderr,
                **options,
            )
        self.started.append(process)
        return Running(home=self, process=process)

    def run(self, *arguments: str, folder: Path | None = None, **environ: str) -> Done:
        """Run ``pggit-reactor`` with *arguments* to its end, beside what was started."""
        done = subprocess.run(
            [sys.executable, "-m", "pggit_reactor", *arguments],
            cwd=folder or self.work,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        return Done(status=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def processes(self) -> dict[int, str]:
        """Return the processes that belong to this home, with their command lines."""
        mark = f"\0TMPDIR={self.temporary}\0".encode()
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in b"\0" + (place / "environ").read_bytes():
                    found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")
        return found

    def litter(self) -> list[Path]:
        """Return what lies in the folders."""
        return sorted([*self.work.rglob("*"), *self.temporary.rglob("*")])


# Another id and no capabilities, in a user namespace: for where the interpreter lies in root's own home.
_UNSHARED = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


@functools.cache
def _python_is_reachable() -> bool:
    try:
        probe = [sys.executable, "-c", "import pggit_reactor"]
        options = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}
        return subprocess.run(probe, check=False, capture_output=True, cwd="/", **options).returncode == 0
    except PermissionError:
        return False


@attrs.frozen(kw_only=True)
class Done:
    status: int
    stdout: str
    stderr: str


@attrs.define(eq=False, kw_only=True)
class Running:
    """A command that runs; its output goes to files, so that it can be read meanwhile."""

    home: Home
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return (self.home.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.home.folder / "stderr").read_text()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Look until *condition* holds: other processes announce nothing to us."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            ended = self.process.poll() is not None and not condition()
            if ended or time.monotonic() > deadline:
                pytest.fail(f"waited in vain for {what}; it said:\n{self.stdout}\n{self.stderr}")
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


@pytest.fixture(params=["as ourselves", "as an ordinary user"])
def home(request: pytest.FixtureRequest) -> Iterator[Home]:
    """Folders for whoever runs the tests, and where that is root, once more for somebody who is not."""
    is_ordinary = request.param == "as an ordinary user" and os.geteuid() == 0
    yield from _home(is_ordinary=is_ordinary)


@pytest.fixture
def own_home() -> Iterator[Home]:
    """Folders for whoever runs the tests."""
    yield from _home(is_ordinary=False)


def _home(*, is_ordinary: bool) -> Iterator[Home]:
    # Not pytest's own: where we are root, PostgreSQL runs as another, who may not go there.
    folder = Path(tempfile.mkdtemp(prefix="pggit-acceptance-"))
    folder.chmod(0o755)
    home = Home(folder=folder, is_ordinary=is_ordinary)
    try:
        yield home
    finally:
        for pid in [*home.processes(), *(process.pid for process in home.started if process.poll() is None)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in home.started:
            process.wait(PATIENCE_SECONDS)
        wait_until_gone(home)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_gone(home: Home) -> Mapping[int, str]:
    """Return the processes that are left of *home* when it had its time to lose them all."""
    deadline = time.monotonic() + 20
    while (left := home.processes()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


@pytest.fixture
def gone() -> Callable[[Home], Mapping[int, str]]:
    return wait_until_gone
