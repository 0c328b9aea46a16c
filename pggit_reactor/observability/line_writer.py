"""Writes lines to standard error without ever waiting long for whoever reads them.

A log collector that hangs must not stop deliveries. A thread with a queue would lose its last lines in a
crash, just those that matter; so lines are written at once, in pieces that a pipe takes whole (`PIPE_BUF`),
each after asking the kernel for room. No room within `STALL_SECONDS_MAX`: the line is dropped and counted,
and until there is room again further lines are dropped without waiting at all. The first line after that says
how many are missing.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Final, Protocol

STALL_SECONDS_MAX: Final = 0.1
_PIECE_BYTES: Final = select.PIPE_BUF


class LineSink(Protocol):
    """Takes whole lines."""

    @property
    def dropped(self) -> int:
        """Lines lost since the last that was written."""

    def write_line(self, line: str) -> None:
        """Write *line*, which has no line end."""


class LineWriter:
    """Writes to a file descriptor, which stays the caller's. May be used from any thread."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = sys.stderr.fileno() if descriptor is None else descriptor
        self._lock = threading.Lock()
        self._room = select.poll()
        self._room.register(self._descriptor, select.POLLOUT)
        self._stalled = False
        self._torn = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Lines lost since the last that was written."""
        return self._dropped

    def write_line(self, line: str) -> None:
        """Write *line*, or drop it where nobody reads; never raises for what the reader does."""
        octets = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            if self._torn:
                octets = b"\n" + octets
            if self._write(octets):
                self._dropped = 0
                self._torn = False
            else:
                self._dropped += 1

    def _write(self, octets: bytes) -> bool:
        for start in range(0, len(octets), _PIECE_BYTES):
            if not self._has_room():
                self._torn = self._torn or start > 0
                return False
            try:
                os.write(self._descriptor, octets[start : start + _PIECE_BYTES])
            except OSError:  # the reader is gone, or the disk is full: there is nowhere left to say so
                return False
        return True

    def _has_room(self) -> bool:
        wait_ms = 0 if self._stalled else STALL_SECONDS_MAX * 1000
        self._stalled = not self._room.poll(wait_ms)
        return not self._stalled
