"""Token buckets in the claim statement: they are those of the core, and exact under workers that claim side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

import attrs
import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pggit_reactor.core.token_bucket import TOLERANCE, Bucket, debt_at_new_rate
from pggit_reactor.db.claims import LIMITED_CLAIM, LIMITS, PLAIN_CLAIM
from pggit_reactor.db.hot import HotStatement, integers, texts
from pggit_reactor.db.lane import CLAIM_OPTIONS
from pggit_reactor.db.statements import statements
from pggit_reactor.testing.database import DatabaseTemplate

WEBHOOK = 7
ROWS = 40
LEASE_SECONDS = 30


@attrs.frozen
class Got:
    rows: int
    held_by: str | None
    ask_again_seconds: float | None


class Session:
    """A worker's claim connection, synchronous: Hypothesis runs many examples in one test."""

    def __init__(self, dsn: str) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in CLAIM_OPTIONS.items())
        self.connection = psycopg.connect(dsn, autocommit=True, options=options)
        self._raw = psycopg.RawCursor(self.connection)

    def claim(
        self,
        budget: int,
        *,
        token: int = 1,
        statement: HotStatement = LIMITED_CLAIM,
        webhook_id: int = WEBHOOK,
    ) -> Got:
        bound = {
            **LIMITS,
            "webhook_ids": integers([webhook_id]),
            "budgets": integers([budget]),
            "in_flights": integers([0]),
            "places": texts([None]),
            "lease_seconds": str(LEASE_SECONDS),
            "lease_token": str(token),
            "silence_seconds": "10",
            "instance": "a worker",
            "inline_bytes": "65536",
        }
        rows = self._raw.execute(
            statement.text, [bound[name] for name in statement.names], prepare=True
        ).fetchall()
        (about,) = (row for row in rows if row[1] is None)
        return Got(len(rows) - 1, about[4], about[18])

    def value(self, query: str, *params: object) -> object:
        row = self.connection.execute(query.encode(), params).fetchone()
        assert row is not None
        return row[0]


@pytest.fixture(scope="module")
def dsn(reactor_template: DatabaseTemplate) -> Iterator[str]:
    """A database with one webhook and some rows."""
    with (
        reactor_template.clone() as database,
        psycopg.connect(database.dsn.reveal(), autocommit=True) as admin,
    ):
        admin.execute(
            "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, concurrency)"
            " VALUES (%s, 'a', '', '', 256)",
            (WEBHOOK,),
        )
        admin.execute(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
            " SELECT n, %s, '{}' FROM generate_series(1, %s) AS n",
            (WEBHOOK, ROWS),
        )
        yield database.dsn.reveal()


@pytest.fixture(scope="module")
def session(dsn: str) -> Iterator[Session]:
    session = Session(dsn)
    with session.connection:
        yield session


def microseconds(moment: datetime, start: datetime) -> int:
    return (moment - start) // timedelta(microseconds=1)


RATES = st.one_of(
    st.floats(0.01, 10_000).map(lambda rate: float(f"{rate:.6g}")),
    st.sampled_from([0.000001, 0.1, 1.0, 3.0, 100.0, 1e6, 1e12]),
)


@given(
    rate=RATES,
    burst=st.integers(1, 60),
    ahead=st.none() | st.integers(-5_000_000, 40_000_000),
    budget=st.integers(0, ROWS + 5),
)
@example(rate=100.0, burst=20, ahead=None, budget=20)
@example(rate=100.0, burst=20, ahead=60_000_000, budget=20)
@settings(deadline=None, max_examples=300)
def test_a_claim_takes_what_the_core_says_and_leaves_what_it_says(session, rate, burst, ahead, budget):
    bucket = Bucket(rate_per_s=rate, burst=burst)
    with session.connection.transaction(force_rollback=True):
        session.connection.execute(
            "UPDATE pggit.webhook SET rate_per_s = %s, burst = %s WHERE webhook_id = %s",
            (format(rate, ".10f"), burst, WEBHOOK),
        )
        session.connection.execute(
            "UPDATE pggit.webhook_limit SET bucket_tat = now() + %s * interval '1 us' WHERE webhook_id = %s",
            (ahead, WEBHOOK),
        )
        got = session.claim(budget)
        now = session.value("SELECT now()")
        tat = session.value("SELECT bucket_tat FROM pggit.webhook_limit WHERE webhook_id = %s", WEBHOOK)

    available = bucket.available(ahead, 0)
    assert got.rows == min(budget, available, ROWS)
    if got.rows:
        assert microseconds(tat, now) == bucket.take(ahead, 0, got.rows)
    if got.rows == available:
        assert got.held_by == "tokens"
        after = bucket.take(ahead, 0, got.rows)
        if rate < 0.01:
            return  # The tolerance is of a token, which is more time there than a clock is set back.
        assert got.ask_again_seconds == pytest.approx(bucket.wait_seconds(after, 0), abs=2e-6)
    else:
        assert got.held_by is None


@given(
    rate=RATES.filter(lambda rate: rate < 1e5),
    burst=st.integers(1, 60),
    ahead=st.none() | st.integers(-5_000_000, 40_000_000),
)
@settings(deadline=None, max_examples=100)
def test_a_token_is_taken_in_place_exactly_where_the_core_has_one(session, rate, burst, ahead):
    bucket = Bucket(rate_per_s=rate, burst=burst)
    take = HotStatement.of(statements("claim")["take_token"])
    bound = {**LIMITS, "webhook_id": str(WEBHOOK)}
    with session.connection.transaction(force_rollback=True):
        session.connection.execute(
            "UPDATE pggit.webhook SET rate_per_s = %s, burst = %s WHERE webhook_id = %s",
            (format(rate, ".10f"), burst, WEBHOOK),
        )
        session.connection.execute(
            "UPDATE pggit.webhook_limit SET bucket_tat = now() + %s * interval '1 us' WHERE webhook_id = %s",
            (ahead, WEBHOOK),
        )
        taken = psycopg.RawCursor(session.connection).execute(take.text, [bound[name] for name in take.names])
        now = session.value("SELECT now()")
        tat = session.value("SELECT bucket_tat FROM pggit.webhook_limit WHERE webhook_id = %s", WEBHOOK)

    assert taken.rowcount == (1 if bucket.available(ahead, 0) else 0)
    if taken.rowcount:
        assert microseconds(tat, now) == bucket.take(ahead, 0, 1)


