"""What follows of the UPDATEs of old workers and operators (LEGACY 8): readiness, lease, notification."""

from __future__ import annotations

from enum import StrEnum

import attrs
import pytest


class Ready(StrEnum):
    """What `ready_at` says."""

    NOW = "now"
    LATER = "later"
    NEVER = "never"
    DONE = "done"


READINESS = (
    "CASE WHEN ready_at IS NULL THEN 'done' WHEN ready_at = 'infinity' THEN 'never'"
    " WHEN ready_at <= now() THEN 'now' ELSE 'later' END"
)
REQUEUE = "delivery_status = 'pending', retry_count = 0, next_retry_at = NULL, attempted_at = NULL"
DUE = "now() - interval '1 s'"
FAR = "now() + interval '1 h'"

PENDING = {"delivery_status": "'pending'"}
RETRYING_DUE = {"delivery_status": "'retrying'", "next_retry_at": DUE}
RETRYING_FAR = {"delivery_status": "'retrying'", "next_retry_at": FAR}
FAILED = {"delivery_status": "'failed'", "failed_reason": "'exhausted'", "next_retry_at": DUE}
DELIVERED = {"delivery_status": "'delivered'", "delivered_at": "now()"}


@attrs.frozen(kw_only=True)
class Case:
    """An UPDATE, and what the row was and will be."""

    was: dict[str, str]
    update: str
    ready: Ready
    voids: bool = False
    """Whether a lease is void afterwards."""
    notifies: bool = False
    notifies_if_leased: bool | None = None
    """Where that differs: a row whose lease is void may be claimed again."""
    webhook_id: int = 7


OLD_WORKER = {
    "2xx": Case(
        was=PENDING,
        update="delivery_status = 'delivered', delivered_at = now(), attempted_at = now()",
        ready=Ready.DONE,
        voids=True,
    ),
    "2xx of a retry": Case(
        was=RETRYING_DUE,
        update="delivery_status = 'delivered', delivered_at = now(), attempted_at = now()",
        ready=Ready.DONE,
        voids=True,
    ),
    "transient": Case(
        was=PENDING,
        update="delivery_status = 'retrying', retry_count = retry_count + 1,"
        " next_retry_at = now() + interval '5 s', attempted_at = now()",
        ready=Ready.LATER,
        voids=True,
    ),
    "transient again": Case(
        was=RETRYING_DUE,
        update="delivery_status = 'retrying', retry_count = retry_count + 1,"
        " next_retry_at = now() + interval '10 s', attempted_at = now()",
        ready=Ready.LATER,
        voids=True,
    ),
    "permanent": Case(
        was=PENDING, update="delivery_status = 'failed', attempted_at = now()", ready=Ready.DONE, voids=True
    ),
    "rate limited": Case(
        was=PENDING, update="next_retry_at = now() + interval '1 s'", ready=Ready.LATER, voids=True
    ),
    "breaker open": Case(
        was=RETRYING_DUE, update="next_retry_at = now() + interval '60 s'", ready=Ready.LATER, voids=True
    ),
    "late, after ours": Case(
        was=DELIVERED,
        update=f"delivery_status = 'retrying', next_retry_at = {FAR}",
        ready=Ready.LATER,
        voids=True,
        notifies=True,
    ),
    "a retry without a time": Case(
        was=PENDING, update="delivery_status = 'retrying'", ready=Ready.NEVER, voids=True
    ),
}
OPERATOR = {
    "re-queue a failed row": Case(was=FAILED, update=REQUEUE, ready=Ready.NOW, voids=True, notifies=True),
    "re-queue a delivered row": Case(
        was=DELIVERED, update=REQUEUE, ready=Ready.NOW, voids=True, notifies=True
    ),
    "re-queue a far retry": Case(
        was=RETRYING_FAR, update=REQUEUE, ready=Ready.NOW, voids=True, notifies=True
    ),
    # Without a lease it was due before and is due now: whoever could claim it was told already.
    "re-queue a retry that is due": Case(
        was=RETRYING_DUE, update=REQUEUE, ready=Ready.NOW, voids=True, notifies_if_leased=True
    ),
    "re-queue what is pending": Case(was=PENDING, update=REQUEUE, ready=Ready.NOW),
    "fail by hand": Case(was=PENDING, update="delivery_status = 'failed'", ready=Ready.DONE, voids=True),
    "retry now": Case(
        was=RETRYING_FAR, update="next_retry_at = now()", ready=Ready.NOW, voids=True, notifies=True
    ),
    "retry now what is due": Case(
        was=RETRYING_DUE, update="next_retry_at = now()", ready=Ready.NOW, voids=True, notifies_if_leased=True
    ),
    "retry sooner": Case(
        was=RETRYING_FAR,
        update="next_retry_at = now() + interval '1 min'",
        ready=Ready.LATER,
        voids=True,
        notifies=True,
    ),
    "retry later": Case(
        was=RETRYING_FAR, update="next_retry_at = now() + interval '2 h'", ready=Ready.LATER, voids=True
    ),
    "bring forward what was created for later": Case(
        was={"created_at": FAR}, update="created_at = now()", ready=Ready.NOW, notifies=True
    ),
    "give a time to a retry that had none": Case(
        was={"delivery_status": "'retrying'"},
        update="next_retry_at = now()",
        ready=Ready.NOW,
        voids=True,
        notifies=True,
    ),
    "move to another webhook": Case(
        was=PENDING, update="webhook_id = 8", ready=Ready.NOW, voids=True, notifies=True, webhook_id=8
    ),
    "move a far retry": Case(
        was=RETRYING_FAR, update="webhook_id = 8", ready=Ready.LATER, voids=True, notifies=True, webhook_id=8
    ),
    "move what is done": Case(was=DELIVERED, update="webhook_id = 8", ready=Ready.DONE, voids=True),
    "more retries": Case(was=PENDING, update="max_retries = 10", ready=Ready.NOW),
    "nothing": Case(was=RETRYING_DUE, update="delivery_status = delivery_status", ready=Ready.NOW),
    "a new deadline": Case(was=PENDING, update=f"expires_at = {FAR}, priority = 5", ready=Ready.NOW),
}
CASES = OLD_WORKER | OPERATOR


