"""`get_ready_deliveries`: what is ready, in which order, for whom and for how long (LEGACY 3, 15.1, 15.5)."""

from __future__ import annotations

import pytest
import trio

from pggit_reactor.errors import DatabaseError
from pggit_reactor.testing.rig import Rig

CLAIM = "SELECT delivery_id FROM pggit.get_ready_deliveries({})"


async def insert(database, webhook_id: int = 7, **columns: str) -> int:
    names = ["alert_id", "webhook_id", "message_body", *columns]
    values = ["1", str(webhook_id), "'{}'", *columns.values()]
    return await database.fetch_value(
        f"INSERT INTO pggit.alert_delivery_queue ({', '.join(names)}) VALUES ({', '.join(values)})"
        " RETURNING delivery_id"
    )


async def claim(where, limit: str = "100") -> list[int]:
    cursor = await where.execute(CLAIM.format(limit))
    return [row[0] for row in await cursor.fetchall()]


async def claimed(database, limit: str = "100") -> list[int]:
    return [row[0] for row in await database.fetch(CLAIM.format(limit))]


READY = {
    "pending": {},
    "pending, due a second ago": {"next_retry_at": "now() - interval '1 s'"},
    "retrying, due": {"delivery_status": "'retrying'", "next_retry_at": "now() - interval '1 s'"},
    "created at the dawn of time": {"created_at": "'-infinity'"},
}
NOT_READY = {
    "pending, created later": {"created_at": "now() + interval '1 hour'"},
    "pending, put off": {"next_retry_at": "now() + interval '1 hour'"},
    "retrying, later": {"delivery_status": "'retrying'", "next_retry_at": "now() + interval '1 hour'"},
    "retrying, without a time": {"delivery_status": "'retrying'"},
    "delivered": {"delivery_status": "'delivered'", "delivered_at": "now()"},
    "failed": {"delivery_status": "'failed'", "next_retry_at": "now() - interval '1 s'"},
    "leased": {"lease_token": "1", "lease_expires_at": "now() + interval '1 min'", "leased_by": "'a worker'"},
}


@pytest.mark.parametrize("case", READY)
async def test_is_returned(reactor_database, case: str):
    delivery_id = await insert(reactor_database, **READY[case])

    assert await claimed(reactor_database) == [delivery_id]


@pytest.mark.parametrize("case", NOT_READY)
async def test_is_not_returned(reactor_database, case: str):
    await insert(reactor_database, **NOT_READY[case])

    assert await claimed(reactor_database) == []


async def test_order_is_by_age_whatever_the_webhook_the_priority_and_the_retry(reactor_database):
    ages = [5, 50, 1, 30, 8, 20, 3]
    ids = {}
    for number, age in enumerate(ages):
        retry = (
            {"delivery_status": "'retrying'", "next_retry_at": "now() - interval '0.1 s'"}
            if number % 2
            else {}
        )
        ids[age] = await insert(
            reactor_database,
            number % 3,
            created_at=f"now() - interval '{age} s'",
            priority=str(number % 2),
            **retry,
        )
    rows = await reactor_database.fetch(
        "SELECT r.delivery_id FROM pggit.get_ready_deliveries(4) WITH ORDINALITY AS"
        " r (delivery_id, alert_id, webhook_id, message_body, retry_count, max_retries, place) ORDER BY place"
    )

    assert [row[0] for row in rows] == [ids[age] for age in (50, 30, 20, 8)]
    assert await claimed(reactor_database) == [ids[age] for age in (5, 3, 1)]


async def test_of_a_large_backlog_the_oldest_due_come_first_and_all_come(reactor_database):
    """More than one window: 5,000 rows of 50 webhooks and two priorities."""
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, priority, created_at)"
        " SELECT n, n * 7 % 50, '{}', n % 2, now() - make_interval(secs => n * 7919 % 5000) FROM"
        " generate_series(1, 5000) AS n"
    )
    wanted = [
        row[0]
        for row in await reactor_database.fetch(
            "SELECT delivery_id FROM pggit.alert_delivery_queue ORDER BY created_at, delivery_id"
        )
    ]
    got = []
    for limit in ("10", "700", "1500", "100", "null"):
        got += await claimed(reactor_database, limit)

    assert got == wanted


