"""Claims ready deliveries under a lease, and finds out which webhooks have any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.core.delivery_uid import delivery_uid
from pggit_reactor.core.model import ClaimedDelivery, DeliveryId, LeaseToken, State, WebhookId
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.hot import HotStatement, integers, texts
from pggit_reactor.db.statements import statements

INLINE_BODY_BYTES_MAX: Final = 65_536
"""Larger bodies do not come with the claim: they are fetched one by one under the byte budget."""
UNKNOWN_ROWS_A_BATCH: Final = 500
NOT_LOOKED: Final = "w"
"""A claim that was allowed nothing, or met another claimer of the webhook, gives its place back behind this."""

_BIGINTS: Final = 1 << 63

_SQL = statements("claim")
_CLAIM: Final = HotStatement.of(_SQL["claim"])


@attrs.frozen(kw_only=True)
class Claim:
    """What one claim statement brought."""

    deliveries: tuple[ClaimedDelivery, ...]
    concurrency: Mapping[WebhookId, int]
    """How many attempts of each of these webhooks a worker may run at once."""
    weights: Mapping[WebhookId, int]
    """What a turn of each of these webhooks is worth where workers are short of room."""
    next_due_seconds: Mapping[WebhookId, float | None]
    """For each webhook that may be sent to: seconds until its next row that is not yet due, within a day. A webhook
    that is missing is unregistered, paused, disabled or blocked."""
    places: Mapping[WebhookId, str]
    """For each webhook with an order: where the next claim of it goes on. Empty: its heads were all looked at;
    beginning with `NOT_LOOKED`: none was."""
    taken_over: int
    """Rows whose earlier lease had run out."""


async def claim(
    connection: TrioConnection,
    budgets: Mapping[WebhookId, int],
    *,
    in_flight: Mapping[WebhookId, int],
    lease_token: LeaseToken,
    lease_seconds: float,
    silence_seconds: float,
    instance: str,
    places: Mapping[WebhookId, str] = MappingProxyType({}),
) -> Claim:
    """Claim at most the budget of each webhook, and no more than its concurrency leaves room for.

    Of a webhook with an order only heads are claimed, looked for from its place in *places* on.

    The lease is the larger of *lease_seconds* and the webhook's attempt timeout plus 3 s. A worker that was last heard
    more than *silence_seconds* before its lease ran out is taken for dead.
    """
    rows = await _CLAIM.fetch(
        connection,
        {
            "webhook_ids": integers(budgets.keys()),
            "budgets": integers(budgets.values()),
            "in_flights": integers([in_flight.get(webhook_id, 0) for webhook_id in budgets]),
            "places": texts([places.get(webhook_id) for webhook_id in budgets]),
            "lease_seconds": str(lease_seconds),
            "lease_token": str(lease_token),
            "silence_seconds": str(silence_seconds),
            "instance": instance,
            "inline_bytes": str(INLINE_BODY_BYTES_MAX),
        },
    )
    deliveries: list[ClaimedDelivery] = []
    concurrency: dict[WebhookId, int] = {}
    weights: dict[WebhookId, int] = {}
    next_due: dict[WebhookId, float | None] = {}
    ends: dict[WebhookId, str] = {}
    taken_over = 0
    for row in rows:
        if row[1] is None:
            concurrency[row[0]] = row[3]
            weights[row[0]] = row[7]
            next_due[row[0]] = row[18]
            if row[19] is not None:
                ends[row[0]] = row[19]
            continue
        taken_over += row[17]
        deliveries.append(
            ClaimedDelivery(
                webhook_id=row[0],
                delivery_id=row[1],
                uid=delivery_uid(row[1], row[2]),
                webhook_revision=row[3],
                lease_token=lease_token,
                state=State(row[4]),
                body=None if row[5] is None else row[5].encode(),
                body_bytes=row[6],
                retry_count=row[7],
                max_retries=row[8],
                attempt_count=row[9],
                crash_count=max(row[10], 0),  # no constraint keeps an outsider from writing less
                age_seconds=row[11],
                waited_seconds=row[12],
                expired=row[13],
                headers_json=row[14],
                event_type=row[15],
                traceparent=row[16],
            )
        )
    return Claim(
        deliveries=tuple(deliveries),
        concurrency=concurrency,
        weights=weights,
        next_due_seconds=next_due,
        places=ends,
        taken_over=taken_over,
    )


async def warm_up(connection: TrioConnection) -> None:
    """Prepare and plan the statement, and load what it touches, by claiming nothing."""
    await claim(
        connection,
        {},
        in_flight={},
        lease_token=LeaseToken(0),
        lease_seconds=0,
        silence_seconds=0,
        instance="",
    )


async def release(connection: TrioConnection, deliveries: Sequence[ClaimedDelivery]) -> int:
    """Give back claims that were not sent, as far as they are still ours; return how many."""
    if not deliveries:
        return 0
    cursor = await connection.execute(
        _SQL["release"],
        {
            "delivery_ids": [delivery.delivery_id for delivery in deliveries],
            "lease_tokens": [delivery.lease_token for delivery in deliveries],
        },
    )
    return cursor.rowcount


async def fetch_body(connection: TrioConnection, delivery: ClaimedDelivery) -> bytes | None:
    """Return the payload's text in UTF-8, or None where the lease is no longer ours."""
    cursor = await connection.execute(
        _SQL["body"], {"delivery_id": delivery.delivery_id, "lease_token": delivery.lease_token}
    )
    row = await cursor.fetchone()
    return None if row is None else row[0].encode()


async def discover(connection: TrioConnection, *, horizon_seconds: float) -> dict[WebhookId, float]:
    """Return the registered, unblocked webhooks that have a row which is not leased and due, or will be within the
    horizon: in how many seconds, 0 for now."""
    cursor = await connection.execute(_SQL["discover"], {"horizon_seconds": horizon_seconds}, prepare=True)
    return dict(await cursor.fetchall())


async def adopt_unknown(connection: TrioConnection) -> int:
    """Give ids that the queue holds and no limit row knows one, blocked unless registered; return how many."""
    cursor = await connection.execute(_SQL["adopt_unknown"])
    return cursor.rowcount


async def end_unknown(connection: TrioConnection, *, hold_seconds: float) -> int:
    """Make dead what waited longer than its hold for a webhook that nobody registered; return how many, at most
    `UNKNOWN_ROWS_A_BATCH`."""
    cursor = await connection.execute(
        _SQL["end_unknown"], {"hold_seconds": hold_seconds, "rows_max": UNKNOWN_ROWS_A_BATCH}
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def prune_limits(connection: TrioConnection) -> int:
    """Remove the limit rows of unregistered ids that nothing waits for; return how many."""
    cursor = await connection.execute(_SQL["prune_limits"])
    return cursor.rowcount


def ids_of(hint: str) -> list[WebhookId]:
    """Return the webhook ids of a notification's payload; empty for "look yourself" and for nonsense.

    Anybody who may connect may NOTIFY: a number that is no bigint would make every claim fail.
    """
    try:
        ids = [WebhookId(int(word)) for word in hint.split(",")]
    except ValueError:
        return []
    return ids if all(-_BIGINTS <= number < _BIGINTS for number in ids) else []


__all__ = [
    "Claim",
    "DeliveryId",
    "adopt_unknown",
    "claim",
    "discover",
    "end_unknown",
    "fetch_body",
    "ids_of",
    "prune_limits",
    "release",
]
