"""Payloads and texts go; chain, ids and counts stay."""

from __future__ import annotations

import pytest

from pggit_reactor.db import queue_care
from pggit_reactor.db.queue_care import Erased, Subject
from pggit_reactor.db.registry import By
from pggit_reactor.errors import DatabaseError

MARK = "Ada Lovelace"
BY = By(name="a test", host="here")
FILL = f"""
    INSERT INTO pggit.alert_delivery_queue (
        alert_id, webhook_id, message_body, delivery_status, headers, idempotency_key, ordering_key, last_error,
        traceparent, attempt_count)
    SELECT %s, %s, '{{"who": "{MARK}"}}', %s, '{{"X-Who": "{MARK}"}}', '{MARK}' || gen_random_uuid(), '{MARK}',
        '{MARK}', '{MARK}', 1
    FROM generate_series(1, %s) AS n RETURNING delivery_id
"""
LOG = f"""
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
    SELECT q.delivery_id, q.webhook_id, 'failed', '{{"error": "{MARK}", "http_status": 500, "attempt": 1}}'
    FROM pggit.alert_delivery_queue AS q
"""
AUDIT = f"""
    INSERT INTO pggit.webhook_audit_log (webhook_id, delivery_id, operation, error_message, details)
    SELECT q.webhook_id, q.delivery_id, 'failed', '{MARK}', '{{"who": "{MARK}"}}'::jsonb
    FROM pggit.alert_delivery_queue AS q
    UNION ALL SELECT 7, NULL, 'webhook_changed', NULL, '{{"who": "{MARK}"}}'
"""
LEFT = f"""
    SELECT
        (SELECT count(*) FROM pggit.alert_delivery_queue AS q WHERE q::text LIKE '%%{MARK}%%'),
        (SELECT count(*) FROM pggit.alert_delivery_log AS q WHERE q::text LIKE '%%{MARK}%%'),
        (SELECT count(*) FROM pggit.webhook_audit_log AS q WHERE q::text LIKE '%%{MARK}%%')
"""


@pytest.fixture
async def filled(chain):
    """Three deliveries of alert 1 to webhook 7, two of alert 2 to it, one of alert 1 to webhook 8."""
    for alert_id, webhook_id, status, count in (
        (1, 7, "delivered", 2),
        (1, 7, "pending", 1),
        (2, 7, "failed", 2),
        (1, 8, "delivered", 1),
    ):
        await chain.database.execute(FILL, (alert_id, webhook_id, status, count))
    await chain.database.execute(LOG)
    await chain.database.execute(AUDIT)
    await chain.seal()
    return chain


async def erase(chain, subject: Subject, *, rows_max: int = 100) -> Erased:
    found = await queue_care.count_erasable(chain.reader, subject)
    done = Erased()
    async for batch in queue_care.erase(chain.reader, subject, found, by=BY, rows_max=rows_max):
        done += batch
    return done


async def test_erasing_a_webhook_leaves_nothing_of_it_and_the_chain_whole(filled):
    done = await erase(filled, Subject(webhook_id=7), rows_max=2)

    assert done == Erased(deliveries=5, cancelled=1, log_rows=5, audit_rows=6)
    assert await filled.database.fetch(LEFT) == [(1, 1, 1)]
    report = await filled.verify()
    assert (report.breaks, report.rows, report.erased_rows) == ((), 7, 6)
    assert await filled.database.fetch(
        "SELECT delivery_status, failed_reason, count(*), bool_and(message_body = 'null')"
        " FROM pggit.alert_delivery_queue WHERE webhook_id = 7 GROUP BY 1, 2 ORDER BY 1, 2"
    ) == [("delivered", None, 2, True), ("failed", "cancelled", 1, True), ("failed", None, 2, True)]
    assert await filled.database.fetch(
        "SELECT DISTINCT event_details FROM pggit.alert_delivery_log WHERE webhook_id = 7"
    ) == [({"attempt": 1, "http_status": 500},)]


async def test_erasing_an_alert_touches_its_deliveries_alone(filled):
    done = await erase(filled, Subject(alert_id=1))

    assert done == Erased(deliveries=4, cancelled=1, log_rows=4, audit_rows=4)
    assert await filled.database.fetch(LEFT) == [(2, 2, 3)]
    assert (await filled.verify()).ok


async def test_erasing_again_finds_nothing_and_what_was_erased_is_audited(filled):
    await erase(filled, Subject(webhook_id=7))
    assert await erase(filled, Subject(webhook_id=7)) == Erased()

    rows = await filled.database.fetch(
        "SELECT webhook_id, details ->> 'deliveries', details ->> 'audit_rows', details ->> 'actor'"
        " FROM pggit.webhook_audit_log WHERE operation = 'erased' ORDER BY audit_id"
    )
    assert rows == [(7, "5", "5", "a test"), (7, None, "1", "a test")]
    await filled.seal()
    assert (await filled.verify()).ok


async def test_what_a_worker_is_sending_is_left_and_counted(filled):
    await filled.database.execute(
        "UPDATE pggit.alert_delivery_queue SET lease_token = 1, lease_expires_at = now() + interval '1 hour'"
        " WHERE delivery_status = 'pending'"
    )
    done = await erase(filled, Subject(webhook_id=7))

    assert (done.deliveries, done.in_flight, done.cancelled) == (4, 1, 0)
    assert (await filled.database.fetch(LEFT))[0][0] == 2
    await filled.database.execute("UPDATE pggit.alert_delivery_queue SET lease_expires_at = now()")
    assert (await erase(filled, Subject(webhook_id=7))).deliveries == 1


async def test_what_was_erased_before_it_was_sealed_is_sealed_as_it_was(chain):
    await chain.database.execute(FILL, (1, 7, "failed", 1))
    await chain.database.execute(AUDIT)
    await erase(chain, Subject(webhook_id=7))
    await chain.seal()

    report = await chain.verify()
    assert (report.breaks, report.erased_rows) == ((), 2)


async def test_an_erased_delivery_is_never_sent_again(filled):
    await erase(filled, Subject(webhook_id=7))
    operator = filled.reader
    await operator.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', retry_count = 0"
    )
    await operator.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'retrying', next_retry_at = now()"
    )
    assert (
        await filled.database.fetch_value(
            "SELECT count(*) FROM pggit.alert_delivery_queue WHERE webhook_id = 7 AND ready_at IS NOT NULL"
        )
        == 0
    )
    with pytest.raises(DatabaseError, match="was erased"):
        await operator.execute("SELECT pggit.replay_delivery(1::bigint)")


async def test_without_its_salt_an_erased_text_cannot_be_guessed(filled):
    """The digest that stays is of more than the text."""
    await erase(filled, Subject(webhook_id=7))
    rows = await filled.database.fetch(
        "SELECT salt, erased_digest, pggit.audit_texts_digest(NULL, %s, %s) FROM pggit.webhook_audit_log"
        " WHERE delivery_id IS NOT NULL AND webhook_id = 7",
        (MARK, f'{{"who": "{MARK}"}}'),
    )

    assert all(salt is None and digest != guess for salt, digest, guess in rows)
    assert len({bytes(digest) for _, digest, _ in rows}) == len(rows)


async def test_both_or_neither_subject_is_refused(chain):
    for subject in (Subject(), Subject(webhook_id=1, alert_id=1)):
        with pytest.raises(DatabaseError):
            await erase(chain, subject)
