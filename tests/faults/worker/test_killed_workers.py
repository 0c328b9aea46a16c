"""kill -9 in the middle of deliveries: another worker, or the next one, delivers everything with the same ids."""

from __future__ import annotations

import pytest

from pggit_reactor.core.model import LeaseToken
from pggit_reactor.db.claims import claim
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.workers import WorkerIdentity, heartbeat
from pggit_reactor.testing.receiver import hang
from pggit_reactor.testing.rig import LEASE_SECONDS, POLL_SECONDS

RECOVERY_SECONDS = LEASE_SECONDS + POLL_SECONDS
SLACK_SECONDS = 3.0
"""Of a machine that is busy with other things: a test's clock begins before the kill and ends after a poll."""


async def test_another_worker_delivers_what_a_killed_one_held_within_lease_and_poll(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", *[hang()] * 8)
    # Neither has room for all, so each holds half of them.
    room = {"WORKER_ATTEMPTS_MAX": 4, "WORKER_WEBHOOK_SHARE": 1}
    async with rig.process(**room) as doomed, rig.process(**room):
        instance = (await doomed.event("worker_started"))["instance"]
        await rig.insert(webhook_id, 8)
        await rig.receiver.wait_for(8)
        doomed.kill()
        held = await rig.database.fetch(
            "SELECT delivery_id FROM pggit.alert_delivery_queue WHERE leased_by = %s", (instance,)
        )
        await rig.until_all("delivered", seconds=RECOVERY_SECONDS + SLACK_SECONDS)

    await rig.assert_each_arrived(at_least=True)
    assert await rig.leases() == 0
    # It died in the middle of each attempt, so each of these rows might have been its death.
    assert [await rig.row(row, "crash_count", "attempt_count") for (row,) in held] == [(1, 1)] * 4
    assert await rig.database.fetch_value("SELECT sum(crash_count) FROM pggit.alert_delivery_queue") == 4


@pytest.mark.long
async def test_a_worker_that_is_started_again_delivers_what_its_predecessor_held(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", hang(), hang())
    async with rig.process() as doomed:
        await rig.insert(webhook_id, 2)
        await rig.receiver.wait_for(2)
        doomed.kill()
    async with rig.process():
        await rig.until_all("delivered", seconds=RECOVERY_SECONDS + SLACK_SECONDS)

    bodies = {(request.header("webhook-id"), request.body) for request in rig.receiver.requests}
    assert len(bodies) == 2
    assert len(rig.receiver.requests) == 4


async def test_under_load_a_kill_loses_nothing(rig):
    ids = [await rig.add_webhook(f"/hook{number}", concurrency=8) for number in range(4)]
    async with rig.process(), rig.process() as doomed:
        for turn in range(4):
            for webhook_id in ids:
                await rig.insert(webhook_id, 100)
            await rig.receiver.wait_for(turn * 400 + 100)
            if turn == 2:
                doomed.kill()
        await rig.until_all("delivered", seconds=30)

    await rig.assert_each_arrived(at_least=True)
    recorded = await rig.database.fetch_value("SELECT sum(attempt_count) FROM pggit.alert_delivery_queue")
    # At most what one worker had in flight was sent without record; the rest is exactly once.
    assert len(rig.receiver.requests) - recorded <= 4 * 8
    await rig.assert_books_agree()


# -- whose death counts


class Fleet:
    """Workers as rows: what a claim knows of others."""

    def __init__(self, rig, connection: TrioConnection) -> None:
        self._rig = rig
        self._connection = connection

    async def beat(self, instance: str, *, age_seconds: float = 0.0, steady_seconds: float = 0.0) -> None:
        identity = WorkerIdentity(instance=instance, worker_id="w", version="1", host="h", pid=1, capacity=1)
        await heartbeat(self._connection, identity, state="running", in_flight=0, silence_seconds=2.0)
        await self._rig.database.execute(
            "UPDATE pggit.reactor_worker SET heartbeat_at = now() - make_interval(secs => %s),"
            " steady_since = now() - make_interval(secs => %s) WHERE instance = %s",
            (age_seconds, steady_seconds, instance),
        )

    async def claim(self, webhook_id: int, *, instance: str) -> list[int]:
        """Claim all; return the crash counts."""
        claimed = await claim(
            self._connection,
            {webhook_id: 10},
            in_flight={},
            lease_token=LeaseToken(2),
            lease_seconds=30,
            silence_seconds=2.0,
            instance=instance,
        )
        return [delivery.crash_count for delivery in claimed.deliveries]


async def expired_lease(rig, webhook_id: int, owner: str) -> None:
    (delivery_id,) = await rig.insert(webhook_id)
    await rig.database.execute(
        "UPDATE pggit.alert_delivery_queue SET lease_token = 1, leased_by = %s,"
        " lease_expires_at = now() - interval '1 s' WHERE delivery_id = %s",
        (owner, delivery_id),
    )


async def test_a_lease_of_a_worker_that_fell_silent_counts_as_a_crash(rig):
    webhook_id = await rig.add_webhook()
    fleet = Fleet(rig, await rig.database.connect())
    await fleet.beat("me", steady_seconds=60)
    await fleet.beat("dead", age_seconds=25)
    await expired_lease(rig, webhook_id, "dead")
    await expired_lease(rig, webhook_id, "never heard of")

    assert await fleet.claim(webhook_id, instance="me") == [1, 1]


async def test_a_lease_of_a_worker_that_is_still_heard_is_no_crash(rig):
    """It holds an outcome that it could not write, or its claim's answer was lost."""
    webhook_id = await rig.add_webhook()
    fleet = Fleet(rig, await rig.database.connect())
    await fleet.beat("me", steady_seconds=60)
    await fleet.beat("alive", age_seconds=1.5)
    await expired_lease(rig, webhook_id, "alive")
    await expired_lease(rig, webhook_id, "me")

    assert await fleet.claim(webhook_id, instance="me") == [0, 0]


async def test_after_a_lost_database_nobody_is_called_dead(rig):
    """Everybody fell silent, the claimer too: it is the first to come back, and that proves nothing."""
    webhook_id = await rig.add_webhook()
    fleet = Fleet(rig, await rig.database.connect())
    await fleet.beat("me", steady_seconds=0)
    await fleet.beat("cut off as well", age_seconds=60)
    await expired_lease(rig, webhook_id, "cut off as well")

    assert await fleet.claim(webhook_id, instance="me") == [0]


async def test_a_gap_in_the_heartbeats_is_remembered(rig):
    connection = await rig.database.connect()
    fleet = Fleet(rig, connection)
    query = "SELECT steady_since > now() - interval '1 s' FROM pggit.reactor_worker"
    await fleet.beat("me", age_seconds=1, steady_seconds=60)
    identity = WorkerIdentity(instance="me", worker_id="w", version="1", host="h", pid=1, capacity=1)
    await heartbeat(connection, identity, state="running", in_flight=0, silence_seconds=2.0)
    steady = await rig.database.fetch_value(query)
    await fleet.beat("me", age_seconds=5, steady_seconds=60)
    await heartbeat(connection, identity, state="running", in_flight=0, silence_seconds=2.0)
    interrupted = await rig.database.fetch_value(query)

    assert (steady, interrupted) == (False, True)


async def test_a_row_whose_worker_died_three_times_is_dead(rig):
    """The third takeover ends it without another attempt; the two before it were attempts."""
    webhook_id = await rig.add_webhook()
    async with rig.worker() as running:
        (delivery_id,) = await rig.database.fetch_value(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, crash_count, lease_token,"
            " leased_by, lease_expires_at) VALUES (1, %s, '{}', 2, 1, 'dead', now() + interval '2 s')"
            " RETURNING ARRAY[delivery_id]",
            (webhook_id,),
        )
        await rig.until_status(delivery_id, "failed")

        assert running.metric("pggit_reactor_leases_expired_total") == 1
    assert await rig.row(delivery_id, "failed_reason", "crash_count", "attempt_count") == ("crash", 3, 0)
    assert rig.receiver.requests == []


async def test_an_operator_may_replay_a_row_that_died_of_crashes(rig):
    webhook_id = await rig.add_webhook()
    (delivery_id,) = await rig.insert(webhook_id)
    await rig.database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed', failed_reason = 'crash', crash_count = 3"
    )
    async with rig.worker():
        await rig.database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending'")
        await rig.until_status(delivery_id, "delivered")

    assert await rig.row(delivery_id, "crash_count", "failed_reason") == (0, None)
