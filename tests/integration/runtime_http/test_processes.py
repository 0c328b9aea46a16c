"""The supervisor of `--processes N` over real processes: tiny scripts in the place of workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import attrs
import pytest
import structlog
import trio
from prometheus_client.parser import text_string_to_metric_families

from pggit_reactor.errors import ConfigurationError
from pggit_reactor.observability.health import Health
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime import fleet_probes, processes
from pggit_reactor.runtime.child import Child
from pggit_reactor.runtime.fleet_probes import FleetProbes, Member
from pggit_reactor.runtime.http_port import HttpAddress, WorkerProbes, open_http_port
from pggit_reactor.runtime.http_wire import fetch
from pggit_reactor.runtime.processes import run_processes

PREAMBLE = """
    import os, pathlib, signal, sys, time
    me = os.environ["PGGIT_REACTOR_WORKER_ID"]
    number = int(me.rpartition("-")[2])
    home = pathlib.Path(os.environ["TEST_HOME"])
    def note(text):
        with (home / me).open("a") as file:
            print(text, file=file)
    signal.signal(signal.SIGTERM, lambda *_: (note("term"), sys.exit(0)))
    signal.signal(signal.SIGHUP, lambda *_: note("hup"))
    note(f"started {os.getpid()}")
"""
IDLE = "while True: signal.pause()"
SERVE = """
    import trio
    from pggit_reactor.observability.health import Health
    from pggit_reactor.observability.metrics import Metrics
    from pggit_reactor.runtime.http_port import WorkerProbes, open_http_port
    async def main():
        health = Health()
        health.mark_started()
        health.set_check("database", ok=number != 2, reason="connection refused")
        metrics = Metrics(worker_id=me, version="1")
        metrics.attempt_settled(7, "delivered", 0.02 * number)
        metrics.set_queue(depth={"pending": 5 * number}, oldest_age_seconds={})
        metrics.observe_load(
            attempts_in_flight=lambda: number, body_bytes_in_memory=lambda: 0, settle_backlog=lambda: 0
        )
        source = WorkerProbes(metrics=metrics, health=health)
        async with open_http_port(source, host=os.environ["PGGIT_REACTOR_METRICS_HOST"]):
            note("serving")
            await trio.sleep_forever()
    trio.run(main)
"""


@attrs.define(eq=False)
class Fleet:
    """A running supervisor in this process, and what its children wrote down."""

    home: Path
    address: HttpAddress | None = None
    status: int | None = None

    def notes(self, number: int) -> list[str]:
        path = self.home / f"w-{number}"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def pid(self, number: int) -> int:
        return int([line for line in self.notes(number) if line.startswith("started")][-1].split()[1])

    async def noted(self, number: int, text: str, times: int = 1) -> None:
        await until(lambda: sum(line.startswith(text) for line in self.notes(number)) >= times)

    async def get(self, path: str) -> tuple[int, bytes]:
        return await fetch(partial(trio.open_tcp_stream, self.address.host, self.address.port), path)

    async def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        _, body = await self.get("/metrics")
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a state of another process, which cannot set an event for us."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def script(body: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(PREAMBLE) + "\n" + textwrap.dedent(body)]


@asynccontextmanager
async def open_fleet(
    home: Path,
    body: str,
    *,
    count: int = 2,
    drain_seconds: float = 5.0,
    environ: dict[str, str] | None = None,
) -> AsyncIterator[Fleet]:
    """Run a supervisor while the block runs; at its end it must have ended, by what the block did."""
    fleet = Fleet(home)
    run = partial(
        run_processes,
        count,
        command=script(body),
        environ={**os.environ, "TEST_HOME": str(home), **(environ or {})},
        worker_id="w",
        host="127.0.0.1",
        port=0,
        drain_seconds=drain_seconds,
    )

    async def keep(task_status: trio.TaskStatus[HttpAddress]) -> None:
        fleet.status = await run(task_status=task_status)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            fleet.address = await nursery.start(keep)
            yield fleet


@pytest.fixture
def log() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


async def test_a_first_sigterm_drains_all_children_and_ends_with_0(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, IDLE) as fleet:
        await fleet.noted(1, "started")
        await fleet.noted(2, "started")
        pids = [fleet.pid(1), fleet.pid(2)]
        os.kill(os.getpid(), signal.SIGTERM)

    assert fleet.status == 0
    assert fleet.notes(1)[1:] == fleet.notes(2)[1:] == ["term"]
    assert not any(alive(pid) for pid in pids)


async def test_children_have_ids_and_sockets_of_their_own_and_no_legacy_id(tmp_path: Path) -> None:
    body = f"""
