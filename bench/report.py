"""Figures as a table for people and as JSON for programs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs

from bench.inserts import CLIENTS
from bench.workloads import Figures

FLOOR: Final = "floor"


@attrs.frozen(kw_only=True)
class Result:
    """What one contender did in one round of one workload."""

    workload: str
    round_number: int
    contender: str
    figures: Figures


@attrs.frozen(kw_only=True)
class Goal:
    """What DESIGN 12 asks of a figure: a bound on it, or on its ratio to the floor's of the same round."""

    text: str


GOALS: Final[dict[tuple[str, str], str]] = {
    ("idle", "p50_ms"): "at most 1.25 x floor",
    ("rate", "p50_ms"): "at most 1.25 x floor",
    ("rate", "p99_ms"): "at most 2 x floor",
    ("burst", "per_second"): "at least 2 x best peer",
    ("burst", "worker_cpu_per_1000"): "at most 0.08",
    ("burst", "worker_peak_mib"): "at most 100",
    ("isolation", "p50_ms"): "at most 40",
    ("isolation", "p99_ms"): "at most 100",
    ("backlog", "p50_by_idle"): "at most 1.3",
    ("backlog", "max_ms"): "at most 250",
    ("outage", "busiest_second_share"): "at most 0.05",
}
_LABELS: Final = {
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "max_ms": "max, ms",
    "per_second": "deliveries/s",
    "cold_per_second": "deliveries/s, process just started",
    "worker_cpu_per_1000": "worker CPU-s per 1,000",
    "database_cpu_per_1000": "database CPU-s per 1,000",
    "receiver_cpu_per_1000": "receiver CPU-s per 1,000",
    "worker_peak_mib": "worker's largest memory, MiB",
    "repeats": "requests that repeat a row",
    "foreign_cpu": "machine used by others",
    "idle_p50_ms": "p50 without the backlog, ms",
    "p50_by_idle": "p50 / p50 without the backlog",
    "idle_database_cpu_per_1000": "database CPU-s per 1,000 without it",
    "insert_seconds": "inserting the backlog, s",
    "busiest_second_share": "share of the rows in the busiest second",
    "first_seconds": "first row after the end, s",
    "half_seconds": "half of them, s",
    "last_seconds": "last one, s",
    "outage_tries": "requests while it was away",
    "outage_worker_cpu_seconds": "worker CPU-s while it was away",
}


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the median of each figure over the rounds, and of its ratio to the floor's in the same round."""
    floors = {
        (result.workload, result.round_number): result.figures
        for result in results
        if result.contender == FLOOR
    }
    values: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    ratios: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for result in results:
        floor = floors.get((result.workload, result.round_number), {})
        for name, value in result.figures.items():
            key = (result.workload, name, result.contender)
            values[key].append(value)
            if result.contender != FLOOR and floor.get(name):
                ratios[key].append(value / floor[name])
    return [
        {
            "workload": workload,
            "figure": figure,
            "contender": contender,
            "median": statistics.median(found),
            "least": min(found),
            "most": max(found),
            "ratio": statistics.median(ratios[key])
            if (key := (workload, figure, contender)) in ratios
            else None,
            "goal": None if contender == FLOOR else GOALS.get((workload, figure)),
        }
        for (workload, figure, contender), found in values.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the summary of the workloads that send, a line a figure."""
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    found = {(row["workload"], row["figure"], row["contender"]): row for row in rows}
    head = ["workload", "figure", *contenders]
    for name in contenders:
        head += [] if name == FLOOR else [f"{name} / floor", "range", "to reach"]
    lines = [head]
    for workload, figure in dict.fromkeys((row["workload"], row["figure"]) for row in rows):
        if workload == "insert":
            continue
        cells = [found.get((workload, figure, name)) for name in contenders]
        line = [
            workload,
            _LABELS.get(figure, figure),
            *(_number(cell["median"] if cell else None) for cell in cells),
        ]
        for cell in cells:
            if cell is not None and cell["contender"] != FLOOR:
                line += [
                    _number(cell["ratio"]),
                    f"{_number(cell['least'])} to {_number(cell['most'])}",
                    cell["goal"] or "",
                ]
        lines.append(line)
    return _aligned(lines) if len(lines) > 1 else ""


def insert_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the summary of the INSERT rates, a line a cell."""
    medians = {row["figure"]: row["median"] for row in rows if row["workload"] == "insert"}
    if not medians:
        return ""
    lines = [
        [
            "workers",
            "clients",
            "commits/s bare",
            "with trigger",
            "ratio",
            "commits a sync",
            "gate open",
            "to reach",
        ]
    ]
    for state in ("none", "asleep", "busy"):
        for clients in CLIENTS:
            cell = f"{state}_{clients}"
            lines.append(
                [
                    state,
                    str(clients),
                    _number(medians[f"{cell}_bare_per_second"]),
                    _number(medians[f"{cell}_trigger_per_second"]),
                    _number(medians[f"{cell}_ratio"]),
                    f"{_number(medians[f'{cell}_bare_commits_per_sync'])}, "
                    f"{_number(medians[f'{cell}_trigger_commits_per_sync'])}",
                    _number(medians[f"{cell}_trigger_gate_open"]),
                    "at least 0.9",
                ]
            )
    return _aligned(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
