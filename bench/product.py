"""The product, as it is run: a worker process with its default settings, on a schema that `migrate` made.

Nothing is switched off: sealed registrations, judged addresses, signatures of both families, log, audit and
health rows, metrics. Rate limits are not set (rate 0), as for every contender.
"""

from __future__ import annotations

import base64
import secrets
import subprocess
from typing import Final

import psycopg
import trio

from bench import processes, receiver
from bench.contender import ENDPOINTS, Stage
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret
from pggit_reactor.db.connect import TrioConnection, open_connection
from pggit_reactor.db.migrate import migrate
from pggit_reactor.db.webhooks import secret_place, url_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer

DATABASE: Final = "bench_product"
BACKLOG_ENDPOINTS: Final = 4
RESTING_ID: Final = ENDPOINTS + 1
"""A webhook that is paused: its rows wake the worker, which then finds that it may not send them."""
HANGING_ID: Final = ENDPOINTS + 2
DEAD_ID: Final = ENDPOINTS + 3
"""Its URL names a port that nobody listens on."""
OUTAGE_ID: Final = ENDPOINTS + 4
OUTAGE_ATTEMPTS_MAX: Final = 1000
"""An outage is longer than four attempts last."""
_NOBODY: Final = "https://localhost:1/dead"
_READY: Final = "worker_started"

_COLUMNS: Final = "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
_BODY: Final = "jsonb_build_object('n', {n}, 'severity', 'high', 'message', repeat('x', 150))"


class Product:
    """See the module."""

    name = "product"
    insert_one = f"{_COLUMNS} VALUES ($1::bigint, $2::int + 1, {_BODY.format(n='$1::bigint')})"
    insert_many = f"""{_COLUMNS} SELECT n, n % {ENDPOINTS} + 1, {_BODY.format(n="n")}
        FROM generate_series($1::bigint, $2::bigint) AS n"""
    insert_backlog = f"""{_COLUMNS} SELECT n, n %% {BACKLOG_ENDPOINTS} + 1, {_BODY.format(n="0")}
        FROM generate_series(1, %s) AS n"""
    insert_resting = f"{_COLUMNS} VALUES ($1::bigint, $2::int + {RESTING_ID}, {_BODY.format(n='$1::bigint')})"
    resting = f"SELECT count(*) FROM pggit.alert_delivery_queue WHERE webhook_id = {RESTING_ID}"
    waiting = f"""
        SELECT count(*) FROM pggit.alert_delivery_queue WHERE ready_at IS NOT NULL AND webhook_id <= {ENDPOINTS}"""
    insert_half_hanging = f"""{_COLUMNS}
        SELECT n, CASE WHEN n % 2 = 1 THEN {HANGING_ID} ELSE n / 2 % {ENDPOINTS} + 1 END, {_BODY.format(n="n")}
        FROM generate_series($1::bigint, $2::bigint) AS n"""
    insert_dead = f"{_COLUMNS} SELECT n, {DEAD_ID}, {_BODY.format(n='0')} FROM generate_series(1, %s) AS n"
    insert_outage = f"""{_COLUMNS} SELECT n, {OUTAGE_ID}, {_BODY.format(n="n")}
        FROM generate_series($1::bigint, $2::bigint) AS n"""
    clear = "TRUNCATE pggit.alert_delivery_queue CASCADE"
    trigger_off = "ALTER TABLE pggit.alert_delivery_queue DISABLE TRIGGER queue_after_insert"
    trigger_on = "ALTER TABLE pggit.alert_delivery_queue ENABLE TRIGGER queue_after_insert"
    gate_open = """
        SELECT coalesce(pg_sequence_last_value('pggit.reactor_gate'::regclass), 0)
            > extract(epoch FROM clock_timestamp()) * 1000"""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._dsn = Secret("")
        self._master_key = "bench:base64:" + base64.b64encode(secrets.token_bytes(32)).decode()

    def prepare(self, stage: Stage) -> None:
        """Make and migrate the database, and register the endpoints and one webhook that is paused."""
        self._dsn = stage.server.dsn_for(DATABASE)
        with psycopg.connect(stage.server.dsn.reveal(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        trio.run(self._fill, stage)

    async def _fill(self, stage: Stage) -> None:
        async with open_connection(self._dsn, application_name="bench") as connection:
            await migrate(connection)
            for number in range(ENDPOINTS):
                await self._register(connection, number + 1, stage.receiver.url(number))
            await self._register(connection, RESTING_ID, stage.receiver.url(RESTING_ID), state="paused")
            await self._register(connection, HANGING_ID, stage.receiver.url(receiver.HANGING_PATH))
            await self._register(connection, DEAD_ID, _NOBODY)
            outage = stage.receiver.url(receiver.OUTAGE_PATH)
            await self._register(connection, OUTAGE_ID, outage, max_attempts=OUTAGE_ATTEMPTS_MAX)

    async def _register(
        self,
        connection: TrioConnection,
        webhook_id: int,
        url: str,
        *,
        state: str = "active",
        max_attempts: int | None = None,
    ) -> None:
        sealer = Sealer(Keyring.parse(Secret(self._master_key)))
        await connection.execute(
            "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, state, rate_per_s, max_attempts)"
            " VALUES (%s, %s, %s, 'https://localhost', %s, 0, %s)",
            (
                webhook_id,
                f"endpoint {webhook_id}",
                sealer.seal(url.encode(), place=url_place(webhook_id)),
                state,
                max_attempts,
            ),
        )
        secret = new_secret(secrets.token_bytes(32)).encode()
        await connection.execute(
            "INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret) VALUES (%s, 1, %s)",
            (webhook_id, sealer.seal(secret, place=secret_place(webhook_id, 1))),
        )

    def dsn(self) -> str:
        """Return where the producer connects."""
        return self._dsn.reveal()

    def start(self, stage: Stage) -> subprocess.Popen[bytes]:
        """Start a worker, as an operator would."""
        settings = {
            "DATABASE_URL": self._dsn.reveal(),
            "MASTER_KEY": self._master_key,
            "EGRESS_UNSAFE_ALLOW": "127.0.0.0/8:*,[::1]:*",
            "METRICS_PORT": "0",
            "LOG_FORMAT": "json",
        }
        return processes.start(
            processes.python("pggit_reactor", "worker", *self._arguments),
            log=stage.folder / "product.log",
            ready=_READY,
            environ=stage.environ(**{f"PGGIT_REACTOR_{name}": value for name, value in settings.items()}),
        )
