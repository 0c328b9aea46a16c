"""From a name to its addresses, in threads, since that is where getaddrinfo lives.

A name server that does not answer holds a thread for half a minute, and nothing can take it back. Whoever may
register webhooks chooses the names, and so the name servers. So that nobody's names can stop those of others:

- Look-ups of one name share a thread, whoever asks and for whatever port.
- There are lanes, each with a few threads of its own: for names that were quick the last time, for new ones,
  for those that were slow. A name that hangs takes a thread from its like, and never from a name that is
  known to be quick.
- A look-up that takes over a second makes its name slow, whether or not anybody still waits for it, and gives
  its place in its lane to the next: its thread is abandoned, and counted. Only where too many are
  abandoned do places stay taken; names that were slow already may use up half of that and no more.
- What waits for a place is a bounded queue, and every asker has a deadline.

Trio's own threads (`trio.to_thread`), which the rest of the program uses, are not touched.
"""

from __future__ import annotations

import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Final, Protocol

import attrs
import outcome
import trio

from pggit_reactor.core.model import FailureKind
from pggit_reactor.delivery.failures import AttemptError, look_up_failed

_NAMES_MAX: Final = 8192
_ADDRESSES_MAX: Final = 64
_SOON_SECONDS: Final = 0.001

Look = Callable[[str], Sequence[str]]


class Resolver(Protocol):
    """Where addresses come from. They are judged by whoever asked, never here."""

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """Return every address of *host*; raise `AttemptError` (dns) or `OSError` where there is none."""
        ...


class Past(Enum):
    """What a name did the last time."""

    QUICK = "quick"
    NEW = "new"
    SLOW = "slow"


@attrs.frozen(kw_only=True)
class ResolverLimits:
    """Threads and times. In all there are never more threads than the four numbers make together."""

    quick_threads: int = 16
    new_threads: int = 12
    slow_threads: int = 4
    abandoned_threads: int = 32
    """Look-ups that were slow beyond expectation and lost their places in the other lanes."""
    queued: int = 4096
    """Names that wait for a place."""
    slow_after_seconds: float = 1.0
    look_up_seconds: float = 10.0
    """How long an asker waits, in the queue and for the answer."""

    def threads(self, past: Past) -> int:
        """Return how many look-ups of such names run at once."""
        return {Past.QUICK: self.quick_threads, Past.NEW: self.new_threads, Past.SLOW: self.slow_threads}[
            past
        ]


@attrs.define(eq=False)
class _LookUp:
    """One look-up, that waits for a place or runs in a thread, and how many wait for it."""

    host: str
    past: Past
    askers: int = 0
    started_at: float | None = None
    abandoned: bool = False
    done: trio.Event = attrs.field(factory=trio.Event)
    result: outcome.Outcome[Sequence[str]] | None = None


@attrs.define(eq=False)
class _Lane:
    """The look-ups of names with one past."""

    threads: int
    running: OrderedDict[_LookUp, None] = attrs.field(factory=OrderedDict)
    """In the order of their start; those that lost their place are not here."""
    queue: deque[_LookUp] = attrs.field(factory=deque)


