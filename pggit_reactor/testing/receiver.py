"""A TLS receiver on loopback that records every request and misbehaves on request.

Real sockets, real TLS, a certificate authority of its own. A sender that is to trust it, in this process or
in another, is given `Receiver.ca_file` (as ``SSL_CERT_FILE``) and `Receiver.url`::

    async with open_receiver() as receiver:
        receiver.script("/hook", answer(503), hang(), answer(200))
        ...
        (first,) = await receiver.wait_for(1)
        assert first.body == b"{}"

What a receiver does once it has read a request is a `Behaviour`; what goes wrong before that belongs to the
connection, and is a `Greeting` or a `Certificate`.
"""

from __future__ import annotations

import ssl
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

import trio

from pggit_reactor.testing.behaviours import (
    Act,
    Behaviour,
    Peer,
    Queueing,
    ReceivedRequest,
    Then,
    answer,
    cut,
    drip,
    early,
    echo,
    endless,
    gated,
    hang,
    hang_up,
    raw,
    redirect,
    reset_stream,
)
from pggit_reactor.testing.certificates import LOOPBACK_NAMES, Authority, Certificate

__all__ = [
    "LOOPBACK_NAMES",
    "Act",
    "Authority",
    "Behaviour",
    "Certificate",
    "Greeting",
    "Peer",
    "Queueing",
    "ReceivedRequest",
    "Receiver",
    "Then",
    "answer",
    "cut",
    "drip",
    "early",
    "echo",
    "endless",
    "gated",
    "hang",
    "hang_up",
    "open_receiver",
    "raw",
    "redirect",
    "run_receiver",
]

REQUESTS_KEPT_MAX: Final = 1_000_000
_HEAD_OCTETS_MAX: Final = 64 * 1024
_RECEIVE_OCTETS: Final = 64 * 1024
_HANDSHAKE_SECONDS_MAX: Final = 30.0


class Greeting(StrEnum):
    """What a receiver does with a connection before any request."""

    SERVE = "serve"
    RESET_AT_ACCEPT = "reset at accept"
    CLOSE_AT_ACCEPT = "close at accept"
    RESET_IN_HANDSHAKE = "reset in the handshake"
    CLOSE_IN_HANDSHAKE = "close in the handshake"
    STALL_IN_HANDSHAKE = "stall in the handshake"
    PLAIN_HTTP = "plain HTTP"
    GARBAGE = "garbage"
    REFUSE_VERSION = "refuse the TLS version"
    OLD_VERSION = "agree on TLS 1.1"
    REFUSE_HANDSHAKE = "refuse the handshake"


# With renegotiation_info: OpenSSL 3.0 would complain of its absence before it looks at the version.
_OLD_SERVER_HELLO: Final = (
    b"\x03\x02" + bytes(32) + b"\x00" + b"\x00\x2f" + b"\x00" + b"\x00\x05\xff\x01\x00\x01\x00"
)
_FIRST_WORDS: Final = MappingProxyType(
    {
        Greeting.PLAIN_HTTP: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        Greeting.GARBAGE: bytes(range(256)) * 4,
        Greeting.REFUSE_VERSION: b"\x15\x03\x02\x00\x02\x02\x46",  # a fatal alert, protocol_version
        Greeting.REFUSE_HANDSHAKE: b"\x15\x03\x03\x00\x02\x02\x28",  # a fatal alert, handshake_failure
        Greeting.OLD_VERSION: b"\x16\x03\x02\x00\x31\x02\x00\x00\x2d" + _OLD_SERVER_HELLO,
    }
)


