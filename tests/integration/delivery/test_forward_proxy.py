"""Requests through a forward proxy: it is told judged addresses, sees no request, and its failures are named."""

from __future__ import annotations

import base64
from collections import deque
from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio

from pggit_reactor.core.egress import EgressRules
from pggit_reactor.core.model import Answer, AttemptFailure, FailureKind
from pggit_reactor.core.secret import Secret
from pggit_reactor.testing.receiver import LOOPBACK_NAMES, open_receiver
from pggit_reactor.testing.senders import LOOPBACK_ALLOWED, open_sender

NAME = "hooks.example.com"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@attrs.define(eq=False)
class Proxy:
    """Answers CONNECT with what a test has put into `answers`, or with 200, and then passes octets on."""

    port: int = 0
    heads: list[str] = attrs.field(factory=list)
    octets: bytearray = attrs.field(factory=bytearray)
    answers: deque[bytes | None] = attrs.field(factory=deque)
    """None: close without an answer."""

    async def serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        self.heads.append(head.decode())
        answer = self.answers.popleft() if self.answers else ESTABLISHED
        if answer is None:
            return
        await stream.send_all(answer)
        if answer != ESTABLISHED:
            with suppress(trio.BrokenResourceError):
                await stream.receive_some(1)
            return
        host, _, port = self.heads[-1].split()[1].rpartition(":")
        with suppress(trio.BrokenResourceError):
            async with (
                await trio.open_tcp_stream(host.strip("[]"), int(port)) as onward,
                trio.open_nursery() as both,
            ):
                both.start_soon(self.pump, stream, onward, both.cancel_scope)
                both.start_soon(self.pump, onward, stream, both.cancel_scope)

    async def pump(self, source, sink, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while octets := await source.receive_some():
                self.octets += octets
                await sink.send_all(octets)
        scope.cancel()


@pytest.fixture
async def proxy():
    proxy = Proxy()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        yield proxy
        nursery.cancel_scope.cancel()


@pytest.fixture
async def receiver():
    async with open_receiver(names=(*LOOPBACK_NAMES, NAME)) as receiver:
        yield receiver


class Names:
    """A name service of one name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        return self.addresses


@asynccontextmanager
async def open_sender_through(receiver, proxy, *addresses: str, user_info: str = "", host: str = "127.0.0.1"):
    """A sender whose proxy lies where no rule would allow a receiver."""
    url = Secret(f"http://{user_info}{host}:{proxy.port}")
    rules = EgressRules.parse(unsafe_allow=f"127.0.0.1:{receiver.port},[::1]:{receiver.port}", proxy_url=url)
    async with open_sender(receiver, rules=rules, resolver=Names(*(addresses or ("127.0.0.1",)))) as sender:
        yield sender


def failure_of(result) -> str:
    assert isinstance(result.outcome, AttemptFailure), result
    assert result.outcome.kind is FailureKind.CONNECT
    return result.outcome.detail


async def test_a_request_goes_through_the_proxy_by_address_and_tls_is_with_the_receiver(receiver, proxy):
    async with open_sender_through(receiver, proxy) as sender:
        results = [await sender.post("/s3cret-path", b"s3cret-body", host=NAME) for _ in range(2)]

    assert [result.outcome.status for result in results] == [200, 200]
    assert results[0].address == "127.0.0.1"
    assert results[1].reused
    assert receiver.requests[0].header("host") == f"{NAME}:{receiver.port}"
    authority = f"127.0.0.1:{receiver.port}"
    assert proxy.heads == [f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"]
    assert b"s3cret" not in proxy.octets


async def test_a_proxy_without_a_route_to_ipv6_costs_the_next_address(receiver, proxy):
    proxy.answers.append(b"HTTP/1.1 503 No route\r\n\r\n")
    async with open_sender_through(receiver, proxy, "::1", "127.0.0.1") as sender:
        result = await sender.post(host=NAME)

    assert isinstance(result.outcome, Answer)
    assert result.address == "127.0.0.1"
    assert [head.split()[1] for head in proxy.heads] == [
        f"[::1]:{receiver.port}",
        f"127.0.0.1:{receiver.port}",
    ]


async def test_credentials_are_given_and_shown_nowhere(receiver, proxy):
    async with open_sender_through(receiver, proxy, user_info="me:hunter22@") as sender:
        await sender.post()
        proxy.answers.append(b"HTTP/1.1 407 No\r\n\r\n")
        detail = failure_of(await sender.post(key="another"))
        shown = repr(sender.rules)

    credentials = base64.b64encode(b"me:hunter22").decode()
    assert f"\r\nProxy-Authorization: Basic {credentials}\r\n" in proxy.heads[0]
    assert "wants other credentials than those of egress.proxy_url (407)" in detail
    assert "hunter22" not in detail + shown
    assert credentials not in detail + shown


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("127.0.0.1", "169.254.169.254")])
async def test_the_policy_judges_before_the_proxy_is_asked(receiver, proxy, addresses):
    async with open_sender_through(receiver, proxy, *addresses) as sender:
        result = await sender.post(host=NAME)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.URL_REFUSED
    assert proxy.heads == []


async def test_the_proxy_itself_may_have_a_name(receiver, proxy):
    async with open_sender_through(receiver, proxy, host="proxy.internal") as sender:
        result = await sender.post()

    assert isinstance(result.outcome, Answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "it does not connect to 127.0.0.1:{port}: it answered 403"),
        (b"HTTP/1.1 502 Bad gateway\r\nContent-Length: 5\r\n\r\nhello", "it answered 502"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://evil.example/\r\n\r\n", "it answered 302"),
        (None, "closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\n\r\n\r\n", "is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "octets that nobody asked for"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, "larger than 16384 octets"),
    ],
)
async def test_what_the_proxy_does_wrong_is_said_of_the_proxy(receiver, proxy, answer, words):
    proxy.answers.append(answer)
    async with open_sender_through(receiver, proxy) as sender:
        detail = failure_of(await sender.post())

    assert detail.startswith(f"the proxy http://127.0.0.1:{proxy.port}: ")
    assert words.format(port=receiver.port) in detail
    assert receiver.connection_count == 0


async def test_a_proxy_that_is_not_there_is_named(receiver):
    unused = Proxy(port=1)
    async with open_sender_through(receiver, unused) as sender:
        detail = failure_of(await sender.post())

    assert detail == "the proxy http://127.0.0.1:1: 127.0.0.1:1: connection refused"


async def test_a_proxy_whose_name_has_no_address_is_named(receiver, proxy):
    rules = EgressRules.parse(
        unsafe_allow=LOOPBACK_ALLOWED, proxy_url=Secret("http://nowhere.example.com:3128")
    )
    async with open_sender(receiver, rules=rules, resolver=Names()) as sender:
        detail = failure_of(await sender.post())

    assert detail == "the proxy http://nowhere.example.com:3128: its name has no address"


async def test_a_proxy_that_hangs_counts_against_the_deadline(receiver, proxy):
    proxy.answers.append(b"HTTP/1.1 ")
    async with open_sender_through(receiver, proxy) as sender:
        result = await sender.post(deadline_seconds=0.2)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.TIMEOUT
    assert result.outcome.detail.endswith("connecting")
