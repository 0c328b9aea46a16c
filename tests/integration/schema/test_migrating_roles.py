"""Who may migrate: the owner of the database, however little else he may."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pggit_reactor.core.model import State
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import TrioConnection, connect, open_connection
from pggit_reactor.db.embedded import EmbeddedPostgres, open_embedded_postgres
from pggit_reactor.db.lane import CLAIM_OPTIONS, HOT_OPTIONS
from pggit_reactor.db.migrate import check, migrate
from pggit_reactor.db.workers import add_audit_partitions
from pggit_reactor.errors import MigrationError
from pggit_reactor.testing.database import QUICK_SETTINGS

PASSWORD = "of a test"
OWNED = (
    "SELECT count(*) FILTER (WHERE c.relowner <> current_user::regrole), count(*) FROM pg_class AS c"
    " WHERE c.relnamespace = 'pggit'::regnamespace"
)


@pytest.fixture
async def server(postgres_bin) -> AsyncIterator[EmbeddedPostgres]:
    """A server on which nothing was ever migrated: it has none of the roles."""
    async with open_embedded_postgres(settings=QUICK_SETTINGS, bin_dir=postgres_bin) as server:
        yield server


async def owned_database(server: EmbeddedPostgres, rights: str = "") -> Secret[str]:
    """Make an ordinary user with *rights* and a database of his; return where he connects."""
    async with open_connection(server.dsn, application_name="test") as admin:
        await admin.execute(f"CREATE ROLE owner LOGIN PASSWORD '{PASSWORD}' NOSUPERUSER {rights}")
        await admin.execute("CREATE DATABASE owned OWNER owner")
    parts = conninfo_to_dict(server.dsn_for("owned").reveal())
    return Secret(make_conninfo(**{**parts, "user": "owner", "password": PASSWORD}))  # type: ignore[arg-type]


async def roles(connection: TrioConnection) -> list[str]:
    cursor = await connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'pggit%' ORDER BY 1")
    return [row[0] for row in await cursor.fetchall()]


async def test_an_owner_who_may_create_no_roles_goes_on_without_them_and_works_himself(server, hand_of):
    dsn = await owned_database(server)
    async with open_connection(dsn, application_name="test") as connection:
        await migrate(connection)

        assert (await check(connection)).is_current
        assert await roles(connection) == []
        assert (await (await connection.execute(OWNED)).fetchall())[0][0] == 0
        await connection.execute(
            "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin) VALUES (7, 'a', '', '')"
        )
        await connection.execute("SELECT pggit.enqueue(7, '{}')")
        assert await add_audit_partitions(connection) == 2
        async with (
            open_connection(dsn, application_name="claim", options=CLAIM_OPTIONS) as claiming,
            open_connection(dsn, application_name="settle", options=HOT_OPTIONS) as settling,
        ):
            hand = hand_of(claiming, settling)
            claimed = await hand.claim({7: 10})
            report = await hand.settle(claimed.deliveries, Decision(state=State.DELIVERED))
            assert len(report.settled) == 1


async def test_roles_that_somebody_else_made_are_granted_what_they_are_for(server):
    dsn = await owned_database(server)
    async with open_connection(server.dsn, application_name="test") as admin:
        await admin.execute("CREATE ROLE pggit_producer")
        await admin.execute("CREATE ROLE pggit_worker")
    async with open_connection(dsn, application_name="test") as connection:
        await migrate(connection)
        granted = await connection.execute(
            "SELECT has_function_privilege('pggit_producer', 'pggit.enqueue'::regproc::oid, 'EXECUTE'),"
            " has_table_privilege('pggit_worker', 'pggit.alert_delivery_queue', 'UPDATE')"
        )

        assert await granted.fetchone() == (True, True)
        assert await roles(connection) == ["pggit_producer", "pggit_worker"]


async def test_an_owner_who_may_create_roles_makes_all_four(server):
    dsn = await owned_database(server, "CREATEROLE")
    async with open_connection(dsn, application_name="test") as connection:
        await migrate(connection)

        assert await roles(connection) == ["pggit_operator", "pggit_producer", "pggit_reader", "pggit_worker"]
    async with open_connection(server.dsn_for("owned"), application_name="test") as admin:
        await admin.execute("SET ROLE pggit_producer")
        await admin.execute("SELECT pggit.enqueue(7, '{}')")


async def test_who_may_not_create_a_schema_is_told(server):
    await owned_database(server)
    async with open_connection(server.dsn, application_name="test") as admin:
        await admin.execute(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    parts = conninfo_to_dict(server.dsn_for("owned").reveal())
    guest = await connect(
        Secret(make_conninfo(**{**parts, "user": "guest", "password": PASSWORD})),  # type: ignore[arg-type]
        application_name="test",
    )
    try:
        with pytest.raises(MigrationError, match="schema pggit cannot be created: permission denied"):
            await migrate(guest)
    finally:
        guest.close_now()
