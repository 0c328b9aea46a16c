"""What a claim, a look and an explanation say of heads and followers."""

from __future__ import annotations

import pytest

from pggit_reactor.core.model import State
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.db.claims import NOT_LOOKED, Claim, discover
from pggit_reactor.db.embedded import open_embedded_postgres
from pggit_reactor.testing.database import QUICK_SETTINGS, open_database

WEBHOOK = 7
HORIZON_SECONDS = 5.0
KEYS_A_CLAIM = 256
KEYLESS_A_CLAIM = 1024
DELIVERED = Decision(state=State.DELIVERED)
HOUR = "now() + interval '1 h'"
BOTH = pytest.mark.parametrize("ordering", ["webhook", "key"])


@pytest.fixture
def reactor_database(emptied):
    return emptied


@pytest.fixture
async def ordered(rows, ordering):
    """Webhook 7 in the test's ordering."""
    await rows.webhook(WEBHOOK, ordering=f"'{ordering}'", concurrency="256")


@pytest.fixture
async def keyed(rows):
    """Webhook 7, one order a key."""
    await rows.webhook(WEBHOOK, ordering="'key'", concurrency="256")


async def claimed_ids(hand, budget: int = 10) -> list[int]:
    claimed = await hand.claim({WEBHOOK: budget})
    return [delivery.delivery_id for delivery in claimed.deliveries]


def places_of(claimed: Claim) -> dict[int, str | None]:
    return {webhook_id: webhook.place for webhook_id, webhook in claimed.webhooks.items()}


async def looked(hand) -> dict[int, float]:
    return await discover(hand.claiming, horizon_seconds=HORIZON_SECONDS)


async def many(database, count: int, key: str, due: str = "NULL") -> None:
    await database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key, next_retry_at)"
        f" SELECT n, {WEBHOOK}, '{{}}', {key}, ({due})::timestamptz FROM generate_series(1, {count}) AS n"
    )


# ---- order


@BOTH
async def test_priority_and_time_do_not_count_within_an_order(rows, hand, ordered):
    first = await rows.queue(ordering_key="'a'", created_at="now() - interval '1 min'")
    await rows.queue(ordering_key="'a'", created_at="now() - interval '1 h'", priority="9")

    assert await claimed_ids(hand) == [first]


@BOTH
async def test_a_row_that_became_visible_late_waits_for_what_is_under_way_and_goes_next(
    reactor_database, rows, hand, ordered
):
    late = await reactor_database.connect()
    async with late.transaction():
        cursor = await late.execute(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key)"
            " VALUES (1, 7, '{}', 'a') RETURNING delivery_id"
        )
        ((lower,),) = await cursor.fetchall()
        higher = await rows.queue(ordering_key="'a'")
        first = await hand.claim({WEBHOOK: 10})
        assert [delivery.delivery_id for delivery in first.deliveries] == [higher]

    assert await claimed_ids(hand) == []
    await hand.settle(first.deliveries, DELIVERED)
    assert await claimed_ids(hand) == [lower]


@BOTH
async def test_a_head_that_somebody_holds_locked_is_not_passed_by(reactor_database, rows, hand, ordered):
    head = await rows.queue(ordering_key="'a'")
    await rows.queue(ordering_key="'a'")
    other = await reactor_database.connect()
    async with other.transaction():
        await other.execute(
            "SELECT FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", (head,)
        )
        claimed = await hand.claim({WEBHOOK: 10})

    assert claimed.deliveries == ()
    assert 0 < claimed.webhooks[WEBHOOK].ask_again_seconds < 1  # Nobody tells when he is done.
    assert await claimed_ids(hand) == [head]


@BOTH
async def test_a_head_that_can_never_be_due_holds_its_followers(rows, hand, ordered):
    """A retrying row without a time: doctor shows it, people requeue it."""
    await rows.queue(ordering_key="'a'", delivery_status="'retrying'")
    await rows.queue(ordering_key="'a'")
    claimed = await hand.claim({WEBHOOK: 10})

    assert (claimed.deliveries, claimed.webhooks[WEBHOOK].ask_again_seconds) == ((), None)
    assert await looked(hand) == {}


async def test_keys_are_what_was_written_and_an_empty_one_is_a_key(rows, hand, keyed):
    ids = {key: await rows.queue(ordering_key=f"'{key}'") for key in ("", " ", "a", "A", "x" * 100_000)}
    await rows.queue(ordering_key="''")

    assert sorted(await claimed_ids(hand)) == sorted(ids.values())


