"""The state machine of a delivery: one table, and one function that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from pggit_reactor.core.model import State
from pggit_reactor.errors import IllegalTransitionError


class Event(StrEnum):
    """What can happen to a delivery."""

    ACCEPTED = "accepted"
    """A receiver answered 2xx."""
    DEFERRED = "deferred"
    """An attempt failed and another follows."""
    GAVE_UP = "gave_up"
    """No attempt follows; the row's `failed_reason` says why."""
    CANCELLED = "cancelled"
    """Somebody withdrew it; `failed_reason` is `cancelled`."""
    REPLAYED = "replayed"
    """Somebody wants it delivered, or delivered once more."""


_IN_PLAY: Final[Mapping[Event, State]] = MappingProxyType(
    {
        Event.ACCEPTED: State.DELIVERED,
        Event.DEFERRED: State.RETRYING,
        Event.GAVE_UP: State.FAILED,
        Event.CANCELLED: State.FAILED,
    }
)
_SETTLED: Final[Mapping[Event, State]] = MappingProxyType({Event.REPLAYED: State.PENDING})

# A claim is a lease beside the state, not a state: when a worker vanishes, nothing has to be undone.
TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = MappingProxyType(
    {
        State.PENDING: _IN_PLAY,
        State.RETRYING: _IN_PLAY,
        State.DELIVERED: _SETTLED,
        State.FAILED: _SETTLED,
    }
)


def advance(state: State, event: Event) -> State:
    """Return the state after *event*; `IllegalTransitionError` where the table has no such step."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        allowed = ", ".join(sorted(TRANSITIONS[state]))
        raise IllegalTransitionError(f"a {state} delivery cannot be {event}; allowed: {allowed}") from None