class SystemResolver:
    """The machine's own resolver (getaddrinfo: /etc/hosts, DNS, whatever nsswitch says), aliases followed.

    No cache of addresses: every new connection asks anew, so that a changed record counts at once. Cancelling
    an asker leaves the look-up running for the others who wait for it.
    """

    def __init__(self, *, limits: ResolverLimits | None = None, look: Look | None = None) -> None:
        self._limits = limits or ResolverLimits()
        self._look = look or _getaddrinfo
        self._lanes = {past: _Lane(self._limits.threads(past)) for past in Past}
        self._known: dict[str, _LookUp] = {}
        self._abandoned_count = 0
        self._pasts: dict[Past, OrderedDict[str, None]] = {
            Past.QUICK: OrderedDict(),
            Past.SLOW: OrderedDict(),
        }

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """Return every address of *host*, in the system's order of preference; *port* changes nothing."""
        look_up = self._join(host)
        try:
            with trio.move_on_after(self._limits.look_up_seconds):
                await self._finished(look_up)
                assert look_up.result is not None
                return _addresses(host, look_up.result)
        finally:
            look_up.askers -= 1
        what = "waited for others" if look_up.started_at is None else "took"
        limit = f"longer than {self._limits.look_up_seconds:g} s"
        raise AttemptError(FailureKind.DNS, f"{host}: the look-up {what} {limit}")

    def _join(self, host: str) -> _LookUp:
        """Return the look-up of this name that runs or waits, or a new one."""
        look_up = self._known.get(host)
        if look_up is None:
            if sum(len(lane.queue) for lane in self._lanes.values()) >= self._limits.queued:
                raise AttemptError(FailureKind.DNS, f"{host}: too many look-ups wait already")
            look_up = self._known[host] = _LookUp(host, self._past_of(host))
            self._lanes[look_up.past].queue.append(look_up)
        look_up.askers += 1
        self._advance()
        return look_up

    async def _finished(self, look_up: _LookUp) -> None:
        """Wait for *look_up*. Whoever waits also sees to it that the slow ones lose their places in time."""
        await trio.lowlevel.checkpoint()
        while not look_up.done.is_set():
            with trio.CancelScope(deadline=self._next_overdue()):
                await look_up.done.wait()
            self._advance()

    # ---- places

    def _advance(self) -> None:
        """Take the places of look-ups that are overdue, and start what waits for one. Never blocks."""
        for past, lane in self._lanes.items():
            self._abandon_overdue(lane, self._abandoned_max(past))
            while lane.queue and len(lane.running) < lane.threads:
                look_up = lane.queue.popleft()
                if look_up.askers:
                    self._start(look_up, lane)
                else:
                    del self._known[look_up.host]  # everybody has gone meanwhile

    def _abandoned_max(self, past: Past) -> int:
        allowed = self._limits.abandoned_threads
        return allowed // 2 if past is Past.SLOW else allowed

    def _abandon_overdue(self, lane: _Lane, abandoned_max: int) -> None:
        overdue_before = trio.current_time() - self._limits.slow_after_seconds
        while lane.running and self._abandoned_count < abandoned_max:
            look_up = next(iter(lane.running))
            assert look_up.started_at is not None
            if look_up.started_at > overdue_before:
                return
            del lane.running[look_up]
            look_up.abandoned = True
            self._abandoned_count += 1
            self._note(look_up.host, Past.SLOW)

    def _next_overdue(self) -> float:
        """Return when the next look-up may lose its place."""
        first = [
            next(iter(lane.running), None)
            for past, lane in self._lanes.items()
            if self._abandoned_count < self._abandoned_max(past)
        ]
        starts = [look_up.started_at for look_up in first if look_up and look_up.started_at is not None]
        # A little later, or rounding could make it look early.
        return min(starts, default=trio.current_time()) + self._limits.slow_after_seconds + _SOON_SECONDS

    def _start(self, look_up: _LookUp, lane: _Lane) -> None:
        look_up.started_at = trio.current_time()
        lane.running[look_up] = None
        token = trio.lowlevel.current_trio_token()

        def deliver(result: outcome.Outcome[Sequence[str]]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._finish, look_up, result)

        name = f"look-up of {look_up.host}"
        trio.lowlevel.start_thread_soon(lambda: self._look(look_up.host), deliver, name=name)

    def _finish(self, look_up: _LookUp, result: outcome.Outcome[Sequence[str]]) -> None:
        look_up.result = result
        del self._known[look_up.host]
        if look_up.abandoned:
            self._abandoned_count -= 1
        else:
            del self._lanes[look_up.past].running[look_up]
        assert look_up.started_at is not None
        if trio.current_time() - look_up.started_at > self._limits.slow_after_seconds:
            self._note(look_up.host, Past.SLOW)
        elif isinstance(result, outcome.Value):
            self._note(look_up.host, Past.QUICK)
        else:
            self._note(look_up.host, Past.NEW)
        look_up.done.set()
        self._advance()

    # ---- pasts

    def _past_of(self, host: str) -> Past:
        return next((past for past, names in self._pasts.items() if host in names), Past.NEW)

    def _note(self, host: str, now: Past) -> None:
        for past, names in self._pasts.items():
            names.pop(host, None)
            if past is now:
                names[host] = None
                while len(names) > _NAMES_MAX:
                    names.popitem(last=False)


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


def _getaddrinfo(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
