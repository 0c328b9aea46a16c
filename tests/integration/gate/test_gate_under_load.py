"""Two workers that sleep on notifications alone, and producers that dawdle: no poll, and yet no row is left.

The producers act in rounds, and a round ends when each of its rows was claimed: else a later notification would
hide that an earlier one was missed.
"""

from __future__ import annotations

import random

import attrs
import trio

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.gate import GateValue, close_gate, drain_pause_seconds, open_gate
from pggit_reactor.testing.database import ReactorDatabase

PRODUCERS = 4
ROUNDS = 60
DAWDLE_STATEMENTS_MAX = 12
LATE_SECONDS = 20  # The poll of a real worker would have come long before; here there is none.
INSERT = "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, 7, '{}')"
CLAIM = """
UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered' WHERE delivery_id IN (
    SELECT delivery_id FROM pggit.alert_delivery_queue WHERE delivery_status = 'pending' FOR UPDATE SKIP LOCKED)
"""


@attrs.define
class Tally:
    committed: int = 0
    claimed: int = 0
    openings: int = 0
    notified: int = 0
    changed: trio.Event = attrs.field(factory=trio.Event)

    def claim(self, row_count: int) -> None:
        self.claimed += row_count
        self.changed.set()
        self.changed = trio.Event()


@attrs.define
class Worker:
    """As `pggit_reactor.db.gate` says, and nothing more."""

    connection: TrioConnection
    listener: TrioConnection
    tally: Tally

    async def run(self) -> None:
        while True:
            self.tally.notified += len(await self.listener.wait_notifies())
            own = None
            while await self._claim() or (own is not None and await self._drain(own)):
                own = await open_gate(self.connection)
                self.tally.openings += 1

    async def _drain(self, own: GateValue) -> bool:
        """Return whether the last claim found something, so that there is no sleep yet."""
        drain = await close_gate(self.connection, own)
        began = trio.current_time()
        while not await drain.done(self.connection):
            await trio.sleep(drain_pause_seconds(trio.current_time() - began))
            await self._claim()
        return await self._claim()

    async def _claim(self) -> bool:
        row_count = (await self.connection.execute(CLAIM)).rowcount
        self.tally.claim(row_count)
        return row_count > 0


async def produce(connection: TrioConnection, dice: random.Random, tally: Tally) -> None:
    await dawdle(connection, dice)
    await connection.execute("BEGIN")
    await connection.execute(INSERT)
    await dawdle(connection, dice)
    commits = dice.random() < 0.9
    await connection.execute("COMMIT" if commits else "ROLLBACK")
    tally.committed += commits


async def dawdle(connection: TrioConnection, dice: random.Random) -> None:
    for _ in range(dice.randrange(DAWDLE_STATEMENTS_MAX)):
        await connection.execute("SELECT 1")


async def test_no_row_is_left_without_a_poll(reactor_database: ReactorDatabase) -> None:
    tally = Tally()
    workers = []
    for _ in range(2):
        listener = await reactor_database.connect()
        await listener.execute("LISTEN pggit_delivery")
        workers.append(Worker(await reactor_database.connect(), listener, tally))
    producers = [await reactor_database.connect() for _ in range(PRODUCERS)]

    dice = random.Random(10)

    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(worker.run)
        for _ in range(ROUNDS):
            async with trio.open_nursery() as producing:
                for producer in producers:
                    producing.start_soon(produce, producer, dice, tally)
            with trio.fail_after(LATE_SECONDS):
                while tally.claimed < tally.committed:
                    await tally.changed.wait()
        nursery.cancel_scope.cancel()

    assert tally.claimed == tally.committed
    assert tally.openings > 0
    assert tally.notified < 2 * tally.committed  # Else nobody was ever silent, and nothing was tried.
