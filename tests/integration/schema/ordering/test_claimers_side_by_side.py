"""Several claimers of one ordered webhook at once, each on connections of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import attrs
import pytest
import trio

from pggit_reactor.core.model import ClaimedDelivery, State
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.db.lane import CLAIM_OPTIONS, HOT_OPTIONS

CLAIMERS = 4
DELIVERED = Decision(state=State.DELIVERED)
LATER = Decision(state=State.RETRYING, delay_seconds=0.001, counts_retry=True)
LEASED = (
    "SELECT count(*) FROM pggit.alert_delivery_queue WHERE webhook_id = 7 AND lease_expires_at > now()"
    " AND (ordering_key IS NOT DISTINCT FROM %s OR %s)"
)


@attrs.define(eq=False, kw_only=True)
class Log:
    """What was begun and done, as the claimers saw it."""

    keys: dict[int, str | None]
    done: defaultdict[str | None, list[int]] = attrs.field(factory=lambda: defaultdict(list))
    under_way: int = 0
    most_under_way: int = 0

    def begin(self, deliveries: Sequence[ClaimedDelivery]) -> None:
        self.under_way += len(deliveries)
        self.most_under_way = max(self.most_under_way, self.under_way)

    def end(self, delivery_id: int, *, delivered: bool) -> None:
        self.under_way -= 1
        if delivered:
            self.done[self.keys[delivery_id]].append(delivery_id)

    @property
    def count(self) -> int:
        return sum(map(len, self.done.values()))


@pytest.fixture
def reactor_database(emptied):
    return emptied


async def work(database, hand, log: Log, *, whole_webhook: bool) -> None:
    """Claim and settle until all is done; each seventh delivery fails at first."""
    place: str | None = ""
    while log.count < len(log.keys):
        claimed = await hand.claim({7: 3}, places={7: place or ""})
        place = claimed.webhooks[7].place
        log.begin(claimed.deliveries)
        for delivery in claimed.deliveries:
            key = log.keys[delivery.delivery_id]
            assert await database.fetch_value(LEASED, (key, whole_webhook)) == 1
            fails = delivery.delivery_id % 7 == 0 and delivery.retry_count == 0
            # Before the settle: once it is written, others may go on.
            log.end(delivery.delivery_id, delivered=not fails)
            report = await hand.settle([delivery], LATER if fails else DELIVERED)
            assert len(report.settled) == 1


@pytest.mark.parametrize(("ordering", "keys"), [("webhook", 1), ("webhook", 5), ("key", 1), ("key", 20)])
async def test_each_order_is_kept_and_nothing_is_left(reactor_database, rows, hand_of, ordering, keys):
    await rows.webhook(7, ordering=f"'{ordering}'", concurrency="256")
    database = reactor_database
    inserted = await database.fetch(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key)"
        " SELECT n, 7, '{}', 'key ' || mod(n, %s) FROM generate_series(1, 200) AS n"
        " RETURNING delivery_id, ordering_key",
        (keys,),
    )
    log = Log(keys=dict(inserted))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(CLAIMERS):
                hand = hand_of(await database.connect(**CLAIM_OPTIONS), await database.connect(**HOT_OPTIONS))
                nursery.start_soon(
                    lambda hand=hand: work(database, hand, log, whole_webhook=ordering == "webhook")
                )

    assert log.count == 200
    if ordering == "webhook":
        assert await in_order_of_delivery(database) == sorted(log.keys)
        assert log.most_under_way == 1
    else:
        assert all(ids == sorted(ids) for ids in log.done.values())
        assert log.most_under_way <= keys


async def in_order_of_delivery(database) -> list[int]:
    rows = await database.fetch(
        "SELECT delivery_id FROM pggit.alert_delivery_log WHERE event_type = 'delivered' ORDER BY log_id"
    )
    return [row[0] for row in rows]