class Receiver:
    """A running receiver. Open it with `open_receiver`."""

    def __init__(self, authority: Authority, context: ssl.SSLContext) -> None:
        self.requests: list[ReceivedRequest] = []
        """In the order in which they were read."""
        self.connection_count = 0
        """How many connections were accepted, ever."""
        self.octets_sent = 0
        """By behaviours, on all connections."""
        self.handshake_errors: list[str] = []
        """What TLS said about connections that came to nothing."""
        self.default: Behaviour = answer(200)
        """For paths without a script, and after the end of one."""
        self.greeting: Greeting = Greeting.SERVE
        """For connections that `greet` says nothing about."""
        self.port = 0
        self.tls_context = context
        """Shown to every connection; a test may change it."""
        self.authority = authority
        """Whose certificates it shows."""
        self._scripts: dict[str, deque[Behaviour]] = {}
        self._greetings: deque[Greeting] = deque()
        self._news = trio.Event()
        self._connections: dict[int, trio.SocketStream] = {}

    @property
    def ca_file(self) -> Path:
        """The PEM file of the authority to trust."""
        return self.authority.ca_file

    @property
    def open_count(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    def client_context(self) -> ssl.SSLContext:
        """Return a client's TLS settings that trust this receiver and nobody else."""
        return self.authority.client_context()

    def url(self, path: str = "/", *, host: str = "127.0.0.1") -> str:
        """Return the URL of *path*; *host* may be any of the certificate's names."""
        return f"https://{f'[{host}]' if ':' in host else host}:{self.port}{path}"

    def script(self, path: str, *behaviours: Behaviour) -> None:
        """Treat the next requests for *path* (without its query) like that, one after the other."""
        self._scripts.setdefault(path, deque()).extend(behaviours)

    def greet(self, *greetings: Greeting) -> None:
        """Treat the next connections like that, one after the other."""
        self._greetings.extend(greetings)

    async def wait_for(self, count: int, *, path: str | None = None) -> list[ReceivedRequest]:
        """Return the requests (for *path*) as soon as there are *count*."""
        while len(found := self.requests_for(path)) < count:
            await self._news.wait()
        return found

    def requests_for(self, path: str | None) -> list[ReceivedRequest]:
        """Return the requests for *path*, or all."""
        return [request for request in self.requests if path is None or request.path == path]

    async def wait_connections(self, count: int) -> None:
        """Return when *count* connections, ever, were accepted."""
        while self.connection_count < count:
            await self._news.wait()

    async def wait_open(self, count: int) -> None:
        """Return when exactly *count* connections are open."""
        while self.open_count != count:
            await self._news.wait()

    def reset_all(self) -> None:
        """Reset every connection that is open now."""
        for stream in self._connections.values():
            reset_stream(stream)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end."""
        self.connection_count += 1
        number = self.connection_count
        self._connections[number] = stream
        self._tell()
        try:
            greeting = self._greetings.popleft() if self._greetings else self.greeting
            if greeting is Greeting.SERVE:
                await self._serve_tls(stream, number)
            else:
                await _greet(stream, greeting)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # The other side went away, or `reset_all` was here.
        finally:
            stream.socket.close()  # no checkpoint: a cancellation must not skip what follows
            del self._connections[number]
            self._tell()

    async def _serve_tls(self, stream: trio.SocketStream, number: int) -> None:
        tls = trio.SSLStream(stream, self.tls_context, server_side=True, https_compatible=True)
        with trio.fail_after(_HANDSHAKE_SECONDS_MAX):
            try:
                await tls.do_handshake()
            except trio.BrokenResourceError as error:
                self.handshake_errors.append(str(error.__cause__ or error))
                self._tell()
                # Trio leaves OpenSSL's alert, which says why, where it is. Real receivers send it.
                await stream.send_all(tls._outgoing.read())  # noqa: SLF001
                while await stream.receive_some(_RECEIVE_OCTETS):  # or a reset could overtake it
                    pass
                raise
        reader = _RequestReader(tls, number)
        while (head := await reader.head()) is not None:
            behaviour = self._next_behaviour(head.path)
            request = head if behaviour.before_body else await reader.whole(head)
            peer = Peer(tls, request)
            self._record(request)
            try:
                await behaviour.act(peer)
            finally:
                self.octets_sent += peer.octets_sent
            if peer.ended:
                return

    def _next_behaviour(self, path: str) -> Behaviour:
        script = self._scripts.get(path)
        return script.popleft() if script else self.default

    def _record(self, request: ReceivedRequest) -> None:
        assert len(self.requests) < REQUESTS_KEPT_MAX, "a test that needs more counts for itself"
        self.requests.append(request)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def open_receiver(
    *,
    certificate: Certificate = Certificate.GOOD,
    names: tuple[str, ...] = LOOPBACK_NAMES,
    authority: Authority | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    tls_version_max: ssl.TLSVersion | None = None,
) -> AsyncIterator[Receiver]:
    """Run a receiver for the length of the block.

    *names* are what its certificate is made out to. *authority* is shared by receivers that one
    ``SSL_CERT_FILE`` is to vouch for; else each has its own, in a temporary directory that goes away with
    it.
    """
    with tempfile.TemporaryDirectory(prefix="pggit-receiver-") as folder:
        authority = authority or Authority(Path(folder))
        context = authority.server_context(certificate, names=names)
        if tls_version_max is not None:
            context.maximum_version = tls_version_max
        receiver = Receiver(authority, context)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_receiver, receiver, host, port)
            try:
                yield receiver
            finally:
                nursery.cancel_scope.cancel()


async def run_receiver(
    receiver: Receiver,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[Receiver] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; started once connections are accepted and `Receiver.port` is known."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    receiver.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, receiver.serve, listeners)
        task_status.started(receiver)


class _RequestReader:
    """Reads requests, one after the other, each with a Content-Length or without a body."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], connection: int) -> None:
        self._stream = stream
        self._connection = connection
        self._buffer = bytearray()

    async def head(self) -> ReceivedRequest | None:
        """Return the next request without its body, or None at the end of the connection."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            assert len(self._buffer) <= _HEAD_OCTETS_MAX, "the sender's head is endless"
            octets = await self._stream.receive_some(_RECEIVE_OCTETS)
            if not octets:
                return None
            self._buffer += octets
        text = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 4]
        first, *lines = text.split("\r\n")
        method, target, _version = first.split(" ")
        path, _, query = target.partition("?")
        fields = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        return ReceivedRequest(
            connection=self._connection,
            method=method,
            path=path,
            query=query,
            headers=fields,
            body=bytes(self._buffer),
            whole=False,
            arrived_monotonic=time.monotonic(),
            arrived_wall=time.time(),
        )

    async def whole(self, head: ReceivedRequest) -> ReceivedRequest:
        """Return the request of *head* with its body."""
        size = int(head.header("content-length") or 0)
        while len(self._buffer) < size:
            octets = await self._stream.receive_some(_RECEIVE_OCTETS)
            if not octets:
                raise trio.BrokenResourceError("the sender closed in mid-body")
            self._buffer += octets
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return ReceivedRequest(
            connection=head.connection,
            method=head.method,
            path=head.path,
            query=head.query,
            headers=head.headers,
            body=body,
            whole=True,
            arrived_monotonic=time.monotonic(),
            arrived_wall=time.time(),
        )


async def _greet(stream: trio.SocketStream, greeting: Greeting) -> None:
    if greeting is Greeting.RESET_AT_ACCEPT:
        reset_stream(stream)
    elif greeting is Greeting.CLOSE_AT_ACCEPT:
        await stream.aclose()
    elif greeting is Greeting.STALL_IN_HANDSHAKE:
        while await stream.receive_some(_RECEIVE_OCTETS):
            pass
    else:
        await stream.receive_some(_RECEIVE_OCTETS)  # the sender's hello
        if greeting is Greeting.RESET_IN_HANDSHAKE:
            reset_stream(stream)
        elif octets := _FIRST_WORDS.get(greeting):
            await stream.send_all(octets)
            await stream.receive_some(_RECEIVE_OCTETS)  # or a reset could overtake them
