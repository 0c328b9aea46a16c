"""A bound on the octets of bodies in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class BodyBudget:
    """Counts octets held; small bodies that came with a claim are counted, large ones wait for room."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = 0
        self._freed = trio.Condition()

    @property
    def held_bytes(self) -> int:
        """Octets held now. May exceed the bound by the bodies of one claim."""
        return self._held

    @property
    def is_full(self) -> bool:
        """Whether claiming more would be wrong."""
        return self._held >= self._bytes_max

    @asynccontextmanager
    async def hold(self, body_bytes: int, *, wait: bool) -> AsyncIterator[None]:
        """Count *body_bytes* while the block runs; with *wait*, wait for room first. A body larger than the whole
        bound waits until it is alone."""
        if wait:
            async with self._freed:
                while self._held > 0 and self._held + body_bytes > self._bytes_max:
                    await self._freed.wait()
                self._held += body_bytes
        else:
            self._held += body_bytes
        try:
            yield
        finally:
            self._held -= body_bytes
            with trio.CancelScope(shield=True):  # Bounded: taking an uncontended lock, and no wait inside it.
                async with self._freed:
                    self._freed.notify_all()
