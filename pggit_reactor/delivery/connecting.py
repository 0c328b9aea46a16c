"""Opens TCP connections to addresses that were judged, by number.

Several addresses are raced as RFC 8305 says: the next one starts when the last has failed or has been silent
for a quarter of a second.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import chain, zip_longest
from typing import Final

import trio

from pggit_reactor.delivery.failures import AttemptError, connect_failed

HEAD_START_SECONDS: Final = 0.25  # RFC 8305, section 5
ADDRESSES_TRIED_MAX: Final = 8

Address = IPv4Address | IPv6Address


async def connect_any(addresses: Sequence[Address], port: int) -> tuple[socket.socket, str]:
    """Return the first connection that opens, and the address it leads to."""
    assert addresses, "judge_addresses refuses an empty answer"
    if len(addresses) == 1:
        return await _connect(addresses[0], port)
    return await _race(interleaved(addresses)[:ADDRESSES_TRIED_MAX], port)


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


def interleaved(addresses: Sequence[Address]) -> tuple[Address, ...]:
    """Return *addresses* with the families taking turns, that of the first first (RFC 8305, section 4)."""
    first = [address for address in addresses if address.version == addresses[0].version]
    second = [address for address in addresses if address.version != addresses[0].version]
    return tuple(
        address for address in chain.from_iterable(zip_longest(first, second)) if address is not None
    )
