"""From a name to its addresses, in threads, since that is where getaddrinfo lives.

A name server that does not answer holds a thread for half a minute, and nothing can take it back. So:
look-ups of one name share a thread, threads are bounded, askers have a deadline of their own, and a name
that overran it is from then on looked up in a lane of a few threads, so that slow names end up waiting for
each other and for nobody else.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import attrs
import outcome
import trio

from pggit_reactor.core.model import FailureKind
from pggit_reactor.delivery.failures import AttemptError, look_up_failed

LOOK_UPS_MAX: Final = 32
SLOW_LOOK_UPS_MAX: Final = 4
LOOK_UP_SECONDS: Final = 10.0
_SLOW_NAMES_MAX: Final = 4096
_ADDRESSES_MAX: Final = 64

Look = Callable[[str, int], Sequence[str]]


class Resolver(Protocol):
    """Where addresses come from. They are judged by whoever asked, never here."""

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """Return every address of *host*; raise `AttemptError` (dns) or `OSError` where there is none."""
        ...


@attrs.define(eq=False)
class _LookUp:
    """One look-up that runs in a thread, and whoever waits for it."""

    done: trio.Event = attrs.field(factory=trio.Event)
    result: outcome.Outcome[Sequence[str]] | None = None


class SystemResolver:
    """The machine's own resolver (getaddrinfo: /etc/hosts, DNS, whatever nsswitch says).

    No cache: every new connection asks anew, so that a changed record counts at once. Cancelling an asker
    leaves the look-up running for the others who wait for it.
    """

    def __init__(
        self,
        *,
        limit: int = LOOK_UPS_MAX,
        slow_limit: int = SLOW_LOOK_UPS_MAX,
        look_up_seconds: float = LOOK_UP_SECONDS,
        look: Look | None = None,
    ) -> None:
        self._look = look or _getaddrinfo
        self._look_up_seconds = look_up_seconds
        self._lane = trio.Semaphore(limit)
        self._slow_lane = trio.Semaphore(slow_limit)
        self._running: dict[tuple[str, int], _LookUp] = {}
        self._slow: OrderedDict[str, None] = OrderedDict()

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """Return every address of *host*, in the system's order of preference."""
        with trio.move_on_after(self._look_up_seconds):
            look_up = await self._join(host, port)
            await look_up.done.wait()
            assert look_up.result is not None
            self._slow.pop(host, None)
            return _addresses(host, look_up.result)
        self._note_slow(host)
        raise AttemptError(
            FailureKind.DNS, f"{host}: the look-up took longer than {self._look_up_seconds:g} s"
        )

    async def _join(self, host: str, port: int) -> _LookUp:
        """Return the look-up of this name that runs, or start one when a thread is free."""
        while (running := self._running.get((host, port))) is None:
            lane = self._slow_lane if host in self._slow else self._lane
            await lane.acquire()
            if (host, port) in self._running:
                lane.release()
                continue
            self._start(host, port, lane)
        return running

    def _start(self, host: str, port: int, lane: trio.Semaphore) -> None:
        look_up = self._running[host, port] = _LookUp()
        token = trio.lowlevel.current_trio_token()

        def finish(result: outcome.Outcome[Sequence[str]]) -> None:
            look_up.result = result
            del self._running[host, port]
            lane.release()
            look_up.done.set()

        def deliver(result: outcome.Outcome[Sequence[str]]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(finish, result)

        trio.lowlevel.start_thread_soon(lambda: self._look(host, port), deliver, name=f"look-up of {host}")

    def _note_slow(self, host: str) -> None:
        self._slow[host] = None
        self._slow.move_to_end(host)
        while len(self._slow) > _SLOW_NAMES_MAX:
            self._slow.popitem(last=False)


def _addresses(host: str, result: outcome.Outcome[Sequence[str]]) -> tuple[str, ...]:
    """Return what was found, or raise what was said; not by `unwrap`, which serves one asker only."""
    if isinstance(result, outcome.Error):
        error = result.error
        if isinstance(error, UnicodeError):  # getaddrinfo's own word for it
            raise AttemptError(FailureKind.DNS, f"{host}: not a name that DNS can hold") from error
        if isinstance(error, OSError):
            raise look_up_failed(host, error) from error
        raise error
    assert isinstance(result, outcome.Value)
    if len(result.value) > _ADDRESSES_MAX:
        raise AttemptError(FailureKind.DNS, f"{host}: more than {_ADDRESSES_MAX} addresses")
    return tuple(result.value)


def _getaddrinfo(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