@given(old=RATES, new=RATES, ahead=st.integers(1, 10**9))
@example(old=1e12, new=0.000001, ahead=10**15)
@settings(deadline=None, max_examples=100)
def test_a_change_of_the_rate_keeps_the_tokens_that_are_missing(session, old, new, ahead):
    with session.connection.transaction(force_rollback=True):
        session.connection.execute("UPDATE pggit.webhook SET rate_per_s = %s", (format(old, ".10f"),))
        session.connection.execute(
            "UPDATE pggit.webhook_limit SET bucket_tat = now() + %s * interval '1 us'", (ahead,)
        )
        session.connection.execute("UPDATE pggit.webhook SET rate_per_s = %s", (format(new, ".10f"),))
        now = session.value("SELECT now()")
        tat = session.value("SELECT bucket_tat FROM pggit.webhook_limit WHERE webhook_id = %s", WEBHOOK)

    expected = debt_at_new_rate(ahead, 0, old_rate_per_s=old, new_rate_per_s=new)
    assert microseconds(tat, now) == pytest.approx(min(expected, 7000 * 86400 * 10**6), rel=1e-6, abs=2)


def limits(session: Session, **columns: object) -> None:
    for name, value in columns.items():
        table = "webhook" if name in {"rate_per_s", "burst"} else "webhook_limit"
        session.connection.execute(f"UPDATE pggit.{table} SET {name} = %s".encode(), (value,))


@pytest.fixture
def clean(session: Session) -> Iterator[Session]:
    """The rows are nobody's, and the bucket is full."""
    yield session
    session.connection.execute(
        "UPDATE pggit.alert_delivery_queue SET lease_token = NULL, lease_expires_at = NULL, leased_by = NULL"
    )
    session.connection.execute(
        "INSERT INTO pggit.webhook_limit (webhook_id) VALUES (%s) ON CONFLICT DO NOTHING", (WEBHOOK,)
    )
    limits(session, rate_per_s=100, burst=20, bucket_tat=None)


def test_a_webhook_without_a_rate_costs_no_write_and_no_lock(clean):
    limits(clean, rate_per_s=0)
    before = clean.value("SELECT ctid::text || xmax::text FROM pggit.webhook_limit")

    for statement in (PLAIN_CLAIM, LIMITED_CLAIM):
        assert clean.claim(5, statement=statement).rows == 5
    assert clean.value("SELECT ctid::text || xmax::text FROM pggit.webhook_limit") == before


def test_a_plain_claim_gets_nothing_of_a_webhook_with_limits_and_says_so(clean):
    assert clean.claim(5, statement=PLAIN_CLAIM) == Got(0, "limits", None)


def test_a_webhook_whose_limit_row_is_missing_gets_nothing(clean):
    clean.connection.execute("DELETE FROM pggit.webhook_limit")

    assert clean.claim(5) == Got(0, "missing", None)


def test_who_finds_the_limit_row_locked_is_told_at_once_and_waits_for_nothing(clean, dsn):
    other = Session(dsn)
    with other.connection, other.connection.transaction():
        other.connection.execute("SELECT FROM pggit.webhook_limit FOR NO KEY UPDATE")

        assert clean.claim(5) == Got(0, "busy", None)
    assert clean.claim(5).rows == 5


def test_times_that_somebody_wrote_there_break_no_claim(clean):
    for time in ("infinity", "-infinity", "290000-01-01", "0044-03-15 BC"):
        limits(clean, bucket_tat=time)
        clean.claim(1)

    # An impossible time is mended by the first claim, and the next token comes as from an empty bucket.
    limits(clean, bucket_tat="infinity")
    assert clean.claim(1).rows == 0
    assert clean.value("SELECT bucket_tat <= now() + interval '0.2 s' FROM pggit.webhook_limit") is True


def test_four_workers_on_one_bucket_never_exceed_it_in_any_window(clean, dsn):
    """Judged by the database's own times of the claims: a lease is as old as its claim."""
    rate, burst, workers, turns = 400, 15, 4, 120
    clean.connection.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, %s, '{}' FROM generate_series(1, 4000) AS n",
        (WEBHOOK,),
    )
    limits(clean, rate_per_s=rate, burst=burst)
    busy = []

    def work(number: int) -> None:
        session = Session(dsn)
        with session.connection:
            busy.extend(
                session.claim(50, token=1 + number * turns + turn).held_by == "busy" for turn in range(turns)
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    rows = clean.connection.execute(
        "SELECT extract(epoch FROM lease_expires_at)::float8, count(*) FROM pggit.alert_delivery_queue"
        " WHERE lease_token IS NOT NULL GROUP BY lease_token, 1 ORDER BY 1"
    ).fetchall()
    assert len(busy) == workers * turns
    assert sum(count for _, count in rows) > burst
    for first in range(len(rows)):
        total = 0
        for moment, count in rows[first:]:
            total += count
            assert total <= rate * (moment - rows[first][0]) + burst + TOLERANCE
