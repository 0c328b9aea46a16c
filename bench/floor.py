"""The floor: the least that can be called the same job.

LISTEN, DELETE ... RETURNING, POST over one warm TLS connection, one after another, in one process without an
event loop. No state, no retries, no signature, no limits: a row is gone before it is sent. It speaks to libpq
and OpenSSL directly. Nobody should use it; nobody who keeps a row until it was answered can beat it by much.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import subprocess
from typing import Final

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn

from bench import processes
from bench.contender import ENDPOINTS, Stage

DATABASE: Final = "bench_floor"
BATCH_ROWS: Final = 200
READ_OCTETS: Final = 16 * 1024
_READY: Final = "floor listens"

_SCHEMA: Final = """
CREATE TABLE queue (
    id bigserial PRIMARY KEY, endpoint integer NOT NULL, body jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY queue; RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT ON queue FOR EACH STATEMENT EXECUTE FUNCTION tell();
"""
# Even the floor does not wait for the disk before it sends: that would be a whole fsync of idle latency for a
# promise that it does not keep anyway.
_OPTIONS: Final = "-c synchronous_commit=off"
_TAKE: Final = f"""
DELETE FROM queue WHERE id = ANY (ARRAY(SELECT id FROM queue ORDER BY id LIMIT {BATCH_ROWS}))
RETURNING endpoint, body::text
"""


class Floor:
    """See the module."""

    name = "floor"
    insert_one = """
        INSERT INTO queue (endpoint, body) VALUES ($2::int, jsonb_build_object(
            'n', $1::bigint, 'severity', 'high', 'message', repeat('x', 150)))"""
    insert_many = f"""
        INSERT INTO queue (endpoint, body) SELECT n % {ENDPOINTS}, jsonb_build_object(
            'n', n, 'severity', 'high', 'message', repeat('x', 150))
        FROM generate_series($1::bigint, $2::bigint) AS n"""
    waiting = "SELECT count(*) FROM queue"

    def __init__(self) -> None:
        self._dsn = ""

    def prepare(self, stage: Stage) -> None:
        """Make the database: a table with a trigger that always notifies."""
        self._dsn = stage.server.dsn_for(DATABASE).reveal()
        with psycopg.connect(stage.server.dsn.reveal(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(_SCHEMA)

    def dsn(self) -> str:
        """Return where the producer connects."""
        return self._dsn

    def start(self, stage: Stage) -> subprocess.Popen[bytes]:
        """Start the loop, its TLS connection warm."""
        return processes.start(
            processes.python("bench.floor"),
            log=stage.folder / "floor.log",
            ready=_READY,
            environ=stage.environ(FLOOR_DSN=self._dsn, FLOOR_PORT=str(stage.receiver.port)),
        )


def _deliver_for_ever(pgconn: PGconn, tls: ssl.SSLSocket) -> None:
    while True:
        taken = pgconn.exec_prepared(b"take", [])
        if taken.status != ExecStatus.TUPLES_OK:
            raise processes.BenchError(pgconn.get_error_message())
        for number in range(taken.ntuples):
            _post(tls, taken.get_value(number, 0), taken.get_value(number, 1))
        if taken.ntuples == 0:
            _await_notification(pgconn)


def _post(tls: ssl.SSLSocket, endpoint: bytes | None, body: bytes | None) -> None:
    assert endpoint is not None
    assert body is not None
    tls.sendall(
        b"POST /%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (endpoint, len(body), body)
    )
    if not tls.recv(READ_OCTETS).startswith(b"HTTP/1.1 200 "):
        raise processes.BenchError("the receiver refused a request of the floor")


def _await_notification(pgconn: PGconn) -> None:
    while pgconn.notifies() is None:
        select.select([pgconn.socket], [], [])
        pgconn.consume_input()
    while pgconn.notifies() is not None:
        pass


def main() -> None:
    """Deliver until killed."""
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    raw = socket.create_connection(("127.0.0.1", int(os.environ["FLOOR_PORT"])))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tls = context.wrap_socket(raw, server_hostname="localhost")
    connection = psycopg.connect(os.environ["FLOOR_DSN"], autocommit=True, options=_OPTIONS)
    connection.execute("LISTEN queue")
    connection.pgconn.prepare(b"take", _TAKE.encode())
    print(_READY, flush=True)
    _deliver_for_ever(connection.pgconn, tls)


if __name__ == "__main__":
    main()