async def test_another_claimer_of_the_webhook_is_not_waited_for(reactor_database, rows, hand, hand_of, keyed):
    await rows.queue(ordering_key="'a'")
    second = hand_of(await reactor_database.connect(), await reactor_database.connect())
    async with hand.claiming.transaction():
        assert len(await claimed_ids(hand, 1)) == 1
        claimed = await second.claim({WEBHOOK: 5}, places={WEBHOOK: "k12"})

    assert claimed.deliveries == ()
    assert places_of(claimed) == {WEBHOOK: NOT_LOOKED + "k12"}
    assert 0 < claimed.webhooks[WEBHOOK].ask_again_seconds < 0.1


# ---- a bounded look at a time


async def test_keys_beyond_those_of_one_claim_get_their_turn(reactor_database, hand, keyed):
    await many(reactor_database, 3 * KEYS_A_CLAIM, "'key ' || n", HOUR)
    await many(reactor_database, 1, "'zz'")
    claims, ids, place = 0, [], ""
    while claims == 0 or place:
        claimed = await hand.claim({WEBHOOK: 10}, places={WEBHOOK: place})
        ids += claimed.deliveries
        place = claimed.webhooks[WEBHOOK].place
        claims += 1

    assert len(ids) == 1
    assert claims == 4


async def test_a_budget_that_is_used_up_goes_on_behind_the_last_key(reactor_database, hand, keyed):
    await many(reactor_database, 30, "'key ' || mod(n, 10)")
    first = await hand.claim({WEBHOOK: 4})
    second = await hand.claim({WEBHOOK: 4}, places=places_of(first))
    third = await hand.claim({WEBHOOK: 4}, places=places_of(second))

    assert [len(claimed.deliveries) for claimed in (first, second, third)] == [4, 4, 2]
    assert places_of(third) == {WEBHOOK: ""}


async def test_rows_without_a_key_beyond_those_of_one_claim_get_their_turn(reactor_database, hand, keyed):
    await many(reactor_database, KEYLESS_A_CLAIM + 1, "NULL", HOUR)
    await many(reactor_database, 1, "NULL")
    first = await hand.claim({WEBHOOK: 10})
    second = await hand.claim({WEBHOOK: 10}, places=places_of(first))

    assert (len(first.deliveries), len(second.deliveries)) == (0, 1)
    assert places_of(second) == {WEBHOOK: ""}


async def test_a_claim_that_is_allowed_nothing_keeps_its_place(rows, hand, keyed):
    await rows.queue(ordering_key="'a'")
    claimed = await hand.claim({WEBHOOK: 0}, places={WEBHOOK: "k5"})

    assert (claimed.deliveries, places_of(claimed)) == ((), {WEBHOOK: NOT_LOOKED + "k5"})


# ---- when to come back


@BOTH
async def test_the_next_time_is_that_of_the_head_and_not_of_its_followers(rows, hand, ordered):
    await rows.queue(ordering_key="'a'", next_retry_at="now() + interval '100 s'")
    await rows.queue(ordering_key="'a'")
    await rows.queue(ordering_key="'a'", next_retry_at="now() + interval '10 s'")
    claimed = await hand.claim({WEBHOOK: 10})

    assert claimed.deliveries == ()
    assert claimed.webhooks[WEBHOOK].ask_again_seconds == pytest.approx(100, abs=5)
    assert places_of(claimed) == {WEBHOOK: ""}


@BOTH
async def test_a_look_sees_heads_and_not_followers(rows, hand, ordered):
    head = await rows.queue(ordering_key="'a'")
    await rows.queue(ordering_key="'a'")
    assert await looked(hand) == {WEBHOOK: 0}

    claimed = await hand.claim({WEBHOOK: 10})
    assert await looked(hand) == {}

    await hand.settle(claimed.deliveries, Decision(state=State.RETRYING, delay_seconds=3))
    assert (await looked(hand))[WEBHOOK] == pytest.approx(3, abs=2)
    await hand.settling.execute(
        f"UPDATE pggit.alert_delivery_queue SET next_retry_at = {HOUR} WHERE delivery_id = %s", (head,)
    )
    assert await looked(hand) == {}


