"""Claims and settles of a real database, beside the breaker of the core: any order of outcomes, lost probes, rows that
are given back, Retry-After and resets. Time is moved by moving every time that is written down.

It runs in one transaction, in which the database's clock stands still: so times are compared exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pggit_reactor.core.breaker import PROBE_AGAIN_SECONDS, Breaker, Vote, open_seconds
from pggit_reactor.core.model import ClaimedDelivery, LeaseToken, State, WebhookId
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.core.secret import Secret
from pggit_reactor.db import claims, settle
from pggit_reactor.db.connect import TrioConnection, open_connection
from pggit_reactor.db.lane import HOT_OPTIONS
from pggit_reactor.testing.database import DatabaseTemplate

WEBHOOK = WebhookId(7)
CONCURRENCY = 20
LEASE_SECONDS = 30.0
HOLD_SECONDS = 40.0
ROWS = 600
TICK_SECONDS = 0.001
"""Between any two commands: what happens in a transaction of its own has a time of its own."""

OUTCOMES = st.lists(st.sampled_from(["f", "f", "f", "a", "throttled", "hold"]), min_size=1, max_size=8)
TELLS = st.sampled_from(["f", "a", "a", "throttled", "hold"])
COMMAND = st.one_of(
    st.tuples(st.just("claim"), st.integers(1, 8)),
    st.tuples(st.just("settle"), OUTCOMES),
    st.tuples(st.just("settle probe"), TELLS),
    st.tuples(st.just("release"), st.integers(1, 8)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 10.0, 31.0, 61.0, 250.0, 700.0])),
    st.tuples(st.just("reset"), st.none()),
)
# What chance alone seldom brings together.
FAILS = st.just([("claim", 8), ("settle", ["f"] * 6)])
PROBES = TELLS.map(lambda kind: [("wait", 61.0), ("claim", 8), ("settle probe", kind)])
COMMANDS = st.lists(
    st.one_of(COMMAND.map(lambda command: [command]), FAILS, PROBES), min_size=3, max_size=25
).map(lambda pieces: [command for piece in pieces for command in piece])


@attrs.define
class Model:
    """What the database is to say; times in seconds, from 0 on."""

    now: float = 0.0
    breaker: Breaker = attrs.field(factory=Breaker)
    probe_until: float | None = None
    probe_token: int | None = None
    hold_until: float | None = None
    leases: dict[int, tuple[int, float]] = attrs.field(factory=dict)
    """By row: token and end."""

    @property
    def budget(self) -> int:
        """How many rows a claim may take."""
        if (self.breaker.until or 0) > self.now or (self.hold_until or 0) > self.now:
            return 0
        if self.breaker.opened_at is not None:
            return 0 if (self.probe_until or 0) > self.now else 1
        return max(1, math.floor(CONCURRENCY * self.breaker.share(self.now) + 1e-9))

    def claimed(self, delivery_ids: Sequence[int], token: int) -> None:
        for delivery_id in delivery_ids:
            self.leases[delivery_id] = token, self.now + LEASE_SECONDS
        if delivery_ids and self.breaker.opened_at is not None:
            self.probe_until, self.probe_token = self.now + LEASE_SECONDS, token

    def settled(self, outcomes: Sequence[tuple[ClaimedDelivery, str]]) -> None:
        written = [(row, kind) for row, kind in outcomes if self.forget(row)]
        votes = "".join(kind for _, kind in written if kind in "fa")
        probes = [
            Vote(kind) if kind in "fa" else Vote.NEITHER
            for row, kind in written
            if row.is_probe and row.lease_token == self.probe_token
        ]
        probe = probes[0] if probes else None
        before = self.breaker
        if written:
            self.breaker = before.after(votes, now=self.now, probe=probe)
        if self.breaker.opened_at != before.opened_at:
            self.probe_until = self.probe_token = None
        elif probe is not None:
            self.probe_until, self.probe_token = self.now + PROBE_AGAIN_SECONDS, None
            if probe is Vote.ANSWER:
                self.probe_until = None
        if any(kind == "hold" for _, kind in written):
            self.hold_until = max(self.hold_until or 0, self.now + HOLD_SECONDS)

    def forget(self, row: ClaimedDelivery) -> bool:
        token, _ = self.leases.get(row.delivery_id, (None, 0))
        if token != row.lease_token:
            return False
        del self.leases[row.delivery_id]
        return True

    def reset(self) -> None:
        self.breaker = Breaker()
        self.probe_until = self.probe_token = self.hold_until = None


@attrs.define
class Player:
    """Plays commands to the database and to the model."""

    connection: TrioConnection
    model: Model = attrs.field(factory=Model)
    held: list[ClaimedDelivery] = attrs.field(factory=list)
    tokens: Iterator[int] = attrs.field(factory=lambda: count(1))

    async def play(self, command: str, argument) -> None:
        await self.wait(TICK_SECONDS)
        match command:
            case "claim":
                await self.claim(argument)
            case "settle":
                await self.settle(list(zip(self.held, argument, strict=False)))
            case "settle probe":
                await self.settle([(row, argument) for row in self.held if row.is_probe][-1:])
            case "release":
                await self.release(argument)
            case "wait":
                await self.wait(argument)
            case "reset":
                await self.connection.execute("SELECT pggit.reset_webhook(7)")
                self.model.reset()
        await self.compare()

    async def claim(self, budget: int) -> None:
        token = next(self.tokens)
        model = self.model
        free = ROWS - sum(end > model.now for _, end in model.leases.values())
        for plain in (True, False):
            got = await claims.claim(
                self.connection, {WEBHOOK: budget}, in_flight={}, lease_token=LeaseToken(token),
                lease_seconds=LEASE_SECONDS, silence_seconds=10, instance="a worker", plain=plain,
            )  # fmt: skip
            if got.webhooks[WEBHOOK].held_by is not claims.HeldBy.LIMITS:
                break
        assert len(got.deliveries) == min(budget, model.budget, free)
        assert all(row.is_probe == (model.breaker.opened_at is not None) for row in got.deliveries)
        model.claimed([row.delivery_id for row in got.deliveries], token)
        self.held += got.deliveries

    async def settle(self, outcomes: Sequence[tuple[ClaimedDelivery, str]]) -> None:
        batch = [
            settle.Settlement.of(
                row,
                Decision(
                    state=State.RETRYING,
                    delay_seconds=0.0,
                    webhook_hold_seconds=HOLD_SECONDS if kind == "hold" else None,
                ),
                attempted=True,
                vote=Vote(kind) if kind in "fa" else Vote.NEITHER,
                http_status={"f": 500, "a": 200}.get(kind, 429),
            )
            for row, kind in outcomes
        ]
        before = self.model.breaker
        report = await settle.settle(self.connection, batch, worker_id="a worker")
        self.model.settled(outcomes)
        self.held = [row for row in self.held if row not in [row for row, _ in outcomes]]
        after = self.model.breaker
        turned = [change.open_seconds for change in report.breakers]
        if after.opened_at == before.opened_at:
            assert turned == []
        else:
            assert turned == [None if after.opened_at is None else open_seconds(after.opens)]

    async def release(self, number: int) -> None:
        rows, self.held = self.held[:number], self.held[number:]
        await claims.release(self.connection, rows)
        for row in rows:
            if self.model.forget(row) and row.lease_token == self.model.probe_token:
                self.model.probe_until = self.model.probe_token = None

    async def wait(self, seconds: float) -> None:
        self.model.now += seconds
        for statement in (
            "UPDATE pggit.webhook_limit SET breaker_until = breaker_until - w, probe_until = probe_until - w,"
            " recovering_since = recovering_since - w, retry_after_until = retry_after_until - w",
            "UPDATE pggit.webhook_health_metrics SET breaker_window_started_at = breaker_window_started_at - w,"
            " breaker_opened_at = breaker_opened_at - w, breaker_closed_at = breaker_closed_at - w",
            "UPDATE pggit.alert_delivery_queue SET lease_expires_at = lease_expires_at - w"
            " WHERE lease_expires_at IS NOT NULL",
        ):
            await self.connection.execute(statement.replace("- w", f"- interval '{seconds} s'"))

    async def compare(self) -> None:
        model, breaker = self.model, self.model.breaker
        found = await (
            await self.connection.execute(
                "SELECT h.breaker_failures, h.breaker_window_attempts, h.breaker_window_failures, h.breaker_opens,"
                " extract(epoch FROM h.breaker_window_started_at - now())::float8,"
                " extract(epoch FROM h.breaker_opened_at - now())::float8,"
                " extract(epoch FROM h.breaker_closed_at - now())::float8, h.health_status = 'healthy'"
                " FROM pggit.webhook_health_metrics AS h"
            )
        ).fetchone()
        if found is not None:
            wanted = (
                breaker.failures, breaker.window_attempts, breaker.window_failures, breaker.opens,
                self.ago(breaker.window_started_at), self.ago(breaker.opened_at), self.ago(breaker.closed_at),
            )  # fmt: skip
            assert found[:7] == pytest.approx(wanted, abs=1e-5)
            assert not (found[7] and breaker.opened_at is not None)
        limits = await (
            await self.connection.execute(
                "SELECT extract(epoch FROM l.breaker_until - now())::float8,"
                " extract(epoch FROM l.probe_until - now())::float8, l.probe_token,"
                " extract(epoch FROM l.recovering_since - now())::float8,"
                " extract(epoch FROM l.retry_after_until - now())::float8 FROM pggit.webhook_limit AS l"
            )
        ).fetchone()
        recovering = None if breaker.opened_at is not None else breaker.closed_at
        assert limits == pytest.approx(
            (
                self.ago(breaker.until), self.ago(model.probe_until), model.probe_token, self.ago(recovering),
                self.ago(model.hold_until),
            ),
            abs=1e-5,
        )  # fmt: skip

    def ago(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self.model.now


async def play(dsn: Secret[str], commands) -> None:
    async with (
        open_connection(dsn, application_name="test", options=HOT_OPTIONS) as connection,
        connection.transaction(force_rollback=True),
    ):
        player = Player(connection)
        for command, argument in commands:
            await player.play(command, argument)


@pytest.fixture(scope="module")
def dsn(reactor_template: DatabaseTemplate) -> Iterator[Secret[str]]:
    with reactor_template.clone() as database:
        trio.run(fill, database.dsn)
        yield database.dsn


async def fill(dsn: Secret[str]) -> None:
    async with open_connection(dsn, application_name="test") as connection:
        await connection.execute(
            "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, rate_per_s, concurrency)"
            " VALUES (%s, 'a', '', '', 0, %s)",
            (WEBHOOK, CONCURRENCY),
        )
        await connection.execute(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, max_retries)"
            " SELECT n, %s, '{}', 1000000 FROM generate_series(1, %s) AS n",
            (WEBHOOK, ROWS),
        )


OPEN = [("claim", 8), ("settle", ["f"] * 6)]


@given(COMMANDS)
@settings(deadline=None, max_examples=80)
def test_claims_and_settles_do_what_the_breaker_of_the_core_says(dsn, commands):
    trio.run(play, dsn, commands)


PROBE = [("claim", 8), ("settle probe", "a")]
LATER = ("wait", 61.0)
CLAIM = ("claim", 8)
STORIES = {
    "each opening is twice as long": [
        *OPEN, LATER, CLAIM, CLAIM, ("settle probe", "f"), LATER, CLAIM, LATER, *PROBE, CLAIM, ("wait", 31.0), CLAIM,
    ],
    "a lost probe is followed by another": [
        *OPEN, LATER, CLAIM, ("wait", 31.0), CLAIM, ("settle probe", "a"), CLAIM,
    ],
    "a probe that tells nothing": [
        *OPEN, LATER, CLAIM, ("settle probe", "throttled"), CLAIM, ("wait", 10.0), CLAIM, ("settle probe", "hold"),
        ("wait", 10.0), CLAIM, ("wait", 31.0), *PROBE,
    ],
    "a probe that is given back": [*OPEN, LATER, CLAIM, ("release", 8), CLAIM, ("settle probe", "a")],
    "a probe of before a reset": [
        *OPEN, LATER, CLAIM, ("reset", None), CLAIM, ("settle", ["f"] * 8), ("settle probe", "a"), CLAIM,
    ],
    "ill again in its slow start": [
        *OPEN, LATER, *PROBE, ("wait", 10.0), CLAIM, ("settle", ["f"] * 6), LATER, CLAIM, LATER, *PROBE,
    ],
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_a_story_of_a_breaker(dsn, story):
    trio.run(play, dsn, STORIES[story])
