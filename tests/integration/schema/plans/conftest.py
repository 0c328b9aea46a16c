"""Filled queues, and the plans of the product's own statements on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, LiteralString

import attrs
import psycopg
import pytest

from pggit_reactor.db import claims, settle
from pggit_reactor.db.hot import HotStatement
from pggit_reactor.db.lane import CLAIM_OPTIONS, HOT_OPTIONS, SIDE_OPTIONS
from pggit_reactor.db.statements import statements
from pggit_reactor.testing.database import DatabaseTemplate, ReactorDatabase

QUEUE: Final = "alert_delivery_queue"
DEAD, RETRYING, IDLE = 1, 2, 3
"""Webhooks: one whose every row is ready, one whose every row but one is a far retry, and one of a row or two."""
LANES: Final[Mapping[str, Mapping[str, str]]] = {
    "claim": CLAIM_OPTIONS,
    "settle": HOT_OPTIONS,
    "side": SIDE_OPTIONS,
}


@attrs.frozen(kw_only=True)
class Plan:
    """What EXPLAIN (ANALYZE, BUFFERS) told."""

    root: Mapping[str, Any] = attrs.field(repr=False)
    execution_ms: float
    text: str = attrs.field(repr=False)

    @property
    def nodes(self) -> list[Mapping[str, Any]]:
        """All nodes, CTEs and subplans too."""
        return list(_walk(self.root))

    def reads(self, relation: str = QUEUE) -> set[str]:
        """How *relation* is read: the names of its indexes, and the types of scans that use none."""
        return {
            node.get("Index Name", node["Node Type"])
            for node in self.nodes
            if node.get("Relation Name") == relation and node["Node Type"] != "ModifyTable"
        } | {
            node["Index Name"]
            for node in self.nodes
            if node["Node Type"] == "Bitmap Index Scan" and relation in node["Index Name"]
        }

    @property
    def buffers(self) -> int:
        """Pages that were touched: by what leads to the rows, and by writes that nothing reads from."""
        unread = (node for node in self.nodes if node["Node Type"] == "ModifyTable" and node is not self.root)
        return max(
            _touched(self.root), sum(_touched(node) for node in (self.root, *unread) if node is not None)
        )

    def rows_removed(self) -> float:
        """Rows that were read of the queue and then thrown away."""
        return sum(
            node.get("Rows Removed by Filter", 0) * node["Actual Loops"]
            for node in self.nodes
            if node.get("Relation Name") == QUEUE
        )


def _walk(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def _touched(node: Mapping[str, Any]) -> int:
    return int(node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0))


class Explainer:
    """Explains named statements on sessions that have the settings of a worker's lanes."""

    def __init__(self, database: ReactorDatabase) -> None:
        self._dsn = database.dsn.reveal()
        self._sessions: dict[str, psycopg.Connection] = {}

    def session(self, lane: str) -> psycopg.Connection:
        """Return the session of *lane*, in autocommit."""
        if lane not in self._sessions:
            options = " ".join(f"-c {name}={value}" for name, value in LANES[lane].items())
            self._sessions[lane] = psycopg.connect(self._dsn, autocommit=True, options=options)
        return self._sessions[lane]

    def explain(self, lane: str, subject: str, name: str, **bound: object) -> Plan:
        """Run the statement as prepared and return its plan; what it wrote is rolled back."""
        return self.explain_hot(lane, f"{subject}_{name}", HotStatement.of(statements(subject)[name]), bound)

    def explain_hot(
        self, lane: str, prepared: str, statement: HotStatement, bound: Mapping[str, object]
    ) -> Plan:
        """The same, of a statement that is put together of several."""
        session = self.session(lane)
        values = ", ".join(_literal(bound[parameter]) for parameter in statement.names)
        with session.transaction(force_rollback=True):
            session.execute(f"PREPARE {prepared} AS {statement.text.decode()}".encode())
            call = f"{prepared} ({values})" if values else prepared
            row = session.execute(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {call}".encode()
            ).fetchone()
            session.execute(f"DEALLOCATE {prepared}".encode())
        assert row is not None
        return Plan(
            root=row[0][0]["Plan"],
            execution_ms=row[0][0]["Execution Time"],
            text=json.dumps(row[0], indent=1),
        )

    def claim(self, budgets: Mapping[int, int], *, plain: bool = True) -> Plan:
        """Explain a claim."""
        bound = {
            **claims.LIMITS,
            "webhook_ids": list(budgets),
            "budgets": list(budgets.values()),
            "in_flights": [0] * len(budgets),
            "places": [None] * len(budgets),
            "lease_seconds": 30,
            "lease_token": 42,
            "silence_seconds": 10,
            "instance": "a worker",
            "inline_bytes": 65536,
        }
        statement = claims.PLAIN_CLAIM if plain else claims.LIMITED_CLAIM
        return self.explain_hot("claim", "claim", statement, bound)

    def settle(self, token: int, delivery_ids: list[int], *, answers: bool = True) -> Plan:
        """Explain a settle that says: delivered; or, where these are not *answers* alone, failed by timeout."""
        every = {
            "statuses": "delivered" if answers else "retrying",
            "delay_seconds": None if answers else 30,
            "retry_steps": 0,
            "crash_steps": 0,
            "attempts": True,
            "http_statuses": 200 if answers else 0,
            "elapsed_ms": 20.0,
            "errors": None,
            "excerpts": None,
            "failed_reasons": None,
            "uids": "00000000-0000-8000-8000-000000000000",
            "disables": False,
            "votes": "a" if answers else "f",
            "probes": False,
            "hold_seconds": None,
        }
        many = {name: [value] * len(delivery_ids) for name, value in every.items()}
        bound = {
            "delivery_ids": delivery_ids,
            "lease_tokens": [token] * len(delivery_ids),
            "worker_id": "a worker",
            **many,
        }
        statement = settle.ANSWERS_SETTLE if answers else settle.ANY_SETTLE
        return self.explain_hot("settle", "settle", statement, bound)

    def close(self) -> None:
        """Close all sessions."""
        for session in self._sessions.values():
            session.close()


