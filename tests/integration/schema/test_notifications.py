"""What an INSERT notifies, and that a worker's own statements notify nothing but what others must know."""

from __future__ import annotations

import pytest

from pggit_reactor.core.model import FailedReason, State
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.db.claims import release
from pggit_reactor.db.embedded import open_embedded_postgres
from pggit_reactor.testing.database import QUICK_SETTINGS, open_database

COLUMNS = "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
COUNT = "SELECT count(*) FROM pggit.alert_delivery_queue"
PAYLOAD_BYTES_MAX = 7999


@pytest.fixture
def reactor_database(emptied):
    return emptied


def insert(webhooks: int, rows: int) -> str:
    return f"{COLUMNS} SELECT n, mod(n, {webhooks}), '{{}}' FROM generate_series(1, {rows}) AS n"


async def test_one_row_names_its_webhook(ear):
    assert await ear.hear(f"{COLUMNS} VALUES (1, -42, '{{}}')") == ["-42"]


@pytest.mark.parametrize("webhooks", [1, 3, 64])
async def test_a_statement_names_each_of_its_webhooks_once(ear, webhooks):
    (payload,) = await ear.hear(insert(webhooks, 200))

    assert sorted(map(int, payload.split(","))) == list(range(webhooks))


@pytest.mark.parametrize("webhooks", [65, 100])
async def test_more_than_64_webhooks_are_look_yourself(ear, webhooks):
    assert await ear.hear(insert(webhooks, 1000)) == [""]


async def test_64_of_the_longest_ids_fit_into_a_payload(ear):
    (payload,) = await ear.hear(
        f"{COLUMNS} SELECT n, -9223372036854775808 + n, '{{}}' FROM generate_series(1, 64) AS n"
    )

    assert len(payload.split(",")) == 64
    assert len(payload) < PAYLOAD_BYTES_MAX


async def test_a_thousand_rows_of_one_statement_count_a_thousand(reactor_database, ear):
    cursor = await ear.speaker.execute(insert(100, 1000))

    assert cursor.rowcount == 1000
    assert await reactor_database.fetch_value(COUNT) == 1000


async def test_every_statement_of_a_transaction_notifies_at_its_commit_and_none_at_a_rollback(ear):
    first, second = f"{COLUMNS} VALUES (1, 1, '{{}}')", f"{COLUMNS} VALUES (1, 2, '{{}}')"

    assert await ear.hear("BEGIN", first, second, first, "COMMIT") == ["1", "2"]
    assert await ear.hear("BEGIN", first, "ROLLBACK") == []
    assert await ear.hear("BEGIN", first, "SAVEPOINT s", second, "ROLLBACK TO s", "COMMIT") == ["1"]


async def test_copy_notifies_as_one_statement(reactor_database, ear):
    cursor = ear.speaker.cursor()
    async with cursor.copy(
        "COPY pggit.alert_delivery_queue (alert_id, webhook_id, message_body) FROM STDIN"
    ) as copy:
        for number in range(1000):
            await copy.write_row((number, number % 3, "{}"))
    (payload,) = await ear.heard()

    assert sorted(payload.split(",")) == ["0", "1", "2"]
    assert await reactor_database.fetch_value(COUNT) == 1000


@pytest.mark.parametrize(
    "statement",
    [
        f"{COLUMNS} SELECT 1, 1, '{{}}' WHERE false",
        f"WITH none AS ({COLUMNS} SELECT 1, 1, '{{}}' WHERE false RETURNING 1) SELECT count(*) FROM none",
    ],
)
async def test_an_insert_of_no_rows_is_silent(ear, statement):
    assert await ear.hear(statement) == []


async def test_rows_that_conflict_are_not_counted(reactor_database, ear):
    keyed = (
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, idempotency_key)"
        " SELECT n, n, '{}', 'k' FROM generate_series(1, %s) AS n ON CONFLICT DO NOTHING"
    )
    assert await ear.hear(keyed.replace("%s", "2")) == ["1,2"]

    assert await ear.hear(keyed.replace("%s", "2")) == []
    assert await ear.hear(keyed.replace("%s", "3")) == ["3"]


async def test_returning_gives_the_producer_its_ids(reactor_database, ear):
    cursor = await ear.speaker.execute(f"{insert(5, 10)} RETURNING delivery_id")
    returned = await cursor.fetchall()

    assert returned == await reactor_database.fetch(
        "SELECT delivery_id FROM pggit.alert_delivery_queue ORDER BY 1"
    )