@pytest.fixture
def reactor_database(emptied):
    return emptied


@pytest.mark.parametrize("name", CASES)
async def test_an_update_of_a_free_row_moves_readiness_and_notifies_where_it_must(rows, ear, name):
    case = CASES[name]
    delivery_id = await rows.queue(**case.was)
    await ear.heard()
    update = f"UPDATE pggit.alert_delivery_queue SET {case.update} WHERE delivery_id = {delivery_id}"
    heard = await ear.hear(update)

    assert await rows.get(delivery_id, READINESS, "lease_token") == (case.ready, None)
    assert heard == ([str(case.webhook_id)] if case.notifies else [])


@pytest.mark.parametrize("name", CASES)
async def test_an_update_of_a_leased_row_voids_the_lease_where_it_decides(rows, ear, name):
    case = CASES[name]
    delivery_id = await rows.leased(**case.was, held_until="now() - interval '1 min'")
    await ear.heard()
    update = f"UPDATE pggit.alert_delivery_queue SET {case.update} WHERE delivery_id = {delivery_id}"
    heard = await ear.hear(update)

    ready, *lease = await rows.get(
        delivery_id, READINESS, "lease_token", "lease_expires_at", "leased_by", "held_until"
    )
    assert ready == case.ready
    assert lease == [None] * 4 if case.voids else lease[0] == 42
    notifies = case.notifies if case.notifies_if_leased is None else case.notifies_if_leased
    assert heard == ([str(case.webhook_id)] if notifies else [])


async def test_a_requeued_row_is_ready_within_the_same_transaction(reactor_database, rows):
    delivery_id = await rows.queue(**FAILED)
    connection = await reactor_database.connect()
    async with connection.transaction():
        await connection.execute(
            f"UPDATE pggit.alert_delivery_queue SET {REQUEUE} WHERE delivery_id = %s", (delivery_id,)
        )
        cursor = await connection.execute("SELECT ready_at <= now() FROM pggit.alert_delivery_queue")

        assert await cursor.fetchall() == [(True,)]


