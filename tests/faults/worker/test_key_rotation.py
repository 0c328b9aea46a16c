"""Master keys change under load: nothing is lost, nothing is signed wrongly, and every stop can be gone on from."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from pggit_reactor import verify
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.keys import ensure_keys, read_worker_keys
from pggit_reactor.db.resealing import BATCH_ROWS
from pggit_reactor.runtime.key_watch import KeyWatch
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.testing.rig import MASTER_KEY as OLD
from pggit_reactor.testing.rig import SIGNING_SECRET, WorkerProcess

NEW = "new:base64:" + base64.b64encode(bytes(range(40, 72))).decode()
OTHER_NEW = "new:base64:" + base64.b64encode(bytes(range(50, 82))).decode()
WORDS = "words:passphrase:correct horse battery staple"


@attrs.define(eq=False)
class Fleet:
    """Workers that read one key file, and the command that rotates."""

    rig: object
    key_file: Path
    workers: list[WorkerProcess] = attrs.field(factory=list)

    def keys(self, *lines: str) -> None:
        self.key_file.write_text("\n".join(lines) + "\n")
        self.key_file.chmod(0o600)

    async def reload(self, *lines: str) -> None:
        """Change the file and tell the workers; return once all have it."""
        self.keys(*lines)
        for worker in self.workers:
            before = sum(event.get("event") == "reloaded" for event in worker.events)
            worker.signal(signal.SIGHUP)
            await self.rig.until_true(
                lambda worker=worker, before=before: (
                    sum(event.get("event") == "reloaded" for event in worker.events) > before
                )
            )

    @property
    def settings(self) -> dict[str, object]:
        return {"MASTER_KEY": "", "MASTER_KEY_FILE": self.key_file, "LOG_LEVEL": "info"}

    @asynccontextmanager
    async def running(self, count: int) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            stop, stopped = trio.Event(), []

            async def run(task_status=trio.TASK_STATUS_IGNORED) -> None:
                async with self.rig.process(**self.settings) as worker:
                    self.workers.append(worker)
                    task_status.started()
                    await stop.wait()
                    worker.signal(signal.SIGTERM)
                    stopped.append(await worker.wait())

            for _ in range(count):
                await nursery.start(run)
            yield
            stop.set()
        assert stopped == [0] * count
        self.workers.clear()

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        environ = {**os.environ, **self.rig.environ(**self.settings)}
        del environ["PGGIT_REACTOR_MASTER_KEY"]
        return [sys.executable, "-m", "pggit_reactor", "key", "rotate", *arguments], environ

    async def rotate(self, *arguments: str, status: int = 0) -> str:
        command, environ = self.command(*arguments)
        done = await trio.run_process(
            command, env=environ, capture_stdout=True, capture_stderr=True, check=False
        )
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == status, said
        return said

    async def rotate_and_kill(self, *arguments: str) -> None:
        """Start a rotation and kill it after its first batch."""
        command, environ = self.command(*arguments)
        process = await trio.lowlevel.open_process(command, env=environ, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = b""
        while b" of " not in said:
            said += await process.stderr.receive_some()
        process.kill()
        await process.wait()
        await process.stderr.aclose()

    async def key_ids(self) -> set[str]:
        rows = await self.rig.database.fetch(
            "SELECT pggit.sealed_key_id(sealed_url) FROM pggit.webhook"
            " UNION SELECT pggit.sealed_key_id(sealed_secret) FROM pggit.webhook_secret"
        )
        return {row[0] for row in rows}


@pytest.fixture
async def fleet(rig, tmp_path):
    await rig.seal_check()
    fleet = Fleet(rig, tmp_path / "reactor.key")
    fleet.keys(OLD)
    return fleet


async def produce(rig, webhook_ids: Iterable[int], stop: trio.Event) -> None:
    while not stop.is_set():
        for webhook_id in webhook_ids:
            await rig.insert(webhook_id)
        await trio.sleep(0.05)  # the pace of the load, nothing is waited for


def assert_all_signed(rig) -> None:
    for request in rig.receiver.requests:
        timestamp = int(request.header("webhook-timestamp"))
        verify(request.body, dict(request.headers), SIGNING_SECRET, now=timestamp)


async def test_a_master_key_is_rotated_under_load_and_the_old_one_is_needed_no_more(rig, fleet):
    webhooks = [await rig.add_webhook(f"/{number}") for number in range(4)]
    async with fleet.running(2):
        async with trio.open_nursery() as nursery:
            stop = trio.Event()
            nursery.start_soon(produce, rig, webhooks, stop)
            await fleet.reload(OLD, NEW)
            await fleet.reload(NEW, OLD)
            said = await fleet.rotate("--retire")
            await fleet.reload(NEW)
            delivered = (await rig.statuses()).get("delivered", 0)
            await rig.until(
                "SELECT count(*) > %s FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'",
                delivered,
            )
            stop.set()
        await rig.until_all("delivered")

    assert "sealed 8 values anew with 'new'" in said
    assert "retired 'test'" in said
    async with fleet.running(1):
        await rig.insert(webhooks[0])
        await rig.until_all("delivered")
    assert await fleet.key_ids() == {"new"}
    assert_all_signed(rig)
    await rig.assert_each_arrived()
    await rig.assert_books_agree()


@pytest.mark.long
async def test_a_rotation_to_a_passphrase_is_killed_under_load_and_gone_on_with(rig, fleet):
    webhooks = [await rig.add_webhook(f"/{number}") for number in range(BATCH_ROWS + 50)]
    async with fleet.running(2):
        async with trio.open_nursery() as nursery:
            stop = trio.Event()
            nursery.start_soon(produce, rig, webhooks, stop)
            await fleet.reload(OLD, WORDS)
            await fleet.reload(WORDS, OLD)
            await fleet.rotate_and_kill("--rate", "20")
            assert await fleet.key_ids() == {"test", "words"}
            said = await fleet.rotate("--retire")
            await fleet.reload(WORDS)
            stop.set()
        await rig.until_all("delivered", seconds=120)

    assert "retired 'test'" in said
    assert await fleet.key_ids() == {"words"}
    assert_all_signed(rig)
    await rig.assert_each_arrived()
    await rig.assert_books_agree()


async def test_a_worker_without_the_new_key_is_named_and_nothing_is_sealed(rig, fleet):
    await rig.add_webhook()
    async with fleet.running(1):
        fleet.keys(NEW, OLD)
        said = await fleet.rotate(status=1)
        worker_id = await rig.database.fetch_value("SELECT worker_id FROM pggit.reactor_worker")

    assert f"'new' is not in the key file of {worker_id}" in said
    assert await fleet.key_ids() == {"test"}


@pytest.mark.long
async def test_a_worker_with_another_key_under_the_new_id_is_named_and_nothing_is_sealed(rig, fleet):
    await rig.add_webhook()
    async with fleet.running(1):
        await fleet.reload(OLD, OTHER_NEW)
        fleet.keys(NEW, OLD)
        said = await fleet.rotate(status=1)
        await fleet.workers[0].event("master_key_wrong")

    assert "or is another there" in said
    assert await fleet.key_ids() == {"test"}


async def test_a_worker_says_only_keys_that_are_those_of_the_database(rig, lines):
    connection = await rig.database.connect()
    async with rig.worker() as running:
        keys = running.worker._upkeep.keys
        keys.replace(Keyring.parse(Secret(f"{OLD}\n{OTHER_NEW}")))

        async def said() -> tuple[str, ...] | None:
            await running.worker._upkeep.beat("running")
            (worker,) = await read_worker_keys(connection, "new")
            return worker.key_ids

        assert await said() == ("test", "new")
        await ensure_keys(connection, Keyring.parse(Secret(NEW)), by="test", must_register=True)
        (worker,) = await read_worker_keys(connection, "new")
        assert not worker.has_heard
        assert await said() == ("test",)
        assert await said() == ("test",)

    (event,) = lines.named("master_key_wrong")
    assert event["key_id"] == "new"


async def test_a_missing_key_is_loud_once(rig, lines):
    connection = await rig.database.connect()
    await ensure_keys(connection, Keyring.parse(Secret(NEW)), by="test", must_register=True)
    watch = KeyWatch(Keyring.parse(Secret(OLD)))

    assert await watch.judge(connection, ["new"])
    assert not await watch.judge(connection, ["new"])
    assert [event["key_id"] for event in lines.named("master_key_missing")] == ["new"]
    assert watch.proved_ids == []


async def test_values_that_changed_places_open_for_nobody(rig, lines):
    """The associated data bind each to its row: whoever can write the database cannot send an alert elsewhere."""
    one, other = await rig.add_webhook("/one"), await rig.add_webhook("/other")
    await rig.database.execute(
        "UPDATE pggit.webhook AS w SET sealed_url = o.sealed_url FROM pggit.webhook AS o"
        " WHERE o.webhook_id <> w.webhook_id"
    )
    async with rig.worker():
        for webhook_id in (one, other):
            await rig.insert(webhook_id)
            await rig.until("SELECT state = 'paused' FROM pggit.webhook WHERE webhook_id = %s", webhook_id)

    assert await rig.statuses() == {"pending": 2}
    assert rig.receiver.requests == []
    assert all("moved from another row" in event["reason"] for event in lines.named("webhook_unopenable"))


async def test_a_worker_takes_its_keys_from_a_command_and_a_new_one_at_sighup(rig, tmp_path):
    await rig.seal_check()
    webhook_id = await rig.add_webhook()
    key_file = tmp_path / "keys"
    key_file.write_text(OLD)
    async with rig.process(MASTER_KEY="", MASTER_KEY_COMMAND=f"/bin/cat {key_file}") as worker:
        key_file.write_text(f"{OLD}\n{NEW}")
        worker.signal(signal.SIGHUP)
        reloaded = await worker.event("reloaded")
        key_file.unlink()
        worker.signal(signal.SIGHUP)
        refused = await worker.event("reload_refused")
        await rig.insert(webhook_id)
        await rig.until_all("delivered")

    assert reloaded["key_ids"] == ["test", "new"]
    assert "/bin/cat ended with status 1" in refused["reason"]
