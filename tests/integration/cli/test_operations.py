"""`webhook pause, resume, disable, enable, reset` and `delivery replay, requeue, cancel, explain`."""

from __future__ import annotations

import pytest


@pytest.fixture
def alerts(commands, hook) -> int:
    """A webhook named alerts; its id."""
    return commands.ok("webhook", "add", hook, "--name", "alerts", "--json").json["webhook_id"]


def shown(commands) -> dict:
    return commands.ok("webhook", "show", "alerts", "--json").json


@pytest.mark.usefixtures("alerts")
def test_a_webhook_is_paused_shown_so_and_resumed(commands) -> None:
    assert commands.ok("webhook", "pause", "alerts", "--reason", "why").out.startswith(
        "webhook 1 (alerts) is paused"
    )
    assert (shown(commands)["state"], shown(commands)["state_reason"]) == ("paused", "why")

    assert commands.ok("webhook", "resume", "alerts").out == "webhook 1 (alerts) is active\n"
    assert (shown(commands)["state"], shown(commands)["paused_until"]) == ("active", None)


@pytest.mark.usefixtures("alerts")
@pytest.mark.parametrize("until", ["2h", "90.5m", "2999-01-31T18:00+01:00", "2999-01-31"])
def test_a_pause_for_a_time_is_shown_with_its_end(commands, database, until) -> None:
    commands.ok("webhook", "pause", "alerts", "--until", until, "--reason", "why")
    record = shown(commands)
    assert (record["state"], record["state_reason"]) == ("paused", "why")
    assert record["paused_until"] is not None

    database.execute("UPDATE pggit.webhook_limit SET paused_until = now() - interval '1 s'")
    record = shown(commands)
    assert (record["state"], record["state_reason"], record["paused_until"]) == ("active", None, None)


@pytest.mark.usefixtures("alerts")
@pytest.mark.parametrize("until", ["soon", "0s", "1000d", "2001-01-01", "7", ""])
def test_what_is_no_moment_or_past_is_a_usage_error(commands, until) -> None:
    assert commands("webhook", "pause", "alerts", "--until", until).status == 2


@pytest.mark.usefixtures("alerts")
def test_a_webhook_is_disabled_and_enabled_and_not_resumed(commands) -> None:
    commands.ok("webhook", "disable", "alerts")
    refused = commands("webhook", "resume", "alerts")
    assert (refused.status, "is disabled" in refused.err) == (1, True)

    commands.ok("webhook", "enable", "alerts")
    assert shown(commands)["state"] == "active"


@pytest.mark.usefixtures("alerts")
def test_a_webhook_with_an_open_breaker_is_shown_so_and_reset(commands, database) -> None:
    assert (shown(commands)["breaker"], shown(commands)["breaker_until"]) == ("closed", None)
    for _ in range(5):
        database.execute("SELECT pggit.update_webhook_health(1, 500, 20)")
    database.execute("UPDATE pggit.webhook_limit SET retry_after_until = now() + interval '1 h'")
    record = shown(commands)
    assert (record["breaker"], record["health_status"]) == ("open", "degraded")
    assert None not in (record["breaker_until"], record["retry_after_until"])
    assert "open" in commands.ok("webhook", "list").out

    said = commands.ok("webhook", "reset", "alerts", "--reason", "mended").out
    assert said.startswith("webhook 1 (alerts) is reset: its breaker was open until ")
    record = shown(commands)
    assert (record["breaker"], record["breaker_until"], record["retry_after_until"]) == ("closed", None, None)
    details = "SELECT details->>'reason' FROM pggit.webhook_audit_log WHERE operation = 'webhook_reset'"
    assert database.execute(details).fetchall() == [("mended",)]


@pytest.mark.usefixtures("alerts")
def test_half_open_and_recovering_have_names(commands, database) -> None:
    database.execute("UPDATE pggit.webhook_limit SET breaker_until = now() - interval '1 s'")
    assert shown(commands)["breaker"] == "half_open"
    database.execute("UPDATE pggit.webhook_limit SET breaker_until = NULL, recovering_since = now()")
    assert shown(commands)["breaker"] == "recovering"


@pytest.mark.usefixtures("alerts")
def test_a_reset_closes_the_breaker_and_says_what_it_ended(commands, database) -> None:
    database.execute(
        "INSERT INTO pggit.webhook_health_metrics (webhook_id, health_status, consecutive_failures, breaker_failures,"
        " breaker_opened_at, breaker_opens) SELECT webhook_id, 'degraded', 5, 5, now(), 1 FROM pggit.webhook"
    )
    database.execute("UPDATE pggit.webhook_limit SET breaker_until = now() + interval '1 min'")
    assert shown(commands)["breaker"] == "open"
    said = commands.ok("webhook", "reset", "alerts", "--reason", "mended").out

    assert shown(commands)["breaker"] == "closed"
    assert "its breaker was open until" in said
    assert database.execute("SELECT breaker_until FROM pggit.webhook_limit").fetchone() == (None,)
    health = "SELECT consecutive_failures, health_status, breaker_opened_at FROM pggit.webhook_health_metrics"
    assert database.execute(health).fetchone() == (0, "healthy", None)
    assert "nothing had held it back" in commands.ok("webhook", "reset", "alerts").out


@pytest.mark.parametrize("word", ["pause", "resume", "disable", "enable", "reset"])
@pytest.mark.parametrize("which", ["nobody", "99"])
def test_an_unknown_webhook_is_not_found(commands, word, which) -> None:
    assert commands("webhook", word, which).status == 1


def test_who_acts_is_in_the_audit_log_beside_the_databases_user(commands, alerts, database) -> None:
    commands.ok("--as", "ada", "webhook", "pause", "alerts")

    row = database.execute(
        "SELECT webhook_id, user_id = session_user, details->>'actor' FROM pggit.webhook_audit_log"
        " WHERE operation = 'webhook_paused'"
    ).fetchone()
    assert row == (alerts, True, "ada")
    assert shown(commands)["state_by"].startswith("ada as ")


def test_deliveries_are_cancelled_replayed_and_requeued_each_by_itself(
    commands, alerts, enqueued, database
) -> None:
    first, second = enqueued(alerts), enqueued(alerts)
    uid = commands.ok("delivery", "show", str(first), "--json").json["uid"]
    done = commands("delivery", "cancel", uid, "999", str(second), "--reason", "why")
    assert (done.status, done.out.count("is cancelled"), done.err.count("error: ")) == (1, 2, 1)

    commands.ok("delivery", "replay", str(first))
    assert commands("delivery", "replay", str(first)).status == 1
    commands.ok("delivery", "requeue", uid, str(second))
    rows = database.execute(
        "SELECT DISTINCT delivery_status, failed_reason FROM pggit.alert_delivery_queue"
    ).fetchall()
    assert rows == [("pending", None)]


def test_explain_says_what_a_delivery_waits_for(commands, alerts, enqueued) -> None:
    delivery_id = str(enqueued(alerts))
    assert "no worker has been heard" in commands.ok("delivery", "explain", delivery_id).out

    commands.ok("webhook", "pause", "alerts", "--until", "2h")
    explained = commands.ok("delivery", "explain", delivery_id, "--json").json
    assert (explained["waits_for"], explained["webhook_name"]) == ("pause", "alerts")
    assert commands.ok("delivery", "explain", delivery_id).out.splitlines()[-1].startswith("due 2")
    assert commands("delivery", "explain", "999").status == 1
    assert commands("delivery", "explain", "neither").status == 2
