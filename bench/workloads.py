"""The workloads: what is asked of a contender, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import attrs
import psycopg

from bench import processes
from bench.contender import ENDPOINTS, Contender, Stage
from bench.machine import Meter, peak_memory_mib, percentile

ARRIVAL_SECONDS_MAX: Final = 30.0
SETTLE_SECONDS_MAX: Final = 30.0
WARM_UP_PACE_SECONDS: Final = 0.005

Figures = dict[str, float]
Workload = Callable[["Trial"], Figures]


@attrs.frozen(kw_only=True)
class Sizes:
    """How much of each workload; `QUICK` shows that it works and measures nothing."""

    idle_rows: int
    idle_every_seconds: float
    rate_rows: int
    rate_every_seconds: float
    warm_up_rows: int
    burst_rows: int
    insert_seconds: float
    ceiling_seconds: float
    isolation_rows: int
    isolation_seconds_max: float
    backlog_rows: int
    outage_rows: int
    outage_seconds: float


FULL: Final = Sizes(
    idle_rows=200,
    idle_every_seconds=0.05,
    rate_rows=1000,
    rate_every_seconds=0.005,
    warm_up_rows=50,
    burst_rows=5000,
    insert_seconds=1.5,
    ceiling_seconds=1.5,
    isolation_rows=1000,
    isolation_seconds_max=120.0,
    backlog_rows=1_000_000,
    outage_rows=5000,
    outage_seconds=60.0,
)
QUICK: Final = Sizes(
    idle_rows=20,
    idle_every_seconds=0.02,
    rate_rows=100,
    rate_every_seconds=0.005,
    warm_up_rows=10,
    burst_rows=500,
    insert_seconds=0.25,
    ceiling_seconds=0.3,
    isolation_rows=100,
    isolation_seconds_max=60.0,
    backlog_rows=2000,
    outage_rows=50,
    outage_seconds=1.0,
)


class Numbers:
    """Row numbers, each given once in a run, so that no time is ever overwritten."""

    def __init__(self) -> None:
        self._next = 1

    def take(self, count: int) -> range:
        """Return *count* fresh numbers."""
        rows = range(self._next, self._next + count)
        self._next = rows.stop
        return rows


@attrs.frozen(kw_only=True)
class Trial:
    """A contender that runs, and what is needed to ask something of it."""

    stage: Stage
    contender: Contender
    sizes: Sizes
    numbers: Numbers
    pid: int

    def commit_paced(self, count: int, *, every_seconds: float, endpoints: int) -> range:
        """Have single rows committed on a schedule; return their numbers once all have arrived."""
        rows = self.numbers.take(count)
        self.stage.producer.tell(
            "paced",
            dsn=self.contender.dsn(),
            insert=self.contender.insert_one,
            first=rows.start,
            count=count,
            every_seconds=every_seconds,
            endpoints=endpoints,
        )
        self.stage.receiver.await_arrival(rows, seconds=ARRIVAL_SECONDS_MAX)
        return rows

    def commit_at_once(self, count: int) -> range:
        """Have rows committed at once; return their numbers once all have arrived."""
        rows = self.numbers.take(count)
        self.commit(self.contender.insert_many, rows)
        self.stage.receiver.await_arrival(rows, seconds=ARRIVAL_SECONDS_MAX)
        return rows

    def commit(self, insert: str, rows: range) -> None:
        """Have *rows* committed at once, and do not wait for them."""
        self.stage.producer.tell(
            "burst", dsn=self.contender.dsn(), insert=insert, first=rows.start, count=len(rows)
        )

    def await_done(self) -> None:
        """Return once the contender has done with every row, its bookkeeping included."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        with psycopg.connect(self.contender.dsn(), autocommit=True) as connection:
            while (left := _value(connection, self.contender.waiting)) != 0:
                if time.monotonic() > deadline:
                    raise processes.BenchError(f"{self.contender.name} has not done with {left} rows")
                time.sleep(0.01)

    def repeats(self) -> int:
        """Return how many requests so far repeated a row."""
        return self.stage.board.counters[1]


@contextmanager
def trial(stage: Stage, contender: Contender, sizes: Sizes, numbers: Numbers) -> Iterator[Trial]:
    """Start the contender for the length of the block; each round has a fresh process."""
    process = contender.start(stage)
    try:
        yield Trial(stage=stage, contender=contender, sizes=sizes, numbers=numbers, pid=process.pid)
        if process.poll() is not None:
            raise processes.BenchError(f"{contender.name} ended by itself, with status {process.returncode}")
    finally:
        processes.stop(process)


def idle(trial: Trial) -> Figures:
    """One row at a time, with nothing else to do before and after it."""
    sizes = trial.sizes
    trial.commit_paced(sizes.warm_up_rows, every_seconds=WARM_UP_PACE_SECONDS, endpoints=1)
    trial.await_done()
    return paced(trial, sizes.idle_rows, every_seconds=sizes.idle_every_seconds, endpoints=1)


def rate(trial: Trial) -> Figures:
    """A steady stream to all endpoints."""
    sizes = trial.sizes
    trial.commit_paced(sizes.warm_up_rows, every_seconds=WARM_UP_PACE_SECONDS, endpoints=ENDPOINTS)
    trial.await_done()
    return paced(trial, sizes.rate_rows, every_seconds=sizes.rate_every_seconds, endpoints=ENDPOINTS)


def paced(trial: Trial, count: int, *, every_seconds: float, endpoints: int) -> Figures:
    """Commit single rows on a schedule; return latencies and costs."""
    meter = _meter(trial)
    repeats = trial.repeats()
    meter.start()
    rows = trial.commit_paced(count, every_seconds=every_seconds, endpoints=endpoints)
    trial.await_done()
    used, foreign = meter.stop()
    milliseconds = [seconds * 1000 for seconds in trial.stage.board.latencies(rows)]
    return {
        "p50_ms": percentile(milliseconds, 0.50),
        "p99_ms": percentile(milliseconds, 0.99),
        "max_ms": max(milliseconds),
        **_per_thousand(used, count),
        "repeats": trial.repeats() - repeats,
        "foreign_cpu": foreign,
    }


def burst(trial: Trial) -> Figures:
    """Thousands of rows in one commit: first to a process that has just started, then to a warm one."""
    count = trial.sizes.burst_rows
    cold = _rows_per_second(trial, trial.commit_at_once(count))
    trial.await_done()
    meter = _meter(trial)
    repeats = trial.repeats()
    meter.start()
    rows = trial.commit_at_once(count)
    trial.await_done()
    used, foreign = meter.stop()
    return {
        "per_second": _rows_per_second(trial, rows),
        "cold_per_second": cold,
        **_per_thousand(used, count),
        "worker_peak_mib": peak_memory_mib(trial.pid),
        "repeats": trial.repeats() - repeats,
        "foreign_cpu": foreign,
    }


def _rows_per_second(trial: Trial, rows: range) -> float:
    board = trial.stage.board
    return len(rows) / (max(board.arrived[rows.start : rows.stop]) - board.committed[rows.start])


def _meter(trial: Trial) -> Meter:
    stage = trial.stage
    return Meter(
        {
            "worker": trial.pid,
            "database": stage.server.pid,
            "receiver": stage.receiver.pid,
            "producer": stage.producer.pid,
        }
    )


def _per_thousand(used: Mapping[str, float], count: int) -> Figures:
    return {f"{name}_cpu_per_1000": used[name] / count * 1000 for name in ("worker", "database", "receiver")}


def _value(connection: psycopg.Connection[tuple[object, ...]], query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]
