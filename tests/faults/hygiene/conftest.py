"""A server that writes down every statement and parameter it is sent, and a user whose every secret is marked."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
import trio

from pggit_reactor.cli.main import run
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.embedded import EmbeddedPostgres, embedded_postgres
from pggit_reactor.db.webhooks import headers_place, secret_place, url_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.testing.database import QUICK_SETTINGS
from pggit_reactor.testing.marks import Marks

PATIENCE_SECONDS = 60.0
TALKATIVE = {
    "log_statement": "all",
    "log_min_messages": "debug1",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_parameter_max_length_on_error": "-1",
}
SILENT = "SET log_statement = 'none'; SET log_min_messages = 'panic'; SET log_min_error_statement = 'panic'"
"""For what the test itself says, and what producers say: their payload is theirs to send."""

STORED_AS_THEY_ARE = {
    ("alert_delivery_queue", "message_body"): "the alert itself",
    ("alert_delivery_queue", "headers"): "headers of a single row, which its producer wrote",
}
"""Columns whose purpose is to hold what is marked."""


@attrs.frozen(kw_only=True)
class Marked:
    """The secrets of this user. Each occurs nowhere else."""

    path: str = "Path7hook4marked9Zq"
    query: str = "Query7token4marked9Zq"
    body: str = "Body7alert4marked9Zq"
    row_header: str = "RowHeader7marked9Zq"
    header: str = "SealedHeader7marked9Zq"
    signing_key: bytes = b"Signing7key4marked9Zq+of 32 oct."
    plain_secret: str = "Plain7secret4marked9Zq of a receiver's own"
    master_key: bytes = b"Master7key4marked9Zq+of 32 octet"
    passphrase: str = "Passphrase7marked9Zq long enough for anybody"
    password: str = "Password7marked9Zq"
    wrong_password: str = "WrongPassword7marked9Zq"
    wrong_key: bytes = b"Wrong7key4marked9Zq+of 32 octets"
    phase7_key: str = "Phase7constant4marked9Zq"

    @property
    def signing_secret(self) -> str:
        return "whsec_" + base64.b64encode(self.signing_key).decode()

    @property
    def key_lines(self) -> str:
        passphrase = f"second:passphrase:{self.passphrase}"
        return f"marked:base64:{base64.b64encode(self.master_key).decode()}\n{passphrase}\n"

    @property
    def wrong_key_line(self) -> str:
        return "marked:base64:" + base64.b64encode(self.wrong_key).decode()

    def url(self, origin: str) -> str:
        return f"{origin}/{self.path}?token={self.query}"

    def marks(self) -> Marks:
        found = Marks()
        for field in attrs.fields(Marked):
            found.add(field.name, getattr(self, field.name))
        keyring = Keyring.parse(Secret(self.key_lines))
        for sealed in (url_place(1), secret_place(1, 1), headers_place(1)):
            found.add(f"the key for {sealed.purpose}", keyring.derive("marked", sealed.purpose))
        return found


@pytest.fixture
def marked() -> Marked:
    return Marked()


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    with embedded_postgres(settings=QUICK_SETTINGS | TALKATIVE) as running:
        yield running


@attrs.define(eq=False, kw_only=True)
class Place:
    """A database of somebody with a marked password, and folders; runs the product and keeps all that it says."""

    server: EmbeddedPostgres
    folder: Path
    ca_file: Path | None = None
    marked: Marked = Marked()
    said: dict[str, str] = attrs.field(factory=dict)
    """What each program printed, by what it was."""

    def __attrs_post_init__(self) -> None:
        with psycopg.connect(self.server.dsn.reveal(), autocommit=True) as connection:
            connection.execute(SILENT)
            connection.execute(f"CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '{self.marked.password}'")
            connection.execute("CREATE DATABASE hygiene OWNER keeper")
        for name, text in {
            "dsn": self.dsn,
            "keys": self.marked.key_lines,
            "secret": self.marked.signing_secret,
            "plain": self.marked.plain_secret,
            "header": self.marked.header,
            "wrong": self.marked.wrong_key_line,
            "phase7": self.marked.phase7_key,
        }.items():
            self.write(name, text)

    @property
    def dsn(self) -> str:
        return f"postgresql://keeper:{self.marked.password}@127.0.0.1:{self.server.port}/hygiene"

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def environ(self, **settings: str) -> dict[str, str]:
        """Return the environment: every secret comes from a file."""
        chosen = {
            "DATABASE_URL_FILE": str(self.folder / "dsn"),
            "MASTER_KEY_FILE": str(self.folder / "keys"),
            "LOG_LEVEL": "debug",
            "LOG_FORMAT": "json",
            "METRICS_PORT": "0",
            "EGRESS_UNSAFE_ALLOW": "127.0.0.0/8:*",
            "DELIVERY_TIMEOUT_SECONDS": "1",
            "DELIVERY_BACKOFF_BASE_SECONDS": "0.05",
            "WORKER_LEASE_SECONDS": "4",
            "WORKER_POLL_SECONDS": "1",
            **settings,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PGGIT_")}
        kept |= {f"PGGIT_REACTOR_{name}": value for name, value in chosen.items() if value}
        return kept | ({"SSL_CERT_FILE": str(self.ca_file)} if self.ca_file else {})

    async def command(self, *words: str, status: int = 0, stdin: str = "", **settings: str) -> str:
        """Run a command in this process, which must end with *status*; return its standard output."""
        return await trio.to_thread.run_sync(partial(self._run, words, status, stdin, settings))

    def _run(self, words: tuple[str, ...], status: int, stdin: str, settings: dict[str, str]) -> str:
        out, err = io.StringIO(), io.StringIO()
        octets = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name in os.environ:
                patch.delenv(name)
            for name, value in self.environ(**settings).items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", octets)
            patch.chdir(self.folder)
            ended = run(["--log-level", "debug", *words])
        self.keep(words, out.getvalue() + err.getvalue())
        assert ended == status, (words, out.getvalue(), err.getvalue())
        return out.getvalue()

    async def process(self, *words: str, status: int, **settings: str) -> None:
        """Run a command as a process, which must end with *status*."""
        call = partial(
            subprocess.run,
            [sys.executable, "-m", "pggit_reactor", "--log-level", "debug", *words],
            env=self.environ(**settings), capture_output=True, text=True, check=False, cwd=self.folder,
        )  # fmt: skip
        done = await trio.to_thread.run_sync(call)
        self.keep(words, done.stdout + done.stderr)
        assert done.returncode == status, (words, done.stdout, done.stderr)

    def keep(self, words: tuple[str, ...], said: str) -> None:
        self.said[f"what {' '.join(words[:2])} said as command {len(self.said)}"] = said

    def producer(self) -> psycopg.Connection[Any]:
        """Return a connection whose statements no log keeps."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        connection.execute(SILENT)
        return connection

    def tables(self) -> dict[str, str]:
        """Return all that the schema holds as text, by table and column, but `STORED_AS_THEY_ARE`."""
        found = {}
        with self.producer() as connection:
            columns = connection.execute(
                "SELECT table_name, column_name FROM information_schema.columns"
                " WHERE table_schema = 'pggit' ORDER BY 1, 2"
            ).fetchall()
            for table, column in columns:
                if (table, column) not in STORED_AS_THEY_ARE:
                    query = f"SELECT coalesce(string_agg(\"{column}\"::text, ' '), '') FROM pggit.\"{table}\""
                    (text,) = connection.execute(query).fetchone() or ("",)
                    found[f"pggit.{table}.{column}"] = text
        return found

    def server_log(self) -> str:
        return self.server.log_path.read_text(errors="replace")


