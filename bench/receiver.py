"""The receiver of the bench: one process, one loop over TLS sockets, and no more than the figures need.

It answers 200 at once and keeps the time at which each request was whole. Two paths are there for trouble: one is
answered late, the other not at all while the board says so. Nothing else is in its way: no HTTP library, no
framework, no event loop but epoll. What it could take at most is measured in each run
(`measure_ceiling`), so that it is never taken for the contender's limit.
"""

from __future__ import annotations

import gc
import heapq
import re
import select
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs

from bench import processes
from bench.board import OUTAGE, ROWS_MAX, Board
from bench.machine import cpu_seconds
from pggit_reactor.testing.certificates import Authority

HOST: Final = "127.0.0.1"
CEILING_CONNECTIONS: Final = 32
READ_OCTETS: Final = 64 * 1024
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
HANGING_PATH: Final = "hanging"
HANG_SECONDS: Final = 5.0
OUTAGE_PATH: Final = "outage"
_HANGING: Final = b"POST /hanging "
_OUTAGE: Final = b"POST /outage "
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ROW: Final = re.compile(rb'"n": ?(\d+)')
_READY: Final = "receiver listens on port "


@attrs.frozen(kw_only=True)
class Receiver:
    """A running receiver, as the others see it."""

    pid: int
    port: int
    ca_file: Path
    board: Board

    def url(self, endpoint: int | str) -> str:
        """Return the address of an endpoint, which is but a path."""
        return f"https://localhost:{self.port}/{endpoint}"

    def await_arrival(self, rows: range, *, seconds: float) -> None:
        """Return once all *rows* have arrived; `BenchError` where they do not within *seconds*."""
        deadline = time.monotonic() + seconds
        # The last row nearly always comes last, and looking at it alone costs the measured nothing.
        while self.board.arrived[rows.stop - 1] == 0.0 or self.board.missing(rows):
            if time.monotonic() > deadline:
                raise processes.BenchError(
                    f"{self.board.missing(rows)} of {len(rows)} rows never arrived, {seconds:g} s after the last"
                )
            time.sleep(0.005)


@contextmanager
def running(folder: Path, board: Board, environ: Mapping[str, str]) -> Iterator[Receiver]:
    """Run the receiver for the length of the block; its certificates are in *folder*."""
    log = folder / "receiver.log"
    command = processes.python("bench.receiver", str(folder), str(board.path))
    process = processes.start(command, log=log, ready=_READY, environ=environ)
    try:
        port = int(log.read_text().rpartition(_READY)[2].split()[0])
        yield Receiver(pid=process.pid, port=port, ca_file=folder / "ca.pem", board=board)
    finally:
        processes.stop(process)


def measure_ceiling(receiver: Receiver, *, seconds: float) -> dict[str, float]:
    """Return how many requests a second the receiver takes from a client that does nothing else.

    Client and receiver have a core each; what the receiver's own CPU time allows is the true ceiling.
    """
    context = ssl.create_default_context(cafile=str(receiver.ca_file))
    body = b'{"n": 0, "message": "%s"}' % (b"x" * 150)
    request = b"POST /0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    connections = [
        context.wrap_socket(socket.create_connection((HOST, receiver.port)), server_hostname="localhost")
        for _ in range(CEILING_CONNECTIONS)
    ]
    count = 0
    cpu_before, began = cpu_seconds(receiver.pid), time.monotonic()
    while time.monotonic() < began + seconds:
        for connection in connections:
            connection.sendall(request)
        for connection in connections:
            assert connection.recv(READ_OCTETS) == ANSWER
        count += len(connections)
    elapsed, used = time.monotonic() - began, cpu_seconds(receiver.pid) - cpu_before
    for connection in connections:
        connection.close()
    return {"requests_per_second": count / elapsed, "requests_per_cpu_second": count / used}


class _Connection:
    """One client: a handshake, then requests, each answered when it is whole."""

    def __init__(self, tls: ssl.SSLSocket, board: Board, late: _LateAnswers) -> None:
        self.tls = tls
        self._board = board
        self._late = late
        self._buffer = b""
        self._greeted = False

    def on_readable(self) -> bool:
        """Take what came; say whether the connection goes on."""
        try:
            if not self._greeted:
                self.tls.do_handshake()
                self._greeted = True
                return True
            octets = self.tls.recv(READ_OCTETS)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        if not octets:
            return False
        self._buffer = self._buffer + octets if self._buffer else octets
        return self._take_requests()

    def _take_requests(self) -> bool:
        while (head_end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, head_end)
            end = head_end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return True
            if self._buffer.startswith(_OUTAGE) and self._board.counters[OUTAGE.is_on]:
                self._board.counters[OUTAGE.tries] += 1
                return False
            self._record(head_end + 4, end)
            is_late = self._buffer.startswith(_HANGING)
            self._buffer = self._buffer[end:]
            if is_late:
                self._late.add(self.tls)
            else:
                self.tls.sendall(ANSWER)
        return True

    def _record(self, begin: int, end: int) -> None:
        now = time.monotonic()
        board = self._board
        board.counters[0] += 1
        found = _ROW.search(self._buffer, begin, end)
        row = int(found[1]) if found else 0
        if not 0 < row < ROWS_MAX:
            return
        if board.arrived[row] == 0.0:
            board.arrived[row] = now
        else:
            board.counters[1] += 1


class _LateAnswers:
    """Answers that are due some time after their request; to connections that may be gone by then."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, ssl.SSLSocket]] = []
        self._count = 0

    def add(self, tls: ssl.SSLSocket) -> None:
        self._count += 1
        heapq.heappush(self._due, (time.monotonic() + HANG_SECONDS, self._count, tls))

    def send(self) -> float | None:
        """Send what is due; return in how many seconds the next one is, None where there is none."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            with suppress(OSError, ValueError):
                heapq.heappop(self._due)[2].sendall(ANSWER)
        return max(0.0, self._due[0][0] - now) if self._due else None


def _serve(listener: socket.socket, context: ssl.SSLContext, board: Board) -> None:
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    connections: dict[int, _Connection] = {}
    late = _LateAnswers()
    while True:
        for descriptor, _ in poll.poll(late.send()):
            if descriptor == listener.fileno():
                raw, _address = listener.accept()
                raw.setblocking(False)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                tls = context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
                connections[tls.fileno()] = _Connection(tls, board, late)
                poll.register(tls, select.EPOLLIN)
            elif not connections[descriptor].on_readable():
                poll.unregister(descriptor)
                connections.pop(descriptor).tls.close()


def main(folder: Path, board_file: Path) -> None:
    """Serve until killed."""
    context = Authority(folder).server_context()
    with socket.create_server((HOST, 0), backlog=1024) as listener:
        print(f"{_READY}{listener.getsockname()[1]} ", flush=True)
        gc.disable()  # A pause for it would be somebody's p99.
        _serve(listener, context, Board(board_file))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
