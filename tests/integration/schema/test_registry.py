"""The registry's own rules: ids that are new, ids that are adopted, and values that are refused."""

from __future__ import annotations

import pytest

UNKNOWN = "SELECT unknown_since IS NOT NULL, blocked_until FROM pggit.webhook_limit WHERE webhook_id = %s"

USES = {
    "a delivery": "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, 1, '{}')",
    "a delivery that is done": "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body,"
    " delivery_status) VALUES (1, 1, '{}', 'delivered')",
    "a log row": "WITH other AS (INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
    " VALUES (1, 900, '{}') RETURNING delivery_id) INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id,"
    " event_type) SELECT delivery_id, 1, 'queued' FROM other",
    "a health row": "INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (1)",
    "a limit row": "INSERT INTO pggit.webhook_limit (webhook_id) VALUES (1)",
    "a webhook": "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin) VALUES (1, 'a', '', '')",
    "a routing rule": "CREATE TABLE pggit.alert_routing_rules AS SELECT 1::bigint AS webhook_id",
    "a webhook of phase 7": "CREATE TABLE pggit.alert_notification_webhooks AS SELECT 1::bigint AS webhook_id",
}


@pytest.mark.parametrize("use", USES)
async def test_a_new_id_is_none_that_anything_uses(reactor_database, use):
    await reactor_database.execute(USES[use])
    operator = await reactor_database.connect(role="pggit_operator")
    cursor = await operator.execute("SELECT pggit.next_webhook_id()")

    assert await cursor.fetchone() == (2,)


async def test_registering_an_explicit_id_adopts_what_waits_for_it(reactor_database, rows, ear):
    await reactor_database.execute(
        "INSERT INTO pggit.webhook_limit (webhook_id, unknown_since) VALUES (-5, now() - interval '1 h')"
    )
    ((unknown, blocked_until),) = await reactor_database.fetch(
        UNKNOWN.replace("blocked_until", "blocked_until::text"), (-5,)
    )
    assert (unknown, blocked_until) == (True, "infinity")

    await rows.webhook(-5)
    assert await reactor_database.fetch(UNKNOWN, (-5,)) == [(False, None)]
    assert await ear.heard() == ["-5"]


async def test_a_removed_webhook_is_unknown_from_now_on(reactor_database, rows):
    await rows.webhook(7)
    assert await reactor_database.fetch(UNKNOWN, (7,)) == [(False, None)]
    await reactor_database.execute("DELETE FROM pggit.webhook")

    assert await reactor_database.fetch_value(
        "SELECT unknown_since > now() - interval '1 min' FROM pggit.webhook_limit"
    )


async def test_a_webhook_is_blocked_until_the_latest_of_its_limits(reactor_database, rows):
    await rows.webhook(7)
    await reactor_database.execute(
        "UPDATE pggit.webhook_limit SET breaker_until = now() + interval '1 min',"
        " retry_after_until = now() + interval '2 min', paused_until = now() - interval '1 min'"
    )

    assert await reactor_database.fetch_value(
        "SELECT blocked_until = retry_after_until FROM pggit.webhook_limit"
    )


async def test_a_change_of_state_is_dated_and_another_change_is_not(reactor_database, rows):
    await rows.webhook(7, state_since="now() - interval '1 day'")
    since = "SELECT state_since > now() - interval '1 min' FROM pggit.webhook"
    await reactor_database.execute("UPDATE pggit.webhook SET burst = 7")
    assert not await reactor_database.fetch_value(since)

    await reactor_database.execute("UPDATE pggit.webhook SET state = 'paused'")
    assert await reactor_database.fetch_value(since)


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("name", ["'a'", "repeat('ü', 255)"], ["''", "repeat('a', 256)", "E'a\\nb'"]),
        ("state", ["'active'", "'paused'", "'disabled'"], ["'off'"]),
        ("rate_per_s", ["0", "0.01"], ["-1"]),
        ("burst", ["1"], ["0"]),
        ("concurrency", ["1", "256"], ["0", "257"]),
        ("ordering", ["'none'", "'webhook'", "'key'"], ["'strict'"]),
        ("attempt_timeout", ["NULL", "'0.1 s'", "'20 s'"], ["'0'", "'20.1 s'"]),
        ("max_attempts", ["NULL", "1", "1000"], ["0", "1001"]),
        ("give_up_after", ["'1 s'", "'365 days'"], ["'0'", "'366 days'"]),
        ("max_body_bytes", ["NULL", "1", "16777216"], ["0", "16777217"]),
        ("weight", ["1", "100"], ["0", "101"]),
        ("signature_scope", ["'full'", "'body-only'"], ["'none'"]),
        ("labels", ["'{}'", """'{"team": "a"}'"""], ["'[]'", "'null'"]),
    ],
)
async def test_a_value_out_of_its_bounds_is_refused_and_the_bounds_are_not(
    reactor_database, rows, refusal, column, good, bad
):
    await rows.webhook(7)
    for value in good:
        await reactor_database.execute(f"UPDATE pggit.webhook SET {column} = {value}")
    for value in bad:
        error = await refusal(reactor_database, f"UPDATE pggit.webhook SET {column} = {value}")
        assert (error.sqlstate, f'"webhook_{column}_check"' in str(error)) == ("23514", True)
