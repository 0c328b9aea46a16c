"""The one reader of wall time and of the dice.

Everything below `runtime` takes ``now`` and ``draw`` as arguments; everything in it is handed a `Clock`. So a
test decides the time and the luck, and nothing has to be patched. Durations are measured with Trio's clock,
due times with the database's: wall time is only for stamps that others read (DESIGN 4).
"""

from __future__ import annotations

import random
import secrets
import time
from typing import Final, Protocol

RANDOM_TOKEN_BITS: Final = 62
"""A token fits a PostgreSQL bigint with room to spare; two equal ones in a million take 10^-7 of luck."""


class Clock(Protocol):
    """What the runtime may ask about time and chance."""

    def wall(self) -> float:
        """Return seconds since 1970-01-01 UTC. May jump; never measure a duration with it."""

    def draw(self) -> float:
        """Return a number uniform in [0, 1), for jitter; it protects nothing."""

    def random_token(self) -> int:
        """Return an unguessable number in [1, 2^62], such as a lease token."""


class SystemClock:
    """The machine's clock and dice."""

    def wall(self) -> float:
        """Return the time of the machine; see `Clock.wall`."""
        return time.time()

    def draw(self) -> float:
        """Return a fresh draw; see `Clock.draw`."""
        return random.random()  # noqa: S311  # jitter is no secret, and this is the cheap generator

    def random_token(self) -> int:
        """Return a fresh token from the kernel's generator; see `Clock.random_token`."""
        return 1 + secrets.randbits(RANDOM_TOKEN_BITS)