note(os.environ["PGGIT_REACTOR_METRICS_HOST"])
note("WORKER_ID" in os.environ)
note(os.environ["PGGIT_REACTOR_WORKER_PROCESSES"])
note(os.getsid(0) == os.getpid())
{IDLE}"""
    environ = {"WORKER_ID": "pod-7", "PGGIT_REACTOR_WORKER_PROCESSES": "2"}
    async with open_fleet(tmp_path, body, environ=environ) as fleet:
        for number in (1, 2):
            await fleet.noted(number, "True")
        os.kill(os.getpid(), signal.SIGINT)

    sockets = [fleet.notes(number)[1] for number in (1, 2)]
    assert fleet.status == 0
    assert all(name.startswith("unix:/") for name in sockets)
    assert len(set(sockets)) == 2
    assert fleet.notes(1)[2:5] == ["False", "1", "True"]
    assert not Path(sockets[0].removeprefix("unix:")).parent.exists()


async def test_a_killed_child_is_started_again_and_the_others_are_left_alone(
    tmp_path: Path, log: list[dict[str, object]]
) -> None:
    async with open_fleet(tmp_path, IDLE) as fleet:
        await fleet.noted(1, "started")
        await fleet.noted(2, "started")
        os.kill(fleet.pid(1), signal.SIGKILL)
        await fleet.noted(1, "started", times=2)
        samples = await fleet.metrics()
        os.kill(os.getpid(), signal.SIGTERM)

    (entry,) = [entry for entry in log if entry["event"] == "worker_process_ended"]
    assert fleet.status == 0
    assert len(fleet.notes(2)) == 2
    assert entry["ended_worker_id"] == "w-1"
    assert entry["ended_by"] == "signal SIGKILL"
    assert 0.1 <= entry["restart_in_seconds"] <= 0.2
    assert samples["pggit_reactor_worker_process_restarts_total", (("worker_id", "w-1"),)] == 1
    assert samples["pggit_reactor_worker_process_restarts_total", (("worker_id", "w-2"),)] == 0


@pytest.mark.parametrize("status", [2, 4])
async def test_a_child_that_cannot_run_ends_the_whole_with_its_status(
    tmp_path: Path, log: list[dict[str, object]], status: int
) -> None:
    body = f"if number == 1: sys.exit({status})\n{IDLE}"
    async with open_fleet(tmp_path, body) as fleet:
        pass

    assert fleet.status == status
    assert len(fleet.notes(1)) == 1
    assert "worker_process_cannot_run" in [entry["event"] for entry in log]


async def test_a_child_that_ends_its_drain_badly_makes_the_whole_end_with_1(tmp_path: Path) -> None:
    body = f"if number == 1: signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nnote('armed')\n{IDLE}"
    async with open_fleet(tmp_path, body) as fleet:
        await fleet.noted(1, "armed")
        os.kill(os.getpid(), signal.SIGTERM)

    assert fleet.status == 1


async def test_a_second_signal_reaches_the_children_as_their_second(tmp_path: Path) -> None:
    body = f"""
terms = []
def term(*_):
    terms.append(1)
    note(f"term {{len(terms)}}")
    if len(terms) == 2: sys.exit(1)
signal.signal(signal.SIGTERM, term)
note("armed")
{IDLE}"""
    async with open_fleet(tmp_path, body, drain_seconds=15) as fleet:
        await fleet.noted(1, "armed")
        await fleet.noted(2, "armed")
        os.kill(os.getpid(), signal.SIGTERM)
        await fleet.noted(1, "term 1")
        await fleet.noted(2, "term 1")
        os.kill(os.getpid(), signal.SIGINT)

    assert fleet.status == 1
    assert fleet.notes(1)[2:] == fleet.notes(2)[2:] == ["term 1", "term 2"]


async def test_a_child_that_the_second_signal_ends_has_not_ended_well(tmp_path: Path) -> None:
    body = f"""
