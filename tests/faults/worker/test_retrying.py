"""When a failed delivery is tried again, and what of it stays the same."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from pggit_reactor.receiver import verify
from pggit_reactor.testing.receiver import answer, cut
from pggit_reactor.testing.rig import SIGNING_SECRET

BASE_SECONDS = 0.2
LATE_SECONDS_MAX = 0.5
"""How much later than due a retry may come on a busy machine, without a poll."""
CLOCK_SECONDS = 0.001
"""Of the receiver's clock against the database's: both are this machine's."""


async def attempts_of(rig, count: int) -> list[float]:
    """Return when each attempt's request was read, in the receiver's monotonic time."""
    return [request.arrived_monotonic for request in await rig.receiver.wait_for(count)]


async def test_retries_come_within_their_jitter_bounds_and_never_early(rig):
    await rig.never_open_breakers()
    webhook_id = await rig.add_webhook()
    rig.receiver.default = answer(500)
    async with rig.worker(WORKER_POLL_SECONDS=600, DELIVERY_BACKOFF_BASE_SECONDS=BASE_SECONDS):
        rows = await rig.insert(webhook_id, 10)
        await rig.until_all("failed")
        by_id: dict[str, list[float]] = {}
        for request in rig.receiver.requests:
            by_id.setdefault(request.header("webhook-id"), []).append(request.arrived_monotonic)

    assert len(by_id) == 10
    for times in by_id.values():
        assert len(times) == 4  # max_retries 3
        for number, (before, after) in enumerate(pairwise(times)):
            ceiling = BASE_SECONDS * 2**number
            assert ceiling / 2 <= after - before <= ceiling + LATE_SECONDS_MAX
    assert await rig.row(rows[0], "failed_reason", "retry_count", "attempt_count", "last_status") == (
        "exhausted", 3, 4, 500,
    )  # fmt: skip
    await rig.assert_books_agree()


async def test_no_retry_comes_before_the_time_that_its_row_tells(rig):
    """The times are the database's, and so is the comparison: it stamps each attempt when it is settled."""
    await rig.never_open_breakers()
    webhook_id = await rig.add_webhook()
    rig.receiver.default = answer(500)
    await rig.database.execute("CREATE TABLE pggit.test_due (delivery_id bigint, due timestamptz)")
    await rig.database.execute(
        "CREATE FUNCTION pggit.test_due() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO pggit.test_due VALUES (NEW.delivery_id, NEW.next_retry_at);"
        " IF clock_timestamp() < OLD.next_retry_at THEN RAISE EXCEPTION 'claimed before it was due'; END IF;"
        " RETURN NULL; END $$"
    )
    await rig.database.execute(
        "CREATE TRIGGER test_due AFTER UPDATE ON pggit.alert_delivery_queue FOR EACH ROW"
        " WHEN (OLD.lease_token IS NULL AND NEW.lease_token IS NOT NULL) EXECUTE FUNCTION pggit.test_due()"
    )
    async with rig.worker(DELIVERY_BACKOFF_BASE_SECONDS=BASE_SECONDS, WORKER_POLL_SECONDS=0.1):
        await rig.insert(webhook_id, 10)
        await rig.until_all("failed")

    assert await rig.database.fetch_value("SELECT count(*) FROM pggit.test_due WHERE due IS NOT NULL") == 30
    await rig.assert_books_agree()


async def test_attempts_share_id_and_octets_and_have_times_and_signatures_of_their_own(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(500), cut(), answer(503))
    async with rig.worker(DELIVERY_BACKOFF_BASE_SECONDS=0.6):
        (delivery_id,) = await rig.insert(webhook_id, body={"ü": [1, 2.50, None], "a": "\u2028"})
        # An outsider's look at it must not change a single octet of what is sent next.
        await rig.until_status(delivery_id, "retrying")
        await rig.database.execute("UPDATE pggit.alert_delivery_queue SET message_body = message_body")
        await rig.until_status(delivery_id, "delivered")
        requests = rig.receiver.requests

    assert len(requests) >= 4
    assert len({request.body for request in requests}) == 1
    assert len({request.header("webhook-id") for request in requests}) == 1
    assert len({request.header("x-pggit-delivery-id") for request in requests}) == 1
    stamps = [int(request.header("webhook-timestamp")) for request in requests]
    assert stamps == sorted(stamps)
    assert stamps[0] < stamps[-1]
    assert requests[0].header("webhook-signature") != requests[-1].header("webhook-signature")
    for request in requests:
        assert abs(int(request.header("webhook-timestamp")) - request.arrived_wall) < 2
        verify(request.body, dict(request.headers), SIGNING_SECRET)


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_puts_its_row_off_and_uses_up_no_retry(rig, status: int):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(status, [("Retry-After", "1")]))
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")
        first, second = await attempts_of(rig, 2)

    assert 1 <= second - first <= 1 + LATE_SECONDS_MAX
    assert await rig.row(delivery_id, "retry_count", "attempt_count") == (0, 2)
    await rig.assert_books_agree()


async def test_a_date_of_retry_after_is_obeyed(rig):
    webhook_id = await rig.add_webhook()
    until = int(time.time()) + 2
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(until))
    rig.receiver.script("/hook", answer(429, [("Retry-After", date)]))
    async with rig.worker(WORKER_POLL_SECONDS=600):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")

    assert until - CLOCK_SECONDS <= rig.receiver.requests[1].arrived_wall <= until + LATE_SECONDS_MAX


