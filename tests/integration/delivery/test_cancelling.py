"""Cancelled at any await, an attempt leaves no connection behind: neither open nor in the pool."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pggit_reactor.testing.receiver import Behaviour, Greeting, Then, early, hang, raw


async def cancel_when(ready, post) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(post)
        await ready()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_in_the_handshake(receiver, sender):
    receiver.greet(Greeting.STALL_IN_HANDSHAKE)

    await cancel_when(lambda: receiver.wait_connections(1), sender.post)

    with trio.fail_after(5):
        await receiver.wait_open(0)


async def test_while_the_body_is_being_sent(receiver, sender):
    async def leave_unread(peer):
        await gone.wait()

    gone = trio.Event()
    receiver.script("/", early(Behaviour(leave_unread)))

    await cancel_when(lambda: receiver.wait_for(1), lambda: sender.post("/", b"x" * 30_000_000))
    gone.set()

    with trio.fail_after(5):
        await receiver.wait_open(0)
    assert sender.transport.idle_connections == 0


@pytest.mark.parametrize("kept", [False, True])
async def test_while_waiting_for_the_answer(receiver, sender, kept):
    if kept:
        await sender.post("/warm-up")
    receiver.script("/", hang())

    await cancel_when(lambda: receiver.wait_for(1, path="/"), sender.post)

    with trio.fail_after(5):
        await receiver.wait_open(0)
    assert sender.transport.idle_connections == 0
    assert not (await sender.post()).reused


@pytest.mark.parametrize("octets", [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_in_the_middle_of_the_answer(receiver, sender, octets):
    receiver.script("/", raw(octets, then=Then.HANG))

    await cancel_when(lambda: receiver.wait_for(1), sender.post)

    with trio.fail_after(5):
        await receiver.wait_open(0)
    assert sender.transport.idle_connections == 0


async def test_before_it_began(receiver, sender):
    with trio.CancelScope() as scope:
        scope.cancel()
        await sender.post()

    assert scope.cancelled_caught
    with trio.fail_after(5):
        await receiver.wait_open(0)


async def test_a_storm_of_cancellations_leaves_the_pool_whole(receiver, sender):
    """Cut wherever it falls: afterwards every connection that is kept answers for itself."""
    async with trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            with trio.move_on_after(number % 20 * 0.0002):
                await sender.post(f"/storm/{number}", str(number).encode())

        for number in range(200):
            nursery.start_soon(one, number)

    results = [await sender.post("/after", str(number).encode()) for number in range(20)]

    assert [result.outcome.status for result in results] == [200] * 20
    assert [request.body for request in receiver.requests_for("/after")] == [
        str(number).encode() for number in range(20)
    ]
