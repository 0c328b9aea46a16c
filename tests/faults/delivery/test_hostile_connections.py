"""What goes wrong before a request can be sent, and connections that die while they are kept."""

from __future__ import annotations

import socket
import ssl
import warnings

import pytest
import trio

from pggit_reactor.core.egress import EgressRules
from pggit_reactor.core.model import Answer, AttemptFailure, FailureKind
from pggit_reactor.delivery.sender import open_transport
from pggit_reactor.errors import ConfigurationError
from pggit_reactor.testing.faults import Direction, open_proxy
from pggit_reactor.testing.receiver import (
    Behaviour,
    Certificate,
    Greeting,
    Then,
    answer,
    gated,
    hang_up,
    open_receiver,
    raw,
)
from pggit_reactor.testing.senders import open_sender

DEADLINE = 0.3
SLACK = 2.0

GREETINGS = {
    Greeting.RESET_AT_ACCEPT: (FailureKind.RESET, "cut during the TLS handshake"),
    Greeting.CLOSE_AT_ACCEPT: (FailureKind.RESET, "cut during the TLS handshake"),
    Greeting.RESET_IN_HANDSHAKE: (FailureKind.RESET, "cut during the TLS handshake"),
    Greeting.CLOSE_IN_HANDSHAKE: (FailureKind.RESET, "cut during the TLS handshake"),
    Greeting.STALL_IN_HANDSHAKE: (FailureKind.TIMEOUT, "in the TLS handshake"),
    Greeting.PLAIN_HTTP: (FailureKind.TLS, "does not speak TLS"),
    Greeting.GARBAGE: (FailureKind.TLS, "TLS"),
    Greeting.REFUSE_VERSION: (FailureKind.TLS, "no version of TLS that we accept"),
    Greeting.OLD_VERSION: (FailureKind.TLS, "no version of TLS that we accept"),
    Greeting.REFUSE_HANDSHAKE: (FailureKind.TLS, "refused the handshake"),
}


@pytest.mark.parametrize("greeting", GREETINGS)
async def test_a_connection_that_comes_to_nothing_fails_for_its_own_reason(receiver, sender, greeting):
    kind, words = GREETINGS[greeting]
    receiver.greet(greeting)

    with trio.fail_after(DEADLINE + SLACK):
        result = await sender.post(deadline_seconds=DEADLINE)
        await receiver.wait_open(0)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is kind
    assert words in result.outcome.detail
    assert result.phases.sent is None
    assert receiver.connection_count == 1


CERTIFICATES = {
    Certificate.EXPIRED: "expired",
    Certificate.NOT_YET_VALID: "not yet valid",
    Certificate.WRONG_NAME: "another",
    Certificate.SELF_SIGNED: "self-signed",
    Certificate.UNTRUSTED: "not trusted",
}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("certificate", CERTIFICATES)
async def test_a_bad_certificate_is_refused_by_name_before_anything_is_sent(certificate, host):
    async with open_receiver(certificate=certificate) as receiver, open_sender(receiver) as sender:
        result = await sender.post(host=host, body=b"payload")
        await receiver.wait_open(0)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.TLS
    assert CERTIFICATES[certificate] in result.outcome.detail
    assert receiver.requests == []


async def test_tls_1_2_is_good_enough():
    async with (
        open_receiver(tls_version_max=ssl.TLSVersion.TLSv1_2) as receiver,
        open_sender(receiver) as sender,
    ):
        results = [await sender.post() for _ in range(2)]

    assert [result.outcome.status for result in results] == [200, 200]
    assert results[1].reused


async def test_a_port_where_nobody_listens_is_a_refused_connection(receiver, sender):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        result = await sender.post(port=unused.getsockname()[1])

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.CONNECT
    assert result.outcome.detail.endswith("connection refused")


async def test_a_kept_connection_that_the_receiver_closes_is_replaced_unnoticed(receiver, sender):
    receiver.script("/", answer(200, then=Then.CLOSE))
    await sender.post()
    await receiver.wait_open(0)

    result = await sender.post()

    assert result.outcome.status == 200
    assert (result.reused, result.resent) == (False, False)
    assert receiver.connection_count == 2


@pytest.mark.parametrize("end", [Then.CLOSE, Then.RESET])
async def test_a_request_that_dies_with_a_kept_connection_is_sent_once_more(receiver, sender, end):
    """The receiver closes just when the request is on its way: no staleness check can see that."""
    await sender.post("/first")
    receiver.script("/second", raw(then=end), answer(200))

    result = await sender.post("/second", b"the same")

    assert result.outcome.status == 200
    assert result.resent
    first, second = receiver.requests_for("/second")
    assert (first.body, first.headers) == (second.body, second.headers)
    assert first.connection != second.connection


