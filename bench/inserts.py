"""What INSERTs cost producers: single-row commits, with and without the trigger, beside workers in each state.

Three states of the workers: *none* runs, so a NOTIFY reaches nobody; *asleep*, one runs and has nothing to
send (the rows are for a paused webhook), so the gate is closed and each NOTIFY wakes it; *busy*, it sends
what a feeder adds, and the gate is open, so producers are silent. With and without the trigger take turns of
a fraction of a second, so that what else happens on the machine falls on both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, Final

import attrs
import psycopg

from bench import processes
from bench.contender import Gated, Stage
from bench.workloads import Figures, Numbers, Sizes, trial

CLIENTS: Final = (1, 8)
TURNS: Final = ("bare", "trigger", "trigger", "bare") * 2
"""Short slices; each kind has `Sizes.insert_seconds` in all."""
LOOK_SECONDS: Final = 0.02
FED_ROWS: Final = 1000
BUSY_SECONDS_MAX: Final = 10.0
_SYNCS: Final = "SELECT coalesce(sum(fsyncs), 0) FROM pg_stat_io WHERE object = 'wal'"
_SYNCS_BEFORE_18: Final = "SELECT wal_sync FROM pg_stat_wal"

_Connection = psycopg.Connection[tuple[Any, ...]]


def measure(stage: Stage, contender: Gated, sizes: Sizes, numbers: Numbers) -> Figures:
    """Measure one round: every state, number of clients, and both kinds of table."""
    figures: Figures = {}
    with psycopg.connect(contender.dsn(), autocommit=True) as admin:
        cells = _Cells(stage, contender, sizes, admin)
        for clients in CLIENTS:
            figures |= cells.pair("none", clients)
        with trial(stage, contender, sizes, numbers) as running:
            for clients in CLIENTS:
                figures |= cells.pair("asleep", clients)
            for clients in CLIENTS:
                with _Companion(contender, feeding=True) as feeder:
                    feeder.await_open()
                    figures |= cells.pair("busy", clients, feeder)
            running.await_done()
    return figures


class _Cells:
    def __init__(self, stage: Stage, contender: Gated, sizes: Sizes, admin: _Connection) -> None:
        self._stage = stage
        self._contender = contender
        self._sizes = sizes
        self._admin = admin

    def pair(self, state: str, clients: int, feeder: _Companion | None = None) -> Figures:
        """Measure without and with the trigger in turns, and compare."""
        slices: dict[str, list[_Slice]] = {"bare": [], "trigger": []}
        for kind in TURNS:
            with self._trigger(enabled=kind == "trigger"):
                if feeder is not None:
                    slices[kind].append(self._flood(clients, feeder))
                else:
                    with _Companion(self._contender, feeding=False) as watcher:
                        slices[kind].append(self._flood(clients, watcher))
        name = f"{state}_{clients}"
        figures = {
            f"{name}_{kind}_{figure}": value
            for kind, parts in slices.items()
            for figure, value in _joined(parts).items()
        }
        figures[f"{name}_ratio"] = figures[f"{name}_trigger_per_second"] / figures[f"{name}_bare_per_second"]
        return figures

    def _flood(self, clients: int, companion: _Companion) -> _Slice:
        syncs, rows = self._syncs(), self._rows()
        companion.restart_count()
        answer = self._stage.producer.tell(
            "flood",
            dsn=self._contender.dsn(),
            insert=self._contender.insert_resting,
            clients=clients,
            seconds=self._sizes.insert_seconds / (len(TURNS) / 2),
        )
        return _Slice(
            per_second=answer["commits_per_second"],
            gate_open=companion.open_share(),
            rows=self._rows() - rows,
            syncs=self._syncs() - syncs,
        )

    @contextmanager
    def _trigger(self, *, enabled: bool) -> Iterator[None]:
        if not enabled:
            self._admin.execute(self._contender.trigger_off.encode())
        try:
            yield
        finally:
            self._admin.execute(self._contender.trigger_on.encode())

    def _syncs(self) -> int:
        # A backend tells its counts when it ends, and the producer's have ended.
        query = _SYNCS if self._admin.info.server_version >= 180000 else _SYNCS_BEFORE_18
        return int(_value(self._admin, query))

    def _rows(self) -> int:
        return int(_value(self._admin, self._contender.resting))


@attrs.frozen(kw_only=True)
class _Slice:
    per_second: float
    gate_open: float
    rows: int
    syncs: int


def _joined(slices: Sequence[_Slice]) -> Figures:
    """Return the figures of slices of the same length."""
    syncs = sum(part.syncs for part in slices)
    return {
        "per_second": fmean(part.per_second for part in slices),
        "commits_per_sync": sum(part.rows for part in slices) / syncs if syncs else 0.0,
        "gate_open": fmean(part.gate_open for part in slices),
    }


class _Companion:
    """A thread that looks at the gate while the producer is timed, and feeds the worker where it is to be busy."""

    def __init__(self, contender: Gated, *, feeding: bool) -> None:
        self._contender = contender
        self._feeding = feeding
        self._ended = threading.Event()
        self._looks: list[bool] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Companion:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def await_open(self) -> None:
        """Return once the worker under load has opened the gate."""
        deadline = time.monotonic() + BUSY_SECONDS_MAX
        while not any(self._looks[-1:]):
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise processes.BenchError(f"{self._contender.name} was fed and never opened its gate")
            time.sleep(LOOK_SECONDS)

    def restart_count(self) -> None:
        """Forget what was seen."""
        self._looks.clear()

    def open_share(self) -> float:
        """Return in which share of the looks the gate was open."""
        looks = list(self._looks)
        return sum(looks) / len(looks) if looks else 0.0

    def _run(self) -> None:
        with psycopg.connect(self._contender.dsn(), autocommit=True) as connection:
            while not self._ended.wait(LOOK_SECONDS):
                if self._feeding and _value(connection, self._contender.waiting) < FED_ROWS:
                    connection.execute(self._contender.insert_backlog.encode(), (FED_ROWS,))
                self._looks.append(bool(_value(connection, self._contender.gate_open)))


def _value(connection: _Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]
