"""A wrong or missing master key: the worker refuses to start. One found later pauses its webhook alone."""

from __future__ import annotations

import base64

import pytest

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.webhooks import secret_place, url_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer

WRONG = "test:base64:" + base64.b64encode(bytes(range(1, 33))).decode()
ANOTHER = "another:base64:" + base64.b64encode(bytes(range(2, 34))).decode()


@pytest.mark.parametrize(
    ("key", "named"),
    [
        pytest.param(WRONG, "'test'", id="the right id and the wrong key"),
        pytest.param(ANOTHER, "'test'", id="another key"),
        pytest.param("", "PGGIT_REACTOR_MASTER_KEY_FILE", id="no key"),
        pytest.param("nonsense", "ID:base64:", id="no key at all"),
    ],
)
async def test_a_worker_without_the_right_key_exits_2_and_claims_nothing(rig, key: str, named: str):
    await rig.seal_check()
    webhook_id = await rig.add_webhook()
    (delivery_id,) = await rig.insert(webhook_id)
    async with rig.starting_process(MASTER_KEY=key, LOG_LEVEL="info") as refused:
        assert await refused.wait(seconds=30) == 2

    assert named in refused.output
    assert "Traceback" not in refused.output
    assert key not in refused.output or not key
    assert await rig.row(delivery_id, "delivery_status", "lease_token", "attempt_count") == (
        "pending",
        None,
        0,
    )
    assert rig.receiver.requests == []
    assert await rig.database.fetch("SELECT FROM pggit.reactor_worker") == []


@pytest.mark.parametrize("place", ["url", "secret"])
async def test_a_webhook_that_no_key_opens_pauses_aloud_and_stops_nobody(rig, lines, place: str):
    sealed, good = await rig.add_webhook("/sealed"), await rig.add_webhook("/good")
    stranger = Sealer(Keyring.parse(Secret(ANOTHER)))
    if place == "url":
        await rig.database.execute(
            "UPDATE pggit.webhook SET sealed_url = %s WHERE webhook_id = %s",
            (stranger.seal(b"https://elsewhere.example", place=url_place(sealed)), sealed),
        )
    else:
        await rig.database.execute(
            "UPDATE pggit.webhook_secret SET sealed_secret = %s WHERE webhook_id = %s",
            (stranger.seal(b"whsec_", place=secret_place(sealed, 1)), sealed),
        )
    async with rig.worker() as running:
        waiting = await rig.insert(sealed, 5)
        passing = await rig.insert(good, 5)
        await rig.until("SELECT state = 'paused' FROM pggit.webhook WHERE webhook_id = %s", sealed)
        for delivery_id in passing:
            await rig.until_status(delivery_id, "delivered")
        await rig.until_true(lambda: running.metric("pggit_reactor_attempts_in_flight") == 0)
        await running.worker._upkeep.refresh()
        assert running.metric("pggit_reactor_webhooks_paused_unopenable") == 1

        # Mended by somebody who has the key: resumed, and what waited goes.
        await rig.database.execute(
            "UPDATE pggit.webhook SET sealed_url = %s WHERE webhook_id = %s",
            (rig.sealed_url(sealed, rig.receiver.url("/sealed")), sealed),
        )
        await rig.database.execute(
            "UPDATE pggit.webhook_secret SET sealed_secret = %s WHERE webhook_id = %s",
            (rig.sealed_secret(sealed), sealed),
        )
        await rig.database.execute(
            "UPDATE pggit.webhook SET state = 'active' WHERE webhook_id = %s", (sealed,)
        )
        for delivery_id in waiting:
            await rig.until_status(delivery_id, "delivered")

    (said,) = lines.named("webhook_unopenable")
    assert said["level"] == "error"
    assert "another" in said["reason"]
    rows = await rig.database.fetch(
        "SELECT webhook_id, error_message FROM pggit.webhook_audit_log WHERE operation = 'webhook_paused'"
    )
    assert [(webhook_id, "another" in why) for webhook_id, why in rows] == [(sealed, True)]
    assert await rig.database.fetch_value("SELECT max(attempt_count) FROM pggit.alert_delivery_queue") == 1
    await rig.assert_books_agree()
