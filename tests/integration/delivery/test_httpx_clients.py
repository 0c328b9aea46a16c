"""The same sender under any httpx client: same guards, same limits, httpx's own errors."""

from __future__ import annotations

import httpx
import pytest

from pggit_reactor.testing.receiver import Certificate, Then, answer, hang, open_receiver, raw, redirect
from pggit_reactor.testing.senders import open_sender


@pytest.fixture
async def client(sender):
    async with httpx.AsyncClient(transport=sender.transport, timeout=1) as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_any_method_works_and_keeps_the_connection(receiver, client, method):
    receiver.script("/", *[answer(201, body=b"" if method == "HEAD" else b"made")] * 2)

    answers = [await client.request(method, receiver.url("/?q=1"), content=b"in") for _ in range(2)]

    assert [response.status_code for response in answers] == [201, 201]
    assert [request.method for request in receiver.requests] == [method, method]
    assert receiver.requests[0].body == b"in"
    if method != "HEAD":
        assert answers[0].content == b"made"
        assert receiver.connection_count == 1


async def test_streamed_bodies_and_json_arrive(receiver, client):
    async def stream():
        yield b"a"
        yield b"b"

    await client.post(receiver.url("/stream"), content=stream())
    await client.post(receiver.url("/json"), json={"a": 1})

    assert receiver.requests[0].body == b"ab"
    assert receiver.requests[0].header("transfer-encoding") is None
    assert receiver.requests[1].header("content-type") == "application/json"


async def test_nothing_is_decompressed(receiver, client):
    receiver.script("/", answer(200, [("Content-Encoding", "gzip")], b"not gzip"))

    response = await client.get(receiver.url("/"))

    assert response.content == b"not gzip"
    assert receiver.requests[0].header("accept-encoding") == "identity"


async def test_a_redirect_to_a_forbidden_place_is_refused_even_where_the_client_follows(receiver, client):
    receiver.script("/", redirect("https://169.254.169.254/latest"))

    with pytest.raises(httpx.UnsupportedProtocol, match=r"169\.254"):
        await client.get(receiver.url("/"), follow_redirects=True)


@pytest.mark.parametrize("url", ["http://example.com/", "https://10.0.0.1/", "https://localhost.:1/"])
async def test_policy_counts_for_clients_too(client, url):
    with pytest.raises(httpx.UnsupportedProtocol):
        await client.get(url)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (hang(), httpx.ReadTimeout),
        (raw(then=Then.RESET), httpx.ReadError),
        (raw(b"garbage"), httpx.RemoteProtocolError),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), httpx.ReadError),
        (answer(200, body=b"x" * 70_000), httpx.ReadError),
    ],
)
async def test_failures_are_those_that_httpx_names(receiver, client, behaviour, error):
    receiver.script("/", behaviour)

    with pytest.raises(error):
        await client.get(receiver.url("/"), extensions={"deadline_seconds": 1.0})


async def test_a_bad_certificate_is_a_connect_error_with_its_reason():
    async with (
        open_receiver(certificate=Certificate.EXPIRED) as receiver,
        open_sender(receiver) as sender,
        httpx.AsyncClient(transport=sender.transport) as client,
    ):
        with pytest.raises(httpx.ConnectError, match="expired"):
            await client.get(receiver.url("/"))


async def test_a_client_that_closes_leaves_the_sender_at_work(receiver, sender):
    async with httpx.AsyncClient(transport=sender.transport) as client:
        await client.get(receiver.url("/"))

    await sender.post()
    assert (await sender.post()).reused