async def test_it_is_sent_once_more_and_not_twice(receiver, sender):
    await sender.post("/first")
    receiver.script("/second", hang_up(), hang_up(), answer(200))

    result = await sender.post("/second")

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.RESET
    assert result.resent
    assert len(receiver.requests_for("/second")) == 2


@pytest.mark.parametrize("octets", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"garbage"])
async def test_after_one_octet_of_an_answer_nothing_is_sent_again(receiver, sender, octets):
    await sender.post("/first")
    receiver.script("/second", raw(octets))

    result = await sender.post("/second")

    assert isinstance(result.outcome, AttemptFailure)
    assert (result.reused, result.resent) == (True, False)
    assert len(receiver.requests_for("/second")) == 1


async def test_a_request_that_times_out_on_a_kept_connection_is_not_sent_again(receiver, sender):
    await sender.post("/first")
    receiver.script("/second", raw(then=Then.HANG))

    result = await sender.post("/second", deadline_seconds=DEADLINE)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.TIMEOUT
    assert len(receiver.requests_for("/second")) == 1


async def test_all_kept_connections_cut_at_once_cost_no_delivery(receiver, sender):
    async def post(answers: list[object]) -> None:
        answers.append((await sender.post()).outcome.status)

    gate, answers = trio.Event(), []
    receiver.script("/", *[gated(gate, answer(200))] * 10)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(post, answers)
        await receiver.wait_for(10)
        gate.set()
    assert sender.transport.idle_connections == 10

    receiver.reset_all()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(post, answers)

    assert answers == [200] * 20


async def test_octets_that_nobody_asked_for_end_a_kept_connection(receiver, sender):
    """Else they would be taken for the answer to the next request."""
    speak, spoken = trio.Event(), trio.Event()

    async def answer_and_more(peer):
        await answer(200).act(peer)
        await speak.wait()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        spoken.set()
        await peer.wait_gone()

    receiver.script("/", Behaviour(answer_and_more))
    await sender.post("/")
    speak.set()
    await spoken.wait()

    result = await sender.post("/next")

    assert result.outcome.excerpt == "ok"
    assert not result.reused
    assert receiver.connection_count == 2


async def test_an_answer_cut_in_mid_stream_by_the_network_is_a_reset(receiver):
    async with (
        open_proxy("127.0.0.1", receiver.port) as proxy,
        open_sender(receiver) as sender,
    ):
        await sender.post(port=proxy.port)
        proxy.cut()

        result = await sender.post(port=proxy.port)

        assert result.outcome.status == 200
        assert proxy.connection_count == 2


async def test_a_network_that_swallows_everything_is_a_timeout(receiver):
    async with (
        open_proxy("127.0.0.1", receiver.port) as proxy,
        open_sender(receiver) as sender,
    ):
        proxy.swallow()
        result = await sender.post(port=proxy.port, deadline_seconds=DEADLINE)
        proxy.heal()
        after = await sender.post(port=proxy.port)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.TIMEOUT
    assert isinstance(after.outcome, Answer)


@pytest.mark.parametrize("octets", [0, 1, 100, 700, 1200, 1700])
async def test_wherever_the_network_cuts_the_attempt_fails_cleanly_and_the_next_succeeds(receiver, octets):
    async with (
        open_proxy("127.0.0.1", receiver.port) as proxy,
        open_sender(receiver) as sender,
    ):
        proxy.cut_after(octets, Direction.TO_CLIENT)
        result = await sender.post(port=proxy.port, deadline_seconds=2)
        proxy.heal()
        after = await sender.post(port=proxy.port)

    if isinstance(result.outcome, AttemptFailure):
        assert result.outcome.kind is FailureKind.RESET
    assert isinstance(after.outcome, Answer)


async def test_a_context_that_would_agree_on_less_than_tls_1_2_is_refused():
    lax = ssl.create_default_context()
    with warnings.catch_warnings(action="ignore"):  # Python itself warns of it.
        lax.minimum_version = ssl.TLSVersion.TLSv1_1

    with pytest.raises(ConfigurationError, match="TLSv1_2"):
        async with open_transport(EgressRules.parse(), make_context=lambda: lax):
            pytest.fail("it was opened")
