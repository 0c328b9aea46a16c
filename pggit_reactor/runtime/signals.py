"""SIGTERM, SIGINT and SIGHUP as values that a task receives.

The first SIGTERM or SIGINT asks for a drain, each further one for an abort, whichever of the two it is;
SIGHUP asks to reread configuration and keys. Two equal signals that arrive before the first was received
count as one, as the kernel itself counts them.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

import trio

WATCHED_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Command(StrEnum):
    """What a signal asks this process to do."""

    DRAIN = "drain"
    ABORT = "abort"
    RELOAD = "reload"


class Commands:
    """The commands that arrive by signal, in order; iterate, or `receive` one."""

    def __init__(self, signals: AsyncIterator[int]) -> None:
        self._signals = signals
        self._stops = 0

    async def receive(self) -> Command:
        """Wait for the next command. Cancelling loses none."""
        number = await anext(self._signals)
        if number == signal.SIGHUP:
            return Command.RELOAD
        self._stops += 1
        return Command.DRAIN if self._stops == 1 else Command.ABORT

    def __aiter__(self) -> Commands:
        return self

    async def __anext__(self) -> Command:
        return await self.receive()


@contextmanager
def open_commands() -> Iterator[Commands]:
    """Receive commands while the block runs; the signals' former meaning returns at its end.

    Enter it before anything is worth a drain, in the main thread (elsewhere `RuntimeError`): a signal before
    it simply ends the process. Signals that were received but not read are raised again at the end.
    """
    with trio.open_signal_receiver(*WATCHED_SIGNALS) as signals:
        yield Commands(signals)
