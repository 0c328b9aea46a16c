"""One child process of a supervisor, which does not outlive it.

Trio's own processes are started from a worker thread, and the parent-death signal fires when that thread
ends; so children are started here, in the main thread, and awaited through a pidfd.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

POLL_SECONDS: Final = 0.05
"""How often an exit is looked for where the system has no pidfd."""
_WRAPPER: Final = Path(__file__).with_name("_die_with_parent.py")


class Child:
    """A process in a session of its own, so that a terminal's Ctrl-C reaches its supervisor alone."""

    def __init__(self, argv: Sequence[str], *, environ: Mapping[str, str]) -> None:
        """Start *argv*; `OSError` where it cannot be. Blocks for a few milliseconds."""
        assert threading.current_thread() is threading.main_thread()
        wrapped = [sys.executable, "-I", "-S", str(_WRAPPER), str(os.getpid()), *argv]
        self._process = subprocess.Popen(  # noqa: S603  # our own command, no shell
            wrapped if sys.platform == "linux" else list(argv),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.started = trio.current_time()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the end; return the exit status, or minus the number of the signal that ended it.

        Cancelling leaves the process running; call `kill`.
        """
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            return self._process.wait()
        while self._process.poll() is None:  # noqa: ASYNC110  # nobody sets an event for us here
            await trio.sleep(POLL_SECONDS)
        return self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process now and reap it; nothing happens where it has ended."""
        self._process.kill()
        self._process.wait()


def describe_status(status: int) -> str:
    """Return an exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
