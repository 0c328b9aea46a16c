"""The proxy of the testing kit does what it says: other fault tests lean on it."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from pggit_reactor.testing.faults import Direction, open_proxy

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


@pytest.fixture
async def echo(nursery):
    """A server that sends back what it gets; returns its port."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            async for octets in stream:
                await stream.send_all(octets)
        except trio.BrokenResourceError:
            pass

    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    return listeners[0].socket.getsockname()[1]


@pytest.fixture
async def proxy(echo):
    async with open_proxy("127.0.0.1", echo) as proxy:
        yield proxy


async def connect(proxy) -> trio.SocketStream:
    return await trio.open_tcp_stream(proxy.host, proxy.port)


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    octets = b""
    while len(octets) < count and (piece := await stream.receive_some()):
        octets += piece
    return octets


async def silent(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.1):
        await stream.receive_some()
        return False
    return True


async def test_without_a_fault_all_goes_through_both_ways_and_ends_as_it_should(proxy):
    payload = b"x" * 1_000_000
    async with await connect(proxy) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(payload)
            await stream.send_eof()

        nursery.start_soon(send)
        assert await receive(stream, len(payload) + 1) == payload

    assert proxy.octets == {TO_SERVER: 1_000_000, TO_CLIENT: 1_000_000}
    with trio.fail_after(5):
        await proxy.wait_open(0)


async def test_cut_resets_what_is_open_and_lets_new_connections_be(proxy):
    async with await connect(proxy) as stream:
        await stream.send_all(b"x")
        await receive(stream, 1)
        proxy.cut()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()

    async with await connect(proxy) as stream:
        await stream.send_all(b"x")
        assert await receive(stream, 1) == b"x"


async def test_refused_connections_come_to_nothing_until_healed(proxy):
    proxy.refuse()
    async with await connect(proxy) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()

    proxy.heal()
    async with await connect(proxy) as stream:
        await stream.send_all(b"x")
        assert await receive(stream, 1) == b"x"


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT, Direction.BOTH])
async def test_what_is_stalled_comes_later_and_what_is_swallowed_never(proxy, direction):
    async with await connect(proxy) as stream:
        proxy.stall(direction)
        await stream.send_all(b"later")
        assert await silent(stream)
        proxy.heal()
        assert await receive(stream, 5) == b"later"

        proxy.swallow(direction)
        await stream.send_all(b"never")
        assert await silent(stream)
        proxy.heal()
        await stream.send_all(b"again")
        assert await receive(stream, 5) == b"again"


@pytest.mark.parametrize("octets", [0, 1, 5])
@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
async def test_cut_after_lets_so_many_octets_through_and_no_more(proxy, octets, direction):
    proxy.cut_after(octets, direction)
    async with await connect(proxy) as stream:
        await stream.send_all(b"0123456789")
        with pytest.raises(trio.BrokenResourceError):
            await receive(stream, 10)

    assert proxy.octets[direction] == octets


async def test_slow_takes_the_time_that_its_rate_says(proxy):
    proxy.slow(10_000, TO_CLIENT)
    async with await connect(proxy) as stream:
        started = trio.current_time()
        await stream.send_all(b"x" * 2000)
        await receive(stream, 2000)

    assert trio.current_time() - started >= 0.2


async def test_a_server_that_is_gone_is_a_reset(nursery):
    async with open_proxy("127.0.0.1", 1) as proxy, await connect(proxy) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
