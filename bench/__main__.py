"""``python -m bench idle|rate|burst|insert|all``, ``isolation|backlog|outage|protection`` or ``prediction``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import psycopg

from bench import inserts, machine, prediction, processes, producer, protection, receiver, report, workloads
from bench.board import Board
from bench.contender import Contender, Stage, Troubled
from bench.floor import Floor
from bench.product import Product
from pggit_reactor.db.embedded import embedded_postgres

ROUNDS: Final = 3
WORKLOADS: Final[dict[str, workloads.Workload]] = {
    "idle": workloads.idle,
    "rate": workloads.rate,
    "burst": workloads.burst,
}
PROTECTION: Final[dict[str, Callable[[workloads.Trial, Troubled], workloads.Figures]]] = {
    "isolation": protection.isolation,
    "backlog": protection.backlog,
    "outage": protection.outage,
}
_SHOWN_SETTINGS: Final = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
)


def main(arguments: Sequence[str]) -> int:
    """Measure what *arguments* name; return the exit status."""
    chosen = _parser().parse_args(arguments)
    if chosen.workload == "prediction":
        return _predict(chosen)
    try:
        document = _measure(chosen)
    except processes.BenchError as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    _print(document)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _predict(chosen: argparse.Namespace) -> int:
    document = prediction.measure(days=0.5, webhooks_a_kind=1) if chosen.quick else prediction.measure()
    print(prediction.table(document))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev bench", description="Take the figures; docs/benchmarks.md.")
    parser.add_argument(
        "workload", choices=[*WORKLOADS, "insert", "all", *PROTECTION, "protection", "prediction"]
    )
    parser.add_argument("--rounds", type=int, default=None, help=f"alternating rounds; {ROUNDS} by default")
    parser.add_argument("--quick", action="store_true", help="one small round: shows that it works")
    parser.add_argument("--backlog-rows", type=int, help="rows of the backlog; 1,000,000 by default")
    parser.add_argument("--outage-rows", type=int, help="rows that come in the outage; 5,000 by default")
    parser.add_argument("--outage-seconds", type=float, help="length of the outage; 60 by default")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser


def _measure(chosen: argparse.Namespace) -> dict[str, Any]:
    sizes = protection.resized(
        workloads.QUICK if chosen.quick else workloads.FULL,
        backlog_rows=chosen.backlog_rows,
        outage_rows=chosen.outage_rows,
        outage_seconds=chosen.outage_seconds,
    )
    rounds = chosen.rounds or (1 if chosen.quick else ROUNDS)
    names = list(WORKLOADS) if chosen.workload == "all" else [chosen.workload]
    began = time.monotonic()
    with _stage() as stage:
        document: dict[str, Any] = {
            "machine": machine.facts(stage.server.data),
            "postgresql": _settings(stage),
            "sizes": attrs.asdict(sizes),
            "receiver": receiver.measure_ceiling(stage.receiver, seconds=sizes.ceiling_seconds),
        }
        floor, product = Floor(), Product()
        contenders: list[Contender] = [floor, product]
        for contender in contenders:
            contender.prepare(stage)
        numbers = workloads.Numbers()
        results: list[report.Result] = []
        for name in names:
            if name in WORKLOADS:
                results += _alternate(stage, contenders, sizes, numbers, name, rounds)
        if chosen.workload in {"insert", "all"}:
            results += _insert_rounds(stage, product, sizes, numbers, rounds)
        for name in PROTECTION:
            if chosen.workload in {name, "protection"}:
                results += _protection_rounds(stage, product, sizes, numbers, name, rounds)
    document["seconds"] = time.monotonic() - began
    document["rounds"] = [attrs.asdict(result) for result in results]
    document["summary"] = report.summary(results)
    return document


@contextmanager
def _stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="pggit-reactor-bench-") as name:
        folder = Path(name)
        board = Board.create(folder / "board")
        environ = dict(os.environ)
        with (
            embedded_postgres() as server,
            receiver.running(folder, board, environ) as receiving,
            producer.running(board, environ) as producing,
        ):
            yield Stage(folder=folder, server=server, board=board, receiver=receiving, producer=producing)


def _alternate(
    stage: Stage,
    contenders: Sequence[Contender],
    sizes: workloads.Sizes,
    numbers: workloads.Numbers,
    name: str,
    rounds: int,
) -> Iterator[report.Result]:
    for round_number in range(1, rounds + 1):
        for contender in contenders:
            _say(f"{name}, round {round_number} of {rounds}, {contender.name}")
            with workloads.trial(stage, contender, sizes, numbers) as trial:
                figures = WORKLOADS[name](trial)
            yield report.Result(
                workload=name, round_number=round_number, contender=contender.name, figures=figures
            )


def _insert_rounds(
    stage: Stage, product: Product, sizes: workloads.Sizes, numbers: workloads.Numbers, rounds: int
) -> Iterator[report.Result]:
    for round_number in range(1, rounds + 1):
        _say(f"insert, round {round_number} of {rounds}")
        yield report.Result(
            workload="insert",
            round_number=round_number,
            contender=product.name,
            figures=inserts.measure(stage, product, sizes, numbers),
        )


def _protection_rounds(
    stage: Stage,
    product: Product,
    sizes: workloads.Sizes,
    numbers: workloads.Numbers,
    name: str,
    rounds: int,
) -> Iterator[report.Result]:
    for round_number in range(1, rounds + 1):
        _say(f"{name}, round {round_number} of {rounds}")
        with workloads.trial(stage, product, sizes, numbers) as trial:
            figures = PROTECTION[name](trial, product)
        with psycopg.connect(product.dsn(), autocommit=True) as connection:
            connection.execute(product.clear.encode())
        yield report.Result(workload=name, round_number=round_number, contender=product.name, figures=figures)


def _settings(stage: Stage) -> dict[str, str]:
    with psycopg.connect(stage.server.dsn.reveal(), autocommit=True) as connection:
        return {
            name: str(connection.execute("SELECT current_setting(%s)", (name,)).fetchall()[0][0])
            for name in _SHOWN_SETTINGS
        }


def _print(document: dict[str, Any]) -> None:
    for title in ("machine", "postgresql", "receiver"):
        facts = ", ".join(f"{name} {_short(value)}" for name, value in document[title].items())
        print(f"{title}: {facts}")
    for table in (report.table(document["summary"]), report.insert_table(document["summary"])):
        if table:
            print(f"\n{table}")
    print(f"\ntaken in {document['seconds']:.0f} s")


def _short(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, float) and value >= 100 else str(value)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
