"""A bound on the octets of bodies in memory."""

from __future__ import annotations

import trio


class BodyBudget:
    """Counts octets held. Small bodies that came with a claim are counted, large ones wait for room."""

    __slots__ = ("_bytes_max", "_waiting", "held_bytes")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting = trio.lowlevel.ParkingLot()
        self.held_bytes = 0
        """Octets held now. May exceed the bound by the small bodies of one claim."""

    @property
    def is_full(self) -> bool:
        """Whether claiming more would be wrong."""
        return self.held_bytes >= self._bytes_max or bool(self._waiting)

    def take(self, body_bytes: int) -> None:
        """Count a body that is here already."""
        self.held_bytes += body_bytes

    async def wait_and_take(self, body_bytes: int) -> None:
        """Wait until there is room for a body, then count it. One larger than the bound waits until it is alone."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.held_bytes > 0 and self.held_bytes + body_bytes > self._bytes_max:
            await self._waiting.park()
        self.held_bytes += body_bytes

    def give_back(self, body_bytes: int) -> None:
        """Count a body out; never waits."""
        self.held_bytes -= body_bytes
        if self._waiting:
            self._waiting.unpark_all()
