"""What receivers report about signatures."""

from __future__ import annotations

import psycopg
import pytest


@pytest.fixture(autouse=True)
def _webhook(webhook):
    """Each of them is about deliveries of a registered webhook."""


@pytest.mark.parametrize("verified", [True, False])
def test_a_report_is_an_audit_row_of_its_delivery(call, owner, enqueue, audited, verified):
    delivery_id = enqueue(attempt_count=1)
    uid = owner.execute(
        "SELECT pggit.delivery_uid(delivery_id, uid_salt)::text FROM pggit.alert_delivery_queue"
    ).fetchone()[0]
    new_id = call("report_verification", uid, verified, "x" * 1000)

    assert audited(
        "audit_id", "operation", "webhook_id", "delivery_id", "signature_verified", "request_id::text",
        "length(error_message)", "user_id = session_user",
    ) == [(new_id, "signature_verified", 7, delivery_id, verified, uid, 300, True)]  # fmt: skip


def test_a_report_about_what_was_never_sent_or_never_was_is_refused(call, enqueue):
    delivery_id = enqueue()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="never sent"):
        call("report_verification", str(delivery_id), True)
    with pytest.raises(psycopg.errors.NoDataFound):
        call("report_verification", "99", True)
    with pytest.raises(psycopg.errors.NullValueNotAllowed):
        call("report_verification", str(delivery_id), None)


def test_a_flood_of_reports_is_refused(call, owner, enqueue):
    delivery_id = enqueue(attempt_count=1)
    owner.execute(
        "INSERT INTO pggit.webhook_audit_log (webhook_id, operation)"
        " SELECT 7, 'signature_verified' FROM generate_series(1, 1000)"
    )
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="report samples"):
        call("report_verification", str(delivery_id), True)
    owner.execute(
        "UPDATE pggit.webhook_audit_log SET occurred_at = now() - interval '2 hours' WHERE audit_id < 10"
    )

    call("report_verification", str(delivery_id), True)
