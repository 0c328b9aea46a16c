"""A wake-up that is never lost and never queues: set it any number of times, and one waiter passes once."""

from __future__ import annotations

import trio


class Wake:
    """For one waiting task; setting it while nobody waits lets the next wait pass at once."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Let the waiter pass."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until it is set, then clear it."""
        await self._event.wait()
        self._event = trio.Event()