async def test_a_look_at_more_keys_than_it_counts_leaves_it_to_the_claim(reactor_database, hand, keyed):
    await many(reactor_database, KEYS_A_CLAIM, "'key ' || n", HOUR)

    assert await looked(hand) == {WEBHOOK: 0}


async def test_of_a_webhook_one_after_another_a_worker_runs_one(rows, hand):
    await rows.webhook(WEBHOOK, ordering="'webhook'", concurrency="32")

    assert (await hand.claim({WEBHOOK: 10})).webhooks[WEBHOOK].concurrency == 1


# ---- who ends a head wakes the workers


@pytest.mark.parametrize(
    ("statement", "heard"),
    [
        ("UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id = {}", ["7"]),
        ("UPDATE pggit.alert_delivery_queue SET webhook_id = 8 WHERE delivery_id = {}", ["7", "8"]),
        ("UPDATE pggit.alert_delivery_queue SET ordering_key = 'b' WHERE delivery_id = {}", ["7"]),
        ("DELETE FROM pggit.alert_delivery_queue WHERE delivery_id = {}", ["7"]),
        ("UPDATE pggit.alert_delivery_queue SET message_body = '1' WHERE delivery_id = {}", []),
    ],
)
async def test_an_outsider_who_takes_a_row_away_notifies(rows, ear, keyed, statement, heard):
    delivery_id = await rows.queue(ordering_key="'a'")
    await ear.heard()

    assert sorted(await ear.hear(statement.format(delivery_id))) == heard


async def test_where_there_is_no_order_he_does_not(rows, ear):
    await rows.webhook(WEBHOOK)
    first, second = await rows.queue(), await rows.queue()
    await ear.heard()

    assert (
        await ear.hear(
            f"UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id = {first}",
            f"DELETE FROM pggit.alert_delivery_queue WHERE delivery_id = {second}",
        )
        == []
    )


@BOTH
async def test_a_worker_that_settles_or_prunes_notifies_nobody(rows, hand, ear, ordered):
    await rows.queue(ordering_key="'a'")
    claimed = await hand.claim({WEBHOOK: 10})
    await ear.heard()
    await hand.settle(claimed.deliveries, DELIVERED)

    assert await ear.hear("DELETE FROM pggit.alert_delivery_queue") == []


# ---- SQL callers


@BOTH
async def test_get_ready_deliveries_gives_heads_only(reactor_database, rows, ordered):
    await rows.webhook(8)
    head = await rows.queue(ordering_key="'a'")
    follower = await rows.queue(ordering_key="'a'")
    unordered = [await rows.queue(webhook_id="8") for _ in range(2)]
    ready = "SELECT delivery_id FROM pggit.get_ready_deliveries(10)"
    session = await reactor_database.connect()

    await session.execute("SET pggit.lease = 0")
    assert await (await session.execute(ready)).fetchall() == [(head,), *((one,) for one in unordered)]
    await session.execute("RESET pggit.lease")
    assert await (await session.execute(ready)).fetchall() == [(head,), *((one,) for one in unordered)]
    assert await (await session.execute(ready)).fetchall() == []
    await session.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered' WHERE delivery_id = %s", (head,)
    )
    assert await (await session.execute(ready)).fetchall() == [(follower,)]


async def test_workers_and_sql_callers_keep_one_order(reactor_database, rows, hand, keyed):
    head = await rows.queue(ordering_key="'a'")
    await rows.queue(ordering_key="'a'")
    session = await reactor_database.connect()
    await session.execute("SELECT FROM pggit.get_ready_deliveries(10)")
    assert await claimed_ids(hand) == []

    await session.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id = %s", (head,)
    )
    assert len(await claimed_ids(hand)) == 1
    assert await (await session.execute("SELECT FROM pggit.get_ready_deliveries(10)")).fetchall() == []


# ---- explanations


async def explained(database, delivery_id: int) -> tuple[str, str | None, str]:
    ((waits_for, due_at, words),) = await database.fetch(
        "SELECT waits_for, due_at::text, explanation FROM pggit.explain_delivery(%s::bigint)", (delivery_id,)
    )
    return waits_for, due_at, words


@pytest.fixture
async def worker_alive(reactor_database):
    await reactor_database.execute(
        "INSERT INTO pggit.reactor_worker (instance, worker_id, version, host, pid, capacity)"
        " VALUES ('a worker', 'w', '1', 'h', 1, 1)"
    )


