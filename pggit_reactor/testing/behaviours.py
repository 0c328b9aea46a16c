"""What receivers do to senders: ready-made behaviours for `pggit_reactor.testing.receiver`.

A behaviour acts on a `Peer`, once its request was read. `early` makes it act before the request's body is
read.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from enum import StrEnum

import attrs
import trio

_RECEIVE_OCTETS = 64 * 1024


@attrs.frozen(kw_only=True)
class ReceivedRequest:
    """One request as it came over the wire."""

    connection: int
    """Which of the receiver's connections brought it, counted from 1."""
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    whole: bool
    """The body was read to its end; not so where an `early` behaviour acted."""
    arrived_monotonic: float
    """`time.monotonic` when the last octet was read: one clock for all processes of a machine."""
    arrived_wall: float

    def header(self, name: str) -> str | None:
        """Return the first value of a header, its name in any case."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)


class Peer:
    """The sender of one request, as a behaviour sees it."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], request: ReceivedRequest) -> None:
        self.request = request
        self.octets_sent = 0
        self.ended = False
        """The connection may not carry another request."""
        self._stream = stream

    async def send(self, octets: bytes) -> None:
        """Send *octets* as they are."""
        await self._stream.send_all(octets)
        self.octets_sent += len(octets)

    async def close(self) -> None:
        """Close politely, with TLS's closing alert."""
        self.ended = True
        await self._stream.aclose()

    async def reset(self) -> None:
        """Close with a TCP reset: what was sent but not yet read is lost to the other side."""
        self.ended = True
        reset_stream(self._stream.transport_stream)
        await trio.lowlevel.checkpoint()

    async def wait_gone(self) -> None:
        """Read and forget until the other side closes."""
        self.ended = True
        with suppress(trio.BrokenResourceError):
            while await self._stream.receive_some(_RECEIVE_OCTETS):
                pass


Act = Callable[[Peer], Awaitable[None]]


@attrs.frozen
class Behaviour:
    """What to do with a request."""

    act: Act
    before_body: bool = False


class Then(StrEnum):
    """What becomes of the connection after what was sent."""

    KEEP = "keep"
    CLOSE = "close"
    RESET = "reset"
    HANG = "hang"


def answer(
    status: int = 200,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"ok",
    *,
    reason: str = "Whatever",
    then: Then = Then.KEEP,
) -> Behaviour:
    """Answer as one should; *then* CLOSE breaks the promise to keep the connection."""
    fields = [*headers] if status in {204, 304} else [*headers, ("Content-Length", str(len(body)))]
    head = f"HTTP/1.1 {status} {reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
    return raw(head.encode("latin-1") + b"\r\n" + (b"" if status in {204, 304} else body), then=then)


def redirect(location: str, status: int = 307) -> Behaviour:
    """Send the sender elsewhere."""
    return answer(status, [("Location", location)], b"")


def echo(status: int) -> Behaviour:
    """Answer with all that one was sent but the body, as debugging receivers do; people may read the excerpt."""

    async def act(peer: Peer) -> None:
        request = peer.request
        said = f"{request.path}?{request.query} {dict(request.headers)}"
        await answer(status, body=said.encode(), reason=request.path).act(peer)

    return Behaviour(act)


def raw(*pieces: bytes, then: Then = Then.CLOSE) -> Behaviour:
    """Send *pieces*, each in a write of its own."""

    async def act(peer: Peer) -> None:
        for piece in pieces:
            await peer.send(piece)
        if then is Then.CLOSE:
            await peer.close()
        elif then is Then.RESET:
            await peer.reset()
        elif then is Then.HANG:
            await peer.wait_gone()

    return Behaviour(act)


def hang() -> Behaviour:
    """Never answer: a black hole that has read the request."""
    return raw(then=Then.HANG)


def cut() -> Behaviour:
    """Reset instead of an answer."""
    return raw(then=Then.RESET)


def hang_up() -> Behaviour:
    """Close instead of an answer."""
    return raw(then=Then.CLOSE)


def drip(octets: bytes, *, gap_seconds: float, prefix: bytes = b"") -> Behaviour:
    """Send *prefix* at once and then an octet at a time: the slow loris."""

    async def act(peer: Peer) -> None:
        await peer.send(prefix)
        for octet in octets:
            await trio.sleep(gap_seconds)
            await peer.send(bytes((octet,)))

    return Behaviour(act)


def endless(prefix: bytes, repeated: bytes) -> Behaviour:
    """Send *prefix* and then *repeated* until the other side has had enough."""

    async def act(peer: Peer) -> None:
        await peer.send(prefix)
        peer.ended = True
        while True:
            await peer.send(repeated)

    return Behaviour(act)


def gated(gate: trio.Event, behaviour: Behaviour, *, reached: trio.Event | None = None) -> Behaviour:
    """Behave only when *gate* is set; *reached* tells that a request waits there."""

    async def act(peer: Peer) -> None:
        if reached is not None:
            reached.set()
        await gate.wait()
        await behaviour.act(peer)

    return Behaviour(act, behaviour.before_body)


class Queueing:
    """A receiver that serves so many requests at once, each in so many seconds, and lets the others queue.

    Its capacity may be changed at any time; requests that are being served are finished.
    """

    def __init__(self, capacity: int, *, seconds: float) -> None:
        self.seconds = seconds
        self.running = 0
        self.most_queued = 0
        self._capacity = capacity
        self._queue: deque[trio.Event] = deque()

    @property
    def queued(self) -> int:
        """How many wait; whoever sent them may have gone away long ago."""
        return len(self._queue)

    @property
    def capacity(self) -> int:
        """How many requests are served at once."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        self._capacity = capacity
        self._admit()

    def behaviour(self, behaviour: Behaviour) -> Behaviour:
        """Queue, be served, and then behave."""

        async def act(peer: Peer) -> None:
            turn = trio.Event()
            self._queue.append(turn)
            self._admit()
            self.most_queued = max(self.most_queued, len(self._queue))
            try:
                await turn.wait()
                await trio.sleep(self.seconds)
            finally:
                if turn.is_set():
                    self.running -= 1
                    self._admit()
                else:
                    self._queue.remove(turn)
            await behaviour.act(peer)

        return Behaviour(act)

    def _admit(self) -> None:
        while self._queue and self.running < self._capacity:
            self.running += 1
            self._queue.popleft().set()


def early(behaviour: Behaviour) -> Behaviour:
    """Act when the request's head was read, and leave its body unread. The connection ends with it."""

    async def act(peer: Peer) -> None:
        await behaviour.act(peer)
        peer.ended = True

    return Behaviour(act, before_body=True)


def reset_stream(stream: trio.SocketStream) -> None:
    """Close *stream* with a TCP reset. At once, and without a checkpoint, so that no cancellation skips it."""
    with suppress(OSError):  # The other side may have been first.
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
