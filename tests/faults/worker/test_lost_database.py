"""PostgreSQL goes away in the middle of the work: killed, stopped, or replaced by its standby."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.embedded import EmbeddedPostgres, open_embedded_postgres
from pggit_reactor.testing.database import QUICK_SETTINGS, ReactorDatabase
from pggit_reactor.testing.receiver import answer, gated
from pggit_reactor.testing.windows import assert_within_rate

READY_SECONDS = 20
"""Reconnects are paced with jitter, up to 5 s apart."""


async def probe(process, path: str) -> int:
    """Return the status that the worker's port answers with."""
    port = (await process.event("http_listening"))["port"]
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code


async def until_ready_says(process, status: int) -> None:
    with trio.fail_after(READY_SECONDS):
        while await probe(process, "/ready") != status:
            await trio.sleep(0.05)
            assert await probe(process, "/health") == 200


@pytest.mark.parametrize("way", ["crash", "stop"])
async def test_a_server_that_goes_and_comes_back_under_load_loses_nothing(own_rig, own_server, way: str):
    rig = own_rig
    ids = [await rig.add_webhook(f"/hook{number}", concurrency=8) for number in range(4)]
    async with rig.process(DELIVERY_TIMEOUT_SECONDS=3, WORKER_LEASE_SECONDS=6) as running:
        for webhook_id in ids:
            await rig.insert(webhook_id, 250)
        await rig.receiver.wait_for(100)
        if way == "crash":
            own_server.crash()
        else:
            await own_server.stop_async()
        rig.database.close()
        await until_ready_says(running, 503)
        await own_server.start_async()
        await rig.insert(ids[0], 10)
        await rig.until_all("delivered", seconds=40)
        await until_ready_says(running, 200)
        assert running.process.returncode is None

    # What the crash took back (a claim is committed without waiting for the disk) may be sent twice.
    await rig.assert_each_arrived(at_least=True)
    await rig.assert_books_agree()
    rows = await rig.database.fetch(
        "SELECT max(crash_count), max(retry_count) FROM pggit.alert_delivery_queue"
    )
    assert rows == [(0, 0)]


async def test_outcomes_of_attempts_that_ended_while_the_server_was_away_are_written_once_it_is_back(
    own_rig, own_server
):
    rig = own_rig
    webhook_id = await rig.add_webhook()
    gate = trio.Event()
    rig.receiver.script("/hook", *[gated(gate, answer(200))] * 5)
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=15, WORKER_LEASE_SECONDS=60) as running:
        await rig.insert(webhook_id, 5)
        await rig.receiver.wait_for(5)
        await own_server.stop_async()
        rig.database.close()
        gate.set()
        await rig.until_true(lambda: running.worker._settler.failing)
        await rig.until_true(lambda: running.worker._settler.backlog == 5)
        await own_server.start_async()
        await rig.until_all("delivered")

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


# -- failover


@asynccontextmanager
async def standby_of(primary: EmbeddedPostgres, folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """Run a streaming standby of *primary*."""
    arguments = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
    backup = [str(primary.bin_dir / "pg_basebackup"), "--pgdata", str(folder / "cluster"), *arguments]
    await trio.run_process([*backup, "--dbname", primary.dsn.reveal()])
    shutil.copy(primary.data / "password", folder / "password")
    owner = (primary.data / "cluster").stat()
    await trio.run_process(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", str(folder)])
    async with open_embedded_postgres(folder, settings=QUICK_SETTINGS) as standby:
        yield standby


async def test_a_worker_follows_a_failover_and_has_no_business_on_a_standby(own_rig, own_server, lines):
    with tempfile.TemporaryDirectory(prefix="pggit-standby-") as folder:
        async with standby_of(own_server, Path(folder)) as standby:
            name = own_rig.database.name
            on_standby = ReactorDatabase(name, standby.dsn_for(name))
            try:
                await follow_a_failover(own_rig, own_server, on_standby, standby.port, lines)
            finally:
                on_standby.close()


async def follow_a_failover(
    rig, primary: EmbeddedPostgres, on_standby: ReactorDatabase, standby_port: int, lines
) -> None:
    # The standby first: it is asked each time, and passed over as long as it is one.
    places = f"127.0.0.1:{standby_port},127.0.0.1:{primary.port}"
    dsn = rig.database.dsn.reveal().replace(f"127.0.0.1:{primary.port}", places)
    rig.dsn = Secret(f"{dsn}?target_session_attrs=read-write")
    webhook_id = await rig.add_webhook()
    gate = trio.Event()
    async with rig.worker(DELIVERY_TIMEOUT_SECONDS=15, WORKER_LEASE_SECONDS=60) as running:
        await rig.insert(webhook_id, 20)
        await rig.until_all("delivered")
        rig.receiver.script("/hook", *[gated(gate, answer(200))] * 5)
        await rig.insert(webhook_id, 5)
        await rig.receiver.wait_for(25)
        await rig.until("SELECT bool_and(replay_lsn >= pg_current_wal_insert_lsn()) FROM pg_stat_replication")
        primary.crash()
        rig.database.close()
        gate.set()
        await rig.until_true(lambda: running.worker._settler.failing)
        await rig.until_true(
            lambda: any("session is read-only" in event["reason"] for event in lines.named("listener_lost"))
        )
        assert running.worker.health.health().ok
        assert not running.worker.health.ready().ok
        await on_standby.execute("SELECT pg_promote()")
        rig.database = on_standby
        await rig.until("SELECT NOT pg_is_in_recovery()")
        await rig.insert(webhook_id, 5)
        await rig.until_all("delivered")
        await rig.until_true(lambda: running.worker.health.ready().ok)

    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_crash_of_the_server_gives_away_one_burst_at_most_and_no_breaker(own_rig, own_server):
    """Claims do not wait for the disk, and so the bucket may be older after the crash; what settles wrote is there."""
    rig = own_rig
    limited = await rig.add_webhook("/limited", rate_per_s=25, burst=10)
    dead = await rig.add_webhook("/dead")
    rig.receiver.script("/dead", *[answer(500)] * 5)
    async with rig.process(DELIVERY_TIMEOUT_SECONDS=3, WORKER_LEASE_SECONDS=6) as running:
        await rig.insert(dead, 5)
        await rig.until("SELECT breaker_until > now() FROM pggit.webhook_limit WHERE webhook_id = %s", dead)
        await rig.insert(limited, 80)
        await rig.receiver.wait_for(30, path="/limited")
        own_server.crash()
        rig.database.close()
        await own_server.start_async()
        await until_ready_says(running, 200)
        await rig.until(
            "SELECT NOT EXISTS (SELECT FROM pggit.alert_delivery_queue WHERE webhook_id = %s AND ready_at IS NOT NULL)",
            limited,
            seconds=40,
        )

    moments = [request.arrived_monotonic for request in rig.receiver.requests_for("/limited")]
    assert len(moments) >= 80
    assert_within_rate(moments, rate_per_s=25, burst=20)
    assert len(rig.receiver.requests_for("/dead")) == 5
