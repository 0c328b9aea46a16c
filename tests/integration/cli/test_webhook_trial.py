"""`webhook test` as a process of its own, against a receiver on TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from pggit_reactor.receiver import verify
from pggit_reactor.testing.behaviours import answer
from pggit_reactor.testing.database import ReactorDatabase
from pggit_reactor.testing.receiver import Receiver, open_receiver
from pggit_reactor.testing.rig import MASTER_KEY, SIGNING_SECRET, Rig


@pytest.fixture
async def rig(reactor_database: ReactorDatabase) -> AsyncIterator[Rig]:
    async with open_receiver() as receiver:
        yield Rig(database=reactor_database, receiver=receiver)


@pytest.fixture
def receiver(rig: Rig) -> Receiver:
    return rig.receiver


async def run_test(rig: Rig, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **rig.environ(**settings), "SSL_CERT_FILE": str(rig.receiver.ca_file)}
    command = [sys.executable, "-m", "pggit_reactor", "webhook", "test", *arguments]
    run = partial(subprocess.run, command, env=environ, capture_output=True, text=True, check=False)
    return await trio.to_thread.run_sync(run)


async def test_a_signed_event_reaches_the_receiver_and_its_phases_are_printed(rig, receiver) -> None:
    webhook_id = await rig.add_webhook("/hook")
    done = await run_test(rig, str(webhook_id), LOG_LEVEL="info")

    assert (done.returncode, done.stderr) == (0, "")
    (request,) = await receiver.wait_for(1)
    verify(request.body, dict(request.headers), SIGNING_SECRET)
    assert json.loads(request.body)["webhook_id"] == webhook_id
    for word in ("resolved", "connected", "secured", "sent", "answered", "delivered"):
        assert word in done.stdout


async def test_it_leaves_no_row_and_no_health_and_is_audited_with_its_uid(rig, receiver) -> None:
    webhook_id = await rig.add_webhook("/hook")
    done = await run_test(rig, str(webhook_id), "--json", LOG_LEVEL="info")

    uid = json.loads(done.stdout)["uid"]
    assert await rig.database.fetch_value("SELECT count(*) FROM pggit.alert_delivery_queue") == 0
    assert await rig.database.fetch_value("SELECT count(*) FROM pggit.webhook_health_metrics") == 0
    rows = await rig.database.fetch(
        "SELECT webhook_id, status_code, request_id::text FROM pggit.webhook_audit_log"
        " WHERE operation = 'webhook_tested'"
    )
    assert rows == [(webhook_id, 200, uid)]
    (request,) = await receiver.wait_for(1)
    assert request.header("webhook-id") == uid


async def test_an_answer_that_is_no_success_is_exit_1_and_said(rig, receiver) -> None:
    receiver.script("/hook", answer(503))
    done = await run_test(rig, str(await rig.add_webhook("/hook")), LOG_LEVEL="info")

    assert done.returncode == 1
    assert "answered 503" in done.stdout


async def test_what_a_receiver_echoes_of_the_url_is_not_shown(rig, receiver) -> None:
    webhook_id = await rig.add_webhook(url=receiver.url("/hook/s3cret-path?token=s3cret-query"))
    receiver.default = answer(404, body=b"nothing at /hook/s3cret-path?token=s3cret-query here")
    for options in ((), ("--json",)):
        done = await run_test(rig, str(webhook_id), *options, LOG_LEVEL="info")

        assert "nothing at" in done.stdout
        assert "here" in done.stdout
        assert "s3cret" not in done.stdout + done.stderr


async def test_what_policy_refuses_is_never_sent_and_is_exit_3(rig, receiver) -> None:
    webhook_id = await rig.add_webhook("/s3cret")
    done = await run_test(rig, str(webhook_id), EGRESS_UNSAFE_ALLOW="", LOG_LEVEL="info")

    assert done.returncode == 3
    assert "s3cret" not in done.stdout + done.stderr
    assert receiver.requests_for(None) == []


async def test_a_paused_webhook_is_tested_as_well(rig, receiver) -> None:
    webhook_id = await rig.add_webhook("/hook", state="paused")
    done = await run_test(rig, str(webhook_id), LOG_LEVEL="info")

    assert done.returncode == 0


async def test_a_registration_that_no_key_opens_is_said_without_sending(rig, receiver) -> None:
    webhook_id = await rig.add_webhook("/hook", sealed_url=rig.sealed_url(-1, receiver.url("/hook")))
    done = await run_test(rig, str(webhook_id), MASTER_KEY=MASTER_KEY, LOG_LEVEL="info")

    assert done.returncode == 1
    assert "does not open" in done.stderr
    assert receiver.requests_for(None) == []


async def test_a_key_that_is_not_pinned_is_named_and_nothing_is_sent(rig, receiver) -> None:
    webhook_id = await rig.add_webhook("/hook", pins=["sha256/" + "A" * 43 + "="])
    done = await run_test(rig, str(webhook_id), LOG_LEVEL="info")

    assert done.returncode == 1
    assert "the receiver's key is none of the pinned ones; it is sha256/" in done.stdout
    assert receiver.requests_for(None) == []