@BOTH
async def test_explain_names_the_head_and_what_holds_it(reactor_database, rows, hand, ordered, worker_alive):
    head = await rows.queue(ordering_key="'a'")
    follower = await rows.queue(ordering_key="'a'")
    assert (await explained(reactor_database, head))[::2] == ("turn", "it is due, and the first of its order")
    waits_for, due_at, words = await explained(reactor_database, follower)
    assert waits_for == "order"
    assert due_at is not None
    assert words.startswith(f"delivery {head} goes first")
    assert words.endswith("; it is due; 1 are before this one")

    claimed = await hand.claim({WEBHOOK: 10})
    assert "; a worker is sending it" in (await explained(reactor_database, follower))[2]

    await hand.settle(claimed.deliveries, Decision(state=State.RETRYING, delay_seconds=60), http_status=503)
    waits_for, due_at, words = await explained(reactor_database, follower)
    assert "; 1 attempt(s) of it failed; the next is at " in words
    assert due_at == (await explained(reactor_database, head))[1]

    await reactor_database.execute(
        "UPDATE pggit.alert_delivery_queue SET next_retry_at = NULL WHERE delivery_id = %s", (head,)
    )
    waits_for, due_at, words = await explained(reactor_database, follower)
    assert (waits_for, due_at) == ("order", None)
    assert f"pggit.cancel_delivery({head}) lets the next pass" in words


async def test_explain_says_nothing_of_an_order_that_a_row_is_not_in(
    reactor_database, rows, keyed, worker_alive
):
    await rows.queue(ordering_key="'a'", next_retry_at=HOUR)
    other_key = await rows.queue(ordering_key="'b'")
    without_key = await rows.queue()

    assert (await explained(reactor_database, other_key))[0] == "turn"
    assert (await explained(reactor_database, without_key))[0] == "turn"


# ---- giving a webhook an order


async def test_the_first_webhook_of_an_order_makes_its_indexes():
    indexes = (
        "SELECT coalesce(string_agg(substr(indexname, 22), ' ' ORDER BY indexname), '') FROM pg_indexes"
        " WHERE tablename = 'alert_delivery_queue' AND indexname ~ '(order|key)'"
        " AND indexname !~ '(idempotency|pkey)'"
    )
    add = "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, ordering) VALUES (%s, %s, '', '', %s)"
    async with open_embedded_postgres(settings=QUICK_SETTINGS) as server, open_database(server) as database:
        await database.execute(add, (1, "one", "none"))
        assert await database.fetch_value(indexes) == ""

        operator = await database.connect(role="pggit_operator")
        await operator.execute("UPDATE pggit.webhook SET ordering = 'key'")
        assert await database.fetch_value(indexes) == "key_idx order_claimed_idx"

        await operator.execute(add, (2, "two", "webhook"))
        assert await database.fetch_value(indexes) == "key_idx order_claimed_idx order_idx"


async def test_a_producer_who_does_not_end_makes_the_first_order_wait_and_then_say_why(refusal):
    async with open_embedded_postgres(settings=QUICK_SETTINGS) as server, open_database(server) as database:
        producer = await database.connect()
        async with producer.transaction():
            await producer.execute(
                "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, 1, '{}')"
            )
            error = await refusal(database, "SELECT pggit.prepare_ordering('key')")

        assert error.sqlstate == "55P03"
        assert "try again when it has ended" in str(error)
        assert (await database.fetch_value("SELECT pggit.prepare_ordering('key')")).startswith("made ")
        assert await database.fetch_value("SELECT pggit.prepare_ordering('key')") == "nothing was to do"


async def test_a_claim_of_an_unordered_row_writes_to_no_index_beside_ordered_ones(
    reactor_database, rows, hand
):
    """A HOT update, also where the indexes of orders are."""
    await rows.webhook(WEBHOOK, ordering="'key'")
    await rows.webhook(8)
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key)"
        " SELECT n, 8, '{}', 'a' FROM generate_series(1, 100) AS n"
    )
    await reactor_database.execute("VACUUM FULL pggit.alert_delivery_queue")
    async with hand.claiming.transaction():
        assert len((await hand.claim({8: 30})).deliveries) == 30
        counts = await (
            await hand.claiming.execute(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
                " WHERE relid = 'pggit.alert_delivery_queue'::regclass"
            )
        ).fetchone()

    assert counts == (30, 30)
