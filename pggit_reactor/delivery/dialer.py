"""Connects to judged addresses and to no other, and makes sure who is there.

Every address that the name has now is judged (core.url_policy) before any is tried; the socket is then
connected to one of those addresses by number, so that no second look-up can slip another one in. Several
addresses are raced as RFC 8305 says: the next one starts when the last has failed or has been silent for a
quarter of a second. TLS verifies the name of the URL (or its address, where the URL has one), whatever
address was connected to.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import chain, zip_longest
from typing import Final

import trio

from pggit_reactor.core.model import FailureKind
from pggit_reactor.core.pins import pin_of
from pggit_reactor.core.url_policy import EgressRules, Target
from pggit_reactor.delivery.failures import (
    AttemptError,
    connect_failed,
    handshake_failed,
    pin_mismatch,
)
from pggit_reactor.delivery.resolver import Resolver
from pggit_reactor.delivery.tls import TlsContexts, TlsPolicy
from pggit_reactor.delivery.vetting import vet
from pggit_reactor.delivery.wire import Wire
from pggit_reactor.errors import UrlRefusedError

HEAD_START_SECONDS: Final = 0.25  # RFC 8305, section 5
ADDRESSES_TRIED_MAX: Final = 8

Address = IPv4Address | IPv6Address
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
        raw, address = await _connect_any(addresses, target.port)
        mark("connected")
        wire = await self._secured(raw, target, tls, address)
        mark("secured")
        return wire

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


async def _connect_any(addresses: Sequence[Address], port: int) -> tuple[socket.socket, str]:
    """Return the first connection that opens, and the address it leads to."""
    assert addresses, "judge_addresses refuses an empty answer"
    if len(addresses) == 1:
        return await _connect(addresses[0], port)
    return await _race(_interleaved(addresses)[:ADDRESSES_TRIED_MAX], port)


async def _race(addresses: Sequence[Address], port: int) -> tuple[socket.socket, str]:
    winners: list[tuple[socket.socket, str]] = []
    failures: dict[Address, AttemptError] = {}

    async def attempt(address: Address, failed: trio.Event) -> None:
        try:
            winners.append(await _connect(address, port))
        except AttemptError as error:
            failures[address] = error
            failed.set()
        else:
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(HEAD_START_SECONDS):
                    await failed.wait()
    except BaseException:
        for raw, _ in winners:
            raw.close()
        raise
    if not winners:
        raise failures[addresses[0]]  # the reason that people expect: that of the preferred address
    for raw, _ in winners[1:]:
        raw.close()
    return winners[0]


async def _connect(address: Address, port: int) -> tuple[socket.socket, str]:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    text = str(address)
    try:
        raw = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise connect_failed(text, port, error) from error
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = raw.connect_ex((text, port))
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(raw)
            code = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        raw.close()
        raise connect_failed(text, port, error) from error
    except BaseException:
        raw.close()
        raise
    if code:
        raw.close()
        raise connect_failed(text, port, OSError(code, os.strerror(code)))
    return raw, text


def _interleaved(addresses: Sequence[Address]) -> tuple[Address, ...]:
    """Return *addresses* with the families taking turns, that of the first first (RFC 8305, section 4)."""
    first = [address for address in addresses if address.version == addresses[0].version]
    second = [address for address in addresses if address.version != addresses[0].version]
    return tuple(
        address for address in chain.from_iterable(zip_longest(first, second)) if address is not None
    )
