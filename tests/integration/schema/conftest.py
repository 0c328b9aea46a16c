"""What the tests of the schema share: rows of any kind, an ear for notifications, sessions of each role."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import Any

import psycopg
import pytest
import trio

from pggit_reactor.core.breaker import Vote
from pggit_reactor.core.model import ClaimedDelivery, LeaseToken, WebhookId
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.db import claims, settle
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.lane import CLAIM_OPTIONS, HOT_OPTIONS
from pggit_reactor.errors import DatabaseError
from pggit_reactor.testing.database import DatabaseTemplate, ReactorDatabase

MARK = "that was all"


class Rows:
    """Rows by INSERT and UPDATE; columns are given as SQL expressions, so that times can be the server's."""

    def __init__(self, database: ReactorDatabase) -> None:
        self._database = database

    async def queue(self, **columns: str) -> int:
        """INSERT a delivery of webhook 7 with what *columns* say; return its id."""
        wanted = {"alert_id": "1", "webhook_id": "7", "message_body": "'{}'", **columns}
        return int(
            await self._database.fetch_value(
                f"INSERT INTO pggit.alert_delivery_queue ({', '.join(wanted)})"
                f" VALUES ({', '.join(wanted.values())}) RETURNING delivery_id"
            )
        )

    async def leased(self, **columns: str) -> int:
        """INSERT a delivery that a worker holds under token 42."""
        lease = {
            "lease_token": "42",
            "lease_expires_at": "now() + interval '30 s'",
            "leased_by": "'a worker'",
        }
        return await self.queue(**lease, **columns)

    async def get(self, delivery_id: int, *expressions: str) -> tuple[Any, ...]:
        """Return *expressions* of one delivery."""
        (row,) = await self._database.fetch(
            f"SELECT {', '.join(expressions)} FROM pggit.alert_delivery_queue WHERE delivery_id = %s",
            (delivery_id,),
        )
        return row

    async def webhook(self, webhook_id: int, **columns: str) -> None:
        """Register a webhook without a rate limit, and with something where the sealed URL stands."""
        wanted = {
            "webhook_id": str(webhook_id),
            "name": f"'webhook {webhook_id}'",
            "sealed_url": r"'\x00'",
            "url_origin": "'https://receiver.test'",
            "rate_per_s": "0",
            **columns,
        }
        await self._database.execute(
            f"INSERT INTO pggit.webhook ({', '.join(wanted)}) VALUES ({', '.join(wanted.values())})"
        )


class Ear:
    """Hears what statements notify: they, and then a mark, are said by one session, so the mark comes last."""

    def __init__(self, speaker: TrioConnection, listener: TrioConnection) -> None:
        self.speaker = speaker
        self._listener = listener

    async def hear(self, *statements: str) -> list[str]:
        """Run *statements* one after the other; return the payloads that came of them."""
        for statement in statements:
            await self.speaker.execute(statement)
        return await self.heard()

    async def heard(self) -> list[str]:
        """Return the payloads since the last time."""
        await self.speaker.execute(f"NOTIFY pggit_delivery, '{MARK}'")
        payloads: list[str] = []
        with trio.fail_after(20):
            while MARK not in payloads:
                payloads += [notify.payload for notify in await self._listener.wait_notifies()]
        assert payloads[-1] == MARK
        return payloads[:-1]


class Hand:
    """What a worker does to the queue: its real statements, on sessions with its real settings."""

    def __init__(self, claiming: TrioConnection, settling: TrioConnection) -> None:
        self.claiming = claiming
        self.settling = settling
        self._tokens = count(1)

    async def claim(
        self,
        budgets: Mapping[int, int],
        *,
        lease_seconds: float = 30.0,
        places: Mapping[int, str] = MappingProxyType({}),
    ) -> claims.Claim:
        """Claim as "a worker", under a token of its own each time."""
        return await claims.claim(
            self.claiming,
            {WebhookId(webhook_id): budget for webhook_id, budget in budgets.items()},
            in_flight={},
            lease_token=LeaseToken(next(self._tokens)),
            lease_seconds=lease_seconds,
            silence_seconds=10.0,
            instance="a worker",
            places={WebhookId(webhook_id): place for webhook_id, place in places.items()},
        )

    async def settle(
        self,
        deliveries: Sequence[ClaimedDelivery],
        decision: Decision,
        *,
        http_status: int = 200,
        vote: Vote = Vote.NEITHER,
    ) -> settle.SettleReport:
        """Write the same outcome of all *deliveries*."""
        batch = [
            settle.Settlement.of(
                delivery, decision, attempted=True, http_status=http_status, elapsed_seconds=0.02, vote=vote
            )
            for delivery in deliveries
        ]
        return await settle.settle(self.settling, batch, worker_id="a worker")


@pytest.fixture(scope="session")
def hand_of() -> Callable[[TrioConnection, TrioConnection], Hand]:
    """Makes a `Hand` of two sessions of the test's own, one for claims and one for settles."""
    return Hand


@pytest.fixture
async def hand(reactor_database: ReactorDatabase) -> Hand:
    """A worker's hand, with the rights of its role and no others."""
    return Hand(
        await reactor_database.connect(**CLAIM_OPTIONS, role="pggit_worker"),
        await reactor_database.connect(**HOT_OPTIONS, role="pggit_worker"),
    )


@pytest.fixture(scope="module")
def module_database(reactor_template: DatabaseTemplate) -> Iterator[ReactorDatabase]:
    """A database for a whole module; `emptied` makes it a test's own."""
    with reactor_template.clone() as database:
        yield database


@pytest.fixture
def emptied(module_database: ReactorDatabase) -> Iterator[ReactorDatabase]:
    """The module's database, its queue and registry emptied: much quicker than a clone, for tests of a few rows.

    A module takes it in place of a clone by a fixture `reactor_database` of its own.
    """
    with psycopg.connect(module_database.dsn.reveal(), autocommit=True) as connection:
        connection.execute(
            "TRUNCATE pggit.alert_delivery_queue, pggit.alert_delivery_log, pggit.webhook_health_metrics,"
            " pggit.webhook_audit_log, pggit.webhook, pggit.webhook_secret, pggit.webhook_limit, pggit.key_check,"
            " pggit.reactor_worker, pggit.audit_segment, pggit.audit_gap RESTART IDENTITY"
        )
    database = ReactorDatabase(module_database.name, module_database.dsn)
    yield database
    database.close()


@pytest.fixture
def rows(reactor_database: ReactorDatabase) -> Rows:
    return Rows(reactor_database)


@pytest.fixture
async def ear(reactor_database: ReactorDatabase) -> Ear:
    listener = await reactor_database.connect()
    await listener.execute("LISTEN pggit_delivery")
    return Ear(await reactor_database.connect(), listener)


Refusal = Callable[..., Awaitable[DatabaseError]]


@pytest.fixture
def refusal() -> Refusal:
    """Runs a statement that must be refused, and returns the error."""

    async def refuse(
        connection: TrioConnection | ReactorDatabase,
        statement: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
    ) -> DatabaseError:
        with pytest.raises(DatabaseError) as caught:
            await connection.execute(statement, params)
        return caught.value

    return refuse
