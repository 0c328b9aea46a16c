"""Claims ready deliveries under a lease, and finds out which webhooks have any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.core import breaker, token_bucket
from pggit_reactor.core.delivery_uid import delivery_uid
from pggit_reactor.core.model import ClaimedDelivery, DeliveryId, LeaseToken, State, WebhookId
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.hot import HotStatement, integers, texts
from pggit_reactor.db.statements import filled, statements

INLINE_BODY_BYTES_MAX: Final = 65_536
"""Larger bodies do not come with the claim: they are fetched one by one under the byte budget."""
UNKNOWN_ROWS_A_BATCH: Final = 500
NOT_LOOKED: Final = "w"
"""A claim that was allowed nothing, or met another claimer of the webhook, gives its place back behind this."""

_BIGINTS: Final = 1 << 63

_SQL = statements("claim")
PLAIN_CLAIM: Final = HotStatement.of(
    filled(
        _SQL["claim"],
        hot=_SQL["hot_plain"],
        webhooks=_SQL["webhooks_plain"],
        priorities=_SQL["priorities"],
        next_due=_SQL["next_due"],
    )
)
LIMITED_CLAIM: Final = HotStatement.of(
    filled(
        _SQL["claim"],
        hot=_SQL["hot_limited"],
        heads=_SQL["heads"],
        spent=_SQL["spent"],
        webhooks=_SQL["webhooks_limited"],
        priorities=_SQL["priorities"],
        next_due=_SQL["next_due"],
    )
)
# Named here, so that tests of plans explain what is run.
LIMITS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "rate_min": str(token_bucket.RATE_MIN),
        "rate_max": str(token_bucket.RATE_MAX),
        "fill_seconds": str(token_bucket.FILL_SECONDS_MAX),
        "disorder_seconds": str(token_bucket.DISORDER_SECONDS_MAX),
        "tolerance": str(token_bucket.TOLERANCE),
        "wake_seconds": str(token_bucket.WAKE_SECONDS_MIN),
        "recovery_seconds": str(breaker.RECOVERY_SECONDS),
        "recovery_share": str(breaker.RECOVERY_SHARE_MIN),
    }
)


class HeldBy(StrEnum):
    """What keeps a webhook from being claimed further; the words of the claim statement."""

    BLOCKED = "blocked"
    """For a time: paused, its breaker open, or asked for by its receiver."""
    BUSY = "busy"
    """Another worker is claiming it at this moment."""
    MISSING = "missing"
    """Its limit row is missing: until it has one, it has no tokens."""
    TOKENS = "tokens"
    """It has no more tokens."""
    PROBE = "probe"
    """Its breaker is half-open, and the one attempt that may be made is under way: ours, if we got a row."""
    LIMITS = "limits"
    """It has limits or an order, and the claim was a plain one."""


@attrs.frozen(kw_only=True)
class ClaimedWebhook:
    """What a claim says of a webhook that is registered and active."""

    concurrency: int
    """How many attempts of it a worker may run at once."""
    grows: bool
    """The concurrency is that of a slow start: it is more from moment to moment."""
    weight: int
    """What its turn is worth where workers are short of room."""
    is_limited: bool
    """A plain claim would not get any of it."""
    held_by: HeldBy | None
    ask_again_seconds: float | None
    """Until it is worth asking again, as far as is known: its next row that is not yet due, the next token, or the end
    of a block; each within a day."""
    place: str | None
    """Of a webhook with an order: where the next claim of it goes on. Empty: its heads were all looked at; beginning
    with `NOT_LOOKED`: none was. None: it has no order."""

    @property
    def has_said_all(self) -> bool:
        """Whether the claim itself says if there is more: it has an order, and its heads were looked at."""
        return self.place is not None and not self.place.startswith(NOT_LOOKED)


@attrs.frozen(kw_only=True)
class Claim:
    """What one claim statement brought."""

    deliveries: tuple[ClaimedDelivery, ...]
    webhooks: Mapping[WebhookId, ClaimedWebhook]
    """Of those that were asked for. One that is missing is unregistered, paused for good, or disabled."""
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
    plain: bool = False,
) -> Claim:
    """Claim at most the budget of each webhook, and no more than its concurrency and its token bucket leave room for.

    Of a webhook with an order only heads are claimed, looked for from its place in *places* on. A *plain* claim is
    quicker, and gets nothing of webhooks that have limits or an order: it says which have. The lease is the
    larger of *lease_seconds* and the webhook's attempt timeout plus 3 s. A worker that was last heard more than
    *silence_seconds* before its lease ran out is taken for dead.
    """
    rows = await (PLAIN_CLAIM if plain else LIMITED_CLAIM).fetch(
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
            **LIMITS,
        },
    )
    deliveries: list[ClaimedDelivery] = []
    webhooks: dict[WebhookId, ClaimedWebhook] = {}
    limited: set[WebhookId] = set()
    probed: set[WebhookId] = set()
    taken_over = 0
    # The rows that speak of webhooks come last.
    for row in reversed(rows):
        if row[1] is None:
            webhooks[row[0]] = ClaimedWebhook(
                concurrency=row[3],
                grows=bool(row[7]),
                is_limited=row[13],
                weight=row[8],
                held_by=None if row[4] is None else HeldBy(row[4]),
                ask_again_seconds=row[18],
                place=row[19],
            )
            if row[17]:
                limited.add(row[0])
            if row[4] == HeldBy.PROBE:
                probed.add(row[0])
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
                is_limited=row[0] in limited,
                is_probe=row[0] in probed,
            )
        )
    return Claim(deliveries=tuple(reversed(deliveries)), webhooks=webhooks, taken_over=taken_over)


async def warm_up(connection: TrioConnection) -> None:
    """Prepare and plan the statements, and load what they touch, by claiming nothing."""
    for plain in (True, False):
        await claim(
            connection,
            {},
            in_flight={},
            lease_token=LeaseToken(0),
            lease_seconds=0,
            silence_seconds=0,
            instance="",
            plain=plain,
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
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def take_token(connection: TrioConnection, webhook_id: WebhookId) -> bool:
    """Take one token more for an attempt that begins later than its claim allows; say whether there was one."""
    cursor = await connection.execute(_SQL["take_token"], {"webhook_id": webhook_id, **LIMITS})
    return cursor.rowcount == 1


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
    "ClaimedWebhook",
    "DeliveryId",
    "HeldBy",
    "adopt_unknown",
    "claim",
    "discover",
    "end_unknown",
    "fetch_body",
    "ids_of",
    "prune_limits",
    "release",
    "take_token",
]