async def test_rows_that_others_hold_locked_are_skipped_over_many_windows(reactor_database):
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at)"
        " SELECT n, n % 3, '{}', now() - make_interval(secs => 5000 - n) FROM generate_series(1, 4500) AS n"
    )
    other = await reactor_database.connect()
    await other.execute("BEGIN")
    await other.execute("SELECT FROM pggit.alert_delivery_queue WHERE alert_id <= 4000 FOR UPDATE")
    got = await claimed(reactor_database, "10")

    assert got == [
        row[0]
        for row in await reactor_database.fetch(
            "SELECT delivery_id FROM pggit.alert_delivery_queue WHERE alert_id > 4000 ORDER BY created_at LIMIT 10"
        )
    ]


async def test_the_body_comes_back_as_it_was_inserted(reactor_database):
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (-1, -2, '{\"n\": 1.10}')"
    )

    assert await reactor_database.fetch(
        "SELECT alert_id, webhook_id, message_body::text, retry_count, max_retries FROM pggit.get_ready_deliveries()"
    ) == [(-1, -2, '{"n": 1.10}', 0, 3)]


async def test_it_works_in_the_transaction_that_inserted_the_row(reactor_database):
    connection = await reactor_database.connect()
    await connection.execute("BEGIN")
    await connection.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, 7, '{}')"
    )
    (delivery_id,) = await claim(connection)
    await connection.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed', attempted_at = now() WHERE delivery_id = %s",
        (delivery_id,),
    )
    assert await claim(connection) == []
    # Re-queued, it is ready at once.
    await connection.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', retry_count = 0, next_retry_at = NULL,"
        " attempted_at = NULL WHERE delivery_id = %s",
        (delivery_id,),
    )
    assert await claim(connection) == [delivery_id]
    await connection.execute("COMMIT")


async def test_a_claim_lasts_30_seconds_unless_the_caller_says_otherwise(reactor_database):
    connection = await reactor_database.connect()
    lasting = (
        "SELECT round(extract(epoch FROM lease_expires_at - clock_timestamp())), held_until,"
        " leased_by ~ '^sql reactor [0-9]+$'"
        " FROM pggit.alert_delivery_queue WHERE delivery_id = %s"
    )
    first = await insert(reactor_database)
    assert await claim(connection) == [first]
    assert await reactor_database.fetch(lasting, (first,)) == [(30, None, True)]

    await connection.execute("SET pggit.lease = '5 min'")
    second = await insert(reactor_database)
    assert await claim(connection) == [second]
    assert await reactor_database.fetch(lasting, (second,)) == [(300, None, True)]


async def test_a_claim_lapses(reactor_database):
    connection = await reactor_database.connect(**{"pggit.lease": "50 ms"})
    delivery_id = await insert(reactor_database)
    assert await claim(connection) == [delivery_id]
    with trio.fail_after(10):
        while not (again := await claimed(reactor_database)):
            await trio.lowlevel.checkpoint()

    assert again == [delivery_id]


@pytest.mark.parametrize("lease", ["0", "0 s"])
async def test_with_a_lease_of_0_it_only_looks_and_reading_rights_suffice(reactor_database, lease: str):
    await insert(reactor_database)
    newer = await insert(reactor_database)
    connection = await reactor_database.connect(
        **{"pggit.lease": lease, "default_transaction_read_only": "on", "role": "pggit_operator"}
    )
    assert len(await claim(connection)) == 2
    assert len(await claim(connection, "1")) == 1
    other = await reactor_database.connect()
    await other.execute("BEGIN")
    await other.execute("SELECT FROM pggit.alert_delivery_queue WHERE delivery_id < %s FOR UPDATE", (newer,))

    assert len(await claim(connection)) == 2


