"""`pggit-reactor demo` as a newcomer runs it."""

from __future__ import annotations

import re
import signal
import subprocess
import time

import pytest

SUMMARY = re.compile(
    r"^demo: ok alerts=10 arrived=10 lost=0 twice=\d+ same_id=yes bad_signatures=0 median_ms=[\d.]+ seconds=[\d.]+$",
    re.MULTILINE,
)
ARRIVAL = re.compile(
    r"^ +(10\d\d) +([0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f-]+) +(once|twice|\d+ times) +[\d.,]+", re.MULTILINE
)
TIMELINE = re.compile(
    r"^ +(10\d\d) +([\d.,]+) +([\d.,]+|-) +([\d.,]+) +([\d.,]+) +([\d.,]+) +([\d.,]+)$", re.MULTILINE
)
DEMO_SECONDS_MAX = 60


def test_the_demo_delivers_every_alert_through_a_crash_and_leaves_nothing(home):
    began = time.monotonic()
    demo = home.start("demo")
    status = demo.wait()

    assert status == 0, demo.stdout + demo.stderr
    assert time.monotonic() - began < DEMO_SECONDS_MAX
    assert SUMMARY.search(demo.stdout), demo.stdout
    assert home.processes() == {}
    assert home.litter() == []
    assert demo.stderr == ""


def test_the_demo_shows_each_alert_with_its_id_and_its_timeline(own_home):
    demo = own_home.start("demo")
    assert demo.wait() == 0, demo.stderr

    arrivals = ARRIVAL.findall(demo.stdout)
    assert [alert for alert, _, _ in arrivals] == [str(number) for number in range(1001, 1011)]
    assert len({uid for _, uid, _ in arrivals}) == 10
    # On a machine that is very busy, others may need a second attempt too.
    assert {alert for alert, _, times in arrivals if times != "once"} >= {"1006", "1007", "1008"}
    timelines = TIMELINE.findall(demo.stdout)
    assert [row[0] for row in timelines] == [alert for alert, _, _ in arrivals]
    for _, _, _, claim, sent, answer, settled in timelines:
        marks = [float(mark.replace(",", "")) for mark in (claim, sent, answer, settled)]
        assert marks == sorted(marks)
        assert marks[0] > 0
    assert "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)" in demo.stdout
    assert "\x1b" not in demo.stdout


def test_what_is_set_for_a_real_reactor_does_not_reach_the_demo(own_home):
    (own_home.work / "reactor.toml").write_text("[delivery]\ntimeout_seconds = 0.1\n")
    demo = own_home.start(
        "demo",
        DATABASE_URL="postgresql://nobody@192.0.2.1/production",
        PGGIT_REACTOR_WORKER_LEASE_SECONDS="3600",
        PGGIT_REACTOR_MASTER_KEY="no key at all",
        PGSSLMODE="require",
        PGOPTIONS="-c default_transaction_read_only=on",
    )

    assert demo.wait() == 0, demo.stderr
    assert SUMMARY.search(demo.stdout)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("stage", ["initdb", "1. The parts", "5. Start another worker"])
def test_an_interrupted_demo_leaves_nothing(own_home, number, stage):
    demo = own_home.start("demo")
    demo.wait_until(
        lambda: (
            stage in demo.stdout or any(f"bin/{stage} " in line for line in own_home.processes().values())
        ),
        stage,
    )
    demo.send(number)

    assert demo.wait() == 1
    assert f"demo: interrupted by {number.name}" in demo.stdout
    assert own_home.processes() == {}
    assert own_home.litter() == []
    assert demo.stderr == ""


@pytest.mark.parametrize("stage", ["initdb", "3. INSERT", "5. Start another worker"])
def test_a_demo_that_is_killed_takes_its_processes_along(own_home, gone, stage):
    demo = own_home.start("demo")
    demo.wait_until(
        lambda: (
            stage in demo.stdout or any(f"bin/{stage} " in line for line in own_home.processes().values())
        ),
        stage,
    )
    demo.send(signal.SIGKILL)
    demo.wait()

    assert gone(own_home) == {}


def test_a_demo_whose_reader_has_left_stops(own_home):
    head = subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    demo = own_home.start("demo", stdout=head.stdin)
    head.stdin.close()

    assert demo.wait() == 1
    assert head.wait() == 0
    assert demo.stderr == ""
    assert own_home.processes() == {}
    assert own_home.litter() == []


def test_without_a_postgresql_the_demo_says_which_installation_mends_it(own_home):
    empty = own_home.work / "empty"
    empty.mkdir()
    done = own_home.run("demo", PGGIT_REACTOR_POSTGRES_BIN=str(empty))

    assert done.status == 2
    assert done.stderr.startswith(f"error: {empty} holds no postgres and initdb")
