"""`pggit.enqueue`, called as producers call it: with nothing but the grants of their role."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.testing.database import ReactorDatabase

NULL_NOT_ALLOWED = "22004"
INVALID_VALUE = "22023"
TOO_LARGE = "54000"
SERIALIZATION = "40001"


@pytest.fixture
async def producer(reactor_database: ReactorDatabase) -> TrioConnection:
    return await reactor_database.connect(role="pggit_producer")


@pytest.fixture
def reactor_database(emptied):
    return emptied


def call(arguments: dict[str, Any]) -> str:
    types = {
        "p_webhook_id": "bigint",
        "p_body": "jsonb",
        "p_alert_id": "bigint",
        "p_priority": "integer",
        "p_deliver_after": "timestamptz",
        "p_expires_at": "timestamptz",
        "p_headers": "jsonb",
    }
    named = ", ".join(f"{name} => %({name})s::{types.get(name, 'text')}" for name in arguments)
    return f"SELECT pggit.enqueue({named})"


async def enqueue(connection: TrioConnection, **given: Any) -> int:
    arguments = {"p_webhook_id": 7, "p_body": "{}", **given}
    row = await (await connection.execute(call(arguments), arguments)).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_producer_has_no_grant_of_any_other_role(producer):
    cursor = await producer.execute(
        "SELECT current_user, pg_has_role(current_user, 'pggit_worker', 'MEMBER'),"
        " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
    )

    assert await cursor.fetchone() == ("pggit_producer", False, False)


async def test_every_argument_reaches_its_column(rows, producer):
    delivery_id = await enqueue(
        producer,
        p_webhook_id=-8,
        p_body='{"title": "late", "n": 1.50}',
        p_alert_id=12,
        p_event_type="disk.full",
        p_idempotency_key="disk-12",
        p_priority=-3,
        p_deliver_after="2300-01-01T00:00:00Z",
        p_expires_at="2300-01-02T00:00:00Z",
        p_headers='{"X-Team": "storage"}',
        p_ordering_key="disk 12",
        p_traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )
    columns = (
        "webhook_id",
        "message_body::text",
        "alert_id",
        "event_type",
        "idempotency_key",
        "priority",
        "next_retry_at = '2300-01-01T00:00:00Z' AND ready_at = next_retry_at",
        "expires_at = '2300-01-02T00:00:00Z'",
        "headers",
        "ordering_key",
        "traceparent",
        "delivery_status",
        "retry_count",
        "max_retries",
    )

    assert await rows.get(delivery_id, *columns) == (
        -8,
        '{"n": 1.50, "title": "late"}',
        12,
        "disk.full",
        "disk-12",
        -3,
        True,
        True,
        {"X-Team": "storage"},
        "disk 12",
        "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "pending",
        0,
        3,
    )


async def test_two_arguments_suffice_and_the_row_is_due_at_once(rows, producer):
    await producer.execute("BEGIN")
    delivery_id = await enqueue(producer)
    await producer.execute("COMMIT")

    assert await rows.get(
        delivery_id, "ready_at = created_at", "alert_id > 0", "event_type", "headers", "priority"
    ) == (True, True, None, None, 0)


async def test_the_order_of_arguments_is_the_contracts(reactor_database, producer):
    named = await reactor_database.fetch_value(
        "SELECT pg_get_function_identity_arguments('pggit.enqueue'::regproc)"
    )
    await producer.execute("SELECT pggit.enqueue(7, '1')")

    assert named == (
        "p_webhook_id bigint, p_body jsonb, p_alert_id bigint, p_event_type text, p_idempotency_key text,"
        " p_priority integer, p_deliver_after timestamp with time zone, p_expires_at timestamp with time zone,"
        " p_headers jsonb, p_ordering_key text, p_traceparent text"
    )


async def test_alert_ids_are_drawn_one_a_call(rows, producer):
    first, second = await enqueue(producer), await enqueue(producer)
    (one,), (two,) = await rows.get(first, "alert_id"), await rows.get(second, "alert_id")

    assert two == one + 1


BAD = {
    "no webhook": (
        {"p_webhook_id": None},
        NULL_NOT_ALLOWED,
        "p_webhook_id is null; give the id of a webhook",
    ),
    "no body": ({"p_body": None}, NULL_NOT_ALLOWED, "p_body is null; give a JSON value"),
    "no priority": ({"p_priority": None}, INVALID_VALUE, "p_priority is null; allowed: -32768 to 32767"),
    "priority too high": ({"p_priority": 32768}, INVALID_VALUE, "p_priority is 32768; allowed: -32768 to"),
    "priority too low": ({"p_priority": -32769}, INVALID_VALUE, "p_priority is -32769; allowed: -32768 to"),
    "expired": (
        {"p_expires_at": "2000-01-01T00:00:00Z"},
        INVALID_VALUE,
        "p_expires_at is 2000-01-01 00:00:00+00, which is past; give a later time or null",
    ),
    "expired for ever": ({"p_expires_at": "-infinity"}, INVALID_VALUE, "p_expires_at is -infinity, which"),
    "expires before it is due": (
        {"p_expires_at": "2300-01-01T00:00:00Z", "p_deliver_after": "2300-01-01T00:00:00Z"},
        INVALID_VALUE,
        "p_expires_at is 2300-01-01 00:00:00+00, which is not after p_deliver_after",
    ),
    "event type empty": (
        {"p_event_type": ""},
        INVALID_VALUE,
        "p_event_type must be 1 to 128 printable ASCII",
    ),
    "event type long": ({"p_event_type": "x" * 129}, INVALID_VALUE, "p_event_type must be 1 to 128"),
    "event type spaced": ({"p_event_type": "disk full"}, INVALID_VALUE, "p_event_type must be 1 to 128"),
    "event type of two lines": ({"p_event_type": "disk\n"}, INVALID_VALUE, "p_event_type must be 1 to 128"),
    "event type accented": ({"p_event_type": "é"}, INVALID_VALUE, "p_event_type must be 1 to 128"),
    "traceparent short": ({"p_traceparent": "00-1-1-1"}, INVALID_VALUE, "p_traceparent is not a W3C trace"),
    "traceparent upper": (
        {"p_traceparent": "00-" + "A" * 32 + "-" + "b" * 16 + "-01"},
        INVALID_VALUE,
        "p_traceparent is not a W3C traceparent such as 00-",
    ),
    "traceparent of another version": (
        {"p_traceparent": "01-" + "a" * 32 + "-" + "b" * 16 + "-01"},
        INVALID_VALUE,
        "p_traceparent is not a W3C traceparent such as 00-<32 hex>-<16 hex>-01: version 00, lower case",
    ),
    "traceparent without a trace": (
        {"p_traceparent": "00-" + "0" * 32 + "-" + "b" * 16 + "-01"},
        INVALID_VALUE,
        "p_traceparent is not",
    ),
    "traceparent without a parent": (
        {"p_traceparent": "00-" + "a" * 32 + "-" + "0" * 16 + "-01"},
        INVALID_VALUE,
        "p_traceparent is not",
    ),
    "traceparent of two lines": (
        {"p_traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01\n"},
        INVALID_VALUE,
        "p_traceparent is not",
    ),
    "key empty": ({"p_idempotency_key": ""}, INVALID_VALUE, "p_idempotency_key must be 1 to 255 characters"),
    "key long": ({"p_idempotency_key": "k" * 256}, INVALID_VALUE, "p_idempotency_key must be 1 to 255"),
    "order empty": ({"p_ordering_key": ""}, INVALID_VALUE, "p_ordering_key must be 1 to 255 characters"),
    "order long": ({"p_ordering_key": "k" * 256}, INVALID_VALUE, "p_ordering_key must be 1 to 255 char"),
    "headers a list": ({"p_headers": "[]"}, INVALID_VALUE, "p_headers: headers must be a JSON object of str"),
    "header a number": ({"p_headers": '{"A": 1}'}, INVALID_VALUE, "p_headers: the value of header A must be"),
    "header ours": (
        {"p_headers": '{"Host": "a"}'},
        INVALID_VALUE,
        "p_headers: header Host is set by the send",
    ),
    "header twice": (
        {"p_headers": '{"X-a": "1", "x-A": "2"}'},
        INVALID_VALUE,
        "p_headers: headers name the same field twice, in different case",
    ),
    "header no token": ({"p_headers": '{"a b": "1"}'}, INVALID_VALUE, "p_headers: header name 'a b' is not"),
    "body too large": (
        {"p_body": '"' + "x" * 1_048_575 + '"'},
        TOO_LARGE,
        "p_body has 1048577 octets as text; webhook 7 takes at most 1048576 (its max_body_bytes)",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_argument_is_refused_by_name_with_what_is_allowed(
    reactor_database, producer, refusal, case
):
    given, sqlstate, text = BAD[case]
    arguments = {"p_webhook_id": 7, "p_body": "{}", **given}
    await producer.execute("SET TimeZone = 'UTC'")
    error = await refusal(producer, call(arguments), arguments)

    assert (error.sqlstate, str(error)[: len(text)]) == (sqlstate, text)
    assert await reactor_database.fetch_value("SELECT count(*) FROM pggit.alert_delivery_queue") == 0


@pytest.mark.parametrize(
    "given",
    [
        {"p_priority": 32767},
        {"p_priority": -32768},
        {"p_event_type": "x" * 128},
        {"p_event_type": "!~"},
        {"p_idempotency_key": "ü" * 255, "p_ordering_key": "ü" * 255},
        {"p_idempotency_key": " "},
        {"p_deliver_after": "-infinity"},
        {"p_deliver_after": "2000-01-01T00:00:00Z", "p_expires_at": "infinity"},
        {"p_headers": "null"},
        {"p_headers": "{}"},
        {"p_body": "null"},
        {"p_body": '"' + "x" * 1_048_574 + '"'},
        {"p_webhook_id": -(2**63), "p_alert_id": 2**63 - 1},
    ],
    ids=lambda given: " ".join(given),
)
async def test_what_lies_just_within_the_bounds_is_taken(rows, producer, given):
    delivery_id = await enqueue(producer, **given)

    assert await rows.get(delivery_id, "delivery_status") == ("pending",)


async def test_the_bound_of_a_body_is_its_webhooks_own(rows, producer, refusal):
    await rows.webhook(7, max_body_bytes="10")
    await enqueue(producer, p_body='"12345678"')
    arguments = {"p_webhook_id": 7, "p_body": '"123456789"'}
    error = await refusal(producer, call(arguments), arguments)

    assert str(error).startswith("p_body has 11 octets as text; webhook 7 takes at most 10")
    await enqueue(producer, p_webhook_id=8, p_body='"123456789"')


async def test_a_known_key_gives_the_row_that_has_it_and_inserts_nothing(reactor_database, producer, ear):
    first = await enqueue(producer, p_idempotency_key="k", p_body='{"n": 1}')
    await ear.heard()
    again = await enqueue(producer, p_idempotency_key="k", p_body='{"n": 2}')

    assert again == first
    assert await reactor_database.fetch("SELECT message_body FROM pggit.alert_delivery_queue") == [
        ({"n": 1},)
    ]
    assert await ear.heard() == []


async def test_a_key_is_known_to_its_webhook_alone_and_after_delivery_too(reactor_database, producer):
    first = await enqueue(producer, p_idempotency_key="k")
    await reactor_database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered'")

    assert await enqueue(producer, p_idempotency_key="k") == first
    assert await enqueue(producer, p_idempotency_key="k", p_webhook_id=8) != first


async def test_without_a_key_every_call_is_a_row(producer):
    assert await enqueue(producer) != await enqueue(producer)


async def test_a_plain_insert_of_a_known_key_is_refused(producer, refusal):
    await enqueue(producer, p_idempotency_key="k")
    error = await refusal(
        producer,
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, idempotency_key)"
        " VALUES (1, 7, '{}', 'k')",
    )

    assert error.sqlstate == "23505"


async def until_waiting(database: ReactorDatabase, pid: int) -> None:
    with trio.fail_after(20):
        while not await database.fetch_value("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)):
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_of_two_sessions_with_one_key_the_second_waits_and_takes_the_row_if_there_is_one(
    reactor_database, producer, end
):
    other = await reactor_database.connect(role="pggit_producer")
    await producer.execute("BEGIN")
    first = await enqueue(producer, p_idempotency_key="k")
    got: list[int] = []

    async def second() -> None:
        got.append(await enqueue(other, p_idempotency_key="k"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await until_waiting(reactor_database, other.info.backend_pid)
        await producer.execute(end)

    assert (got == [first]) == (end == "COMMIT")
    assert await reactor_database.fetch("SELECT delivery_id FROM pggit.alert_delivery_queue") == [(got[0],)]


async def test_at_repeatable_read_the_second_is_told_to_try_again(reactor_database, producer, refusal):
    other = await reactor_database.connect(role="pggit_producer")
    await other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await other.execute("SELECT pg_current_snapshot()")
    first = await enqueue(producer, p_idempotency_key="k")
    arguments = {"p_webhook_id": 7, "p_body": "{}", "p_idempotency_key": "k"}

    assert (await refusal(other, call(arguments), arguments)).sqlstate == SERIALIZATION
    await other.execute("ROLLBACK")
    assert await enqueue(other, p_idempotency_key="k") == first


async def test_many_sessions_with_the_same_keys_make_one_row_a_key(reactor_database):
    connections = [await reactor_database.connect(role="pggit_producer") for _ in range(6)]
    got: dict[str, set[int]] = {str(key): set() for key in range(20)}

    async def run(connection: TrioConnection, turn: int) -> None:
        keys = list(got)
        for key in keys[turn:] + keys[:turn]:
            got[key].add(await enqueue(connection, p_idempotency_key=key))

    async with trio.open_nursery() as nursery:
        for turn, connection in enumerate(connections):
            nursery.start_soon(run, connection, turn)

    assert all(len(ids) == 1 for ids in got.values())
    assert await reactor_database.fetch_value("SELECT count(*) FROM pggit.alert_delivery_queue") == len(got)


async def test_what_is_rolled_back_was_never_queued(reactor_database, producer):
    await producer.execute("BEGIN")
    await enqueue(producer)
    await producer.execute("ROLLBACK")

    assert await reactor_database.fetch_value("SELECT count(*) FROM pggit.alert_delivery_queue") == 0


async def test_a_callers_search_path_and_tables_of_its_own_change_nothing(reactor_database, producer):
    """What a SECURITY DEFINER function must withstand: names that stand before its own."""
    await reactor_database.execute("GRANT CREATE ON SCHEMA public TO pggit_producer")
    await reactor_database.execute(
        f"GRANT CREATE, TEMPORARY ON DATABASE {reactor_database.name} TO pggit_producer"
    )
    await producer.execute("CREATE SCHEMA evil")
    await producer.execute(
        "CREATE FUNCTION evil.octet_length(text) RETURNS integer LANGUAGE sql AS 'SELECT 1 / 0'"
    )
    await producer.execute("CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE sql AS 'SELECT 1 / 0'")
    await producer.execute("CREATE TEMPORARY TABLE alert_delivery_queue (delivery_id bigint)")
    await producer.execute("SET search_path = evil, pg_temp, pg_catalog")
    await producer.execute("CREATE TEMPORARY TABLE pg_class (oid oid)")

    delivery_id = await enqueue(producer, p_headers='{"X-A": "1"}')
    assert await reactor_database.fetch("SELECT delivery_id FROM pggit.alert_delivery_queue") == [
        (delivery_id,)
    ]


async def test_who_has_no_grant_may_not_enqueue(reactor_database, refusal):
    reader = await reactor_database.connect(role="pggit_reader")

    assert (await refusal(reader, "SELECT pggit.enqueue(7, '{}')")).sqlstate == "42501"
