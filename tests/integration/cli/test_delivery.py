from __future__ import annotations

import pytest

from pggit_reactor.core.delivery_uid import delivery_uid, split_delivery_uid


@pytest.fixture
def alerts(commands, hook) -> int:
    return int(commands.ok("webhook", "add", hook, "--name", "alerts").last_word)


def listed(commands, *options: str) -> list[int]:
    return [row["delivery_id"] for row in commands.ok("delivery", "list", "--json", *options).json]


def test_the_newest_come_first_and_pages_follow_each_other(commands, alerts, enqueued) -> None:
    ids = [enqueued(alerts) for _ in range(5)]
    newest, rest = ids[:2:-1], ids[2::-1]

    first = commands.ok("delivery", "list", "--limit", "2")
    assert [int(line.split()[0]) for line in first.out.splitlines()[1:]] == newest
    assert f"--before {newest[-1]}" in first.err
    assert listed(commands, "--before", str(newest[-1])) == rest


def test_a_list_is_narrowed_by_webhook_status_and_reason(commands, alerts, enqueued, database) -> None:
    waiting, failed, foreign = enqueued(alerts), enqueued(alerts), enqueued(99)
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed', failed_reason = 'gone'"
        " WHERE delivery_id = %s",
        (failed,),
    )

    assert listed(commands, "--webhook", "alerts") == [failed, waiting]
    assert listed(commands, "--webhook", "99") == [foreign]
    assert listed(commands, "--status", "failed") == listed(commands, "--reason", "gone") == [failed]
    assert commands("delivery", "list", "--status", "lost").status == 2


def test_a_row_of_an_unregistered_webhook_says_so(commands, enqueued) -> None:
    enqueued(99)

    assert "99 (not registered)" in commands.ok("delivery", "list").out


def test_an_empty_queue_is_said(commands) -> None:
    assert commands.ok("delivery", "list").out == "no delivery\n"


def test_a_delivery_is_shown_with_its_log_by_id_and_by_uid(commands, alerts, enqueued, database) -> None:
    delivery_id = enqueued(alerts)
    database.execute(
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)"
        " VALUES (%s, %s, 'retrying', '{\"http_status\": 503}')",
        (delivery_id, alerts),
    )

    by_id = commands.ok("delivery", "show", str(delivery_id), "--json").json
    by_uid = commands.ok("delivery", "show", by_id["uid"].upper(), "--json").json
    assert by_id == by_uid
    assert [(entry["event"], entry["details"]) for entry in by_id["log"]] == [
        ("retrying", {"http_status": 503})
    ]
    text = commands.ok("delivery", "show", str(delivery_id)).out
    assert "503" in text
    assert by_id["uid"] in text


def test_the_uid_is_the_one_that_the_database_makes(commands, alerts, enqueued, database) -> None:
    delivery_id = enqueued(alerts)

    (uid,) = database.execute(
        "SELECT pggit.delivery_uid(delivery_id, uid_salt)::text FROM pggit.alert_delivery_queue"
    ).fetchone()
    assert commands.ok("delivery", "show", str(delivery_id), "--json").json["uid"] == uid


def test_a_uid_with_another_salt_is_not_found(commands, alerts, enqueued) -> None:
    delivery_id = enqueued(alerts)
    uid = commands.ok("delivery", "show", str(delivery_id), "--json").json["uid"]
    _, salt = split_delivery_uid(uid)

    missed = commands("delivery", "show", delivery_uid(delivery_id, salt ^ 1))
    assert (missed.status, missed.out) == (1, "")


@pytest.mark.parametrize("which", ["4711", "nonsense", "00000000-0000-4000-8000-000000000000", "9" * 30])
def test_what_is_no_delivery_is_not_found(commands, which) -> None:
    assert commands("delivery", "show", which).status == 1


def test_the_payload_is_shown_only_when_asked_for_and_as_its_text(commands, alerts, enqueued) -> None:
    delivery_id = str(enqueued(alerts, '{"pi": 3.140000000000000000001}'))

    assert "3.14" not in commands.ok("delivery", "show", delivery_id).out
    assert commands.ok("delivery", "show", delivery_id, "--body").out.splitlines()[-1] == (
        '{"pi": 3.140000000000000000001}'
    )
    as_json = commands.ok("delivery", "show", delivery_id, "--body", "--json").json
    assert as_json["body"] == '{"pi": 3.140000000000000000001}'


def test_times_that_python_cannot_hold_are_shown(commands, alerts, database) -> None:
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at, next_retry_at)"
        " VALUES (1, %s, '1', '-infinity', '20000-01-01')",
        (alerts,),
    )

    row = commands.ok("delivery", "list", "--json").json[0]
    assert row["created_at"] == "-infinity"
    assert row["next_retry_at"].startswith("20000-01-01")


def test_control_characters_of_producers_do_not_reach_the_terminal(commands, alerts, database) -> None:
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, event_type)"
        " VALUES (1, %s, '1', E'\\x1b]0;owned\\x07')",
        (alerts,),
    )

    assert "\x1b" not in commands.ok("delivery", "show", "1").out
