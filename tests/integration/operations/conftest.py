"""An operator's connection, and a rig with workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from pggit_reactor.testing.database import ReactorDatabase
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.rig import Rig


@pytest.fixture
async def rig(reactor_database: ReactorDatabase) -> AsyncIterator[Rig]:
    async with open_receiver() as receiver:
        yield Rig(database=reactor_database, receiver=receiver)


@pytest.fixture
def owner(reactor_database: ReactorDatabase) -> Iterator[psycopg.Connection]:
    with psycopg.connect(reactor_database.dsn.reveal(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def operator(reactor_database: ReactorDatabase) -> Iterator[psycopg.Connection]:
    """Somebody who may operate and no more."""
    with psycopg.connect(reactor_database.dsn.reveal(), autocommit=True) as connection:
        connection.execute("SET ROLE pggit_operator")
        connection.execute("LISTEN pggit_delivery")
        yield connection


@pytest.fixture
def call(operator: psycopg.Connection):
    """Call one of the functions as the operator; returns its sentence."""

    def function(name: str, *arguments: object) -> str:
        places = ", ".join(["%s"] * len(arguments))
        row = operator.execute(f"SELECT pggit.{name}({places})", arguments).fetchone()
        return row[0]

    return function


@pytest.fixture
def heard(operator: psycopg.Connection):
    """What workers are told since the last look."""

    def payloads() -> list[str]:
        return [notice.payload for notice in operator.notifies(timeout=0.2)]

    return payloads


@pytest.fixture
def webhook(owner: psycopg.Connection) -> int:
    owner.execute(
        "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin) VALUES (7, 'alerts', '', 'https://a.example')"
    )
    return 7


@pytest.fixture
def enqueue(owner: psycopg.Connection):
    """Queue one delivery, with values of other columns; returns its id."""

    def insert(webhook_id: int = 7, **columns: object) -> int:
        values = {"alert_id": 1, "webhook_id": webhook_id, "message_body": "{}", **columns}
        places = ", ".join(f"%({name})s" for name in values)
        row = owner.execute(
            f"INSERT INTO pggit.alert_delivery_queue ({', '.join(values)}) VALUES ({places}) RETURNING delivery_id",
            values,
        ).fetchone()
        return row[0]

    return insert


@pytest.fixture
def audited(owner: psycopg.Connection):
    """The audit log, oldest first."""

    def rows(*columns: str) -> list[tuple]:
        return owner.execute(
            f"SELECT {', '.join(columns)} FROM pggit.webhook_audit_log ORDER BY audit_id"
        ).fetchall()

    return rows