def _literal(value: object) -> str:
    if isinstance(value, list):
        words = ("NULL" if item is None else str(item) for item in value)
        return f"'{{{','.join(words)}}}'"
    return "NULL" if value is None else f"'{value}'"


def fill(explainer: Explainer, *, webhooks: int, ready: int, far: int, delivered: int) -> None:
    """Register *webhooks*, and queue *ready* rows of DEAD, *far* retries of RETRYING, two fresh rows of others."""
    session = explainer.session("side")
    session.execute("SET statement_timeout = 0")
    session.execute("SET session_replication_role = replica")  # no trigger: nobody listens
    session.execute("ALTER TABLE pggit.alert_delivery_queue SET (autovacuum_enabled = off)")
    session.execute(
        "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, rate_per_s)"
        " SELECT n, 'webhook ' || n, decode(repeat('00', 120), 'hex'), 'https://receiver.test', 0"
        " FROM generate_series(1, %s) AS n",
        (webhooks,),
    )
    session.execute("INSERT INTO pggit.webhook_limit (webhook_id) SELECT webhook_id FROM pggit.webhook")
    insert: LiteralString = (
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, delivery_status, next_retry_at,"
        " created_at) SELECT n, %s, jsonb_build_object('alert', n), %s, now() + %s::interval, now() - interval '1 min'"
        " FROM generate_series(1, %s) AS n"
    )
    session.execute(insert, (IDLE, "delivered", None, delivered))
    session.execute(insert, (DEAD, "pending", None, ready))
    session.execute(insert, (RETRYING, "retrying", "1 day", far))
    for webhook_id in (RETRYING, IDLE):
        session.execute(insert, (webhook_id, "pending", None, 1))
    session.execute("SET session_replication_role = origin")


@pytest.fixture(scope="session")
def filler() -> Callable[..., None]:
    return fill


@pytest.fixture(scope="module")
def open_explainer(reactor_template: DatabaseTemplate) -> Iterator[Callable[[], Explainer]]:
    """Makes an `Explainer` with a database of its own, which lives as long as the module's tests."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def opened() -> Explainer:
            explainer = Explainer(stack.enter_context(reactor_template.clone()))
            stack.callback(explainer.close)
            return explainer

        yield opened
