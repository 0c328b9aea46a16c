"""The command `worker`: its exit statuses and its one line; what a worker does is tested in `worker/`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest


@pytest.fixture
def start(commands):
    """Start `worker` as a process, ready to be waited for."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **settings: str | None) -> subprocess.Popen[str]:
        environ = {**os.environ, **commands.environ, "PGGIT_REACTOR_METRICS_PORT": "0"}
        for name, value in settings.items():
            environ.pop(f"PGGIT_REACTOR_{name}", None)
            environ |= {} if value is None else {f"PGGIT_REACTOR_{name}": value}
        command = [sys.executable, "-m", "pggit_reactor", "worker", *arguments]
        process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def started_workers(process: subprocess.Popen[str], count: int) -> list[str]:
    """Read the log until *count* workers have started; return their ids."""
    found = []
    while len(found) < count:
        event = json.loads(process.stderr.readline())
        if event["event"] == "worker_started":
            found.append(event["worker_id"])
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"MASTER_KEY": None},
        {"MASTER_KEY": "nonsense"},
        {"DATABASE_URL": None},
        {"WORKER_LEASE_SECONDS": "1"},
        {"EGRESS_PORTS": "x"},
    ],
    ids=str,
)
def test_a_configuration_that_will_not_do_is_exit_2_and_one_line(start, settings) -> None:
    process = start(**settings)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 2
    assert [line for line in err.splitlines() if not line.startswith("{")] == [err.splitlines()[-1]]
    assert err.splitlines()[-1].startswith("error: ")


def test_a_wrong_key_is_exit_2_and_named(start, commands, hook, other_key) -> None:
    commands.ok("webhook", "add", hook)
    process = start(MASTER_KEY=other_key)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 2
    assert "'test'" in err.splitlines()[-1]


def test_a_newer_schema_is_exit_4(start, database) -> None:
    database.execute(
        "INSERT INTO pggit.schema_migration (version, name, digest, breaking) VALUES (9999, 'later', '', true)"
    )
    process = start()
    process.communicate(timeout=30)

    assert process.returncode == 4


def test_a_signal_ends_it_with_exit_0(start) -> None:
    process = start()
    started_workers(process, 1)
    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=30) == 0


def test_processes_runs_so_many_workers_and_the_flag_wins_over_the_setting(start) -> None:
    process = start("--processes", "2", WORKER_PROCESSES="3", WORKER_ID="w")

    assert sorted(started_workers(process, 2)) == ["w-1", "w-2"]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "w-3" not in err


def test_a_configuration_that_will_not_do_ends_the_supervisor_as_well(start) -> None:
    process = start("--processes", "2", MASTER_KEY=None)
    process.communicate(timeout=30)

    assert process.returncode == 2
