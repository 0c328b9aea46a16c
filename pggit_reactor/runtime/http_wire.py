"""A small HTTP/1.1 server and client on h11 and Trio, for probes and scrapes only.

Hypercorn was tried and left: 0.15 to 0.2 s of import and 18 MB for a worker that is to be ready in 1 s and to
stay under 100 MiB, and no bound on connections (200 half-sent requests were all kept). h11 comes with httpx
anyway.

Bounds: one request at a time on a connection, heads of 16 KiB, bodies of requests never read, 10 s for a
request to arrive and 10 s for an answer to be taken, 64 connections. At the 65th the one that has been
waiting longest for its client is closed: a flood of idle connections must not keep the kubelet out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Final

import attrs
import h11
import trio

from pggit_reactor.observability.logs import get_logger
from pggit_reactor.runtime.clock import Clock

CONNECTIONS_MAX: Final = 64
HEAD_BYTES_MAX: Final = 16_384
REQUEST_SECONDS_MAX: Final = 10.0
ANSWER_SECONDS_MAX: Final = 10.0
FETCHED_BYTES_MAX: Final = 16 * 1024 * 1024
_READ_BYTES: Final = 8_192
_METHODS: Final = (b"GET", b"HEAD")

_log = get_logger("http")


@attrs.frozen(kw_only=True)
class Response:
    """A whole answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


@attrs.frozen(kw_only=True)
class Request:
    """What a handler may know of a request."""

    path: str
    """Without the query."""
    accept: str = ""


Handler = Callable[[Request], Awaitable[Response]]


def plain_response(status: int, *headers: tuple[str, str]) -> Response:
    """Return an answer that says its own status and no more."""
    body = f"{status} {HTTPStatus(status).phrase}\n".encode()
    return Response(status=status, body=body, headers=headers)


async def serve_connections(
    handler: Handler, listeners: Sequence[trio.abc.Listener[trio.SocketStream]], *, clock: Clock
) -> None:
    """Answer requests on *listeners*, which this closes, until cancelled."""
    await trio.serve_listeners(_Server(handler, clock).serve, list(listeners))


@attrs.define(eq=False)
class _Server:
    handler: Handler
    clock: Clock
    waiting: dict[int, trio.CancelScope] = attrs.field(factory=dict)
    """Connections that wait for their client, longest first."""
    open_count: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end. What a client does wrong ends that connection only."""
        self.open_count += 1
        try:
            if self.open_count <= CONNECTIONS_MAX or self._close_longest_waiting():
                await _Connection(stream, self).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except Exception:  # noqa: BLE001  # a fault of ours in a probe must not end the worker
            _log.exception("http_connection_failed")
        finally:
            self.open_count -= 1
            await trio.aclose_forcefully(stream)

    def _close_longest_waiting(self) -> bool:
        """Make room; False where every connection is being answered, and the newcomer has to go."""
        for key, scope in self.waiting.items():
            scope.cancel()
            del self.waiting[key]  # so that the next newcomer does not count on the same one
            return True
        return False


class _Connection:
    """One client, request after request."""

    def __init__(self, stream: trio.SocketStream, server: _Server) -> None:
        self._stream = stream
        self._server = server
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def run(self) -> None:
        """Answer until the client leaves, errs, or lets a time limit pass."""
        while True:
            try:
                request = await self._receive_request()
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                return
            if request is None:
                return
            response = await self._answer(request)
            await self._send(response, with_body=request.method != b"HEAD")
            # A request body is never read: whoever sends one has had its answer, and loses the connection.
            if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                return
            self._h11.start_next_cycle()

    async def _receive_request(self) -> h11.Request | None:
        """Return the next request, its end seen where it has no body; None at the end or past the time."""
        with trio.move_on_after(REQUEST_SECONDS_MAX) as scope:
            self._server.waiting[id(self)] = scope
            try:
                event = await self._next_event()
            finally:
                self._server.waiting.pop(id(self), None)
            if isinstance(event, h11.Request):
                if not _has_body(event):
                    self._h11.next_event()  # EndOfMessage, which needs no further octet
                return event
        return None

    async def _next_event(self) -> object:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._h11.receive_data(await self._stream.receive_some(_READ_BYTES))

    async def _answer(self, request: h11.Request) -> Response:
        if request.method not in _METHODS:
            return plain_response(405, ("Allow", "GET, HEAD"))
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        accept = b", ".join(value for name, value in request.headers if name == b"accept")
        return await self._server.handler(Request(path=path, accept=accept.decode("latin-1")))

    async def _refuse(self, status: int) -> None:
        if self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send(plain_response(status, ("Connection", "close")), with_body=True)

    async def _send(self, response: Response, *, with_body: bool) -> None:
        head = h11.Response(
            status_code=response.status,
            reason=HTTPStatus(response.status).phrase.encode(),
            headers=[
                ("Date", formatdate(self._server.clock.wall(), usegmt=True)),
                ("Content-Type", response.content_type),
                ("Content-Length", str(len(response.body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                *response.headers,
            ],
        )
        octets = self._h11.send(head) or b""
        if with_body:
            octets += self._h11.send(h11.Data(data=response.body)) or b""
        octets += self._h11.send(h11.EndOfMessage()) or b""
        with trio.move_on_after(ANSWER_SECONDS_MAX) as scope:
            await self._stream.send_all(octets)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read its answer")


def _has_body(request: h11.Request) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in request.headers
    )


async def fetch(connect: Callable[[], Awaitable[trio.abc.Stream]], path: str) -> tuple[int, bytes]:
    """GET *path* over a connection made for it; return status and body, at most `FETCHED_BYTES_MAX`.

    Raises `OSError` (refused, reset, malformed, too long). The time limit is the caller's.
    """
    stream = await connect()
    async with stream:
        connection = h11.Connection(h11.CLIENT)
        head = h11.Request(method="GET", target=path, headers=[("Host", "worker"), ("Connection", "close")])
        octets = (connection.send(head) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        try:
            await stream.send_all(octets)
            return await _read_answer(stream, connection)
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise OSError(f"no whole answer: {error}") from error


async def _read_answer(stream: trio.abc.Stream, connection: h11.Connection) -> tuple[int, bytes]:
    status, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(65_536)))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > FETCHED_BYTES_MAX:
                raise OSError("the answer is too long")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(body)


def unix_connector(path: str) -> Callable[[], Awaitable[trio.abc.Stream]]:
    """Return what connects to the unix socket at *path*."""
    return partial(trio.open_unix_socket, path)
