"""A connection with one job that comes back after every loss.

A worker has one lane each for claiming, settling and the rest. A lane connects when it is needed, bounds every use on
the client's side, throws the connection away after any doubt, and paces its reconnects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import TrioConnection, connect
from pggit_reactor.db.connection import EagerLock
from pggit_reactor.errors import DatabaseUnavailableError, ReadOnlyDatabaseError

CONNECT_SECONDS: Final = 5.0
USE_SECONDS: Final = 13.0
"""With the 2 s that abandoning a statement may take, a dead connection is noticed within 15 s (DESIGN 4)."""
RECONNECT_SECONDS_MIN: Final = 0.1
RECONNECT_SECONDS_MAX: Final = 5.0

# The hot statements are prepared once and must be planned as nested loops over the right indexes, whatever the
# statistics say about a queue that was empty a moment ago. A hash join would read the whole table for each claim.
HOT_OPTIONS: Final[Mapping[str, str]] = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "lock_timeout": "1000",
    "statement_timeout": "10000",
    "TimeZone": "UTC",
}
# A crash of the database right after a claim only makes it be claimed again.
CLAIM_OPTIONS: Final[Mapping[str, str]] = {**HOT_OPTIONS, "synchronous_commit": "off"}
SIDE_OPTIONS: Final[Mapping[str, str]] = {
    "jit": "off",
    "lock_timeout": "1000",
    "statement_timeout": "10000",
    "TimeZone": "UTC",
}


@attrs.define(eq=False, kw_only=True)
class Lane:
    """One connection, one user at a time; see `use`."""

    name: str
    dsn: Secret[str]
    application_name: str
    options: Mapping[str, str]
    draw: Callable[[], float]
    """Uniform in [0, 1): jitter of reconnects."""
    on_reconnect: Callable[[str], None] = lambda _: None
    warm_up: Callable[[TrioConnection], Awaitable[None]] | None = None
    """Run on each new connection: prepares its statements, so that the first delivery does not wait for it."""
    on_lost: Callable[[str, str], None] = lambda _name, _reason: None
    use_seconds: float = USE_SECONDS
    _connection: TrioConnection | None = None
    _lock: EagerLock = attrs.field(factory=EagerLock, init=False)
    _failures: int = 0
    _retry_at: float = 0.0
    generation: int = 0
    """Rises with every new connection: who sees another one knows that something may have been missed."""

    @asynccontextmanager
    async def use(self) -> AsyncIterator[TrioConnection]:
        """Lend the connection, connecting first where there is none.

        Raises `DatabaseUnavailableError` (or `ReadOnlyDatabaseError`) when it cannot be had or is lost within
        `use_seconds`; then it has been closed, and the next use waits out a jittered delay, 0.1 s to 5 s. Other
        errors leave it as it is.
        """
        async with self._lock:
            try:
                with trio.move_on_after(self.use_seconds + CONNECT_SECONDS + RECONNECT_SECONDS_MAX) as scope:
                    connection = await self._ready()
                    # From here on, only the use itself counts.
                    scope.deadline = trio.current_time() + self.use_seconds
                    yield connection
                if scope.cancelled_caught:
                    raise self._too_slow()
            except (DatabaseUnavailableError, ReadOnlyDatabaseError) as error:
                self._lost()
                self.on_lost(self.name, str(error))
                raise
            self._failures = 0

    def close(self) -> None:
        """Close the connection, if there is one; a later use opens another."""
        if self._connection is not None:
            self._connection.close_now()
            self._connection = None

    async def _ready(self) -> TrioConnection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self.close()
        await trio.sleep_until(self._retry_at)
        self._connection = await connect(
            self.dsn,
            application_name=self.application_name,
            options=self.options,
            connect_timeout_seconds=CONNECT_SECONDS,
        )
        if self.warm_up is not None:
            await self.warm_up(self._connection)
        self.generation += 1
        if self.generation > 1:
            self.on_reconnect(self.name)
        return self._connection

    def _too_slow(self) -> DatabaseUnavailableError:
        silence = f"within {self.use_seconds:g} s"
        return DatabaseUnavailableError(
            f"the database gave no answer on the {self.name} connection {silence}"
        )

    def _lost(self) -> None:
        self.close()
        # Full jitter, so that a fleet does not come back in step.
        ceiling = min(RECONNECT_SECONDS_MAX, RECONNECT_SECONDS_MIN * 2 ** min(self._failures, 16))
        self._failures += 1
        self._retry_at = trio.current_time() + max(RECONNECT_SECONDS_MIN, self.draw() * ceiling)
