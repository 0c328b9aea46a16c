"""The bench works and tells what it should. What the figures are is nobody's test: they are the machine's too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 180
STATES = ("none", "asleep", "busy")

pytestmark = pytest.mark.long


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """A quick run of everything: what it printed, and what it wrote."""
    path = tmp_path_factory.mktemp("bench") / "figures.json"
    done = bench("all", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_every_workload_has_a_round_of_each_contender(taken):
    _, document = taken

    rounds = [(result["workload"], result["contender"]) for result in document["rounds"]]
    assert rounds == [
        (workload, contender) for workload in ("idle", "rate", "burst") for contender in ("floor", "product")
    ] + [("insert", "product")]


def test_the_figures_are_all_there_and_no_request_was_repeated(taken):
    _, document = taken

    by_workload = {}
    for result in document["rounds"]:
        by_workload.setdefault(result["workload"], []).append(result["figures"])
    for figures in (*by_workload["idle"], *by_workload["rate"]):
        assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    for figures in by_workload["burst"]:
        assert figures["per_second"] > 0
        assert figures["worker_cpu_per_1000"] > 0
        assert figures["database_cpu_per_1000"] > 0
    for figures in (*by_workload["idle"], *by_workload["rate"], *by_workload["burst"]):
        assert figures["repeats"] == 0


def test_insert_rates_are_taken_in_each_state_of_the_workers_and_of_the_gate(taken):
    _, document = taken

    (figures,) = [result["figures"] for result in document["rounds"] if result["workload"] == "insert"]
    for state in STATES:
        for clients in (1, 8):
            assert figures[f"{state}_{clients}_bare_per_second"] > 0
            assert figures[f"{state}_{clients}_trigger_per_second"] > 0
            assert (figures[f"{state}_{clients}_trigger_gate_open"] > 0) == (state == "busy")


def test_the_summary_has_a_median_and_the_ratio_to_the_floor(taken):
    _, document = taken

    rows = {(row["workload"], row["figure"], row["contender"]): row for row in document["summary"]}
    product, floor = rows["idle", "p50_ms", "product"], rows["idle", "p50_ms", "floor"]
    assert product["least"] <= product["median"] <= product["most"]
    assert product["ratio"] == pytest.approx(product["median"] / floor["median"])
    assert product["goal"] == "at most 1.25 x floor"


def test_the_facts_of_the_machine_and_the_limit_of_the_receiver_are_recorded(taken):
    _, document = taken

    assert document["postgresql"]["fsync"] == "on"
    assert document["postgresql"]["synchronous_commit"] == "on"
    assert document["machine"]["processor_count"] >= 1
    assert document["machine"]["fdatasync_ms"] > 0
    assert document["receiver"]["requests_per_second"] > 0


def test_the_tables_show_the_same(taken):
    printed, _ = taken

    for text in ("product / floor", "deliveries/s", "worker CPU-s per 1,000", "commits a sync", "taken in"):
        assert text in printed


def test_receivers_in_trouble_are_measured_at_any_scale(tmp_path):
    path = tmp_path / "figures.json"
    scale = ("--backlog-rows", "500", "--outage-rows", "30", "--outage-seconds", "0.5")
    done = bench("protection", "--quick", *scale, "--json", str(path))
    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text())
    figures = {result["workload"]: result["figures"] for result in document["rounds"]}

    assert [result["contender"] for result in document["rounds"]] == ["product"] * 3
    assert 0 < figures["isolation"]["p50_ms"] <= figures["isolation"]["p99_ms"]
    assert (figures["isolation"]["repeats"], figures["backlog"]["repeats"]) == (0, 0)
    assert figures["backlog"]["p50_by_idle"] > 0
    assert 0 < figures["outage"]["busiest_second_share"] <= 1
    assert 0 <= figures["outage"]["first_seconds"] <= figures["outage"]["last_seconds"]
    assert figures["outage"]["outage_tries"] > 0
    assert document["sizes"]["backlog_rows"] == 500
    for text in ("busiest second", "p50 without the backlog", "at most 0.05"):
        assert text in done.stdout


def test_the_prediction_is_judged_by_what_it_foresaw(tmp_path):
    path = tmp_path / "figures.json"
    done = bench("prediction", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    kinds = json.loads(path.read_text())["kinds"]

    assert set(kinds) == {"sudden", "fading", "nightly", "nervous", "all"}
    assert kinds["all"]["openings"] == sum(kinds[kind]["openings"] for kind in kinds if kind != "all") > 0
    for text in ("precision", "recall", "median lead, s", "the plain breaker", "slowness"):
        assert text in done.stdout


def test_a_workload_that_there_is_not_is_a_usage_error():
    done = bench("everything")

    assert done.returncode == 2
    assert "invalid choice" in done.stderr