@attrs.define(eq=False, kw_only=True)
class Worker:
    """A worker, or a supervisor of several, whose output goes to a file."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]
        return [event for event in events if event.get("event") == name]

    async def event(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the events of that name once there are *count*: a file announces nothing."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found := self.events(name)) < count:
            ended = self.process.poll() is not None or time.monotonic() > deadline
            assert not ended, f"no event {name}; it said:\n{self.said[-4000:]}"
            await trio.sleep(0.02)
        return found

    def family(self) -> list[int]:
        """Return the pids of the process and its children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    async def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await trio.to_thread.run_sync(self.process.wait, PATIENCE_SECONDS)


@pytest.fixture
def place(server: EmbeddedPostgres, tmp_path: Path) -> Place:
    return Place(server=server, folder=tmp_path)


@pytest.fixture
def start_worker(place: Place) -> Iterator[Any]:
    """Start `worker` with these arguments; it is killed with the test."""
    started: list[Worker] = []

    def start(*arguments: str, **settings: str) -> Worker:
        output = place.folder / f"worker-{len(started)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "pggit_reactor", "worker", *arguments],
                env=place.environ(**settings), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                cwd=place.folder, start_new_session=True,
            )  # fmt: skip
        started.append(Worker(process=process, output=output))
        return started[-1]

    yield start
    for worker in started:
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
