"""Drives psycopg's generators with Trio.

psycopg writes the protocol as generators that yield what they wait for (`psycopg.waiting.Wait`) and are sent
what came (`psycopg.waiting.Ready`); its own asyncio and blocking drivers are thirty lines each, and these are
ours. None of it is documented, so the version of psycopg is bounded, and
`tests/integration/db/test_psycopg_pieces.py` names each piece.
"""

from __future__ import annotations

import select
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, TypeVar, cast

import trio
from psycopg import OperationalError
from psycopg.waiting import Ready, Wait
from trio.lowlevel import wait_readable, wait_writable

T = TypeVar("T")

# Rounds of a writer that the socket never makes wait, after which it waits through the event loop, where the
# other tasks have their turn.
EAGER_ROUNDS_MAX: Final = 64

_READ: Final = Wait.R
_READ_BIT: Final = int(Wait.R)
_WRITE_BIT: Final = int(Wait.W)
_READY_READ: Final = Ready.R
_READY_READ_BIT: Final = int(Ready.R)
_READY_WRITE_BIT: Final = int(Ready.W)


async def drive(generator: Generator[Any, Any, T], descriptor: int) -> T:
    """Run *generator* to its end on the socket *descriptor* and return its value.

    Always lets other tasks run. Under cancellation the generator stays where it waits: the caller decides
    whether to close it or to drive it on.
    """
    waited = False
    rounds = 0
    try:
        state = next(generator)
        while True:
            if state == _READ:
                waited = True
                await wait_readable(descriptor)
                state = generator.send(_READY_READ)
            else:
                rounds += 1
                ready = await _ready_to_write(descriptor, state, eager=bool(rounds % EAGER_ROUNDS_MAX))
                state = generator.send(ready)
    except StopIteration as stop:
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return cast("T", stop.value)
    except (trio.ClosedResourceError, OSError) as error:
        generator.close()
        raise OperationalError("the socket of the connection was closed") from error


async def drive_connecting(generator: Generator[tuple[int, Any], Any, T]) -> T:
    """Run a *generator* that connects, and so names its socket anew at each step; return its value."""
    try:
        descriptor, state = next(generator)
        while True:
            if state == _READ:
                await wait_readable(descriptor)
                ready = _READY_READ_BIT
            else:
                ready = await _ready_to_write(descriptor, state, eager=True)
            descriptor, state = generator.send(ready)
    except StopIteration as stop:
        return cast("T", stop.value)
    except (trio.ClosedResourceError, OSError) as error:
        generator.close()
        raise OperationalError("the socket of the connection was closed") from error


async def _ready_to_write(descriptor: int, state: int, *, eager: bool) -> int:
    # A socket is nearly always writable, and asking costs far less than a round of the event loop.
    if eager and (ready := _poll(descriptor, state)):
        return ready
    if state & _READ_BIT:
        await _wait_either(descriptor)
    else:
        await wait_writable(descriptor)
    return _poll(descriptor, state)


async def _wait_either(descriptor: int) -> None:
    """Wait until *descriptor* may be read or written: Trio lets a task wait for one of them only."""
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def first(wait: Callable[[int], Awaitable[None]]) -> None:
            try:
                await wait(descriptor)
            except (trio.ClosedResourceError, OSError) as error:
                failures.append(error)
            nursery.cancel_scope.cancel()

        nursery.start_soon(first, wait_readable)
        nursery.start_soon(first, wait_writable)
    if failures:
        raise failures[0]


def _poll(descriptor: int, state: int) -> int:
    """Return what *descriptor* is ready for of what *state* asks, without waiting."""
    poll = select.poll()
    poll.register(
        descriptor,
        (select.POLLIN if state & _READ_BIT else 0) | (select.POLLOUT if state & _WRITE_BIT else 0),
    )
    ready = 0
    for _, event in poll.poll(0):
        # An error or a hang-up counts as ready: libpq finds it by the operation that it wanted to do.
        if state & _READ_BIT and event & ~select.POLLOUT:
            ready |= _READY_READ_BIT
        if state & _WRITE_BIT and event & ~select.POLLIN:
            ready |= _READY_WRITE_BIT
    return ready
