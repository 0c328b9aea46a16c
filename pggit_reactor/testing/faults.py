"""A TCP proxy that cuts, stalls, swallows and slows. It knows no protocol, so it goes in front of anything.

`open_proxy` listens on loopback and forwards to one address. Faults are changed while connections are open
and count at once, for those that are open and for those to come, until `FaultProxy.heal`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Flag, auto
from typing import Final

import attrs
import trio

from pggit_reactor.testing.behaviours import reset_stream

_PIECE_OCTETS: Final = 64 * 1024
_SLOW_PIECES_PER_SECOND: Final = 20


class Direction(Flag):
    """Which way octets go; `BOTH` is both."""

    TO_SERVER = auto()
    TO_CLIENT = auto()
    BOTH = TO_SERVER | TO_CLIENT


@attrs.define(eq=False)
class _Pair:
    """A client's connection and ours to the server."""

    client: trio.SocketStream
    server: trio.SocketStream

    def reset(self) -> None:
        reset_stream(self.client)
        reset_stream(self.server)


@attrs.define(eq=False)
class _Faults:
    """What happens to octets of one direction."""

    stalled: bool = False
    swallowed: bool = False
    octets_per_second: float = math.inf
    cut_in_octets: int | None = None


class FaultProxy:
    """A running proxy. Open it with `open_proxy`."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.connection_count = 0
        """How many connections were accepted, ever."""
        self.octets: dict[Direction, int] = {Direction.TO_SERVER: 0, Direction.TO_CLIENT: 0}
        """How many were forwarded, each way."""
        self._target = (target_host, target_port)
        self._faults = {Direction.TO_SERVER: _Faults(), Direction.TO_CLIENT: _Faults()}
        self._refusing = False
        self._pairs: list[_Pair] = []
        self._changed = trio.Event()

    @property
    def open_count(self) -> int:
        """How many connections are open now."""
        return len(self._pairs)

    def cut(self) -> None:
        """Reset every connection that is open now, on both sides."""
        for pair in self._pairs:
            pair.reset()

    def refuse(self) -> None:
        """Reset new connections at once."""
        self._refusing = True
        self._tell()

    def stall(self, direction: Direction = Direction.BOTH) -> None:
        """Stop reading: octets pile up where they come from, as behind a network that is gone."""
        self._set(direction, stalled=True)

    def swallow(self, direction: Direction = Direction.BOTH) -> None:
        """Read and forget: the sender believes that all was delivered."""
        self._set(direction, swallowed=True)

    def slow(self, octets_per_second: float, direction: Direction = Direction.BOTH) -> None:
        """Forward no faster than that."""
        assert octets_per_second > 0
        self._set(direction, octets_per_second=octets_per_second)

    def cut_after(self, octets: int, direction: Direction) -> None:
        """Forward *octets* more, of all connections together; then reset the one that brings more."""
        assert octets >= 0
        self._set(direction, cut_in_octets=octets)

    def heal(self) -> None:
        """Forward as if nothing had been; what was stalled goes on, what was swallowed is lost."""
        self._refusing = False
        for faults in self._faults.values():
            faults.stalled = faults.swallowed = False
            faults.octets_per_second, faults.cut_in_octets = math.inf, None
        self._tell()

    async def wait_connections(self, count: int) -> None:
        """Return when *count* connections, ever, were accepted."""
        while self.connection_count < count:
            await self._changed.wait()

    async def wait_open(self, count: int) -> None:
        """Return when exactly *count* connections are open."""
        while self.open_count != count:
            await self._changed.wait()

    async def serve(self, client: trio.SocketStream) -> None:
        """Forward one connection until either side ends it."""
        self.connection_count += 1
        self._tell()
        if self._refusing:
            reset_stream(client)
            return
        try:
            server = await trio.open_tcp_stream(*self._target)
        except OSError:
            reset_stream(client)
            return
        pair = _Pair(client, server)
        self._pairs.append(pair)
        self._tell()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, pair, Direction.TO_SERVER)
                nursery.start_soon(self._forward, pair, Direction.TO_CLIENT)
        finally:
            client.socket.close()  # no checkpoint: a cancellation must not skip what follows
            server.socket.close()
            self._pairs.remove(pair)
            self._tell()

    async def _forward(self, pair: _Pair, direction: Direction) -> None:
        source, sink = pair.client, pair.server
        if direction is Direction.TO_CLIENT:
            source, sink = sink, source
        faults = self._faults[direction]
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while octets := await source.receive_some(self._piece(faults)):
                await self._wait_flowing(faults)
                if faults.swallowed:
                    continue
                if not await self._deliver(octets, sink, direction):
                    break
            else:
                await sink.send_eof()
                return
        pair.reset()

    async def _deliver(self, octets: bytes, sink: trio.SocketStream, direction: Direction) -> bool:
        """Forward *octets*; say whether the connection may live."""
        faults = self._faults[direction]
        if math.isfinite(faults.octets_per_second):
            await trio.sleep(len(octets) / faults.octets_per_second)
        left = faults.cut_in_octets
        fitting = octets if left is None else octets[:left]
        if left is not None:
            faults.cut_in_octets = left - len(fitting)
        await sink.send_all(fitting)
        self.octets[direction] += len(fitting)
        return len(fitting) == len(octets)

    async def _wait_flowing(self, faults: _Faults) -> None:
        while faults.stalled:
            await self._changed.wait()

    @staticmethod
    def _piece(faults: _Faults) -> int:
        if math.isinf(faults.octets_per_second):
            return _PIECE_OCTETS
        return max(1, min(_PIECE_OCTETS, int(faults.octets_per_second / _SLOW_PIECES_PER_SECOND)))

    def _set(self, direction: Direction, **changes: object) -> None:
        for one in direction:
            for name, value in changes.items():
                setattr(self._faults[one], name, value)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def open_proxy(target_host: str, target_port: int) -> AsyncIterator[FaultProxy]:
    """Run a proxy in front of *target_host* and *target_port* for the length of the block."""
    proxy = FaultProxy(target_host, target_port)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_proxy, proxy)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()


async def run_proxy(
    proxy: FaultProxy, *, task_status: trio.TaskStatus[FaultProxy] = trio.TASK_STATUS_IGNORED
) -> None:
    """Forward until cancelled; started once connections are accepted and `FaultProxy.port` is known."""
    listeners = await trio.open_tcp_listeners(0, host=proxy.host)
    proxy.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, proxy.serve, listeners)
        task_status.started(proxy)
