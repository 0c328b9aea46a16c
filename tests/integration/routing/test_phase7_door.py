"""The trigger on phase 7's alert_notification_queue (LEGACY 5 and 15, number 17)."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

INSERT = (
    "INSERT INTO pggit.alert_notification_queue (alert_id, webhook_id, message_body) VALUES (%s, %s, %s)"
    " RETURNING queue_id"
)


@pytest.fixture
def door(phase7: psycopg.Connection) -> psycopg.Connection:
    assert phase7.execute("SELECT pggit.attach_alert_queue()").fetchone() == (True,)
    return phase7


def test_without_phase_7_there_is_nothing_to_attach(database):
    assert database.execute("SELECT pggit.attach_alert_queue()").fetchone() == (False,)


def test_attaching_twice_is_as_once(door):
    door.execute("SELECT pggit.attach_alert_queue()")
    door.execute(INSERT, (1, 7, "{}"))

    assert door.execute("SELECT count(*) FROM pggit.alert_delivery_queue").fetchone() == (1,)


def test_each_alert_is_queued_with_its_queue_id_and_logged_once(door):
    ((queue_id,),) = door.execute(INSERT, (5, 7, '{"title": "t"}')).fetchall()

    rows = door.execute(
        "SELECT alert_id, webhook_id, delivery_status, message_body - 'queued_at', message_body ? 'queued_at'"
        " FROM pggit.alert_delivery_queue"
    ).fetchall()
    body = {
        "alert_id": 5,
        "webhook_id": 7,
        "message_format": "json",
        "message_body": '{"title": "t"}',
        "original_status": "pending",
    }
    assert rows == [(queue_id, 7, "pending", body, True)]
    assert door.execute("SELECT event_type, event_details FROM pggit.alert_delivery_log").fetchall() == [
        ("queued", {"integration_source": "alert_notification_queue", "original_queue_id": queue_id})
    ]


def test_a_row_without_a_webhook_is_phase_7s_own_business(door):
    door.execute(INSERT, (1, None, "an error"))

    assert door.execute("SELECT count(*) FROM pggit.alert_notification_queue").fetchone() == (1,)
    assert door.execute("SELECT count(*) FROM pggit.alert_delivery_queue").fetchone() == (0,)


def test_what_cannot_be_queued_does_not_undo_the_producers_insert(door):
    notices = []
    door.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    door.execute("ALTER TABLE pggit.alert_delivery_queue ADD CHECK (webhook_id <> 8)")
    with door.transaction():
        door.execute(INSERT, (1, 8, "{}"))
        door.execute(INSERT, (1, 9, "{}"))

    assert door.execute("SELECT count(*) FROM pggit.alert_notification_queue").fetchone() == (2,)
    assert door.execute("SELECT webhook_id FROM pggit.alert_delivery_queue").fetchall() == [(9,)]
    ((notice,),) = [notices]
    assert "was not queued for delivery" in notice


def test_a_producer_of_phase_7_needs_no_right_of_ours(door):
    door.execute("GRANT INSERT, SELECT ON pggit.alert_notification_queue TO pggit_reader")
    door.execute("GRANT USAGE ON SEQUENCE pggit.alert_notification_queue_queue_id_seq TO pggit_reader")
    door.execute("SET ROLE pggit_reader")
    door.execute(INSERT, (1, 7, "{}"))
    door.execute("RESET ROLE")

    assert door.execute("SELECT count(*) FROM pggit.alert_delivery_queue").fetchone() == (1,)


def test_only_the_owner_attaches(phase7):
    phase7.execute("SET ROLE pggit_operator")
    with pytest.raises(errors.InsufficientPrivilege):
        phase7.execute("SELECT pggit.attach_alert_queue()")
