"""A database, a receiver and workers between them: what an end-to-end test needs, with short timings.

Workers run in this process (`Rig.worker`: quick, and its parts can be reached) or as processes of their own
(`Rig.process`: can be killed).
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import attrs
import trio

from pggit_reactor.app import worker_identity
from pggit_reactor.config.load import load_settings
from pggit_reactor.config.settings import Settings
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.webhooks import secret_place, url_place
from pggit_reactor.observability.health import Health
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.clock import Clock, SystemClock
from pggit_reactor.runtime.signals import Commands
from pggit_reactor.runtime.worker import Worker
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.database import ReactorDatabase
from pggit_reactor.testing.receiver import Receiver

SIGNING_SECRET: Final = "whsec_" + base64.b64encode(bytes(range(24))).decode()
MASTER_KEY: Final = "test:base64:" + base64.b64encode(bytes(range(32))).decode()
TIMEOUT_SECONDS: Final = 1.0
LEASE_SECONDS: Final = 4.0
POLL_SECONDS: Final = 1.0


@attrs.define(eq=False, kw_only=True)
class Rig:
    """See the module; `prefix` of environment variables is the product's own."""

    database: ReactorDatabase
    receiver: Receiver
    dsn: Secret[str] | None = None
    """What workers connect to, where it is not the database itself: a proxy before it, a list of servers."""

    def environ(self, **settings: object) -> dict[str, str]:
        """Return the environment of a worker; *settings* by variable, such as ``WORKER_POLL_SECONDS=60``."""
        chosen = {
            "DATABASE_URL": (self.dsn or self.database.dsn).reveal(),
            "MASTER_KEY": MASTER_KEY,
            "EGRESS_UNSAFE_ALLOW": "127.0.0.0/8:*,[::1]:*",
            "METRICS_PORT": 0,
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "debug",
            "DELIVERY_TIMEOUT_SECONDS": TIMEOUT_SECONDS,
            "DELIVERY_BACKOFF_BASE_SECONDS": 0.05,
            "WORKER_LEASE_SECONDS": LEASE_SECONDS,
            "WORKER_POLL_SECONDS": POLL_SECONDS,
            **settings,
        }
        return {f"PGGIT_REACTOR_{name}": str(value) for name, value in chosen.items()}

    def settings(self, **settings: object) -> Settings:
        """Return the same as a value."""
        return load_settings(environ=self.environ(**settings)).settings

    async def add_webhook(
        self, path: str = "/hook", *, url: str | None = None, webhook_id: int | None = None, **columns: object
    ) -> int:
        """Register the receiver's *path* (or *url*), with values of other columns; return the id. It has no rate
        limit unless *columns* give one: most tests send in an instant what a receiver's limit would spread."""
        sealer = Sealer(Keyring.parse(Secret(MASTER_KEY)))
        if webhook_id is None:
            webhook_id = int(await self.database.fetch_value("SELECT pggit.next_webhook_id()"))
        values: dict[str, object] = {
            "webhook_id": webhook_id,
            "name": f"webhook {webhook_id}",
            "sealed_url": self.sealed_url(webhook_id, url or self.receiver.url(path)),
            "url_origin": "https://receiver.test",
            "rate_per_s": 0,
            **columns,
        }
        places = ", ".join(f"%({name})s" for name in values)
        await self.database.execute(
            f"INSERT INTO pggit.webhook ({', '.join(values)}) VALUES ({places})", values
        )
        await self.database.execute(
            "INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret) VALUES (%s, 1, %s)",
            (webhook_id, sealer.seal(SIGNING_SECRET.encode(), place=secret_place(webhook_id, 1))),
        )
        return webhook_id

    def sealed_url(self, webhook_id: int, url: str) -> bytes:
        """Return *url* as the registry keeps it."""
        sealer = Sealer(Keyring.parse(Secret(MASTER_KEY)))
        return sealer.seal(url.encode(), place=url_place(webhook_id))

    async def never_open_breakers(self) -> None:
        """Let no circuit breaker open, for tests about something else that lets a receiver fail again and again."""
        await self.database.execute(
            "CREATE OR REPLACE FUNCTION pggit.breaker_after(INOUT failures integer,"
            " INOUT window_started_at timestamptz, INOUT window_attempts integer, INOUT window_failures integer,"
            " INOUT opened_at timestamptz, INOUT opens integer, INOUT closed_at timestamptz,"
            " votes text, probe_vote text) LANGUAGE plpgsql AS 'BEGIN END'"
        )

    async def insert(self, webhook_id: int, count: int = 1, *, body: object = None) -> list[int]:
        """INSERT deliveries as any producer would, in one statement; return their ids in order."""
        rows = await self.database.fetch(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
            " SELECT n, %s, coalesce(%s::jsonb, jsonb_build_object('alert', n)) FROM generate_series(1, %s) AS n"
            " RETURNING delivery_id",
            (webhook_id, None if body is None else json.dumps(body), count),
        )
        return [row[0] for row in rows]

    async def statuses(self) -> dict[str, int]:
        """Count the queue by status."""
        rows = await self.database.fetch(
            "SELECT delivery_status, count(*) FROM pggit.alert_delivery_queue GROUP BY 1"
        )
        return dict(rows)

    async def row(self, delivery_id: int, *columns: str) -> tuple[Any, ...]:
        """Return columns of one delivery."""
        query = f"SELECT {', '.join(columns)} FROM pggit.alert_delivery_queue WHERE delivery_id = %s"
        (row,) = await self.database.fetch(query, (delivery_id,))
        return row

    async def until(self, query: str, *params: object, seconds: float = 20.0) -> None:
        """Return once *query*, which gives one boolean, is true: a state that only the database shows."""
        with trio.fail_after(seconds):
            while not await self.database.fetch_value(query, params):  # noqa: ASYNC110  # no event tells of a row
                await trio.sleep(0.02)

    async def until_status(self, delivery_id: int, status: str, *, seconds: float = 20.0) -> None:
        """Return once the delivery has *status*."""
        await self.until(
            "SELECT delivery_status = %s FROM pggit.alert_delivery_queue WHERE delivery_id = %s",
            status,
            delivery_id,
            seconds=seconds,
        )

    async def until_all(self, status: str, *, seconds: float = 60.0) -> None:
        """Return once every delivery has *status*."""
        await self.until(
            "SELECT NOT EXISTS (SELECT FROM pggit.alert_delivery_queue WHERE delivery_status <> %s)",
            status,
            seconds=seconds,
        )

    @asynccontextmanager
    async def worker(
        self, *, clock: Clock | None = None, drained: bool = True, **settings: object
    ) -> AsyncIterator[RunningWorker]:
        """Run a worker in this process; at the end of the block it is drained, and its exit status must be 0."""
        chosen = self.settings(**settings)
        identity = worker_identity(chosen)
        worker = Worker(
            settings=chosen,
            identity=identity,
            sealer=Sealer(Keyring.parse(Secret(MASTER_KEY))),
            clock=clock or SystemClock(),
            metrics=Metrics(worker_id=identity.worker_id, version=identity.version),
            health=Health(),
            make_context=self.receiver.client_context,
        )
        send, receive = trio.open_memory_channel[int](8)
        running = RunningWorker(worker=worker, signals=send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run, Commands(receive))
            with trio.fail_after(20):
                while not worker.health.ready().checks["started"].ok:  # noqa: ASYNC110  # what a probe would do
                    await trio.sleep(0.01)
            try:
                yield running
                if drained:
                    running.signal(signal.SIGTERM)
                    assert await running.wait() == 0, "the worker did not drain"
            finally:
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def process(self, *arguments: str, **settings: object) -> AsyncIterator[WorkerProcess]:
        """Run a worker as a process of its own, with the arguments of ``pggit-reactor worker``; ready in the block."""
        environ = {
            **os.environ,
            **self.environ(**settings),
            "SSL_CERT_FILE": str(self.receiver.ca_file),
        }
        command = [sys.executable, "-m", "pggit_reactor", "worker", *arguments]
        process = await trio.lowlevel.open_process(
            command, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        running = WorkerProcess(process=process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.read_events)
            try:
                await running.event("worker_started", seconds=30)
                yield running
            finally:
                with trio.CancelScope(shield=True):
                    running.kill()
                    await process.wait()
                nursery.cancel_scope.cancel()


@attrs.define(eq=False, kw_only=True)
class RunningWorker:
    """A worker in this process."""

    worker: Worker
    _signals: trio.MemorySendChannel[int]
    _status: int | None = None
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self, commands: Commands) -> None:
        """Run it to its end."""
        self._status = await self.worker.run(commands)
        self._ended.set()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._signals.send_nowait(number)

    async def wait(self, *, seconds: float = 30.0) -> int:
        """Wait for its end; return its exit status."""
        with trio.fail_after(seconds):
            await self._ended.wait()
        assert self._status is not None
        return self._status

    def metric(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """Return a sample of its metrics, 0 where there is none."""
        return self.worker.metrics.registry.get_sample_value(name, dict(labels or {})) or 0.0


@attrs.define(eq=False, kw_only=True)
class WorkerProcess:
    """A worker as a process; it dies with the block."""

    process: trio.Process
    events: list[dict[str, Any]] = attrs.field(factory=list)
    output: str = ""
    _news: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def read_events(self) -> None:
        """Read what it logs until it ends."""
        assert self.process.stderr is not None
        rest = b""
        async for piece in self.process.stderr:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._take(line.decode())
            self._news.set()
            self._news = trio.Event()

    def _take(self, line: str) -> None:
        self.output += line + "\n"
        if line.startswith("{"):
            self.events.append(json.loads(line))

    async def event(
        self,
        name: str,
        *,
        seconds: float = 20.0,
        where: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[str, Any]:
        """Return the first event of that name, waiting for it."""
        with trio.move_on_after(seconds):
            while True:
                found = [event for event in self.events if event.get("event") == name and where(event)]
                if found:
                    return found[0]
                await self._news.wait()
        raise AssertionError(f"no event {name} within {seconds} s; the worker said:\n{self.output[-4000:]}")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def wait(self, *, seconds: float = 30.0) -> int:
        """Wait for its end; return its exit status."""
        with trio.fail_after(seconds):
            return await self.process.wait()


def arrivals(receiver: Receiver, path: str | None = None) -> Sequence[str]:
    """Return the delivery ids that *receiver* was sent, in order, with repetitions."""
    return [request.header("webhook-id") or "" for request in receiver.requests_for(path)]
