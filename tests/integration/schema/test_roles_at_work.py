"""The product's own statements, each run as the role that it is for."""

from __future__ import annotations

import base64
from functools import partial

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pggit_reactor.core.breaker import Vote
from pggit_reactor.core.model import FailedReason, State, WebhookId
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.core.secret import Secret
from pggit_reactor.db import (
    claims,
    deliveries,
    diagnosis,
    gate,
    keys,
    registry,
    resealing,
    secrets,
    webhooks,
    workers,
)
from pggit_reactor.db.connect import TrioConnection, open_connection
from pggit_reactor.db.lane import HOT_OPTIONS, SIDE_OPTIONS
from pggit_reactor.db.migrate import check, require_current
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.rig import MASTER_KEY, SIGNING_SECRET, Rig

KEYRING = Keyring.parse(Secret(MASTER_KEY))
BY = registry.By(name="a test", host="here")
IDENTITY = workers.WorkerIdentity(
    instance="a worker", worker_id="w", version="1", host="here", pid=1, capacity=9
)
URL = registry.Change(
    url=Secret("https://receiver.test/hook"),
    url_origin="https://receiver.test",
    headers={"X-Team": Secret("storage")},
)


@pytest.fixture
def reactor_database(emptied):
    return emptied


@pytest.fixture
async def worker(reactor_database) -> TrioConnection:
    return await reactor_database.connect(**SIDE_OPTIONS, role="pggit_worker")


@pytest.fixture
async def operator(reactor_database) -> TrioConnection:
    return await reactor_database.connect(role="pggit_operator")


async def test_a_worker_claims_and_settles_every_outcome_and_gives_back(reactor_database, rows, hand):
    await rows.webhook(7)
    decisions = (
        Decision(state=State.DELIVERED),
        Decision(state=State.RETRYING, delay_seconds=5, counts_retry=True),
        Decision(state=State.RETRYING, delay_seconds=5, counts_crash=True),
        Decision(state=State.FAILED, failed_reason=FailedReason.GONE, disable_webhook=True),
    )
    for _ in range(len(decisions) + 1):
        await rows.queue()
    claimed = await hand.claim({7: 10})
    (last, *others) = claimed.deliveries
    assert await claims.fetch_body(hand.settling, last) == b"{}"
    assert await claims.release(hand.settling, [last]) == 1
    for delivery, decision in zip(others, decisions, strict=True):
        assert len((await hand.settle([delivery], decision)).settled) == 1

    assert await reactor_database.fetch_value("SELECT count(*) FROM pggit.alert_delivery_log") == len(
        decisions
    )
    # A row that the settle passes over makes it look at the row once more.
    assert len((await hand.settle(others, decisions[0])).fenced) == len(others)


async def test_a_worker_opens_probes_and_closes_a_breaker_and_takes_tokens(reactor_database, rows, hand):
    await rows.webhook(7, rate_per_s="100")
    for _ in range(7):
        await rows.queue()
    later = Decision(state=State.RETRYING, delay_seconds=0, counts_retry=True, webhook_hold_seconds=0.001)
    claimed = await hand.claim({7: 5})
    opened = await hand.settle(claimed.deliveries, later, http_status=500, vote=Vote.FAILURE)
    assert [change.open_seconds for change in opened.breakers] == [60]
    assert (await hand.claim({7: 5})).deliveries == ()

    await reactor_database.execute("UPDATE pggit.webhook_limit SET breaker_until = now()")
    (probe,) = (await hand.claim({7: 5})).deliveries
    assert (probe.is_probe, probe.is_limited) == (True, True)
    assert await claims.release(hand.settling, [probe]) == 1
    (probe,) = (await hand.claim({7: 5})).deliveries
    closed = await hand.settle([probe], Decision(state=State.DELIVERED), vote=Vote.ANSWER)
    assert [change.open_seconds for change in closed.breakers] == [None]
    assert await claims.take_token(hand.settling, WebhookId(7))


async def test_a_worker_looks_adopts_ends_and_prunes(reactor_database, rows, hand, worker):
    await rows.webhook(7)
    await rows.queue()
    stranger = await rows.queue(webhook_id="8", created_at="now() - interval '1 h'")

    assert await claims.adopt_unknown(hand.claiming) == 1
    assert await claims.discover(hand.claiming, horizon_seconds=5) == {7: 0}
    assert await claims.end_unknown(worker, hold_seconds=0) == 1
    assert await rows.get(stranger, "delivery_status", "failed_reason") == ("failed", "unknown_webhook")
    assert await claims.prune_limits(worker) == 1
    assert await reactor_database.fetch("SELECT webhook_id FROM pggit.webhook_limit") == [(7,)]


