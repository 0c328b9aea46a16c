"""Keep-alive connections, a stack for each key, all in constant time.

One order serves three limits: connections become idle in the order of `_idle`, so the first there is at
once the first to grow too old, the one to give up when there are too many, and the bottom of its own key's
stack. Taking is from the top: the connection used last is the one most likely to be still open.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final

import attrs
import trio

from pggit_reactor.delivery.wire import Wire

IDLE_PER_KEY_MAX: Final = 32
IDLE_MAX: Final = 512
IDLE_SECONDS_MAX: Final = 50.0  # load balancers commonly close after 60: better to be first
RETIRED_KEYS_MAX: Final = 4096
AGE_SECONDS_MAX: Final = 600.0  # then the name is looked up and judged anew


@attrs.frozen(kw_only=True)
class PoolLimits:
    """How many connections wait for their next request, and for how long."""

    idle_per_key_max: int = IDLE_PER_KEY_MAX
    idle_max: int = IDLE_MAX
    idle_seconds_max: float = IDLE_SECONDS_MAX
    age_seconds_max: float = AGE_SECONDS_MAX


class ConnectionPool:
    """Holds idle connections only; one that is in use belongs to its attempt. No method awaits anything."""

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        self._idle: OrderedDict[Wire, tuple[Hashable, float]] = OrderedDict()
        self._stacks: dict[Hashable, deque[Wire]] = {}
        self._retired: OrderedDict[Hashable, None] = OrderedDict()
        self._closed = False

    @property
    def idle_count(self) -> int:
        """Return how many connections wait."""
        return len(self._idle)

    def take(self, key: Hashable) -> Wire | None:
        """Return a connection of *key* on which nothing has happened since it was given, or None."""
        self.close_expired()
        while (stack := self._stacks.get(key)) is not None:
            wire = stack.pop()
            if not stack:
                del self._stacks[key]
            del self._idle[wire]
            if not wire.stale():
                return wire
            wire.close()
        return None

    def give(self, key: Hashable, wire: Wire) -> None:
        """Keep *wire* for the next request of *key*, or close it where a limit says so."""
        now = trio.current_time()
        too_old = now - wire.opened_at >= self.limits.age_seconds_max
        if self._closed or too_old or key in self._retired:
            wire.close()
            return
        stack = self._stacks.setdefault(key, deque())
        stack.append(wire)
        self._idle[wire] = (key, now + self.limits.idle_seconds_max)
        if len(stack) > self.limits.idle_per_key_max:
            self._close(stack[0])
        while len(self._idle) > self.limits.idle_max:
            self._close(next(iter(self._idle)))

    def replace(self, old: Hashable, new: Hashable) -> None:
        """Close what waits for *old*, and whatever is given back for it later: its requests go by *new* now."""
        while (stack := self._stacks.get(old)) is not None:
            self._close(stack[0])
        self._retired[old] = None
        self._retired.pop(new, None)
        while len(self._retired) > RETIRED_KEYS_MAX:
            # What such an old attempt gives back now is kept, and used by nobody, until it expires.
            self._retired.popitem(last=False)

    def close_expired(self) -> None:
        """Close what has been idle for too long."""
        now = trio.current_time()
        while self._idle:
            wire, (_, expires_at) = next(iter(self._idle.items()))
            if expires_at > now:
                return
            self._close(wire)

    def close_idle(self) -> None:
        """Close all that wait."""
        while self._idle:
            self._close(next(iter(self._idle)))

    def close(self) -> None:
        """Close all that wait, and from now on whatever is given."""
        self._closed = True
        self.close_idle()

    def _close(self, wire: Wire) -> None:
        """Close *wire*, which is at the bottom of its stack."""
        key, _ = self._idle.pop(wire)
        stack = self._stacks[key]
        bottom = stack.popleft()
        assert bottom is wire
        if not stack:
            del self._stacks[key]
        wire.close()
