"""Strict order under any order of events, on the real database: claims and INSERTs that are not yet committed, settles,
crashes, expired leases, replays, and people who cancel, delete, put off, or change the ordering itself.

The model knows the rows and nothing of how heads are found. What a claim brings must be exactly what it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import attrs
import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pggit_reactor.db import claims
from pggit_reactor.db.hot import integers, texts
from pggit_reactor.db.lane import CLAIM_OPTIONS
from pggit_reactor.testing.database import DatabaseTemplate

CLAIM = claims.LIMITED_CLAIM
WEBHOOK = 7
QUEUE = "pggit.alert_delivery_queue"
WORKERS, PRODUCERS = range(3), range(2)
KEYS = [None, "a", "b", "c", ""]
ORDERINGS = ["none", "webhook", "key"]
EXAMPLES = 60


@attrs.define(kw_only=True)
class Row:
    key: str | None
    is_open: bool = True
    is_due: bool = True
    token: int | None = None
    is_leased: bool = False


@attrs.define(kw_only=True)
class Pending:
    """A claim that is not committed."""

    token: int
    claimed: list[int]


class Queue(RuleBasedStateMachine):
    workers: Sequence[psycopg.Connection]
    producers: Sequence[psycopg.Connection]
    admin: psycopg.Connection

    def __init__(self) -> None:
        super().__init__()
        self.admin.execute(f"DELETE FROM {QUEUE}")
        self.admin.execute("DELETE FROM pggit.webhook")
        self.ordering = "none"
        self.rows: dict[int, Row] = {}
        self.uncommitted: dict[int, list[tuple[int, str | None]]] = {}
        self.pending: dict[int, Pending] = {}
        self.token = 0

    @initialize(ordering=st.sampled_from(ORDERINGS))
    def register(self, ordering: str) -> None:
        self.admin.execute(
            "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, ordering, concurrency, rate_per_s)"
            " VALUES (%s, 'seven', '', '', %s, 256, 0)",
            (WEBHOOK, ordering),
        )
        self.ordering = ordering

    def teardown(self) -> None:
        for connection in (*self.workers, *self.producers):
            connection.execute("ROLLBACK")

    # -- what the model says

    def order_of(self, delivery_id: int) -> object:
        """Rows of the same order are of the same object."""
        if self.ordering == "webhook":
            return "all"
        key = self.rows[delivery_id].key
        return delivery_id if self.ordering == "none" or key is None else key

    def claimable(self) -> set[int]:
        orders: dict[object, list[int]] = {}
        for delivery_id, row in sorted(self.rows.items()):
            if row.is_open:
                orders.setdefault(self.order_of(delivery_id), []).append(delivery_id)
        return {
            ids[0]
            for ids in orders.values()
            if self.rows[ids[0]].is_due and not any(self.rows[one].is_leased for one in ids)
        }

    def unlocked(self, *, is_open: bool) -> list[int]:
        """Rows that an outsider's UPDATE would not wait for."""
        locked = {one for pending in self.pending.values() for one in pending.claimed}
        return [one for one, row in self.rows.items() if row.is_open == is_open and one not in locked]

    # -- producers

    def inserted(self, connection: psycopg.Connection, key: str | None) -> int:
        (new,) = connection.execute(
            f"INSERT INTO {QUEUE} (alert_id, webhook_id, message_body, ordering_key)"
            " VALUES (1, %s, '{}', %s) RETURNING delivery_id",
            (WEBHOOK, key),
        ).fetchone()
        return new

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6))
    def insert(self, keys: list[str | None]) -> None:
        for key in keys:
            self.rows[self.inserted(self.admin, key)] = Row(key=key)

    @rule(producer=st.sampled_from(PRODUCERS), key=st.sampled_from(KEYS))
    def insert_without_commit(self, producer: int, key: str | None) -> None:
        connection = self.producers[producer]
        if producer not in self.uncommitted:
            connection.execute("BEGIN")
        self.uncommitted.setdefault(producer, []).append((self.inserted(connection, key), key))

    @precondition(lambda self: self.uncommitted)
    @rule(data=st.data(), commits=st.booleans())
    def end_insert(self, data: st.DataObject, commits: bool) -> None:
        producer = data.draw(st.sampled_from(sorted(self.uncommitted)))
        self.producers[producer].execute("COMMIT" if commits else "ROLLBACK")
        for delivery_id, key in self.uncommitted.pop(producer):
            if commits:
                self.rows[delivery_id] = Row(key=key)

    # -- workers

    def claim(self, worker: int, budget: int, place: str | None = None) -> tuple[list[int], str | None]:
        self.token += 1
        bound = {
            **claims.LIMITS,
            "webhook_ids": integers([WEBHOOK]),
            "budgets": integers([budget]),
            "in_flights": integers([0]),
            "places": texts([place]),
            "lease_seconds": "3600",
            "lease_token": str(self.token),
            "silence_seconds": "10",
            "instance": f"worker {worker}",
            "inline_bytes": "1000",
        }
        with psycopg.RawCursor(self.workers[worker]) as cursor:
            cursor.execute(CLAIM.text, [bound[name] for name in CLAIM.names], prepare=True)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        (summary,) = [row for row in rows if row[1] is None]
        return [row[1] for row in rows if row[1] is not None], summary[19]

    def lease(self, token: int, claimed: list[int]) -> None:
        for delivery_id in claimed:
            row = self.rows[delivery_id]
            row.token, row.is_leased = token, True

    @precondition(lambda self: len(self.pending) < len(WORKERS))
    @rule(data=st.data(), budget=st.integers(1, 6), commits=st.booleans())
    def claim_once(self, data: st.DataObject, budget: int, commits: bool) -> None:
        worker = data.draw(st.sampled_from([one for one in WORKERS if one not in self.pending]))
        expected = self.claimable()
        if not commits:
            self.workers[worker].execute("BEGIN")
        claimed, place = self.claim(worker, budget)

        if self.ordering == "none":
            locked = {one for pending in self.pending.values() for one in pending.claimed}
            assert set(claimed) <= expected - locked
            assert len(claimed) == min(budget, len(expected - locked))
        elif self.pending:
            assert claimed == [] or not any(pending.claimed for pending in self.pending.values())
        else:
            asked = 1 if self.ordering == "webhook" else budget
            assert set(claimed) <= expected
            assert len(claimed) == min(asked, len(expected))
            assert place is not None
        if commits:
            self.lease(self.token, claimed)
        else:
            self.pending[worker] = Pending(token=self.token, claimed=claimed)

    @precondition(lambda self: self.ordering == "key" and not self.pending)
    @rule(worker=st.sampled_from(WORKERS), budget=st.integers(1, 3))
    def claim_a_whole_lap(self, worker: int, budget: int) -> None:
        expected = self.claimable()
        lap: list[int] = []
        place: str | None = ""
        while True:
            claimed, place = self.claim(worker, budget, place)
            lap += claimed
            self.lease(self.token, claimed)
            if not place:
                break

        assert sorted(lap) == sorted(expected)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), commits=st.booleans())
    def end_claim(self, data: st.DataObject, commits: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.pending)))
        self.workers[worker].execute("COMMIT" if commits else "ROLLBACK")
        pending = self.pending.pop(worker)
        if commits:
            self.lease(pending.token, pending.claimed)

    @precondition(lambda self: any(row.token for row in self.rows.values()))
    @rule(data=st.data(), outcome=st.sampled_from(["delivered", "failed", "retry now", "retry later"]))
    def settle(self, data: st.DataObject, outcome: str) -> None:
        """By whoever claimed it last, in time or not: what is fenced is not settled."""
        able = [one for one in self.unlocked(is_open=True) if self.rows[one].token]
        if not able:
            return
        delivery_id = data.draw(st.sampled_from(able))
        row = self.rows[delivery_id]
        status = {"delivered": "delivered", "failed": "failed"}.get(outcome, "retrying")
        done = self.admin.execute(
            f"UPDATE {QUEUE} SET delivery_status = %s, next_retry_at = now() + %s::interval,"
            " attempt_count = attempt_count + 1, lease_token = NULL, lease_expires_at = NULL, leased_by = NULL"
            " WHERE delivery_id = %s AND lease_token = %s",
            (status, "1 day" if outcome == "retry later" else "0", delivery_id, row.token),
        )
        assert done.rowcount == 1
        row.token, row.is_leased = None, False
        row.is_open, row.is_due = status == "retrying", outcome != "retry later"

    @precondition(lambda self: any(row.is_leased for row in self.rows.values()))
    @rule(data=st.data())
    def lease_runs_out(self, data: st.DataObject) -> None:
        """Its worker has crashed, or was stopped for a while."""
        leased = [one for one in self.unlocked(is_open=True) if self.rows[one].is_leased]
        if not leased:
            return
        delivery_id = data.draw(st.sampled_from(leased))
        self.admin.execute(
            f"UPDATE {QUEUE} SET lease_expires_at = now() - interval '1 s' WHERE delivery_id = %s",
            (delivery_id,),
        )
        self.rows[delivery_id].is_leased = False

    # -- people

    @precondition(lambda self: self.unlocked(is_open=False))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        delivery_id = data.draw(st.sampled_from(self.unlocked(is_open=False)))
        self.admin.execute("SELECT pggit.replay_delivery(%s::bigint)", (delivery_id,))
        row = self.rows[delivery_id]
        row.is_open = row.is_due = True

    @precondition(lambda self: self.unlocked(is_open=True))
    @rule(data=st.data(), how=st.sampled_from(["cancel", "delete", "put off", "make due"]))
    def change(self, data: st.DataObject, how: str) -> None:
        delivery_id = data.draw(st.sampled_from(self.unlocked(is_open=True)))
        row = self.rows[delivery_id]
        if how == "cancel":
            self.admin.execute("SELECT pggit.cancel_delivery(%s::bigint)", (delivery_id,))
            row.is_open = False
        elif how == "delete":
            self.admin.execute(f"DELETE FROM {QUEUE} WHERE delivery_id = %s", (delivery_id,))
            del self.rows[delivery_id]
        else:
            later = "1 day" if how == "put off" else "0"
            self.admin.execute(
                f"UPDATE {QUEUE} SET next_retry_at = now() + %s::interval WHERE delivery_id = %s",
                (later, delivery_id),
            )
            row.is_due = how == "make due"
        row.token, row.is_leased = None, False  # Who held it does no more.

    @precondition(lambda self: not self.pending and not any(row.is_leased for row in self.rows.values()))
    @rule()
    def a_minute_passes(self) -> None:
        """Claims of before the last change of ordering are over."""
        self.admin.execute("UPDATE pggit.webhook SET ordering_since = ordering_since - interval '1 min'")

    @precondition(lambda self: not self.pending)
    @rule(ordering=st.sampled_from(ORDERINGS))
    def set_ordering(self, ordering: str) -> None:
        self.admin.execute(
            "UPDATE pggit.webhook SET ordering = %s WHERE webhook_id = %s", (ordering, WEBHOOK)
        )
        self.ordering = ordering


@pytest.fixture(scope="module")
def machine(reactor_template: DatabaseTemplate) -> Iterator[type[Queue]]:
    options = " ".join(f"-c {name}={value}" for name, value in CLAIM_OPTIONS.items())
    with reactor_template.clone() as database, ExitStack() as stack:

        def connected(options: str | None = None) -> psycopg.Connection:
            return stack.enter_context(
                psycopg.connect(database.dsn.reveal(), autocommit=True, options=options)
            )

        class Here(Queue):
            workers = tuple(connected(options) for _ in WORKERS)
            producers = tuple(connected() for _ in PRODUCERS)
            admin = connected()

        # The first webhook of a kind makes an index, which waits for producers.
        Here.admin.execute("SELECT pggit.prepare_ordering('webhook'), pggit.prepare_ordering('key')")
        yield Here


def test_a_claim_brings_the_heads_of_orders_of_which_nothing_is_under_way_and_nothing_else(machine):
    run_state_machine_as_test(
        machine, settings=settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
    )
