"""A worker as a process of its own, so that it can be killed, and what it says of each delivery.

It dies with the demo: the kernel kills it when the thread that started it ends (PR_SET_PDEATHSIG), so start it
from the main thread.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from pggit_reactor.cli.demonstration.news import News
from pggit_reactor.db import parent_death
from pggit_reactor.errors import ReactorError
from pggit_reactor.runtime.http_wire import fetch

LINES_KEPT: Final = 20
LINE_OCTETS_MAX: Final = 1024 * 1024
LOOK_SECONDS: Final = 0.02
READY_SECONDS_MAX: Final = 20.0
STOP_SECONDS_MAX: Final = 10.0
_READ_OCTETS: Final = 65_536
_SAME_USER: Final = "-1"


@attrs.frozen(kw_only=True)
class Settled:
    """How one delivery went, in Unix time: what the worker's event `delivery_settled` says."""

    uid: str
    status: str
    at: Mapping[str, float]
    """By milestone: woken, claiming, claimed, sent, answered, settled."""


class WorkerProcess:
    """A running worker; `open_worker` starts one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.settled: dict[str, Settled] = {}
        """By delivery uid; only deliveries that were accepted."""
        self.news = News()
        self.ended = False
        self._process = process
        self._may_end = False
        self._http_port: int | None = None
        self._last_lines: deque[str] = deque(maxlen=LINES_KEPT)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait_ready(self) -> None:
        """Return when the worker listens: its own notification has come back to it."""
        await self.news.wait_until(lambda: self._http_port is not None, what="the worker to start")
        with trio.move_on_after(READY_SECONDS_MAX):
            while not await self._hears():  # noqa: ASYNC110  # another process: there is no event to wait for
                await trio.sleep(LOOK_SECONDS)
            return
        raise ReactorError(f"the worker was not ready after {READY_SECONDS_MAX:g} s")

    async def wait_settled(self, uids: Collection[str]) -> None:
        """Return when the worker has written down that *uids* were accepted."""
        await self.news.wait_until(
            lambda: all(uid in self.settled for uid in uids), what="the worker to settle its deliveries"
        )

    async def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is given back."""
        self._may_end = True
        self._process.kill()
        await self._wait()

    async def stop(self) -> int:
        """SIGTERM, as an operator would; return the exit status."""
        self._may_end = True
        self._process.terminate()
        with trio.move_on_after(STOP_SECONDS_MAX):
            await self._wait()
        if not self.ended:
            raise ReactorError(f"the worker did not end within {STOP_SECONDS_MAX:g} s of SIGTERM")
        return self._process.wait()

    def reap(self) -> None:
        """Kill it where it lives, and leave no zombie."""
        self._may_end = True
        self._process.kill()
        self._process.wait()

    async def follow(self) -> None:
        """Read what the worker says, to its end; an end that nobody asked for is a ReactorError."""
        assert self._process.stderr is not None
        async with trio.lowlevel.FdStream(os.dup(self._process.stderr.fileno())) as stream:
            buffer = bytearray()
            while octets := await stream.receive_some(_READ_OCTETS):
                buffer += octets
                *lines, rest = buffer.split(b"\n")
                buffer = bytearray(rest[:LINE_OCTETS_MAX])
                for line in lines:
                    self._read(line.decode("utf-8", "replace"))
                self.news.tell()
        await trio.to_thread.run_sync(self._process.wait)
        self.ended = True
        self.news.tell()
        if not self._may_end:
            said = "\n".join(self._last_lines) or "nothing"
            raise ReactorError(f"the worker ended by itself ({self._process.returncode}); it said: {said}")

    async def _wait(self) -> None:
        await self.news.wait_until(lambda: self.ended, what="the worker's end")

    async def _hears(self) -> bool:
        assert self._http_port is not None
        connect = partial(trio.open_tcp_stream, "127.0.0.1", self._http_port)
        try:
            status, body = await fetch(connect, "/ready")
        except OSError:
            return False
        listener = json.loads(body)["checks"].get("listener", {})
        return status == 200 and listener.get("ok") is True

    def _read(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            self._last_lines.append(line)
            return
        if event["level"] != "debug":
            self._last_lines.append(line)
        if event["event"] == "http_listening":
            self._http_port = event["port"]
        elif event["event"] == "delivery_settled" and event["status"] == "delivered":
            settled = _settled(event)
            self.settled[settled.uid] = settled


def _settled(event: Mapping[str, Any]) -> Settled:
    """Put the milestones, which count from when the row was ready, on this machine's clock.

    The event was written at the moment of its last milestone, and says when that was.
    """
    marks: Mapping[str, float] = event.get("ms", {})
    written_at = datetime.fromisoformat(event["time"]).timestamp()
    since = written_at - marks.get("settled", 0.0) / 1000
    return Settled(
        uid=event["uid"],
        status=event["status"],
        at={name: since + milliseconds / 1000 for name, milliseconds in marks.items()},
    )


@asynccontextmanager
async def open_worker(environ: Mapping[str, str], *, folder: Path) -> AsyncIterator[WorkerProcess]:
    """Run a worker with the settings in *environ*, in *folder*; at the end of the block it is gone."""
    process = subprocess.Popen(  # noqa: S603, ASYNC220  # our own command; returns in milliseconds
        [
            *(sys.executable, "-I", "-S", str(parent_death.__file__)),
            *(str(os.getpid()), str(int(signal.SIGKILL)), _SAME_USER, _SAME_USER),
            *(sys.executable, "-m", "pggit_reactor", "worker"),
        ],
        env=dict(environ),
        cwd=folder,  # where no reactor.toml and no module of somebody else lies
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal is for the demo, which ends its workers itself
    )
    worker = WorkerProcess(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.follow)
            yield worker
            nursery.cancel_scope.cancel()
    finally:
        worker.reap()
        if process.stderr is not None:
            process.stderr.close()
