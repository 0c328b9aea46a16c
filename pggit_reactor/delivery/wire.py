"""One TLS connection: OpenSSL directly on a non-blocking socket, with Trio told what to wait for.

`trio.SSLStream` runs OpenSSL over memory buffers and copies each octet twice more; here a small request is
one call of OpenSSL and one system call, and so is its answer. Price: no half-close and no closing alert,
neither of which an HTTP request needs, since its length is in its head.
"""

from __future__ import annotations

import select
import socket
import ssl
from typing import Final, Self

import trio

_RECEIVE_OCTETS: Final = 16 * 1024  # the most that one TLS record holds, so nothing stays inside OpenSSL


class Wire:
    """A connection after its handshake. One task at a time uses it; `close` is immediate and may be repeated.

    `OSError` (of which `ssl.SSLError` is one) is what `send` and `receive` raise. Whoever is cancelled inside
    either has to close the wire: what was sent of a message is not known.
    """

    __slots__ = ("_closed", "_poll", "_socket", "address", "opened_at")

    def __init__(self, tls: ssl.SSLSocket, *, address: str) -> None:
        self.address = address
        self.opened_at = trio.current_time()
        self._socket = tls
        self._closed = False
        self._poll = select.poll()
        self._poll.register(tls, select.POLLIN)

    @classmethod
    async def secure(cls, raw: socket.socket, context: ssl.SSLContext, *, host: str, address: str) -> Self:
        """Agree on TLS over the connected *raw*, closed where that fails. *host* is who it must be."""
        try:
            raw.getpeername()  # Where this fails, wrap_socket would too, and leave its own socket unclosed.
            tls = context.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
        except BaseException:
            raw.close()
            raise
        try:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(tls)
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(tls)
            return cls(tls, address=address)
        except BaseException:
            tls.close()
            raise

    def peer_certificate(self) -> bytes:
        """Return the receiver's certificate as it was shown, in DER."""
        certificate = self._socket.getpeercert(binary_form=True)
        assert certificate is not None, "a server without a certificate fails the handshake"
        return certificate

    async def send(self, octets: bytes) -> bytes:
        """Send all *octets*; return what was said before all were read (nearly always nothing).

        A receiver that refuses a large body answers early and stops reading: the rest is then not sent.
        """
        while True:
            try:
                # OpenSSL takes all or nothing here, and wants the same octets again after "nothing".
                self._socket.send(octets)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await _wait_either(self._socket)
                if said := self._said_early():
                    return said
            else:
                return b""

    async def receive(self) -> bytes:
        """Return the next octets, empty at the end of the connection, with or without a closing alert."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(_RECEIVE_OCTETS)
            except ssl.SSLWantReadError:
                continue  # half a record, or a session ticket
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._socket)

    def stale(self) -> bool:
        """Say whether something came while nobody asked: the end, a reset, or octets that answer nothing."""
        if self._closed or not self._poll.poll(0):
            return self._closed
        try:
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            return False  # TLS's own business, such as a late session ticket
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Close at once, without a closing alert: waiting for the other side's is what hangs."""
        if not self._closed:
            self._closed = True
            self._socket.close()

    def _said_early(self) -> bytes:
        try:
            said = self._socket.recv(_RECEIVE_OCTETS)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        if not said:
            raise ConnectionResetError("the receiver closed the connection before it had read the request")
        return said


async def _wait_either(tls: ssl.SSLSocket) -> None:
    async with trio.open_nursery() as nursery:

        async def readable() -> None:
            await trio.lowlevel.wait_readable(tls)
            nursery.cancel_scope.cancel()

        nursery.start_soon(readable)
        await trio.lowlevel.wait_writable(tls)
        nursery.cancel_scope.cancel()