signal.signal(signal.SIGTERM, lambda *_: (signal.signal(signal.SIGTERM, signal.SIG_DFL), note("term")))
note("armed")
{IDLE}"""
    async with open_fleet(tmp_path, body, count=1, drain_seconds=15) as fleet:
        await fleet.noted(1, "armed")
        os.kill(os.getpid(), signal.SIGTERM)
        await fleet.noted(1, "term")
        os.kill(os.getpid(), signal.SIGTERM)

    assert fleet.status == 1


async def test_a_child_that_a_drain_meets_before_it_has_a_handler_has_ended_well() -> None:
    run = partial(run_processes, 1, command=["sleep", "1000"], worker_id="w", host="127.0.0.1", port=0)
    statuses = []

    async def keep(task_status: trio.TaskStatus[HttpAddress]) -> None:
        statuses.append(await run(environ=os.environ, drain_seconds=5, task_status=task_status))

    with trio.fail_after(4):
        async with trio.open_nursery() as nursery:
            await nursery.start(keep)
            os.kill(os.getpid(), signal.SIGTERM)

    assert statuses == [0]


async def test_what_an_ended_process_had_answered_is_not_taken_for_its_successors(tmp_path: Path) -> None:
    member = Member(worker_id="w-1", socket_path=tmp_path / "1.sock")
    member.child = cast("Child", SimpleNamespace(started=0.0))
    metrics = Metrics(worker_id="w-1", version="1")
    metrics.write_fenced(5)

    class EndsWhileAnswering(WorkerProbes):
        async def metrics(self, accept: str) -> tuple[bytes, str]:
            member.ended(1, at=1.0)
            member.child = cast("Child", SimpleNamespace(started=1.0))
            return await super().metrics(accept)

    source = EndsWhileAnswering(metrics=metrics, health=Health())
    async with open_http_port(source, host=f"unix:{member.socket_path}"):
        body, _ = await FleetProbes([member]).metrics("")

    assert b"pggit_reactor_fenced_writes_total" not in body
    assert b'worker_health_status{worker_id="w-1"} 0.0' in body


async def test_a_child_that_does_not_end_in_time_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, object]]
) -> None:
    monkeypatch.setattr(processes, "ABORT_SECONDS", 0.1)
    body = f"if number == 2: signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('armed')\n{IDLE}"
    async with open_fleet(tmp_path, body, drain_seconds=0.2) as fleet:
        await fleet.noted(1, "armed")
        await fleet.noted(2, "armed")
        stubborn = fleet.pid(2)
        os.kill(os.getpid(), signal.SIGTERM)

    (entry,) = [entry for entry in log if entry["event"] == "worker_processes_killed"]
    assert fleet.status == 1
    assert entry["killed_worker_ids"] == ["w-2"]
    assert not alive(stubborn)


async def test_sighup_reaches_every_child_and_stops_none(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, IDLE) as fleet:
        await fleet.noted(1, "started")
        await fleet.noted(2, "started")
        os.kill(os.getpid(), signal.SIGHUP)
        await fleet.noted(1, "hup")
        await fleet.noted(2, "hup")
        os.kill(os.getpid(), signal.SIGTERM)

    assert fleet.status == 0
    assert [len(fleet.notes(number)) for number in (1, 2)] == [3, 3]


async def test_a_stop_during_the_wait_for_a_restart_does_not_wait_for_it(tmp_path: Path) -> None:
    class Unlucky:
        def wall(self) -> float:
            return 0.0

        def draw(self) -> float:
            os.kill(os.getpid(), signal.SIGTERM)  # as the wait begins
            return 0.999

        def random_token(self) -> int:
            return 1

    run = partial(run_processes, 1, command=script("sys.exit(7)"), worker_id="w", host="127.0.0.1", port=0)
    environ = {**os.environ, "TEST_HOME": str(tmp_path)}
    status = await run(environ=environ, drain_seconds=30, clock=Unlucky())

    assert status == 1
    assert Fleet(tmp_path).notes(1) == [f"started {Fleet(tmp_path).pid(1)}"]


async def test_one_metrics_page_sums_counters_and_merges_gauges_by_their_rule(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, SERVE) as fleet:
        await fleet.noted(1, "serving")
        await fleet.noted(2, "serving")
        samples = await fleet.metrics()
        os.kill(os.getpid(), signal.SIGTERM)

    labels = (("status", "delivered"), ("webhook_id", "7"))
    webhook = ("webhook_id", "7")
    assert samples["webhook_deliveries_total", labels] == 2
    assert samples["webhook_delivery_duration_seconds_bucket", (("le", "0.01"), webhook)] == 0
    assert samples["webhook_delivery_duration_seconds_bucket", (("le", "0.05"), webhook)] == 2
    assert samples["webhook_delivery_duration_seconds_sum", (webhook,)] == pytest.approx(0.06)
    assert samples["webhook_queue_depth", ()] == 10
    assert samples["pggit_reactor_attempts_in_flight", ()] == 3
    assert samples["worker_health_status", (("worker_id", "w-1"),)] == 1
    assert samples["worker_health_status", (("worker_id", "w-2"),)] == 1
    assert samples["pggit_reactor_worker_processes", ()] == 2


async def test_a_silent_worker_is_down_and_what_it_had_counted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_probes, "START_SECONDS_MAX", 0)
    async with open_fleet(tmp_path, SERVE) as fleet:
        await fleet.noted(1, "serving")
        await fleet.noted(2, "serving")
        before = await fleet.metrics()
        os.kill(fleet.pid(2), signal.SIGSTOP)
        during = await fleet.metrics()
        health, _ = await fleet.get("/health")
        os.kill(fleet.pid(2), signal.SIGKILL)
        await fleet.noted(2, "serving", times=2)
        after = await fleet.metrics()
        os.kill(os.getpid(), signal.SIGTERM)

    deliveries = ("webhook_deliveries_total", (("status", "delivered"), ("webhook_id", "7")))
    assert [page["worker_health_status", (("worker_id", "w-2"),)] for page in (before, during, after)] == [
        1,
        0,
        1,
    ]
    assert [page[deliveries] for page in (before, during, after)] == [2, 2, 3]
    assert [page["webhook_queue_depth", ()] for page in (before, during, after)] == [10, 5, 10]
    assert health == 503


async def test_health_and_ready_name_each_worker_and_its_trouble(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, SERVE) as fleet:
        await fleet.noted(1, "serving")
        await fleet.noted(2, "serving")
        health = await fleet.get("/health")
        ready = await fleet.get("/ready")
        os.kill(os.getpid(), signal.SIGTERM)

    assert health[0] == 200
    assert json.loads(health[1])["checks"] == {name: {"ok": True, "reason": ""} for name in ("w-1", "w-2")}
    assert ready[0] == 503
    assert json.loads(ready[1])["checks"]["w-1"] == {"ok": True, "reason": ""}
    assert json.loads(ready[1])["checks"]["w-2"] == {"ok": False, "reason": "database: connection refused"}


async def test_a_worker_that_is_being_started_is_healthy_and_not_ready(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, IDLE, count=1) as fleet:
        await fleet.noted(1, "started")
        health = await fleet.get("/health")
        ready = await fleet.get("/ready")
        os.kill(os.getpid(), signal.SIGTERM)

    assert (health[0], json.loads(health[1])["checks"]["w-1"]["reason"]) == (200, "starting")
    assert (ready[0], json.loads(ready[1])["checks"]["w-1"]["reason"]) == (503, "no answer")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
async def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, sys, trio
from functools import partial
from pggit_reactor.runtime.processes import run_processes
trio.run(partial(run_processes, 2, command={script(IDLE)!r}, environ=os.environ, worker_id="w",
                 host="127.0.0.1", port=0, drain_seconds=5))
"""
    fleet = Fleet(tmp_path)
    supervisor = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", program],
        env={**os.environ, "TEST_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        await fleet.noted(1, "started")
        await fleet.noted(2, "started")
        pids = [fleet.pid(1), fleet.pid(2)]
    finally:
        supervisor.kill()
        supervisor.wait()

    await until(lambda: not any(alive(pid) for pid in pids))
    assert fleet.notes(1)[-1] == fleet.notes(2)[-1] == "term"


async def test_an_exit_is_seen_without_a_pidfd_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    child = Child([sys.executable, "-S", "-c", "raise SystemExit(9)"], environ=os.environ)

    assert await child.wait() == 9


async def test_a_wish_that_makes_no_sense_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = partial(run_processes, command=["true"], environ={}, worker_id="w", host="127.0.0.1", port=0)
    with pytest.raises(ConfigurationError, match="allowed: 1 to 256"):
        await run(0, drain_seconds=1)

    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        await run(1, drain_seconds=1)