async def test_a_worker_beats_does_its_chores_and_reads_its_figures(rows, worker):
    await rows.queue()
    async with worker.transaction():
        assert await workers.try_chores_lock(worker)
        assert await workers.add_audit_partitions(worker) == 2
        await workers.forget_silent_workers(worker)
    for state in ("running", "draining"):
        await workers.heartbeat(worker, IDENTITY, state=state, in_flight=0, silence_seconds=10)

    assert (await workers.read_figures(worker)).depth == {"pending": 1}


async def test_a_worker_opens_closes_and_drains_the_gate(reactor_database):
    connection = await reactor_database.connect(**HOT_OPTIONS, role="pggit_worker")
    own = await gate.open_gate(connection, gate.OPEN_SECONDS)
    drain = await gate.close_gate(connection, own)
    with trio.fail_after(20):
        while not await drain.done(connection):  # noqa: ASYNC110  # other databases' transactions end by themselves
            await trio.sleep(gate.PAUSE_SECONDS_MIN)


async def test_a_worker_loads_webhooks_and_pauses_what_no_key_opens(reactor_database, operator, worker):
    webhook_id = await registry.add(operator, Sealer(KEYRING), URL, secret=Secret(SIGNING_SECRET), by=BY)
    load = partial(
        webhooks.load_webhooks,
        worker,
        [webhook_id],
        defaults=webhooks.WebhookDefaults(attempt_timeout_seconds=5, max_body_bytes=1000),
    )
    other_key = Keyring.parse(Secret("other:base64:" + base64.b64encode(bytes(32)).decode()))
    (opened,) = await load(sealer=Sealer(KEYRING))
    (unopenable,) = await load(sealer=Sealer(other_key))

    assert opened.url.reveal() == "https://receiver.test/hook"
    assert isinstance(unopenable, webhooks.UnopenableWebhook)
    await webhooks.pause_unopenable(worker, unopenable, worker_id="w")
    assert await reactor_database.fetch_value("SELECT state FROM pggit.webhook") == "paused"


async def test_a_worker_checks_schema_and_keys_at_its_start(operator, worker):
    await require_current(worker)
    await keys.ensure_keys(worker, KEYRING, by="w")  # It may not register a key, which is no harm.
    await keys.ensure_keys(operator, KEYRING, by="a test", must_register=True)
    await keys.verify_keys(worker, KEYRING)


async def test_an_operator_keeps_the_registry(operator):
    sealer = Sealer(KEYRING)
    await keys.ensure_keys(operator, KEYRING, by="a test", must_register=True)
    webhook_id = await registry.add(operator, sealer, URL, secret=Secret(SIGNING_SECRET), by=BY)
    adopted = await registry.add(operator, sealer, URL, secret=Secret(SIGNING_SECRET), webhook_id=-5, by=BY)
    change = registry.Change(
        name="ci", policy={"concurrency": 3}, labels={"team": "a"}, headers={"X-Team": None}
    )

    assert await registry.change_webhook(operator, sealer, webhook_id, change, by=BY) == webhook_id
    assert (await registry.read_record(operator, "ci")).concurrency == 3
    assert (await registry.reveal(operator, sealer, "ci", by=BY)).secrets[1].reveal() == SIGNING_SECRET
    assert await registry.count_waiting(operator, adopted) == 0
    assert {record.webhook_id for record in await registry.read_records(operator)} == {webhook_id, adopted}
    await registry.remove(operator, "ci", by=BY)
    assert len(await registry.read_records(operator)) == 1
    assert [report.state for report in await keys.report_keys(operator, KEYRING)] == [keys.KeyState.RIGHT]


async def test_an_operator_looks_at_deliveries(rows, operator):
    delivery_id = await rows.queue(message_body="'[1]'")

    (row,) = await deliveries.list_deliveries(operator, deliveries.DeliveryFilter(), rows_max=10)
    record = await deliveries.read_delivery(operator, row.uid)
    assert (record.delivery_id, record.log) == (delivery_id, ())
    assert await deliveries.read_body(operator, delivery_id) == "[1]"


