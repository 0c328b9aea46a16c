"""The demo's producer: any program with a database connection and three columns to fill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import attrs

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.runtime.clock import Clock

INSERT: Final = (
    "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)\nVALUES {values};"
)
_IDS: Final = (
    "SELECT alert_id, pggit.delivery_uid(delivery_id, uid_salt)::text AS uid FROM pggit.alert_delivery_queue"
)


@attrs.frozen(kw_only=True)
class Alert:
    """What happened, as the producer tells it."""

    alert_id: int
    text: str
    value: int

    def row(self, webhook_id: int) -> str:
        """Return the row as SQL; the text holds no quote."""
        body = json.dumps({"alert_id": self.alert_id, "alert": self.text, "value": self.value})
        assert "'" not in body
        return f"({self.alert_id}, {webhook_id}, '{body}')"


@attrs.frozen(kw_only=True)
class Committed:
    """When a transaction was committed, as its producer saw it, in Unix time."""

    sent_at: float
    """Just before COMMIT was sent."""
    answered_at: float


class Producer:
    """One connection that INSERTs alerts; each call is one transaction."""

    def __init__(self, connection: TrioConnection, clock: Clock, *, webhook_id: int) -> None:
        self.commits: dict[int, Committed] = {}
        """By alert id."""
        self._connection = connection
        self._clock = clock
        self._webhook_id = webhook_id

    def sql(self, alerts: Sequence[Alert]) -> str:
        """Return the statement that `insert` runs between BEGIN and COMMIT."""
        return INSERT.format(values=",\n       ".join(alert.row(self._webhook_id) for alert in alerts))

    async def insert(self, alerts: Sequence[Alert]) -> None:
        """INSERT *alerts* in one transaction of plain SQL, without parameters or helpers."""
        await self._execute("BEGIN")
        await self._execute(self.sql(alerts))
        sent_at = self._clock.wall()
        await self._execute("COMMIT")
        committed = Committed(sent_at=sent_at, answered_at=self._clock.wall())
        self.commits.update({alert.alert_id: committed for alert in alerts})

    async def uids(self) -> dict[int, str]:
        """Return the delivery uid of each alert, from the database."""
        cursor = await self._connection.execute(_IDS)
        return dict(await cursor.fetchall())

    async def rows(self, query: str) -> list[tuple[object, ...]]:
        """Return what *query* finds."""
        return await (await self._connection.execute(query)).fetchall()

    async def _execute(self, text: str) -> None:
        # Text of the demo's own making: it is shown as it is run, so it has no parameters.
        await self._connection.execute(text, prepare=False)
