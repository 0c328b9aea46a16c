"""When this worker lets producers be silent, and what it owes for it.

Under load NOTIFY serialises producers and tells nobody anything, since the worker is claiming anyway. So a busy worker
opens the sleep gate, answers for what is committed silently meanwhile, and closes it before it sleeps. The protocol is
``docs/decisions/0010-sleep-gate.md``; the statements are ``db/gate.py``. This is its state, owned by the claimer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs
import trio

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.gate import OPEN_SECONDS, Drain, GateValue, close_gate, drain_pause_seconds, open_gate
from pggit_reactor.db.listener import CHANNEL

RATE_WINDOW_SECONDS: Final = 0.25
OPEN_ROWS_A_WINDOW: Final = 400
"""1,600 rows a second: below, a notification brings a row sooner than the next claim would."""
KEEP_ROWS_A_WINDOW: Final = 150
ANSWER_PAUSE_SECONDS: Final = 0.003
"""Between claims while producers are silent; what a silent row may wait."""
LEAVE_SECONDS_MAX: Final = 1.0
_LEAVE_PAUSE_SECONDS: Final = 0.015


@attrs.define(eq=False)
class GateKeeper:
    """The gate's state in one worker. `answers` is the one thing that must never be wrongly false."""

    open_rows: int = OPEN_ROWS_A_WINDOW
    keep_rows: int = KEEP_ROWS_A_WINDOW
    answers: bool = False
    """Producers may have been silent on this worker's account: it may not wait for notifications."""
    on_open: Callable[[], None] = lambda: None
    _value: GateValue | None = None
    _opened_at: float = 0.0
    _drain: Drain | None = None
    _drain_began_at: float = 0.0
    _generation: int = 0
    _claimed: deque[tuple[float, int]] = attrs.field(factory=deque)
    _rows: int = 0

    def record(self, rows: int, now: float) -> None:
        """Count claimed rows, for the rate."""
        self._claimed.append((now, rows))
        self._rows += rows
        self._forget(now)

    @property
    def draining(self) -> bool:
        """The gate is closed, and producers that may have found it open are waited for."""
        return self._drain is not None

    def is_busy(self, now: float) -> bool:
        """Whether rows come so fast that notifications would be a burden to producers."""
        self._forget(now)
        return self._rows >= (self.keep_rows if self.answers and not self.draining else self.open_rows)

    def pause_seconds(self, now: float) -> float:
        """Return how long to pause before the next claim while this worker answers."""
        return drain_pause_seconds(now - self._drain_began_at) if self.draining else ANSWER_PAUSE_SECONDS

    async def open(self, connection: TrioConnection, generation: int) -> None:
        """Open the gate, or keep it open; does nothing while half of its time is left."""
        now = trio.current_time()
        same = self.answers and not self.draining and self._generation == generation
        if same and now < self._opened_at + OPEN_SECONDS / 2:
            return
        if not self.answers:
            self.on_open()
        # Before the statement is sent: it stands although the reply may be lost.
        self.answers, self._drain, self._generation = True, None, generation
        self._value = None
        self._value = await open_gate(connection)
        self._opened_at = now

    async def close(self, connection: TrioConnection, generation: int) -> None:
        """Close the gate and begin to wait for producers; does nothing where that has begun."""
        if self._drain is not None and self._generation == generation:
            return
        self._drain = None
        self._drain = await close_gate(connection, self._value)
        self._drain_began_at = trio.current_time()
        self._generation = generation

    async def drained(self, connection: TrioConnection) -> bool:
        """Say whether a claim that begins now sees every silent row; then `sleep` may follow that claim."""
        return self._drain is not None and await self._drain.done(connection)

    def sleep(self) -> None:
        """The last claim was made: nothing is owed any more."""
        self.answers, self._drain, self._value = False, None, None

    async def leave(self, connection: TrioConnection, generation: int) -> None:
        """Stop answering for good: close, wait a little, and NOTIFY in place of the last claim."""
        if not self.answers:
            return
        with trio.move_on_after(LEAVE_SECONDS_MAX):
            await self.close(connection, generation)
            while not await self.drained(connection):  # noqa: ASYNC110  # only a query tells
                await trio.sleep(_LEAVE_PAUSE_SECONDS)
        await tell_others(connection)
        self.sleep()

    def _forget(self, now: float) -> None:
        while self._claimed and self._claimed[0][0] < now - RATE_WINDOW_SECONDS:
            self._rows -= self._claimed.popleft()[1]


async def tell_others(connection: TrioConnection) -> None:
    """NOTIFY with an empty hint: somebody else may have room for what this worker has not."""
    await connection.execute("SELECT pg_notify(%s, '')", (CHANNEL,))