@pytest.mark.parametrize("role", ["pggit_worker", "pggit_operator"])
async def test_the_doctor_is_refused_nothing(reactor_database, rows, role):
    await rows.webhook(7)
    await rows.queue()
    session = await reactor_database.connect(role=role)
    server = await diagnosis.read_server(session)
    checks = {
        "server": lambda: _list(diagnosis.judge_server(server)),
        "schema": lambda: diagnosis.check_schema(session),
        "triggers": lambda: diagnosis.check_triggers(session, server),
        "keys": lambda: diagnosis.check_keys(session, KEYRING),
        "queue": lambda: diagnosis.check_queue(session, hold_seconds=10),
        "webhooks": lambda: diagnosis.check_webhooks(session),
        "workers": lambda: diagnosis.check_workers(session),
        "audit": lambda: diagnosis.check_audit(session),
        "activity": lambda: diagnosis.check_activity(session),
    }

    for run in checks.values():
        assert await run()  # Not guarded: what the database refuses is raised.


async def _list(findings: list[diagnosis.Finding]) -> list[diagnosis.Finding]:
    await trio.lowlevel.checkpoint()
    return findings


async def test_the_doctor_finds_that_a_worker_lacks_nothing(reactor_database):
    session = await reactor_database.connect(role="pggit_worker")
    findings = await diagnosis.check_roles(session, await diagnosis.read_server(session))

    assert [finding.level for finding in findings] == [diagnosis.Level.OK]


@pytest.mark.parametrize("role", ["pggit_producer", "pggit_worker", "pggit_operator", "pggit_reader"])
async def test_every_role_may_listen(reactor_database, role):
    session = await reactor_database.connect(role=role)
    await session.execute("LISTEN pggit_delivery")


async def test_a_reader_sees_what_was_applied(reactor_database):
    assert (await check(await reactor_database.connect(role="pggit_reader"))).is_current


async def test_a_user_who_is_only_a_worker_delivers_what_a_user_who_is_only_a_producer_inserts(
    reactor_database,
):
    names = {"reactor_only_worker": "pggit_worker", "reactor_only_producer": "pggit_producer"}
    for name, role in names.items():
        await reactor_database.execute(f"DROP ROLE IF EXISTS {name}")
        await reactor_database.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'of a test' IN ROLE {role}")
    parts = conninfo_to_dict(reactor_database.dsn.reveal())
    dsns = {
        name: Secret(make_conninfo(**{**parts, "user": name, "password": "of a test"}))  # type: ignore[arg-type]
        for name in names
    }
    async with open_receiver() as receiver:
        rig = Rig(database=reactor_database, receiver=receiver, dsn=dsns["reactor_only_worker"])
        webhook_id = await rig.add_webhook()
        async with rig.worker():
            async with open_connection(
                dsns["reactor_only_producer"], application_name="producer"
            ) as producer:
                await producer.execute(
                    "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
                    " SELECT n, %s, '{}' FROM generate_series(1, 50) AS n",
                    (webhook_id,),
                )
            await rig.until("SELECT bool_and(delivery_status = 'delivered') FROM pggit.alert_delivery_queue")

    assert len(receiver.requests) == 50


async def test_an_operator_rotates_keys_and_secrets_and_a_worker_does_its_part(
    reactor_database, operator, worker
):
    await keys.ensure_keys(operator, KEYRING, by="a test", must_register=True)
    webhook_id = await registry.add(operator, Sealer(KEYRING), URL, secret=Secret(SIGNING_SECRET), by=BY)
    await secrets.rotate_secret(operator, Sealer(KEYRING), webhook_id, grace_seconds=0.001, by=BY)
    with trio.fail_after(20):
        while not await secrets.retire_expired(worker, by="w"):  # noqa: ASYNC110  # its millisecond passes by itself
            await trio.sleep(0.01)
    assert (await secrets.read_old_secrets(worker, reminder_seconds=1e9)).count == 0
    both = Keyring.parse(Secret(f"next:base64:{base64.b64encode(bytes(32)).decode()}\n{MASTER_KEY}"))
    await keys.ensure_keys(operator, both, by="a test", must_register=True)
    guard = await reactor_database.connect(role="pggit_operator")
    async with resealing.exclusive_rotation(guard):
        await resealing.check_workers(guard, "next")
        done = await resealing.Resealing(connection=operator, guard=guard, sealer=Sealer(both), by=BY).run()

    assert (done.done, done.left) == (3, 0)  # URL, headers, secret
    assert await resealing.retire_keys(operator, active_id="next", by=BY) == (KEYRING.active_id,)