@pytest.mark.parametrize("lease", ["soon", "-1", "2 days"])
async def test_a_lease_that_makes_no_sense_is_refused_by_name(reactor_database, lease: str):
    connection = await reactor_database.connect(**{"pggit.lease": lease.replace(" ", "\\ ")})

    with pytest.raises(
        DatabaseError, match=r"setting pggit\.lease is .*; allowed: 0 \(only look\) to 1 day"
    ) as caught:
        await claim(connection)
    assert caught.value.sqlstate == "22023"


async def test_a_negative_limit_is_refused_by_name(reactor_database):
    with pytest.raises(DatabaseError, match="p_limit is -1; allowed: 0 and more") as caught:
        await claimed(reactor_database, "-1")
    assert caught.value.sqlstate == "2201W"


@pytest.mark.parametrize(("limit", "is_held"), [("1000", False), ("1001", True), ("2147483647", True)])
async def test_a_claim_of_over_1000_rows_takes_them_out_of_the_claim_index(
    reactor_database, limit: str, is_held: bool
):
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, 7, '{}' FROM generate_series(1, 1500) AS n"
    )
    got = await claimed(reactor_database, limit)

    assert len(got) == min(int(limit), 1500)
    assert await reactor_database.fetch_value(
        "SELECT count(*) FROM pggit.alert_delivery_queue WHERE held_until = lease_expires_at AND ready_at = held_until"
    ) == (len(got) if is_held else 0)


async def test_what_an_old_worker_writes_ends_its_claim_of_any_size(reactor_database):
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, 7, '{}' FROM generate_series(1, 1100) AS n"
    )
    await claimed(reactor_database, "5000")
    await reactor_database.execute(
        "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() - interval '1 s' WHERE delivery_id %% 2 = 0",
        (),
    )

    assert (
        await reactor_database.fetch_value(
            "SELECT count(*) FROM pggit.alert_delivery_queue WHERE lease_token IS NULL AND held_until IS NULL"
        )
        == len(await claimed(reactor_database, "5000"))
        == 550
    )


async def test_paused_and_disabled_webhooks_are_left_out_and_unregistered_ones_are_not(rig: Rig):
    paused = await rig.add_webhook(state="paused")
    disabled = await rig.add_webhook(state="disabled")
    put_off = await rig.add_webhook()
    await rig.database.execute(
        "UPDATE pggit.webhook_limit SET paused_until = now() + interval '1 hour' WHERE webhook_id = %s",
        (put_off,),
    )
    active = await rig.add_webhook()
    ids = [(await rig.insert(webhook_id))[0] for webhook_id in (paused, disabled, put_off, active, -99)]

    assert await claimed(rig.database) == ids[3:]


async def test_who_may_not_update_the_queue_may_not_claim(reactor_database):
    await insert(reactor_database)
    reader = await reactor_database.connect(role="pggit_reader")

    with pytest.raises(DatabaseError) as caught:
        await claim(reader)
    assert caught.value.sqlstate == "42501"


async def test_a_worker_does_not_take_a_row_from_an_sql_caller_until_its_claim_lapses(rig: Rig):
    webhook_id = await rig.add_webhook()
    (delivery_id,) = await rig.insert(webhook_id)
    caller = await rig.database.connect(**{"pggit.lease": "1500 ms"})
    assert await claim(caller) == [delivery_id]
    async with rig.worker(WORKER_POLL_SECONDS=0.2):
        (other,) = await rig.insert(webhook_id)
        await rig.until_status(other, "delivered")
        assert await rig.row(delivery_id, "attempt_count") == (0,)
        await rig.until_status(delivery_id, "delivered")

    # Nobody died: an SQL caller sends no heartbeats.
    assert await rig.row(delivery_id, "crash_count", "attempt_count") == (0, 1)
