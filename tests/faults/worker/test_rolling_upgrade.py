"""Two versions of the product on one database, through an expansion and a contract step, under load.

The next version is this one with three things changed, in a copy of its own: a number, two migrations, and the
statements that go with them. It keeps an attempt's answer in a new column, and its contract step drops the old
one, which this version writes with each outcome.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

import pggit_reactor
from pggit_reactor import VerificationError, verify
from pggit_reactor.db.migrate import load_migrations, migrations_folder, newest_version
from pggit_reactor.testing.behaviours import answer, gated
from pggit_reactor.testing.rig import SIGNING_SECRET, arrivals

OURS = Path(pggit_reactor.__file__).parent
EXPAND = """
ALTER TABLE pggit.alert_delivery_queue ADD COLUMN last_answer integer;
COMMENT ON COLUMN pggit.alert_delivery_queue.last_answer IS 'What last_status was.';
CREATE TABLE pggit.of_the_next_version (note text);
CREATE OR REPLACE FUNCTION pggit.delivery_report(p_delivery_id bigint, p_remark text)
RETURNS TABLE (delivery_id bigint, status text, http_status integer, error_message text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT q.delivery_id, q.delivery_status, q.last_answer, coalesce(p_remark, q.last_error)
    FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = p_delivery_id;
END;
"""
CONTRACT = "-- breaking\nALTER TABLE pggit.alert_delivery_queue DROP COLUMN last_status;\n"
IN_FLIGHT_MAX = 8
AHEAD_MAX = 12
"""Rows that producers are ahead of the receiver: load without a clock."""
TURN = 50
"""Arrivals between two steps of the upgrade."""


@attrs.frozen(kw_only=True)
class Version:
    """A package that can be run: from *folder*, or as it is installed."""

    number: str
    folder: Path | None = None

    def run(self, rig, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``pggit-reactor`` of this version to its end."""
        return subprocess.run(
            [sys.executable, "-m", "pggit_reactor", *arguments],
            cwd=self.folder, env=rig.process_environ(), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


OLD = Version(number=pggit_reactor.__version__)
NEXT = Version(number="99.0.0")


@pytest.fixture
def new(tmp_path) -> Version:
    folder = tmp_path / "next"
    package = folder / "pggit_reactor"
    shutil.copytree(OURS, package, ignore=shutil.ignore_patterns("__pycache__", "migrations"))
    shutil.copytree(migrations_folder(), package / "migrations")
    changed = {
        "__init__.py": (rf'"{re.escape(OLD.number)}"', f'"{NEXT.number}"'),
        "db/sql/settle.sql": (r"\blast_status\b", "last_answer"),
        "db/sql/deliveries.sql": (r"\bq\.last_status\b", "q.last_answer AS last_status"),
    }
    for name, (pattern, replacement) in changed.items():
        text, count = re.subn(pattern, replacement, (package / name).read_text())
        assert count > 0, name
        (package / name).write_text(text)
    number = newest_version()
    (package / f"migrations/{number + 1:04}_expand.sql").write_text(EXPAND)
    (package / f"migrations/{number + 2:04}_contract.sql").write_text(CONTRACT)
    return attrs.evolve(NEXT, folder=folder)


class Load:
    """Producers that insert as fast as the receiver hears."""

    def __init__(self, rig, webhook_ids: list[int]) -> None:
        self._rig = rig
        self.webhook_ids = webhook_ids
        self.inserted = 0
        self.stopped = False

    async def plain(self) -> None:
        """INSERT three columns, a few rows at a time."""
        await self._produce(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
            " SELECT n, %s, jsonb_build_object('alert', n) FROM generate_series(1, 5) AS n",
            rows=5,
        )

    async def by_function(self) -> None:
        """Call enqueue, a row at a time."""
        await self._produce('SELECT pggit.enqueue(%s, \'{"by": "enqueue"}\')', rows=1)

    async def _produce(self, statement: str, *, rows: int) -> None:
        connection = await self._rig.database.connect()
        turn = 0
        while not self.stopped:
            await self._rig.receiver.wait_for(max(0, self.inserted - AHEAD_MAX))
            await connection.execute(statement, (self.webhook_ids[turn % len(self.webhook_ids)],))
            self.inserted += rows
            turn += 1

    async def pass_on(self) -> None:
        """Return after as many arrivals as a step of the upgrade is to last."""
        with trio.fail_after(30):
            await self._rig.receiver.wait_for(len(self._rig.receiver.requests) + TURN)


@asynccontextmanager
async def under_load(rig) -> AsyncIterator[Load]:
    load = Load(rig, [await rig.add_webhook(f"/hook{n}", concurrency=IN_FLIGHT_MAX) for n in range(3)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.plain)
        nursery.start_soon(load.by_function)
        yield load
        load.stopped = True
    query = "SELECT count(*) FROM pggit.alert_delivery_queue WHERE webhook_id = ANY (%s)"
    assert await rig.database.fetch_value(query, (load.webhook_ids,)) == load.inserted


@asynccontextmanager
async def worker(rig, version: Version, **settings: object):
    async with rig.starting_process(folder=version.folder, **settings) as running:
        started = await running.event("worker_started", seconds=30)
        assert started["version"] == version.number
        yield running


async def stop(running) -> None:
    """Stop it as an orchestrator does; it must end well."""
    running.signal(signal.SIGTERM)
    assert await running.wait() == 0, running.output[-3000:]


def assert_all_signed(rig) -> None:
    for request in rig.receiver.requests:
        try:
            verify(request.body, dict(request.headers), SIGNING_SECRET)
        except VerificationError as error:
            pytest.fail(f"{request.header('webhook-id')}: {error}")


def senders(rig) -> set[str | None]:
    return {request.header("user-agent") for request in rig.receiver.requests}


def arrival_counts(rig) -> Counter[str]:
    return Counter(arrivals(rig.receiver))


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_upgraded_cleanly(rig, late: subprocess.CompletedProcess[str], contract: str) -> None:
    """Each alert arrived once, rightly signed, from both versions; and the old one that came late was refused."""
    assert late.returncode == 4
    assert (
        f"error: the schema is newer than this program: {contract.removesuffix('.sql')}; upgrade"
        in late.stderr
    )
    assert senders(rig) == {f"pggit-reactor/{version.number}" for version in (OLD, NEXT)}
    assert set(arrival_counts(rig).values()) == {1}
    assert_all_signed(rig)


async def test_one_worker_is_replaced_by_the_next_version_and_nothing_is_lost_or_sent_twice(rig, new):
    contract = f"{newest_version() + 2:04}_contract.sql"
    async with under_load(rig) as load, worker(rig, OLD) as old:
        await load.pass_on()
        succeeded(await trio.to_thread.run_sync(new.run, rig, "migrate", "--expand"))
        await load.pass_on()
        async with worker(rig, new) as running:
            await stop(old)
            succeeded(await trio.to_thread.run_sync(new.run, rig, "migrate"))
            await load.pass_on()
            late = await trio.to_thread.run_sync(OLD.run, rig, "worker")
            load.stopped = True
            await rig.until_all("delivered")
            await stop(running)

    assert_upgraded_cleanly(rig, late, contract)
    await rig.assert_each_arrived()


@pytest.mark.long
async def test_a_fleet_is_replaced_one_by_one_with_a_way_back_until_the_contract_step(rig, new):
    expand, contract = (
        f"{newest_version() + n:04}_{name}.sql" for n, name in ((1, "expand"), (2, "contract"))
    )
    async with under_load(rig) as load, worker(rig, OLD) as old_one, worker(rig, OLD) as old_two:
        await load.pass_on()
        said = succeeded(await trio.to_thread.run_sync(new.run, rig, "migrate", "--expand"))
        assert f"applied {expand}\nleft {contract}" in said
        await load.pass_on()
        async with worker(rig, new) as new_one:
            await stop(old_one)
            await load.pass_on()
            async with worker(rig, OLD) as back_again:
                await load.pass_on()
                await stop(back_again)
            async with worker(rig, new) as new_two:
                await stop(old_two)
                await load.pass_on()
                said = succeeded(await trio.to_thread.run_sync(new.run, rig, "migrate"))
                assert f"applied {contract}" in said
                await load.pass_on()
                late = await trio.to_thread.run_sync(OLD.run, rig, "worker")
                load.stopped = True
                await rig.until_all("delivered")
                await stop(new_one)
                await stop(new_two)

    assert_upgraded_cleanly(rig, late, contract)
    await rig.assert_each_arrived()
    await rig.assert_books_agree()


@pytest.mark.long
async def test_an_old_worker_that_runs_on_into_the_contract_step_drains_and_exits_4(rig, new):
    """What it was sending then it cannot record: that alone is sent again, once its leases have run out."""
    path, gate = "/held", trio.Event()
    held = await rig.add_webhook(path, concurrency=2, attempt_timeout="5 s")
    succeeded(await trio.to_thread.run_sync(new.run, rig, "migrate", "--expand"))
    async with worker(rig, OLD, WORKER_DRAIN_SECONDS=2) as old:
        rig.receiver.script(path, *[gated(gate, answer(200))] * 2)
        await rig.insert(held, 2)
        await rig.receiver.wait_for(2, path=path)
        async with under_load(rig) as load, worker(rig, new) as running:
            await load.pass_on()
            succeeded(await trio.to_thread.run_sync(new.run, rig, "migrate"))
            noticed = await old.event("schema_too_new")
            assert (await old.event("draining"))["command"] == "schema_too_new"
            gate.set()
            assert await old.wait() == 4
            load.stopped = True
            await rig.until_all("delivered")
            await stop(running)

    assert noticed["reason"].startswith("the schema is newer than this program")
    assert old.output.rstrip().splitlines()[-1] == f"error: {noticed['reason']}"
    assert not [event for event in old.events if event["event"].startswith("loop_failed")]
    await rig.assert_each_arrived(at_least=True)
    assert_all_signed(rig)
    first_sender = {r.header("webhook-id"): r.header("user-agent") for r in reversed(rig.receiver.requests)}
    twice = {uid for uid, count in arrival_counts(rig).items() if count > 1}
    assert {first_sender[uid] for uid in twice} <= {f"pggit-reactor/{OLD.number}"}
    assert set(arrival_counts(rig).values()) <= {1, 2}


async def test_workers_under_a_supervisor_end_with_it_on_a_contract_step(rig, new):
    async with rig.starting_process("--processes", "2") as fleet:
        await rig.until("SELECT count(*) = 2 FROM pggit.reactor_worker WHERE state = 'running'")
        succeeded(await trio.to_thread.run_sync(new.run, rig, "migrate"))

        assert await fleet.wait() == 4


async def test_a_reload_on_a_schema_that_does_not_fit_is_refused_and_the_worker_goes_on(rig):
    webhook_id = await rig.add_webhook()
    async with rig.process() as running:
        await rig.database.execute(
            "DELETE FROM pggit.schema_migration WHERE version = %s", (newest_version(),)
        )
        running.signal(signal.SIGHUP)
        refused = await running.event("reload_refused")
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")
        await stop(running)

    assert "the schema lacks" in refused["reason"]


async def test_a_new_worker_waits_for_the_expansion_and_not_for_the_contract_step(rig, new):
    async with rig.starting_process(folder=new.folder) as waiting:
        reason = (await waiting.event("waiting_for_database", seconds=30))["reason"]
        assert f"{len(load_migrations()) + 1:04}_expand" in reason
        assert "contract" not in reason
        succeeded(await trio.to_thread.run_sync(new.run, rig, "migrate", "--expand"))
        await waiting.event("worker_started")
        assert new.run(rig, "migrate", "--check").returncode == 3

        await stop(waiting)
