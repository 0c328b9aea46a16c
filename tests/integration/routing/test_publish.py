"""pggit.publish: who gets an alert, and what is queued."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors


def test_a_rule_with_null_types_takes_all_of_its_severity(rule, publish):
    rule(1, "CRITICAL")
    rule(2, "WARNING")

    assert set(publish("CRITICAL")) == {1}
    assert set(publish("CRITICAL", "spike")) == {1}
    assert set(publish("CRITICAL", None, "LOCK")) == {1}
    assert set(publish("WARNING", "spike")) == {2}


def test_a_type_must_be_equal_and_each_webhook_gets_an_alert_once(rule, publish):
    rule(1, anomaly_type="spike")
    rule(1)
    rule(1, bottleneck_type="LOCK")
    rule(2, anomaly_type="drift")
    rule(3, bottleneck_type="LOCK")

    assert set(publish("CRITICAL", "drift", "LOCK")) == {1, 2, 3}
    assert set(publish("CRITICAL", "drift", "IO")) == {1, 2}
    assert set(publish("CRITICAL")) == {1}


def test_an_alert_of_one_kind_is_asked_for_that_kind_alone_as_phase_7_did(rule, publish):
    rule(1, anomaly_type="spike")
    rule(2, bottleneck_type="LOCK")

    assert set(publish("CRITICAL", "spike")) == {1, 2}
    assert set(publish("CRITICAL", None, "LOCK")) == {1, 2}
    assert set(publish("CRITICAL", "spike", "IO")) == {1}


def test_inactive_rules_and_disabled_webhooks_get_nothing_and_paused_ones_wait(rule, register, publish):
    rule(register(1), is_active=False)
    rule(register(2, state="disabled"))
    rule(register(3, state="paused"))
    rule(4)  # not registered: waits for its registration

    assert set(publish("CRITICAL")) == {3, 4}


def test_the_defaults_of_phase_7_serve_where_no_rule_does(register, publish):
    for webhook_id, type_ in enumerate(("mattermost", "slack", "email", "pagerduty"), start=1):
        register(webhook_id, type_=type_)

    assert set(publish("CRITICAL")) == {1, 2, 3}
    assert set(publish("WARNING", "spike")) == {1, 2}
    assert set(publish("INFO")) == {2}


def test_a_rule_with_an_enabled_webhook_silences_the_defaults_and_a_disabled_one_does_not(
    rule, register, publish
):
    register(1, type_="slack")
    rule(register(2, state="disabled"))
    assert set(publish("CRITICAL")) == {1}

    rule(register(3))
    assert set(publish("CRITICAL")) == {3}


def test_defaults_are_rows_that_anybody_may_edit(database, register, publish):
    register(1, type_="slack")
    database.execute("UPDATE pggit.routing_default SET is_active = false WHERE severity_level = 'CRITICAL'")
    assert publish("CRITICAL") == {}  # a switched-off row still says that CRITICAL has defaults of its own

    database.execute("DELETE FROM pggit.routing_default WHERE severity_level = 'CRITICAL'")
    assert set(publish("CRITICAL")) == {1}

    database.execute("INSERT INTO pggit.routing_default (severity_level, webhook_id) VALUES ('CRITICAL', 7)")
    assert set(publish("CRITICAL")) == {7}


def test_phase_7s_own_webhooks_count_until_they_are_registered(phase7, register, publish):
    phase7.execute(
        "INSERT INTO pggit.alert_notification_webhooks (webhook_id, webhook_type, name, enabled)"
        " VALUES (11, 'slack', 'a', true), (12, 'slack', 'b', false), (13, 'mattermost', 'c', true),"
        " (14, 'slack', 'd', true)"
    )
    register(12, type_="slack")
    register(14, type_="pagerduty")

    assert set(publish("INFO")) == {11, 12}
    assert set(publish("WARNING")) == {11, 12, 13}


def test_all_deliveries_of_a_call_share_one_alert_id_and_its_arguments(database, rule, publish):
    rule(1)
    rule(2)
    ids = publish(
        "CRITICAL", p_event_type="db.slow", p_priority=5, p_headers='{"X-A": "b"}', p_ordering_key="k"
    )

    rows = database.execute(
        "SELECT alert_id, event_type, priority, headers, ordering_key FROM pggit.alert_delivery_queue"
    ).fetchall()
    assert len(ids) == len(rows) == 2
    assert rows[0] == rows[1]
    assert rows[0][1:] == ("db.slow", 5, {"X-A": "b"}, "k")
    assert set(publish("CRITICAL", p_alert_id=-5)) == {1, 2}
    assert database.execute(
        "SELECT count(*) FROM pggit.alert_delivery_queue WHERE alert_id = -5"
    ).fetchone() == (2,)


def test_a_repeated_publish_returns_the_same_ids_and_reaches_new_webhooks_as_the_same_alert(
    database, rule, publish
):
    rule(1)
    first = publish("CRITICAL", p_idempotency_key="once")
    rule(2)
    second = publish("CRITICAL", p_idempotency_key="once")

    assert second[1] == first[1]
    assert set(second) == {1, 2}
    assert database.execute("SELECT count(DISTINCT alert_id) FROM pggit.alert_delivery_queue").fetchone() == (
        1,
    )


@pytest.mark.parametrize("severity", [None, "critical", "HIGH", ""])
def test_a_wrong_severity_is_named_with_the_allowed_words(publish, severity):
    with pytest.raises(
        errors.InvalidParameterValue, match=r"p_severity is .*; allowed: CRITICAL, WARNING, INFO"
    ):
        publish(severity)


def test_an_alert_that_nobody_gets_is_a_warning_and_no_error(database, publish):
    notices = []
    database.add_notice_handler(lambda notice: notices.append((notice.severity, notice.message_primary)))

    assert publish("CRITICAL") == {}
    assert notices == [("WARNING", "no webhook gets this CRITICAL alert; pggit.explain_route says why")]


def test_a_body_that_is_too_large_for_one_webhook_queues_nothing(database, rule, register, publish):
    rule(1)
    rule(register(2))
    database.execute("UPDATE pggit.webhook SET max_body_bytes = 4")
    with pytest.raises(errors.ProgramLimitExceeded, match="webhook 2 takes at most 4"):
        publish("CRITICAL")

    assert database.execute("SELECT count(*) FROM pggit.alert_delivery_queue").fetchone() == (0,)


def test_explain_names_every_rule_and_why(database, rule, register):
    rule(register(1), anomaly_type="spike")
    rule(register(2, state="disabled"))
    rule(3, "WARNING")
    rule(4, is_active=False)
    register(5, type_="slack")
    rows = database.execute(
        "SELECT kind, webhook_id, verdict, explanation FROM pggit.explain_route('CRITICAL', 'drift')"
    ).fetchall()

    assert rows == [
        ("rule", 1, "anomaly_type", "is for anomalies of type spike, the alert's is drift"),
        ("rule", 2, "disabled", "matches, but webhook 2 is disabled"),
        ("rule", 3, "severity", "is for WARNING, the alert is CRITICAL"),
        ("rule", 4, "inactive", "is switched off (is_active)"),
        (
            "default",
            None,
            "no_webhook",
            'is for webhooks of type mattermost, and there is none (label "type")',
        ),
        ("default", 5, "chosen", "sends it to webhook 5"),
        ("default", None, "no_webhook", 'is for webhooks of type email, and there is none (label "type")'),
        ("default", None, "severity", "is for WARNING, the alert is CRITICAL"),
        ("default", None, "severity", "is for WARNING, the alert is CRITICAL"),
        (
            "default",
            None,
            "severity",
            "is for severities without defaults of their own, and CRITICAL has some",
        ),
    ]


def test_changes_of_rules_and_defaults_are_audited_with_who_made_them(database, rule):
    database.execute("SELECT set_config('pggit.actor', 'ada', false)")
    rule_id = rule(1)
    database.execute("UPDATE pggit.alert_routing_rules SET is_active = false")
    database.execute("DELETE FROM pggit.routing_default WHERE severity_level IS NULL")

    rows = database.execute(
        "SELECT operation, webhook_id, user_id = session_user, details->>'actor', details->>'table',"
        " details->'to'->>'is_active', details->'from'->>'webhook_type' FROM pggit.webhook_audit_log ORDER BY audit_id"
    ).fetchall()
    assert rows == [
        ("rule_added", 1, True, "ada", "alert_routing_rules", "true", None),
        ("rule_changed", 1, True, "ada", "alert_routing_rules", "false", None),
        ("rule_removed", None, True, "ada", "routing_default", None, "slack"),
    ]
    assert rule_id > 0


def test_a_producer_may_publish_without_reading_a_rule(database: psycopg.Connection, rule):
    rule(1)
    database.execute("SET ROLE pggit_producer")

    assert len(database.execute("SELECT * FROM pggit.publish('1', 'CRITICAL')").fetchall()) == 1
    with pytest.raises(errors.InsufficientPrivilege):
        database.execute("SELECT * FROM pggit.alert_routing_rules")
    with pytest.raises(errors.InsufficientPrivilege):
        database.execute("SELECT * FROM pggit.explain_route('INFO')")


def test_an_operator_edits_rules_and_defaults_and_a_reader_reads_them(database: psycopg.Connection, rule):
    database.execute("SET ROLE pggit_operator")
    rule(1)
    database.execute("UPDATE pggit.alert_routing_rules SET is_active = false")
    database.execute("DELETE FROM pggit.alert_routing_rules")
    database.execute("INSERT INTO pggit.routing_default (webhook_id) VALUES (1)")
    database.execute("SET ROLE pggit_reader")

    assert database.execute("SELECT count(*) FROM pggit.routing_default").fetchone() == (7,)
    assert database.execute("SELECT count(*) FROM pggit.explain_route('INFO')").fetchone() == (7,)
    with pytest.raises(errors.InsufficientPrivilege):
        rule(1)
