"""replay, requeue and cancel, from SQL."""

from __future__ import annotations

import pytest
from psycopg import errors

from pggit_reactor.testing.rig import Rig

ROW = (
    "SELECT delivery_status, retry_count, next_retry_at, failed_reason, ready_at <= now(), replayed_at IS NOT NULL,"
    " delivered_at, lease_token FROM pggit.alert_delivery_queue WHERE delivery_id = %s"
)
LEASED = {"lease_token": 1, "lease_expires_at": "2999-01-01", "leased_by": "worker-1"}


@pytest.fixture(autouse=True)
def _webhook(webhook):
    """Each of them is about deliveries of a registered webhook."""


def uid_of(owner, delivery_id: int) -> str:
    query = (
        "SELECT pggit.delivery_uid(delivery_id, uid_salt)::text FROM pggit.alert_delivery_queue"
        " WHERE delivery_id = %s"
    )
    return owner.execute(query, (delivery_id,)).fetchone()[0]


@pytest.mark.parametrize("status", ["failed", "delivered"])
def test_a_settled_delivery_is_replayed_and_due_at_once(call, owner, enqueue, heard, audited, status):
    delivery_id = enqueue(
        delivery_status=status, retry_count=3, next_retry_at="2001-01-01", delivered_at="2001-01-01",
        failed_reason="exhausted" if status == "failed" else None,
    )  # fmt: skip
    uid = uid_of(owner, delivery_id)
    heard()

    assert call("replay_delivery", delivery_id) == (
        f"delivery {delivery_id} was {status} and is sent again, under the same uid"
    )
    assert owner.execute(ROW, (delivery_id,)).fetchone() == ("pending", 0, None, None, True, True, None, None)
    assert uid_of(owner, delivery_id) == uid
    assert heard() == ["7"]
    assert audited(
        "operation", "delivery_id", "request_id::text", "details->>'action'", "details->>'from'"
    ) == [("delivery_replayed", delivery_id, uid, "replay", status)]
    assert owner.execute(
        "SELECT event_type, event_details->>'action' FROM pggit.alert_delivery_log"
    ).fetchall() == [("queued", "replay")]


def test_what_is_still_under_way_is_not_replayed(call, enqueue):
    with pytest.raises(
        errors.ObjectNotInPrerequisiteState, match=r"is still pending; pggit\.requeue_delivery"
    ):
        call("replay_delivery", enqueue())


@pytest.mark.parametrize(
    "columns",
    [
        {"delivery_status": "retrying", "retry_count": 2, "next_retry_at": "2999-01-01"},
        {"delivery_status": "retrying", "retry_count": 2},
        {"next_retry_at": "infinity"},
        {"created_at": "2999-01-01"},
        {"held_until": "2999-01-01"},
        {"delivery_status": "failed", "failed_reason": "permanent"},
    ],
)
def test_what_is_not_delivered_is_requeued_and_due_at_once(call, owner, enqueue, heard, columns):
    delivery_id = enqueue(**columns)
    heard()
    call("requeue_delivery", delivery_id)

    assert owner.execute(ROW, (delivery_id,)).fetchone()[:5] == ("pending", 0, None, None, True)
    assert heard() == ["7"]


def test_what_is_delivered_or_being_sent_is_not_requeued(call, enqueue):
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"pggit\.replay_delivery"):
        call("requeue_delivery", enqueue(delivery_status="delivered"))
    with pytest.raises(errors.ObjectInUse, match="is being sent by worker-1"):
        call("requeue_delivery", enqueue(**LEASED))


def test_a_delivery_is_cancelled_with_who_and_why_and_may_be_taken_back(
    call, owner, operator, enqueue, audited
):
    delivery_id = enqueue()
    assert call("cancel_delivery", delivery_id, "sent by hand") == f"delivery {delivery_id} is cancelled"

    words = f"cancelled by {operator.info.user}: sent by hand"
    row = owner.execute(
        "SELECT delivery_status, failed_reason, last_error FROM pggit.alert_delivery_queue"
    ).fetchone()
    assert row == ("failed", "cancelled", words)
    assert owner.execute("SELECT event_type, event_details FROM pggit.alert_delivery_log").fetchall() == [
        ("failed", {"reason": "cancelled", "error": words})
    ]
    assert audited("operation", "details->>'reason'") == [("delivery_cancelled", "sent by hand")]
    call("replay_delivery", delivery_id)
    assert owner.execute(ROW, (delivery_id,)).fetchone()[:4] == ("pending", 0, None, None)


def test_cancelling_what_is_being_sent_voids_the_lease_and_says_that_it_may_arrive(call, owner, enqueue):
    delivery_id = enqueue(**LEASED)

    assert call("cancel_delivery", delivery_id).endswith(
        "worker-1 was just sending it, so it may arrive all the same"
    )
    assert owner.execute(ROW, (delivery_id,)).fetchone()[-1] is None


@pytest.mark.parametrize("status", ["delivered", "failed"])
def test_what_is_settled_is_not_cancelled(call, enqueue, status):
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=f"is {status} already"):
        call("cancel_delivery", enqueue(delivery_status=status))


@pytest.mark.parametrize(
    "name", ["replay_delivery", "requeue_delivery", "cancel_delivery", "explain_delivery"]
)
def test_a_delivery_is_found_by_uid_and_by_a_quoted_number(owner, operator, enqueue, name):
    delivery_id = enqueue(delivery_status="failed" if name == "replay_delivery" else "pending")
    uid = uid_of(owner, delivery_id)

    # As typed in psql: literals without a type.
    operator.execute(f"SELECT pggit.{name}('{uid.upper()}')")
    with pytest.raises(errors.NoDataFound, match="no delivery has the uid"):
        operator.execute(f"SELECT pggit.{name}('{uid[:-1]}{'0' if uid[-1] != '0' else '1'}')")
    with pytest.raises(errors.NoDataFound, match="p_delivery_id is 99"):
        operator.execute(f"SELECT pggit.{name}('99')")
    with pytest.raises(errors.NoDataFound, match="p_delivery_id is 99"):
        operator.execute(f"SELECT pggit.{name}(99)")
    with pytest.raises(errors.InvalidParameterValue, match="p_uid is no delivery uid"):
        operator.execute(f"SELECT pggit.{name}('00000000-0000-4000-8000-000000000000')")


async def test_a_worker_sends_what_is_replayed_under_the_same_uid(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=60):
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")
        await rig.database.execute("SELECT pggit.replay_delivery(%s)", (delivery_id,))
        first, second = await rig.receiver.wait_for(2)
        await rig.until_status(delivery_id, "delivered")

    assert first.header("webhook-id") == second.header("webhook-id")
    assert first.body == second.body
