"""The demo's receiver: HTTPS on loopback, each signature verified with the public `verify()`.

It can be told to hold its answer to some alerts, which is how the demo catches a worker in mid-delivery.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

import attrs
import h11
import trio

from pggit_reactor.cli.demonstration.news import News
from pggit_reactor.errors import VerificationError
from pggit_reactor.receiver import verify
from pggit_reactor.runtime.clock import Clock

HOST: Final = "127.0.0.1"
PATH: Final = "/alerts"
BODY_BYTES_MAX: Final = 65_536
_READ_BYTES: Final = 16_384


@attrs.frozen(kw_only=True)
class Arrival:
    """One request whose signature was right."""

    alert_id: int
    uid: str
    """The delivery's id, as the request says it: what a receiver recognises a second arrival by."""
    at: float
    """Unix time when the last octet had been read."""
    held: bool


class Receiver:
    """Open it with `open_receiver`, and give it the secret that `webhook add` made."""

    def __init__(self, context: ssl.SSLContext, clock: Clock) -> None:
        self.port = 0
        self.secret = ""
        self.arrivals: list[Arrival] = []
        self.refused: list[str] = []
        """Why requests were answered with 401."""
        self.holding: Collection[int] = ()
        """The alerts that get no answer, for as long as they stand here."""
        self.news = News()
        self._context = context
        self._clock = clock

    @property
    def url(self) -> str:
        """What to register."""
        return f"https://{HOST}:{self.port}{PATH}"

    def arrivals_of(self, alert_id: int) -> list[Arrival]:
        """Return the arrivals of one alert, the first one first."""
        return [arrival for arrival in self.arrivals if arrival.alert_id == alert_id]

    async def wait_for(self, alert_ids: Collection[int], *, times: int = 1) -> None:
        """Return when each of *alert_ids* has arrived *times* times."""
        await self.news.wait_until(
            lambda: all(len(self.arrivals_of(alert_id)) >= times for alert_id in alert_ids),
            what=f"the alerts {', '.join(map(str, alert_ids))} to arrive",
        )

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end; a worker that dies is one of the ways to end."""
        tls = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
        connection = h11.Connection(h11.SERVER)
        try:
            while (request := await _next_request(connection, tls)) is not None:
                if not await self._answer(connection, tls, *request):
                    return
                connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(
        self,
        connection: h11.Connection,
        tls: trio.SSLStream[trio.SocketStream],
        head: h11.Request,
        body: bytes,
    ) -> bool:
        """Answer a request, or hold the answer until the other side has gone; tell whether to go on."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        try:
            verify(body, headers, self.secret)
        except VerificationError as error:
            self.refused.append(str(error))
            await self._send(connection, tls, status=401)
            return connection.our_state is h11.DONE
        alert_id = int(json.loads(body)["alert_id"])
        held = alert_id in self.holding
        self.arrivals.append(
            Arrival(alert_id=alert_id, uid=headers["webhook-id"], at=self._clock.wall(), held=held)
        )
        self.news.tell()
        if held:
            while await tls.receive_some(_READ_BYTES):
                pass
            return False
        await self._send(connection, tls, status=204)
        return connection.our_state is h11.DONE

    async def _send(
        self, connection: h11.Connection, tls: trio.SSLStream[trio.SocketStream], *, status: int
    ) -> None:
        fields = [] if status == 204 else [("Content-Length", "0")]
        octets = connection.send(h11.Response(status_code=status, headers=fields)) or b""
        await tls.send_all(octets + (connection.send(h11.EndOfMessage()) or b""))


async def _next_request(
    connection: h11.Connection, tls: trio.SSLStream[trio.SocketStream]
) -> tuple[h11.Request, bytes] | None:
    """Return head and body of the next request; None at the end of the connection."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await tls.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_BYTES_MAX:
                return None
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return head, bytes(body)
        else:
            return None


@asynccontextmanager
async def open_receiver(context: ssl.SSLContext, *, clock: Clock) -> AsyncIterator[Receiver]:
    """Serve on a free port of loopback for the length of the block."""
    receiver = Receiver(context, clock)
    listeners = await trio.open_tcp_listeners(0, host=HOST)
    receiver.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, receiver.serve, listeners)
        try:
            yield receiver
        finally:
            nursery.cancel_scope.cancel()
