"""A way through a forward proxy: CONNECT to an address that was judged, and then the receiver's own TLS.

The proxy is told the address and never the name, so that it looks nothing up and cannot be led elsewhere; it
sees no octet of a request, for TLS is agreed on with the receiver, under the receiver's name.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

import trio

from pggit_reactor.core.forward_proxy import ForwardProxy
from pggit_reactor.core.model import FailureKind
from pggit_reactor.delivery.connecting import ADDRESSES_TRIED_MAX, Address, connect_any, interleaved
from pggit_reactor.delivery.failures import AttemptError, look_up_failed
from pggit_reactor.delivery.resolver import Resolver

HEAD_OCTETS_MAX: Final = 16 * 1024
_HEAD_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n")
_UNAUTHORIZED: Final = 407


async def open_tunnel(
    proxy: ForwardProxy, addresses: Sequence[Address], port: int, resolver: Resolver
) -> tuple[socket.socket, str]:
    """Return a connection through *proxy* to one of *addresses*, tried in turn, and which it is.

    Raises `AttemptError`, whose text begins with the proxy where the proxy is at fault.
    """
    assert addresses, "judge_addresses refuses an empty answer"
    failures = []
    for address in interleaved(addresses)[:ADDRESSES_TRIED_MAX]:
        raw = await _reach(proxy, resolver)
        try:
            status = await _connect_through(raw, proxy, address, port)
        except BaseException as error:
            raw.close()
            if isinstance(error, OSError):
                raise _failed(proxy, "the connection to it was lost") from error
            raise
        if 200 <= status <= 299:
            return raw, str(address)
        raw.close()
        failures.append(_refused(proxy, status, address, port))
        if status == _UNAUTHORIZED:
            break
    raise failures[0]  # the reason that people expect: that of the preferred address


async def _reach(proxy: ForwardProxy, resolver: Resolver) -> socket.socket:
    try:
        raw, _ = await connect_any(await _addresses(proxy, resolver), proxy.port)
    except AttemptError as error:
        raise _failed(proxy, error.failure.detail) from error
    return raw


async def _addresses(proxy: ForwardProxy, resolver: Resolver) -> Sequence[Address]:
    try:
        return (ip_address(proxy.host),)
    except ValueError:
        pass
    try:
        found = await resolver.resolve(proxy.host, proxy.port)
    except OSError as error:
        raise look_up_failed(proxy.host, error) from error
    if not found:
        raise AttemptError(FailureKind.DNS, "its name has no address")
    return tuple(map(ip_address, found))


async def _connect_through(raw: socket.socket, proxy: ForwardProxy, address: Address, port: int) -> int:
    """Ask for a connection to *address* and return the status of the answer."""
    authority = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization.reveal()}")
    await _send(raw, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    head = await _read_head(raw, proxy)
    match = _STATUS_LINE.match(head)
    if match is None:
        raise _failed(proxy, "its answer to CONNECT is not HTTP/1.1")
    status = int(match[1])
    # The receiver waits for our hello: whatever came behind the head would be the proxy's own words.
    if 200 <= status <= 299 and not head.endswith(_HEAD_END):
        raise _failed(proxy, "it sent octets that nobody asked for")
    return status


async def _send(raw: socket.socket, octets: bytes) -> None:
    while octets:
        try:
            sent = raw.send(octets)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(raw)
        else:
            octets = octets[sent:]


async def _read_head(raw: socket.socket, proxy: ForwardProxy) -> bytes:
    head = b""
    while _HEAD_END not in head:
        if len(head) >= HEAD_OCTETS_MAX:
            raise _failed(proxy, f"the head of its answer is larger than {HEAD_OCTETS_MAX} octets")
        await trio.lowlevel.wait_readable(raw)
        try:
            octets = raw.recv(HEAD_OCTETS_MAX - len(head))
        except BlockingIOError:
            continue
        if not octets:
            raise _failed(proxy, "it closed the connection without an answer")
        head += octets
    return head


def _refused(proxy: ForwardProxy, status: int, address: Address, port: int) -> AttemptError:
    where = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    if status == _UNAUTHORIZED:
        return _failed(proxy, "it wants other credentials than those of egress.proxy_url (407)")
    return _failed(proxy, f"it does not connect to {where}: it answered {status}")


def _failed(proxy: ForwardProxy, why: str) -> AttemptError:
    return AttemptError(FailureKind.CONNECT, f"the proxy {proxy}: {why}")