async def test_a_held_row_waits_and_giving_it_back_makes_it_ready_and_notifies(rows, ear):
    delivery_id = await rows.leased(held_until=FAR)
    assert await rows.get(delivery_id, READINESS) == ("later",)
    await ear.heard()

    heard = await ear.hear(
        "UPDATE pggit.alert_delivery_queue SET lease_token = NULL, lease_expires_at = NULL, leased_by = NULL,"
        " held_until = NULL"
    )
    assert await rows.get(delivery_id, READINESS) == ("now",)
    assert heard == ["7"]


@pytest.mark.parametrize("old", ["failed", "delivered"])
@pytest.mark.parametrize("new", ["pending", "retrying"])
async def test_what_comes_back_begins_a_new_life_and_keeps_what_it_has_seen(reactor_database, rows, old, new):
    delivery_id = await rows.queue(
        delivery_status=f"'{old}'",
        failed_reason="'crash'",
        crash_count="3",
        attempt_count="9",
        expires_at=DUE,
        last_status="500",
    )
    await reactor_database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = %s", (new,))

    assert await rows.get(
        delivery_id,
        "replayed_at > now() - interval '1 min'",
        "failed_reason",
        "crash_count",
        "attempt_count",
        "expires_at",
        "last_status",
    ) == (True, None, 0, 9, None, 500)


async def test_a_deadline_that_is_still_to_come_survives_a_requeue(reactor_database, rows):
    delivery_id = await rows.queue(**FAILED, expires_at=FAR)
    await reactor_database.execute(f"UPDATE pggit.alert_delivery_queue SET {REQUEUE}")

    assert await rows.get(delivery_id, "expires_at > now()") == (True,)


@pytest.mark.parametrize(
    ("old", "new"), [("pending", "retrying"), ("retrying", "pending"), ("failed", "failed")]
)
async def test_what_was_not_done_has_not_come_back(reactor_database, rows, old, new):
    delivery_id = await rows.queue(delivery_status=f"'{old}'", crash_count="2")
    await reactor_database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = %s", (new,))

    assert await rows.get(delivery_id, "replayed_at", "crash_count") == (None, 2)


@pytest.mark.parametrize(
    ("columns", "ready"),
    [
        ({}, "now"),
        ({"created_at": DUE}, "now"),
        ({"created_at": "'-infinity'"}, "now"),
        ({"created_at": FAR}, "later"),
        ({"next_retry_at": FAR}, "later"),
        ({"next_retry_at": DUE, "created_at": FAR}, "later"),
        ({"next_retry_at": "'infinity'"}, "never"),
        ({"held_until": FAR}, "later"),
        ({"delivery_status": "'retrying'"}, "never"),
        ({"delivery_status": "'retrying'", "held_until": DUE}, "never"),
        (RETRYING_DUE, "now"),
        (RETRYING_FAR, "later"),
        ({**RETRYING_DUE, "held_until": FAR}, "later"),
        ({**DELIVERED, "next_retry_at": DUE}, "done"),
        (FAILED, "done"),
    ],
)
async def test_readiness_is_the_latest_of_creation_retry_and_hold(rows, columns, ready):
    assert await rows.get(await rows.queue(**columns), READINESS) == (ready,)


async def test_sessions_in_different_time_zones_agree_on_what_is_due(reactor_database, rows):
    east = await reactor_database.connect(TimeZone="Pacific/Kiritimati")
    west = await reactor_database.connect(TimeZone="Pacific/Pago_Pago")
    insert = (
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, delivery_status, next_retry_at)"
        " VALUES (%s, 7, '{}', 'retrying', %s)"
    )
    for session, alert_id in ((east, 1), (west, 2)):
        for shift, due in (("-1 s", 0), ("1 h", 10)):
            # As old workers write it: the session's own time of day, without a zone.
            cursor = await session.execute(f"SELECT (localtimestamp + interval '{shift}')::text")
            ((moment,),) = await cursor.fetchall()
            await session.execute(insert, (alert_id + due, moment))

    for session in (east, west):
        cursor = await session.execute(
            "SELECT alert_id, ready_at <= now() FROM pggit.alert_delivery_queue ORDER BY alert_id"
        )
        assert await cursor.fetchall() == [(1, True), (2, True), (11, False), (12, False)]
