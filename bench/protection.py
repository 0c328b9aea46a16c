"""What one receiver in trouble costs the others, and how gently it is taken up again. The product alone.

The floor has no state, no retries and no concurrency: one receiver that hangs would be the end of it.
"""

from __future__ import annotations

import time
from typing import Final

import attrs
import psycopg

from bench.board import OUTAGE
from bench.contender import ENDPOINTS, Troubled
from bench.machine import Meter, peak_memory_mib, percentile
from bench.workloads import WARM_UP_PACE_SECONDS, Figures, Sizes, Trial, paced

RECOVERY_SECONDS_MAX: Final = 600.0
"""An alert's next try may be many minutes away after a long outage."""
SECOND: Final = 1.0


def isolation(trial: Trial, contender: Troubled) -> Figures:
    """Rows in one commit, every other one of them for a receiver that hangs."""
    sizes = trial.sizes
    _warm_up(trial)
    repeats = trial.repeats()
    rows = trial.numbers.take(sizes.isolation_rows)
    first = rows.start + rows.start % 2
    others = range(first, rows.stop, 2)
    trial.commit(contender.insert_half_hanging, rows)
    trial.stage.receiver.await_arrival(others, seconds=sizes.isolation_seconds_max)
    milliseconds = [seconds * 1000 for seconds in trial.stage.board.latencies(others)]
    return {
        "p50_ms": percentile(milliseconds, 0.50),
        "p99_ms": percentile(milliseconds, 0.99),
        "max_ms": max(milliseconds),
        "repeats": trial.repeats() - repeats,
    }


def backlog(trial: Trial, contender: Troubled) -> Figures:
    """Fresh rows, one at a time, beside very many that are ready for a receiver that is not there."""
    sizes = trial.sizes
    _warm_up(trial)
    own = paced(trial, sizes.idle_rows, every_seconds=sizes.idle_every_seconds, endpoints=1)
    began = time.monotonic()
    with psycopg.connect(contender.dsn(), autocommit=True) as connection:
        connection.execute(contender.insert_dead.encode(), (sizes.backlog_rows,))
    inserted = time.monotonic() - began
    fresh = paced(trial, sizes.idle_rows, every_seconds=sizes.idle_every_seconds, endpoints=1)
    return {
        **fresh,
        "idle_p50_ms": own["p50_ms"],
        "p50_by_idle": fresh["p50_ms"] / own["p50_ms"],
        "idle_database_cpu_per_1000": own["database_cpu_per_1000"],
        "insert_seconds": inserted,
        "worker_peak_mib": peak_memory_mib(trial.pid),
    }


def outage(trial: Trial, contender: Troubled) -> Figures:
    """A receiver that goes away, rows that come meanwhile, and the time after it is back."""
    sizes, board = trial.sizes, trial.stage.board
    _warm_up(trial)
    meter = Meter({"worker": trial.pid, "database": trial.stage.server.pid})
    tries_before = board.counters[OUTAGE.tries]
    board.counters[OUTAGE.is_on] = 1
    rows = trial.numbers.take(sizes.outage_rows)
    meter.start()
    trial.commit(contender.insert_outage, rows)
    time.sleep(sizes.outage_seconds)
    used, foreign = meter.stop()
    back_at = time.monotonic()
    board.counters[OUTAGE.is_on] = 0
    tries = board.counters[OUTAGE.tries] - tries_before
    trial.stage.receiver.await_arrival(rows, seconds=RECOVERY_SECONDS_MAX)
    arrived = sorted(at - back_at for at in board.arrived[rows.start : rows.stop])
    return {
        "busiest_second_share": _busiest_second(arrived) / len(arrived),
        "first_seconds": arrived[0],
        "half_seconds": percentile(arrived, 0.5),
        "last_seconds": arrived[-1],
        "outage_tries": tries,
        "outage_worker_cpu_seconds": used["worker"],
        "foreign_cpu": foreign,
    }


def _busiest_second(times: list[float]) -> int:
    """Return how many of the sorted *times* fall into one second, wherever it begins."""
    most = begin = 0
    for end, at in enumerate(times):
        while times[begin] <= at - SECOND:
            begin += 1
        most = max(most, end - begin + 1)
    return most


def _warm_up(trial: Trial) -> None:
    trial.commit_paced(trial.sizes.warm_up_rows, every_seconds=WARM_UP_PACE_SECONDS, endpoints=ENDPOINTS)
    trial.await_done()


def resized(
    sizes: Sizes, *, backlog_rows: int | None, outage_rows: int | None, outage_seconds: float | None
) -> Sizes:
    """Return *sizes* with what is given."""
    given = {"backlog_rows": backlog_rows, "outage_rows": outage_rows, "outage_seconds": outage_seconds}
    chosen = {name: value for name, value in given.items() if value is not None}
    return attrs.evolve(sizes, **chosen)  # type: ignore[arg-type]  # fields of Sizes
