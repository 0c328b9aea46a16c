from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import psycopg
import pytest
from psycopg.rows import dict_row

import pggit_reactor
from pggit_reactor import enqueue, enqueue_async

LATER = datetime(2100, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))


@pytest.fixture
def connection(reactor_database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(reactor_database.dsn.reveal()) as connection:
        yield connection


@pytest.fixture
def queue(reactor_database):
    """What others see of the queue: a column of all committed rows, in order."""

    def column(name: str) -> list:
        with psycopg.connect(reactor_database.dsn.reveal(), autocommit=True) as other:
            rows = other.execute(
                f"SELECT {name} FROM pggit.alert_delivery_queue ORDER BY delivery_id"
            ).fetchall()
        return [row[0] for row in rows]

    return column


def test_it_is_queued_with_the_callers_commit_and_not_before(connection, queue) -> None:
    delivery_id = enqueue(connection, 7, {"alert": "lag"})
    assert queue("delivery_id") == []
    connection.commit()

    assert queue("delivery_id") == [delivery_id]
    assert queue("webhook_id") == [7]
    assert queue("message_body") == [{"alert": "lag"}]


def test_a_rollback_takes_it_back(connection, queue) -> None:
    enqueue(connection, 7, {})
    connection.rollback()

    assert queue("delivery_id") == []


def test_every_argument_reaches_its_column(connection, queue) -> None:
    enqueue(
        connection, 7, [1], alert_id=42, event_type="lag", idempotency_key="k", priority=-3, deliver_after=LATER,
        expires_at=LATER + timedelta(days=1), headers={"X-Team": "db"}, ordering_key="o",
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )  # fmt: skip
    connection.commit()

    columns = ["alert_id", "event_type", "idempotency_key", "priority", "next_retry_at", "expires_at", "headers",
               "ordering_key", "traceparent"]  # fmt: skip
    assert [queue(column)[0] for column in columns] == [
        42, "lag", "k", -3, LATER, LATER + timedelta(days=1), {"X-Team": "db"}, "o",
        "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    ]  # fmt: skip


def test_without_arguments_the_columns_have_the_functions_defaults(connection, queue) -> None:
    enqueue(connection, 7, 1)
    connection.execute("SELECT pggit.enqueue(7, '1')")
    connection.commit()

    columns = ["event_type", "idempotency_key", "priority", "next_retry_at", "expires_at", "headers", "ordering_key",
               "traceparent", "max_retries"]  # fmt: skip
    assert all(len(set(map(json.dumps, queue(column)))) == 1 for column in columns)


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        (None, "null"),
        ("text", '"text"'),
        ("ß\u2028", '"ß\u2028"'),
        (b'{"pi": 3.10000000000000000001}', '{"pi": 3.10000000000000000001}'),
        (True, "true"),
    ],
)
def test_a_body_is_any_json_value_and_octets_are_json_text(connection, queue, body, stored) -> None:
    enqueue(connection, 7, body)
    connection.commit()

    assert queue("message_body::text") == [stored]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (Decimal(1), TypeError),
        (object(), TypeError),
        (b"\xff", ValueError),
    ],
)
def test_what_is_no_json_is_refused_before_anything_is_sent(connection, body, error) -> None:
    with pytest.raises(error):
        enqueue(connection, 7, body)

    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize("name", ["deliver_after", "expires_at"])
def test_a_time_without_a_zone_is_refused(connection, name) -> None:
    with pytest.raises(ValueError, match=name):
        enqueue(connection, 7, 1, **{name: datetime(2100, 1, 1)})  # noqa: DTZ001


@pytest.mark.parametrize(
    "traceparent",
    ["01-" + "a" * 32 + "-" + "b" * 16 + "-01", "00-" + "0" * 32 + "-" + "b" * 16 + "-01", "", "x"],
)
def test_a_traceparent_that_would_not_be_sent_is_refused_before_the_transaction(
    connection, traceparent
) -> None:
    with pytest.raises(ValueError, match="traceparent"):
        enqueue(connection, 7, 1, traceparent=traceparent)

    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_known_idempotency_key_gives_the_same_id_and_queues_nothing(connection, queue) -> None:
    first, second = (enqueue(connection, 7, n, idempotency_key="k") for n in (1, 2))
    other = enqueue(connection, 8, 3, idempotency_key="k")
    connection.commit()

    assert first == second != other
    assert queue("message_body") == [1, 3]


def test_what_the_database_refuses_is_its_error_in_the_callers_transaction(connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="Host"):
        enqueue(connection, 7, 1, headers={"Host": "x"})

    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR


@pytest.mark.parametrize(
    "options",
    [
        {"row_factory": dict_row},
        {"cursor_factory": psycopg.ClientCursor},
        {"cursor_factory": psycopg.RawCursor},
    ],
)
def test_the_callers_choice_of_rows_and_placeholders_does_not_matter(reactor_database, options) -> None:
    with psycopg.connect(reactor_database.dsn.reveal(), **options) as connection:
        assert isinstance(enqueue(connection, 7, {"%s": "%(a)s"}), int)


def test_a_producer_role_may_enqueue(reactor_database, queue) -> None:
    with psycopg.connect(reactor_database.dsn.reveal()) as connection:
        connection.execute("SET ROLE pggit_producer")
        enqueue(connection, 7, 1)
        connection.commit()

    assert queue("webhook_id") == [7]


def test_the_async_form_does_the_same_under_asyncio(reactor_database, queue) -> None:
    async def main() -> int:
        connection = await psycopg.AsyncConnection.connect(
            reactor_database.dsn.reveal(), row_factory=dict_row
        )
        async with connection:
            return await enqueue_async(
                connection, 7, {"a": 1}, priority=5, expires_at=datetime.now(UTC) + timedelta(days=1)
            )

    delivery_id = asyncio.run(main())

    assert queue("delivery_id") == [delivery_id]
    assert queue("priority") == [5]


async def test_the_async_form_works_on_a_trio_connection(reactor_database) -> None:
    connection = await reactor_database.connect()
    delivery_id = await enqueue_async(connection, 7, {"a": 1})

    rows = await reactor_database.fetch("SELECT delivery_id FROM pggit.alert_delivery_queue")
    assert rows == [(delivery_id,)]


def test_both_are_names_of_the_package() -> None:
    assert pggit_reactor.enqueue is enqueue
    assert pggit_reactor.enqueue_async is enqueue_async
