"""The worker's side of the sleep gate, which spares producers the database-wide lock of NOTIFY.

While the gate is open, producers commit without NOTIFY, and the worker that opened it *answers* for their
rows. The protocol, its proof and what was tried instead: ``docs/decisions/0010-sleep-gate.md``; the model that
walks every interleaving of it: ``tests/property/gate``. What a worker has to keep:

1. It answers from *before* it calls `open_gate`: the value stands although the reply was lost, the statement
   was cancelled or its transaction rolled back.
2. While it answers it never waits for a notification. It claims, of all webhooks and not only of those that
   were hinted at, and closes once a claim finds nothing, or once it cannot claim (no room, trouble settling).
3. To sleep: `close_gate`; claim at every pause until `Drain.done`; then **claim once more**, and only from
   there on it answers no longer. A drain may be given up by opening again, never by sleeping.
4. A worker that lost its connection while it answered still answers: listen, claim, then 3. A drain belongs
   to the server that it was begun on, so a new connection begins a new one.
5. A worker that leaves does 3 without claims; after `Drain.done`, or when its patience ends, it NOTIFIES in
   place of the last claim.
"""

from __future__ import annotations

from typing import Final, NewType

import attrs
from psycopg.pq import PipelineStatus, TransactionStatus

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.statements import statements

OPEN_SECONDS: Final = 1.0
"""For how long an opening holds; an opener that died leaves rows to the poll for no longer than this."""
OPEN_SECONDS_MAX: Final = 2.0
"""The trigger takes a value further ahead for nonsense, so that none can silence producers for ever."""
CHECKS_BEFORE_LIST: Final = 3
"""Most producers end within a pause or two; pg_locks is asked only about those who do not."""
PAUSE_SECONDS_MIN: Final = 0.015
PAUSE_SECONDS_MAX: Final = 1.0
_PAUSES_A_WAIT: Final = 50

GateValue = NewType("GateValue", int)
"""What a worker wrote into the gate: epoch milliseconds, by the server's clock."""

_SQL = statements("gate")


async def open_gate(connection: TrioConnection, seconds: float = OPEN_SECONDS) -> GateValue:
    """Let producers be silent for *seconds* from now; the caller answers for them **from before this call**.

    Calling it again before the time is over keeps the gate open. It is not transactional: whatever is raised,
    the gate may be open.
    """
    assert 0 < seconds <= OPEN_SECONDS_MAX
    _assert_alone(connection)
    milliseconds = round(seconds * 1000)
    cursor = await connection.execute(_SQL["open_gate"], {"milliseconds": milliseconds}, prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    return GateValue(row[0])


async def close_gate(connection: TrioConnection, own_value: GateValue | None = None) -> Drain:
    """Close the gate, and return what has to be waited for before the last claim.

    With *own_value*, the one that `open_gate` returned last, the opening of another worker is left as it is;
    without it (a reply was lost, say) the gate is closed for all. The caller goes on answering.
    """
    _assert_alone(connection)
    await connection.execute(_SQL["close_gate"], {"own_value": own_value}, prepare=True)
    # A transaction of its own, begun after the gate was closed: the xid of the closing one may lie below that
    # of a producer who still found it open.
    cursor = await connection.execute(_SQL["own_xid"], prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    return Drain(x=row[0])


@attrs.define(eq=False, kw_only=True)
class Drain:
    """The wait for producers that may have found the gate open; `close_gate` begins it."""

    x: str
    """The xid that no such producer reaches."""
    waits_for: frozenset[str] | None = None
    """Once they are known: the transactions that hold the queue and are waited for."""
    _check_count: int = 0

    async def done(self, connection: TrioConnection) -> bool:
        """Say whether every row that was written silently can be seen by a claim that begins now.

        A transaction that never touches the queue delays this by a few calls at most; one that wrote to it,
        for as long as it is open. Once true, it stays so.
        """
        _assert_alone(connection)
        if self.waits_for is None and await self._everybody_below_ended(connection):
            self.waits_for = frozenset()
        elif self.waits_for is None and self._check_count >= CHECKS_BEFORE_LIST:
            cursor = await connection.execute(_SQL["producers_below"], {"x": self.x}, prepare=True)
            self.waits_for = frozenset(row[0] for row in await cursor.fetchall())
        elif self.waits_for:
            listed = {"xids": list(self.waits_for)}
            cursor = await connection.execute(_SQL["still_running"], listed, prepare=True)
            self.waits_for = frozenset(row[0] for row in await cursor.fetchall())
        return self.waits_for == frozenset()

    async def _everybody_below_ended(self, connection: TrioConnection) -> bool:
        self._check_count += 1
        cursor = await connection.execute(_SQL["everybody_below_ended"], {"x": self.x}, prepare=True)
        row = await cursor.fetchone()
        assert row is not None
        return bool(row[0])


def drain_pause_seconds(waited_seconds: float) -> float:
    """Return the pause before the next claim and check of a drain that has lasted for *waited_seconds*.

    It grows with the wait: a producer that idles in its transaction for an hour must not keep a worker busy,
    and its row comes late by a fiftieth of its own delay, at most by `PAUSE_SECONDS_MAX`.
    """
    return min(max(waited_seconds / _PAUSES_A_WAIT, PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX)


def _assert_alone(connection: TrioConnection) -> None:
    """Inside a transaction or a pipeline X would be older than the closing, and a look older than a commit."""
    assert connection.pgconn.transaction_status == TransactionStatus.IDLE
    assert connection.pgconn.pipeline_status == PipelineStatus.OFF
