"""`route`: rules and defaults from the command line."""

from __future__ import annotations

import pytest


@pytest.fixture
def alerts(commands, hook) -> int:
    """A webhook named alerts; its id."""
    return commands.ok("webhook", "add", hook, "--name", "alerts", "--json").json["webhook_id"]


def publish(database, severity: str, anomaly: str | None = None) -> int:
    return len(database.execute("SELECT * FROM pggit.publish('1', %s, %s)", (severity, anomaly)).fetchall())


def test_a_rule_that_is_added_is_listed_obeyed_and_removed(commands, alerts, database) -> None:
    rule_id = commands.ok("route", "add", "alerts", "--severity", "critical", "--anomaly", "spike").last_word
    (listed,) = [rule for rule in commands.ok("route", "list", "--json").json if rule["kind"] == "rule"]
    assert listed == {
        "kind": "rule",
        "rule_id": int(rule_id),
        "severity": "CRITICAL",
        "anomaly_type": "spike",
        "bottleneck_type": None,
        "webhook_type": None,
        "webhook_id": alerts,
        "webhook_name": "alerts",
        "escalation_level": 1,
        "is_active": True,
    }
    assert (publish(database, "CRITICAL", "spike"), publish(database, "CRITICAL", "drift")) == (1, 0)

    commands.ok("route", "remove", rule_id)
    assert publish(database, "CRITICAL", "spike") == 0


def test_the_defaults_are_listed_and_may_be_replaced(commands, alerts, database) -> None:
    listed = commands.ok("route", "list").out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == ["default"] * 6
    assert "any other" in listed[-1]
    assert "all of type slack" in listed[-1]

    default_id = commands.ok("route", "add", "--default", "--severity", "INFO", "alerts").last_word
    assert publish(database, "INFO") == 1
    commands.ok("route", "remove", "--default", default_id)
    commands.ok("webhook", "set", "alerts", "label.type=slack")
    assert publish(database, "INFO") == 1


def test_explain_says_who_gets_an_alert_and_what_each_rule_says(commands, alerts) -> None:
    assert commands.ok("route", "explain", "--severity", "INFO").out.startswith("goes to nobody\n")

    commands.ok("route", "add", "alerts", "--severity", "INFO")
    commands.ok("route", "add", "alerts", "--severity", "WARNING")
    shown = commands.ok("route", "explain", "--severity", "INFO", "--anomaly", "spike").out.splitlines()
    assert shown[:4] == [
        f"goes to webhook {alerts} (alerts)",
        "",
        f"rule 1 sends it to webhook {alerts}",
        "rule 2 is for WARNING, the alert is INFO",
    ]
    verdicts = commands.ok("route", "explain", "--severity", "INFO", "--json").json
    assert [verdict["verdict"] for verdict in verdicts[:2]] == ["chosen", "severity"]


def test_changes_are_audited_with_the_name_and_host_of_who_made_them(commands, alerts, database) -> None:
    commands.ok("--as", "ada", "route", "add", "alerts", "--severity", "INFO")
    commands.ok("--as", "bob", "route", "remove", "1")

    rows = database.execute(
        "SELECT operation, webhook_id, user_id = session_user, details->>'actor', details ? 'host'"
        " FROM pggit.webhook_audit_log WHERE operation LIKE 'rule%%' ORDER BY audit_id"
    ).fetchall()
    assert rows == [("rule_added", alerts, True, "ada", True), ("rule_removed", alerts, True, "bob", True)]


def test_a_rule_for_an_id_that_nothing_has_registered_is_added_with_a_note(commands) -> None:
    added = commands.ok("route", "add", "77", "--severity", "INFO")

    assert "webhook 77 is not registered" in added.err


@pytest.mark.parametrize(
    "words",
    [
        ("add", "7"),
        ("add", "--severity", "INFO"),
        ("add", "7", "--severity", "INFO", "--type", "slack"),
        ("add", "--default"),
        ("add", "--default", "7", "--type", "slack"),
        ("add", "--default", "7", "--anomaly", "spike"),
        ("add", "7", "--severity", "GRAVE"),
        ("remove", "seven"),
        ("explain",),
    ],
)
def test_what_is_incomplete_or_contradicts_itself_is_a_usage_error(commands, words) -> None:
    assert commands("route", *words).status == 2


@pytest.mark.parametrize(
    "words", [("remove", "7"), ("remove", "--default", "77"), ("add", "nobody", "--severity", "INFO")]
)
def test_what_is_not_there_is_not_found(commands, words) -> None:
    refused = commands("route", *words)

    assert refused.status == 1
    assert refused.err.startswith("error: ")


def test_the_same_default_twice_is_refused(commands) -> None:
    refused = commands("route", "add", "--default", "--type", "slack")

    assert (refused.status, refused.err) == (2, "error: there is such a default; `route list` shows it\n")


def test_the_foreign_key_of_phase_7_is_explained(commands, database) -> None:
    database.execute(
        "CREATE TABLE pggit.alert_notification_webhooks"
        " (webhook_id bigint PRIMARY KEY, webhook_type text, enabled boolean)"
    )
    database.execute(
        "ALTER TABLE pggit.alert_routing_rules"
        " ADD FOREIGN KEY (webhook_id) REFERENCES pggit.alert_notification_webhooks"
    )
    refused = commands("route", "add", "7", "--severity", "INFO")

    assert refused.status == 2
    assert "drop that key" in refused.err
