"""Queueing from Python, inside the producer's own psycopg transaction.

What is queued belongs to the transaction: what rolls back is never sent, what commits is sent. Any other
client does the same by ``SELECT pggit.enqueue(...)`` or a plain INSERT; this only binds the parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

_ENQUEUE: Final = """
    SELECT pggit.enqueue(
        p_webhook_id => %(webhook_id)s::bigint, p_body => %(body)s::jsonb, p_alert_id => %(alert_id)s::bigint,
        p_event_type => %(event_type)s::text, p_idempotency_key => %(idempotency_key)s::text,
        p_priority => %(priority)s::integer, p_deliver_after => %(deliver_after)s::timestamptz,
        p_expires_at => %(expires_at)s::timestamptz, p_headers => %(headers)s::jsonb,
        p_ordering_key => %(ordering_key)s::text, p_traceparent => %(traceparent)s::text)
"""


def enqueue(
    connection: Connection[Any],
    webhook_id: int,
    body: object,
    *,
    alert_id: int | None = None,
    event_type: str | None = None,
    idempotency_key: str | None = None,
    priority: int = 0,
    deliver_after: datetime | None = None,
    expires_at: datetime | None = None,
    headers: Mapping[str, str] | None = None,
    ordering_key: str | None = None,
    traceparent: str | None = None,
) -> int:
    """Queue *body* for a webhook in the transaction of *connection*, and return the delivery's id.

    *body* is a value that the json module can write, without NaN and infinities; or `bytes`, which are taken
    for JSON text in UTF-8. PostgreSQL stores it as jsonb, and what is sent is what PostgreSQL makes of it.

    - *alert_id* names what happened; by default a new number.
    - *idempotency_key*: where the webhook has a delivery of this key, nothing is queued and its id returned.
    - *priority*: -32768 to 32767, higher goes first.
    - *deliver_after* and *expires_at* are aware datetimes.
    - *headers* are sent with the request; names that the sender sets itself are refused.
    - *ordering_key*: of a webhook with ``ordering=key``, deliveries of one key are sent one after another.
    - *traceparent*: W3C Trace Context of version 00, which is sent on as it is; any other is refused.

    Nothing is committed: that is the caller's, as is any `psycopg.Error`, after which his transaction has
    failed as after any other. `TypeError` and `ValueError` for arguments are raised before anything is sent.
    """
    from psycopg import Cursor
    from psycopg.rows import tuple_row

    bound = _bound(
        webhook_id=webhook_id,
        body=body,
        alert_id=alert_id,
        event_type=event_type,
        idempotency_key=idempotency_key,
        priority=priority,
        deliver_after=deliver_after,
        expires_at=expires_at,
        headers=headers,
        ordering_key=ordering_key,
        traceparent=traceparent,
    )
    # Not connection.cursor(): the caller may have chosen other placeholders or rows for his own.
    with Cursor(connection, row_factory=tuple_row) as cursor:
        return _id_of(cursor.execute(_ENQUEUE, bound).fetchone())


async def enqueue_async(
    connection: AsyncConnection[Any],
    webhook_id: int,
    body: object,
    *,
    alert_id: int | None = None,
    event_type: str | None = None,
    idempotency_key: str | None = None,
    priority: int = 0,
    deliver_after: datetime | None = None,
    expires_at: datetime | None = None,
    headers: Mapping[str, str] | None = None,
    ordering_key: str | None = None,
    traceparent: str | None = None,
) -> int:
    """As `enqueue`, for an `AsyncConnection`. Cancelled, the caller's transaction is as after any statement."""
    from psycopg import AsyncCursor
    from psycopg.rows import tuple_row

    bound = _bound(
        webhook_id=webhook_id,
        body=body,
        alert_id=alert_id,
        event_type=event_type,
        idempotency_key=idempotency_key,
        priority=priority,
        deliver_after=deliver_after,
        expires_at=expires_at,
        headers=headers,
        ordering_key=ordering_key,
        traceparent=traceparent,
    )
    async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(_ENQUEUE, bound)
        return _id_of(await cursor.fetchone())


def _bound(*, body: object, headers: Mapping[str, str] | None, **others: object) -> dict[str, object]:
    for name in ("deliver_after", "expires_at"):
        moment = others[name]
        if isinstance(moment, datetime) and moment.utcoffset() is None:
            raise ValueError(f"{name} has no time zone: PostgreSQL would take it for the session's own")
    traceparent = others["traceparent"]
    if isinstance(traceparent, str) and not _is_traceparent(traceparent):
        raise ValueError("traceparent is not of W3C version 00: 00-<32 hex>-<16 hex>-<2 hex>, in lower case")
    return {
        **others,
        "body": _json_text(body),
        "headers": None if headers is None else json.dumps(dict(headers)),
    }


def _is_traceparent(text: str) -> bool:
    from pggit_reactor.core.headers import TRACEPARENT

    return TRACEPARENT.fullmatch(text) is not None


def _json_text(body: object) -> str:
    if isinstance(body, bytes):
        return body.decode("utf-8")
    return json.dumps(body, allow_nan=False, ensure_ascii=False)


def _id_of(row: tuple[Any, ...] | None) -> int:
    assert row is not None
    return cast("int", row[0])