async def test_who_must_not_notify_turns_it_off_for_inserts_and_updates(ear):
    one = f"{COLUMNS} VALUES (1, 1, '{{}}')"
    requeue = "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending'"
    done = "UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered'"

    assert await ear.hear("SET pggit.notify = off", one, done, requeue) == []
    assert await ear.hear("BEGIN", "SET LOCAL pggit.notify = on", one, "COMMIT", one) == ["1"]
    assert await ear.hear("RESET pggit.notify", one, done, requeue) == ["1", "1"]


async def test_enqueue_notifies_as_an_insert_does(ear):
    assert await ear.hear("SELECT pggit.enqueue(n, '{}') FROM generate_series(1, 3) AS n") == ["1", "2", "3"]


async def test_producers_of_no_grant_but_insert_notify_too(reactor_database, ear):
    producer = await reactor_database.connect(role="pggit_producer")
    await producer.execute(f"{COLUMNS} VALUES (1, 5, '{{}}')")

    assert await ear.heard() == ["5"]


OUTCOMES = {
    "delivered": Decision(state=State.DELIVERED),
    "retry": Decision(state=State.RETRYING, delay_seconds=0.001, counts_retry=True),
    "retry far": Decision(state=State.RETRYING, delay_seconds=3600, counts_retry=True),
    "crash": Decision(state=State.RETRYING, delay_seconds=5, counts_crash=True),
    "dead": Decision(state=State.FAILED, failed_reason=FailedReason.PERMANENT),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("status", ["pending", "retrying"])
async def test_a_workers_claim_and_settle_notify_nothing(rows, ear, hand, outcome, status):
    await rows.webhook(7)
    for _ in range(3):
        await rows.queue(delivery_status=f"'{status}'", next_retry_at="now() - interval '1 s'")
    await ear.heard()

    claimed = await hand.claim({7: 10})
    report = await hand.settle(claimed.deliveries, OUTCOMES[outcome])
    assert len(report.settled) == 3
    assert await ear.heard() == []


async def test_giving_back_what_was_not_sent_notifies(rows, ear, hand):
    await rows.webhook(7)
    await rows.queue()
    claimed = await hand.claim({7: 10})
    await ear.heard()

    assert await release(hand.settling, claimed.deliveries) == 1
    assert await ear.heard() == ["7"]


async def test_a_webhook_that_is_gone_is_disabled_and_the_others_are_told(reactor_database, rows, ear, hand):
    await rows.webhook(7)
    await rows.queue()
    claimed = await hand.claim({7: 10})
    await ear.heard()
    gone = Decision(state=State.FAILED, failed_reason=FailedReason.GONE, disable_webhook=True)
    await hand.settle(claimed.deliveries, gone, http_status=410)

    assert await ear.heard() == ["7"]
    assert await reactor_database.fetch("SELECT state, state_by FROM pggit.webhook") == [
        ("disabled", "a worker")
    ]
    assert await reactor_database.fetch(
        "SELECT operation FROM pggit.webhook_audit_log WHERE delivery_id IS NULL"
    ) == [("webhook_disabled",)]


async def test_registering_changing_and_resuming_a_webhook_wakes_workers_to_a_new_revision(
    reactor_database, rows, ear
):
    revisions = []
    await rows.webhook(7)
    changes = [
        f"UPDATE pggit.webhook SET {change}"
        for change in ("state = 'paused'", "state = 'active'", "burst = 3")
    ]
    secret = "INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret) VALUES (7, 1, '')"
    for change in ("SELECT 'registered'", *changes, secret, "DELETE FROM pggit.webhook_secret"):
        heard = await ear.hear(change) if revisions else await ear.heard()
        assert heard == ["7"]
        revisions.append(await reactor_database.fetch_value("SELECT revision FROM pggit.webhook"))

    assert len(set(revisions)) == len(revisions)


async def test_a_producer_who_prepares_his_transactions_may_insert_and_update_with_it_off(postgres_bin):
    """PostgreSQL prepares no transaction that has notified."""
    settings = {**QUICK_SETTINGS, "max_prepared_transactions": "2"}
    async with (
        open_embedded_postgres(settings=settings, bin_dir=postgres_bin) as server,
        open_database(server) as database,
    ):
        producer = await database.connect(**{"pggit.notify": "off"})
        await producer.execute("BEGIN")
        await producer.execute(f"{COLUMNS} VALUES (1, 7, '{{}}')")
        await producer.execute("UPDATE pggit.alert_delivery_queue SET webhook_id = 8")
        await producer.execute("PREPARE TRANSACTION 'both'")
        await producer.execute("COMMIT PREPARED 'both'")

        assert await database.fetch("SELECT webhook_id FROM pggit.alert_delivery_queue") == [(8,)]
