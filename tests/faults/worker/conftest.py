"""The rig, with the question that every fault ends in: what was written, how often, and do all tables agree?"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.embedded import EmbeddedPostgres, open_embedded_postgres
from pggit_reactor.db.lane import Lane
from pggit_reactor.db.webhooks import secret_place
from pggit_reactor.observability.logs import configure_logging
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.database import QUICK_SETTINGS, ReactorDatabase, open_database
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.rig import MASTER_KEY, SIGNING_SECRET, Rig, RunningWorker, WorkerProcess, arrivals

DISAGREEMENTS = """
WITH logged AS (
    SELECT q.delivery_id, q.webhook_id, q.delivery_status, q.attempt_count, q.lease_token,
           count(g.log_id) AS events, count(g.log_id) FILTER (WHERE g.event_type = 'delivered') AS deliveries
    FROM pggit.alert_delivery_queue AS q LEFT JOIN pggit.alert_delivery_log AS g USING (delivery_id)
    GROUP BY q.delivery_id
)
SELECT 'row ' || l.delivery_id || ': ' || l.delivery_status || ', ' || l.attempt_count || ' attempts, '
       || l.events || ' log rows, ' || l.deliveries || ' delivered'
       || CASE WHEN l.lease_token IS NULL THEN '' ELSE ', leased' END
FROM logged AS l
WHERE l.lease_token IS NOT NULL OR l.attempt_count <> l.events
   OR l.deliveries <> (l.delivery_status = 'delivered')::integer
UNION ALL
SELECT 'webhook ' || h.webhook_id || ': health counts ' || h.total_deliveries || ' attempts, the log ' || g.events
FROM pggit.webhook_health_metrics AS h
JOIN (SELECT webhook_id, count(*) AS events FROM pggit.alert_delivery_log GROUP BY 1) AS g USING (webhook_id)
WHERE h.total_deliveries <> g.events OR h.total_deliveries <> h.successful_deliveries + h.failed_deliveries
UNION ALL
SELECT 'audit of ' || l.delivery_id FROM logged AS l
WHERE l.events <> (SELECT count(*) FROM pggit.webhook_audit_log AS a
                   WHERE a.delivery_id = l.delivery_id AND a.operation IN ('delivered', 'failed', 'retried'))
"""


@attrs.define(eq=False, kw_only=True)
class FaultRig(Rig):
    """The rig with what fault tests ask again and again."""

    async def assert_books_agree(self) -> None:
        """Queue, log, audit and health tell one story: each outcome was written once, and no lease is left.

        For rows whose every end was an attempt.
        """
        assert await self.database.fetch(DISAGREEMENTS) == []

    async def assert_each_arrived(self, *, at_least: bool = False) -> None:
        """Every delivery of the queue reached the receiver, and no oftener than its attempts that are on record.

        So a row without retries arrived once. *at_least*: attempts may have ended with their worker, unrecorded.
        """
        attempts = dict(
            await self.database.fetch(
                "SELECT pggit.delivery_uid(delivery_id, uid_salt)::text, attempt_count"
                " FROM pggit.alert_delivery_queue"
            )
        )
        counts = Counter(arrivals(self.receiver))
        assert set(counts) == set(attempts)
        if not at_least:
            assert {uid: count for uid, count in counts.items() if count > attempts[uid]} == {}

    def sealed_secret(self, webhook_id: int) -> bytes:
        """Return the rig's signing secret as the registry keeps it."""
        sealer = Sealer(Keyring.parse(Secret(MASTER_KEY)))
        return sealer.seal(SIGNING_SECRET.encode(), place=secret_place(webhook_id, 1))

    async def seal_check(self) -> None:
        """Record the check value of the rig's key, as `key new` or the first registration does."""
        keyring = Keyring.parse(Secret(MASTER_KEY))
        await self.database.execute(
            "INSERT INTO pggit.key_check (key_id, check_value) VALUES (%s, %s)",
            (keyring.active_id, keyring.check_value(keyring.active_id)),
        )

    async def change_lane(self, running: RunningWorker, name: str, **changes: object) -> Lane:
        """Let one of the worker's connections be another from its next use on; return its lane."""
        (lane,) = [lane for lane in running.worker._lanes if lane.name == name]
        async with lane.use():  # So that nobody is in the middle of connecting the old way.
            for attribute, value in changes.items():
                setattr(lane, attribute, value)
        lane.close()
        return lane

    def host_and_port(self) -> tuple[str, int]:
        """Where the database's server listens."""
        _, _, place = self.database.dsn.reveal().rpartition("@")
        host, _, port = place.partition("/")[0].partition(":")
        return host, int(port)

    def dsn_through(self, *ways: Any) -> Secret[str]:
        """Return the DSN by way of proxies or other servers, each with a host and a port."""
        host, port = self.host_and_port()
        places = ",".join(f"{way.host}:{way.port}" for way in ways)
        return Secret(self.database.dsn.reveal().replace(f"{host}:{port}", places))

    def process_environ(self, **settings: object) -> dict[str, str]:
        """Return the whole environment of a process; empty values are left out."""
        environ = {**os.environ, **self.environ(**settings), "SSL_CERT_FILE": str(self.receiver.ca_file)}
        return {name: value for name, value in environ.items() if value}

    @asynccontextmanager
    async def starting_process(
        self, *arguments: str, folder: Path | None = None, **settings: object
    ) -> AsyncIterator[WorkerProcess]:
        """As `process`, without waiting until the worker works: it may never. *folder* may hold another version."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "pggit_reactor", "worker", *arguments],
            env=self.process_environ(**settings),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        running = WorkerProcess(process=process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.read_events)
            try:
                yield running
            finally:
                with trio.CancelScope(shield=True):
                    running.kill()
                    await process.wait()
                nursery.cancel_scope.cancel()

    async def terminate(self, connection: str) -> None:
        """End a worker's connection of that name in the server, as soon as there is one."""
        await self.until(
            "SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE %s",
            f"pggit-reactor {connection} %",
        )

    async def leases(self) -> int:
        """Count the rows that are claimed."""
        return await self.database.fetch_value(
            "SELECT count(*) FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL"
        )

    async def until_true(self, condition: Callable[[], object], *, seconds: float = 20.0) -> None:
        """Return once *condition* holds: a state in this process that nobody announces."""
        with trio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110  # see the docstring
                await trio.sleep(0.01)


class Lines:
    """What workers in this process log; pytest shows it where a test fails."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.dropped = 0

    def write_line(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        self.events.append(json.loads(line))

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the events of that name."""
        return [event for event in self.events if event["event"] == name]


@pytest.fixture(autouse=True)
def lines() -> Iterator[Lines]:
    """Log as the product does, at its most talkative."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sink = Lines()
    configure_logging(level="debug", log_format="json", sink=sink)
    yield sink
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
async def rig(reactor_database: ReactorDatabase) -> AsyncIterator[FaultRig]:
    async with open_receiver() as receiver:
        yield FaultRig(database=reactor_database, receiver=receiver)


@pytest.fixture
async def own_server() -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL that the test may crash."""
    async with open_embedded_postgres(settings=QUICK_SETTINGS) as server:
        yield server


@pytest.fixture
async def own_rig(own_server: EmbeddedPostgres) -> AsyncIterator[FaultRig]:
    """A rig on `own_server`."""
    async with open_database(own_server) as database, open_receiver() as receiver:
        yield FaultRig(database=database, receiver=receiver)
