"""Signing secrets change while workers deliver: both sign in the grace, at the right time, everywhere."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pggit_reactor import VerificationError, verify
from pggit_reactor.core.model import SignatureAlgorithm
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.secret_rotation import Term, changes_at, signing
from pggit_reactor.core.signing_keys import algorithm_of, new_secret, public_key_of
from pggit_reactor.db import registry, secrets
from pggit_reactor.db.registry import By
from pggit_reactor.db.webhooks import WebhookDefaults, load_webhooks, secret_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.receiver import answer
from pggit_reactor.testing.rig import MASTER_KEY, SIGNING_SECRET

BY = By(name="ann", host="desk")
SEALER = Sealer(Keyring.parse(Secret(MASTER_KEY)))
CHORES_EACH_SECOND = {"DELIVERY_UNKNOWN_WEBHOOK_HOLD_SECONDS": 1}
SCHEDULE = "UPDATE pggit.webhook SET rotate_every = interval '90 days' WHERE webhook_id = %s"
AGE = (
    "UPDATE pggit.webhook_secret SET not_before = now() - interval '91 days',"
    " created_at = now() - interval '91 days' WHERE webhook_id = %s"
)


def signers(request, candidates: dict[str, str]) -> list[str]:
    """Return which of *candidates* verify the request, by name."""
    found = []
    for name, secret in candidates.items():
        try:
            verify(request.body, dict(request.headers), secret, now=int(request.header("webhook-timestamp")))
        except VerificationError:
            continue
        found.append(name)
    return found


async def rotate(rig, webhook_id: int, **options) -> str:
    options = {"grace_seconds": 3600.0, **options}
    connection = await rig.database.connect()
    _, secret = await secrets.rotate_secret(connection, SEALER, webhook_id, by=BY, **options)
    return secret.reveal()


async def revealed(rig, webhook_id: int) -> dict[int, str]:
    connection = await rig.database.connect()
    opened = await registry.reveal(connection, SEALER, webhook_id, by=BY)
    return {version: secret.reveal() for version, secret in opened.secrets.items()}


async def test_a_retry_in_flight_is_signed_by_both_and_after_the_finish_by_the_new_one(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.default = answer(500)
    async with (
        rig.worker(DELIVERY_BACKOFF_BASE_SECONDS=1, WORKER_POLL_SECONDS=60),
        rig.worker(DELIVERY_BACKOFF_BASE_SECONDS=1, WORKER_POLL_SECONDS=60),
    ):
        await rig.insert(webhook_id)
        (first,) = await rig.receiver.wait_for(1)
        known = {"new": await rotate(rig, webhook_id), "old": SIGNING_SECRET}
        second = (await rig.receiver.wait_for(2))[1]
        await secrets.finish_rotation(await rig.database.connect(), webhook_id, by=BY)
        rig.receiver.default = answer(200)
        third = (await rig.receiver.wait_for(3))[2]

    assert first.header("webhook-id") == second.header("webhook-id") == third.header("webhook-id")
    assert [signers(request, known) for request in (first, second, third)] == [
        ["old"],
        ["new", "old"],
        ["new"],
    ]
    assert second.header("webhook-signature").count("v1,") == 2
    assert second.header("x-pggit-signature").count("sha256=") == 2


async def test_a_grace_ends_in_time_without_a_new_revision_and_what_is_over_is_destroyed(rig):
    """The copy of a worker knows when its secrets change, so it does not sign on until somebody tells it."""
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=60):
        known = {"new": await rotate(rig, webhook_id, grace_seconds=1.5), "old": SIGNING_SECRET}
        await rig.insert(webhook_id)
        await rig.until_all("delivered")
        revision = await rig.database.fetch_value("SELECT revision FROM pggit.webhook")
        await rig.until("SELECT bool_or(expires_at <= now()) FROM pggit.webhook_secret")
        await rig.insert(webhook_id)
        await rig.until_all("delivered")
        still = await rig.database.fetch_value("SELECT revision FROM pggit.webhook")
        during, after = rig.receiver.requests
    async with rig.worker(**CHORES_EACH_SECOND):
        await rig.until("SELECT count(*) = 1 FROM pggit.webhook_secret")

    assert revision == still
    assert (signers(during, known), signers(after, known)) == (["new", "old"], ["new"])
    assert await rig.database.fetch(
        "SELECT version, details ->> 'why', done_by IS NOT NULL FROM pggit.rotation_history"
        " WHERE operation = 'secret_retired'"
    ) == [("1", "expired", True)]


@pytest.mark.parametrize("kind", SignatureAlgorithm)
async def test_workers_rotate_by_schedule_once_and_take_it_up_at_once(rig, lines, kind):
    await rig.seal_check()
    webhook_id, other = await rig.add_webhook(), await rig.add_webhook("/other")
    if kind is SignatureAlgorithm.ED25519:
        await rotate(rig, webhook_id, algorithm=kind, grace_seconds=0)
    (before,) = (await revealed(rig, webhook_id)).values()
    for due in (webhook_id, other):
        await rig.database.execute(AGE, (due,))
    await rig.database.execute(SCHEDULE, (webhook_id,))
    async with rig.worker(**CHORES_EACH_SECOND), rig.worker(**CHORES_EACH_SECOND):
        await rig.until("SELECT count(*) = 3 FROM pggit.webhook_secret")
        await rig.insert(webhook_id)
        await rig.until_all("delivered")
        await rig.until_true(lambda: len(lines.named("secret_rotated")) == 1)
    after, old = (await revealed(rig, webhook_id)).values()

    (request,) = rig.receiver.requests
    assert old == before
    assert algorithm_of(after) is kind
    assert signers(request, {"new": public_key_of(after) or after, "old": public_key_of(old) or old}) == [
        "new",
        "old",
    ]
    assert ("x-pggit-signature" in {name.lower() for name in dict(request.headers)}) == (
        kind is SignatureAlgorithm.HMAC_SHA256
    )
    assert await rig.database.fetch(
        "SELECT webhook_id, details ->> 'scheduled' FROM pggit.rotation_history"
        " WHERE operation = 'secret_rotated' AND details ->> 'scheduled' = 'true'"
    ) == [(webhook_id, "true")]
    (days,) = (
        await rig.database.fetch(
            "SELECT expires_at - now() FROM pggit.webhook_secret WHERE expires_at IS NOT NULL"
        )
    )[0]
    assert timedelta(days=29) < days < timedelta(days=30)


async def test_two_workers_that_find_the_same_secret_due_make_one(rig):
    await rig.seal_check()
    webhook_id = await rig.add_webhook()
    await rig.database.execute(AGE, (webhook_id,))
    await rig.database.execute(SCHEDULE, (webhook_id,))
    made = []

    async def chore() -> None:
        connection = await rig.database.connect(role="pggit_worker")
        made.extend(await secrets.rotate_due(connection, SEALER, grace_seconds=3600, by="w"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(chore)

    assert made == [webhook_id]
    assert [*await revealed(rig, webhook_id)] == [2, 1]


async def test_a_workers_role_can_neither_rotate_before_time_nor_retire_what_signs(rig):
    webhook_id = await rig.add_webhook()
    worker = await rig.database.connect(role="pggit_worker")
    call = "SELECT pggit.rotate_due_secret(%s, %s, '', 'hmac-sha256', NULL, interval '1 s', 'w')"

    async def tries(version: int) -> bool:
        return (await (await worker.execute(call, (webhook_id, version))).fetchone())[0]

    assert not await tries(2)  # no schedule
    await rig.database.execute(SCHEDULE, (webhook_id,))
    assert not await tries(2)  # not due
    await rig.database.execute(AGE, (webhook_id,))
    assert not await tries(1)  # not the next version
    assert not await tries(3)
    await rig.database.execute("UPDATE pggit.webhook SET state = 'disabled'")
    assert not await tries(2)
    await rig.database.execute("UPDATE pggit.webhook_secret SET expires_at = now() - interval '1 s'")
    assert await secrets.retire_expired(worker, by="w") == 0  # it is the newest
    assert await rig.database.fetch_value("SELECT count(*) FROM pggit.webhook_secret") == 1


async def test_old_secrets_are_a_metric_and_a_daily_word(rig, lines):
    await rig.seal_check()
    old, young, gone = [await rig.add_webhook(f"/{number}") for number in range(3)]
    for webhook_id in (old, gone):
        await rig.database.execute(AGE, (webhook_id,))
    await rig.database.execute("UPDATE pggit.webhook SET state = 'disabled' WHERE webhook_id = %s", (gone,))
    async with rig.worker(**CHORES_EACH_SECOND) as running:
        await rig.until_true(lambda: lines.named("secrets_old"))
        connection = await rig.database.connect()
        await running.worker._upkeep.secret_chores.run(connection)
        await running.worker._upkeep.refresh()

        assert running.metric("pggit_reactor_webhook_secrets_old") == 1
    (said,) = lines.named("secrets_old")
    assert (said["count"], said["webhook_ids"], said["older_than_days"]) == (1, [old], 90)
    assert young not in said["webhook_ids"]


async def test_a_scheduled_secret_is_sealed_with_a_key_that_is_in_use(rig):
    """The first key of the file is not used before `key rotate` has proved that every worker has it."""
    await rig.seal_check()
    webhook_id = await rig.add_webhook()
    await rig.database.execute(AGE, (webhook_id,))
    await rig.database.execute(SCHEDULE, (webhook_id,))
    ring = Keyring.parse(Secret(f"new:base64:{'B' * 42}A=\n{MASTER_KEY}"))
    async with rig.worker() as running:
        running.worker._upkeep.keys.replace(ring)
        await running.worker._upkeep.beat("running")
        await running.worker._upkeep.secret_chores.run(await rig.database.connect())

    assert (
        await rig.database.fetch_value(
            "SELECT pggit.sealed_key_id(sealed_secret) FROM pggit.webhook_secret WHERE version = 2"
        )
        == "test"
    )


days = st.integers(-5, 5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(days, st.none() | days), min_size=0, max_size=5))
def test_what_the_database_lets_sign_is_what_the_core_says(reactor_database, terms):
    """The same rule stands in SQL, where secrets are loaded, and in core/secret_rotation.py."""
    trio.run(partial(compare, reactor_database, terms))


async def compare(database, terms) -> None:
    database.close()  # Of another Trio run.
    connection = await database.connect()
    await connection.execute("DELETE FROM pggit.webhook")
    await connection.execute("BEGIN")
    now = (await (await connection.execute("SELECT now()")).fetchone())[0]
    url = SEALER.seal(b"https://a.example", place=registry.url_place(1))
    await connection.execute(
        "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin) VALUES (1, 'a', %s, 'a')",
        (url,),
    )
    known = [
        Term(
            version=version,
            not_before=now + timedelta(days=begins),
            expires_at=None if ends is None else now + timedelta(days=ends),
        )
        for version, (begins, ends) in enumerate(terms, start=1)
    ]
    texts = {term.version: new_secret(bytes([term.version] * 24)) for term in known}
    for term in known:
        await connection.execute(
            "INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret, not_before, expires_at)"
            " VALUES (1, %s, %s, %s, %s)",
            (
                term.version,
                SEALER.seal(texts[term.version].encode(), place=secret_place(1, term.version)),
                term.not_before,
                term.expires_at,
            ),
        )
    defaults = WebhookDefaults(attempt_timeout_seconds=5, max_body_bytes=1000)
    (loaded,) = await load_webhooks(connection, [1], sealer=SEALER, defaults=defaults)
    await connection.execute("COMMIT")
    database.close()

    assert [secret.reveal() for secret in loaded.secrets] == [
        texts[version] for version in signing(known, now)
    ]
    change = changes_at(known, now)
    assert loaded.secrets_change_in_seconds == (None if change is None else (change - now).total_seconds())