async def test_nonsense_in_retry_after_is_a_plain_failure(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(503, [("Retry-After", "soon")]))
    async with rig.worker():
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")

    assert await rig.row(delivery_id, "retry_count", "attempt_count") == (1, 2)


async def test_gone_disables_the_webhook_and_leaves_its_other_rows_pending(rig):
    webhook_id, other = await rig.add_webhook("/gone", concurrency=1), await rig.add_webhook("/other")
    rig.receiver.script("/gone", answer(410))
    async with rig.worker(WORKER_POLL_SECONDS=0.1):
        rows = await rig.insert(webhook_id, 5)
        await rig.until("SELECT state = 'disabled' FROM pggit.webhook WHERE webhook_id = %s", webhook_id)
        (passing,) = await rig.insert(other)
        await rig.until_status(passing, "delivered")

    statuses = [await rig.row(row, "delivery_status", "failed_reason", "lease_token") for row in rows]
    assert sorted(statuses) == [("failed", "gone", None)] + [("pending", None, None)] * 4
    assert len(rig.receiver.requests_for("/gone")) == 1
    assert await rig.database.fetch(
        "SELECT operation, webhook_id, error_message, user_id IS NOT NULL FROM pggit.webhook_audit_log"
        " WHERE operation NOT IN ('delivered', 'failed')"
    ) == [("webhook_disabled", webhook_id, "the receiver answered 410 Gone", True)]
    state, reason = (
        await rig.database.fetch(
            "SELECT state, state_reason FROM pggit.webhook WHERE webhook_id = %s", (webhook_id,)
        )
    )[0]
    assert (state, reason) == ("disabled", "the receiver answered 410 Gone")
    await rig.assert_books_agree()


async def test_a_webhook_that_is_enabled_again_gets_what_waited(rig):
    webhook_id = await rig.add_webhook(concurrency=1)
    rig.receiver.script("/hook", answer(410))
    async with rig.worker(WORKER_POLL_SECONDS=600):
        rows = await rig.insert(webhook_id, 3)
        await rig.until("SELECT state = 'disabled' FROM pggit.webhook")
        await rig.database.execute("UPDATE pggit.webhook SET state = 'active'")
        await rig.until(
            "SELECT count(*) = 2 FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'"
        )

    assert len(rows) == 3


async def test_other_answers_of_the_400s_are_final(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.default = answer(422)
    async with rig.worker():
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "failed")

    assert await rig.row(delivery_id, "failed_reason", "attempt_count", "last_status", "next_retry_at") == (
        "permanent", 1, 422, None,
    )  # fmt: skip


async def test_a_webhooks_max_attempts_replaces_the_rows_retries(rig):
    webhook_id = await rig.add_webhook(max_attempts=2)
    rig.receiver.default = answer(500)
    async with rig.worker():
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "failed")

    assert await rig.row(delivery_id, "failed_reason", "attempt_count") == ("exhausted", 2)


async def test_a_row_older_than_its_webhooks_patience_is_dead_at_its_next_failure(rig):
    webhook_id = await rig.add_webhook(give_up_after="1 hour")
    rig.receiver.default = answer(500)
    async with rig.worker():
        delivery_id = await rig.database.fetch_value(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at, max_retries)"
            " VALUES (1, %s, '{}', now() - interval '2 hours', 1000) RETURNING delivery_id",
            (webhook_id,),
        )
        await rig.until_status(delivery_id, "failed")

    assert await rig.row(delivery_id, "failed_reason", "attempt_count") == ("exhausted", 1)


async def test_a_retry_of_a_worker_that_is_gone_is_sent_by_another_at_its_time(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", answer(503, [("Retry-After", "1")]))
    async with rig.worker():
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "retrying")
    async with rig.worker(WORKER_POLL_SECONDS=5):
        await rig.until_status(delivery_id, "delivered")
        first, second = await attempts_of(rig, 2)

    assert 1 <= second - first <= 1 + LATE_SECONDS_MAX + 1


async def test_a_webhooks_own_table_says_what_its_answers_mean(rig):
    policy = '{"404": "transient", "410": "permanent", "5xx": "permanent"}'
    webhook_id = await rig.add_webhook(concurrency=1, status_policy=policy)
    rig.receiver.script("/hook", answer(404), answer(200), answer(410), answer(500))
    async with rig.worker():
        rows = []
        for status in ("delivered", "failed", "failed"):
            (row,) = await rig.insert(webhook_id)
            await rig.until_status(row, status)
            rows.append(await rig.row(row, "attempt_count", "last_status", "failed_reason"))

    assert rows == [(2, 200, None), (1, 410, "permanent"), (1, 500, "permanent")]
    assert await rig.database.fetch("SELECT state FROM pggit.webhook") == [("active",)]


async def test_a_table_that_cannot_be_read_is_as_none_and_said_once(rig, lines):
    webhook_id = await rig.add_webhook(status_policy='{"404": "later"}')
    rig.receiver.script("/hook", answer(404))
    async with rig.worker():
        for status in ("failed", "delivered"):
            (row,) = await rig.insert(webhook_id)
            await rig.until_status(row, status)

    (event,) = lines.named("status_policy_unreadable")
    assert (event["webhook_id"], event["level"]) == (webhook_id, "warning")
