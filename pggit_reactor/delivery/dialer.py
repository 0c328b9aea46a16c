"""Connects to judged addresses and to no other, and makes sure who is there.

Every address that the name has now is judged (core.url_policy) before any is tried; the socket is then
connected to one of those addresses by number, by us or by a forward proxy, so that no second look-up can slip
another one in. TLS verifies the name of the URL (or its address, where the URL has one), whatever address was
connected to.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from pggit_reactor.core.model import FailureKind
from pggit_reactor.core.pins import pin_of
from pggit_reactor.core.url_policy import EgressRules, Target
from pggit_reactor.delivery.connecting import Address, connect_any
from pggit_reactor.delivery.failures import AttemptError, handshake_failed, pin_mismatch
from pggit_reactor.delivery.resolver import Resolver
from pggit_reactor.delivery.tls import TlsContexts, TlsPolicy
from pggit_reactor.delivery.tunnel import open_tunnel
from pggit_reactor.delivery.vetting import vet
from pggit_reactor.delivery.wire import Wire
from pggit_reactor.errors import UrlRefusedError

Mark = Callable[[str], None]


class Dialer:
    """Opens connections under one set of egress rules."""

    def __init__(self, *, rules: EgressRules, resolver: Resolver, contexts: TlsContexts) -> None:
        self._rules = rules
        self._resolver = resolver
        self._contexts = contexts

    async def dial(self, target: Target, tls: TlsPolicy, mark: Mark) -> Wire:
        """Return a connection to *target*, verified as *tls* asks; *mark* hears of each phase as it ends.

        Raises `AttemptError`. No deadline of its own; cancelling leaves nothing open.
        """
        addresses = await self._judged(target)
        mark("resolved")
        raw, address = await self._connected(addresses, target.port)
        mark("connected")
        wire = await self._secured(raw, target, tls, address)
        mark("secured")
        return wire

    async def _connected(self, addresses: Sequence[Address], port: int) -> tuple[socket.socket, str]:
        if self._rules.proxy is None:
            return await connect_any(addresses, port)
        return await open_tunnel(self._rules.proxy, addresses, port, self._resolver)

    async def _secured(self, raw: socket.socket, target: Target, tls: TlsPolicy, address: str) -> Wire:
        # A literal is verified as an address and sent no SNI; OpenSSL tells them apart by the text.
        host = target.host if target.literal is None else str(target.literal)
        try:
            context = self._contexts.context(tls)
        except AttemptError:
            raw.close()
            raise
        try:
            wire = await Wire.secure(raw, context, host=host, address=address)
        except OSError as error:
            raise handshake_failed(target.host, error) from error
        if tls.pins and (seen := pin_of(wire.peer_certificate())) not in tls.pins:
            wire.close()
            raise pin_mismatch(target.host, seen)
        return wire

    async def _judged(self, target: Target) -> tuple[Address, ...]:
        try:
            return await vet(target, self._rules, self._resolver)
        except UrlRefusedError as error:
            raise AttemptError(FailureKind.URL_REFUSED, str(error)) from error
