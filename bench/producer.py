"""The producer of the bench: a process of its own that commits rows and keeps the time.

It speaks to libpq directly, so that a commit is one call and nothing of a driver is measured. It is told what
to do in lines of JSON, and answers each with one.
"""

from __future__ import annotations

import gc
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from bench import processes
from bench.board import Board

_DONE: Final = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK})
_STATEMENT: Final = b"insert"


class Producer:
    """The producer's process, as the bench sees it; `tell` waits for the answer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, do: str, **arguments: object) -> dict[str, Any]:
        """Have something done: the names and arguments of `_Hands`' methods."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise processes.BenchError(f"the producer died at {do!r}; its traceback is above")
        return dict(json.loads(answer))


@contextmanager
def running(board: Board, environ: Mapping[str, str]) -> Iterator[Producer]:
    """Run the producer for the length of the block."""
    process = subprocess.Popen(
        processes.python("bench.producer", str(board.path)),
        cwd=processes.ROOT,
        env=dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Producer(process)
    finally:
        process.kill()
        process.communicate()


class _Hands:
    """What the producer can do. Each method is a command; its result is the answer."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def paced(
        self, dsn: str, insert: str, first: int, count: int, every_seconds: float, endpoints: int
    ) -> dict[str, Any]:
        """Commit single rows on a schedule that no late one delays."""
        with _connected(dsn) as pgconn:
            _prepare(pgconn, insert)
            next_at = time.monotonic()
            for row in range(first, first + count):
                next_at += every_seconds
                time.sleep(max(0.0, next_at - time.monotonic()))
                _check(pgconn.exec_(b"BEGIN"), pgconn)
                _check(pgconn.exec_prepared(_STATEMENT, _one(row, endpoints)), pgconn)
                self._board.committed[row] = time.monotonic()
                _check(pgconn.exec_(b"COMMIT"), pgconn)
        return {}

    def burst(self, dsn: str, insert: str, first: int, count: int) -> dict[str, Any]:
        """Commit many rows at once."""
        with _connected(dsn) as pgconn:
            _prepare(pgconn, insert)
            _check(pgconn.exec_(b"BEGIN"), pgconn)
            numbers = [str(first).encode(), str(first + count - 1).encode()]
            _check(pgconn.exec_prepared(_STATEMENT, numbers), pgconn)
            committed_at = time.monotonic()
            _check(pgconn.exec_(b"COMMIT"), pgconn)
        for row in range(first, first + count):
            self._board.committed[row] = committed_at
        return {"committed_at": committed_at}

    def flood(self, dsn: str, insert: str, clients: int, seconds: float) -> dict[str, Any]:
        """Commit single rows, each client as fast as its last one returns, as pgbench does."""
        connections = [psycopg.connect(dsn, autocommit=True) for _ in range(clients)]
        poll = select.epoll()
        waiting: dict[int, PGconn] = {}
        for connection in connections:
            pgconn = connection.pgconn
            _prepare(pgconn, insert)
            waiting[pgconn.socket] = pgconn
            poll.register(pgconn.socket, select.EPOLLIN)
            pgconn.send_query_prepared(_STATEMENT, _one(0, 1))
        count, began = 0, time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            for descriptor, _ in poll.poll():
                pgconn = waiting[descriptor]
                if _answered(pgconn):
                    count += 1
                    pgconn.send_query_prepared(_STATEMENT, _one(0, 1))
        for connection in connections:
            while not _answered(connection.pgconn):
                select.select([connection.pgconn.socket], [], [])
            connection.close()
        return {"commits_per_second": count / (now - began)}


def _answered(pgconn: PGconn) -> bool:
    """Take what came; say whether the statement is through."""
    pgconn.consume_input()
    if pgconn.is_busy():
        return False
    while (result := pgconn.get_result()) is not None:
        _check(result, pgconn)
    return True


def _one(row: int, endpoints: int) -> list[bytes]:
    return [str(row).encode(), str(row % endpoints).encode()]


@contextmanager
def _connected(dsn: str) -> Iterator[PGconn]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection.pgconn


def _prepare(pgconn: PGconn, statement: str) -> None:
    _check(pgconn.prepare(_STATEMENT, statement.encode()), pgconn)


def _check(result: PGresult, pgconn: PGconn) -> None:
    if result.status not in _DONE:
        raise processes.BenchError(pgconn.get_error_message())


def main(board_file: Path) -> None:
    """Do what standard input says until it ends."""
    hands = _Hands(Board(board_file))
    gc.disable()  # A pause for it would be somebody's p99.
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(hands, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
