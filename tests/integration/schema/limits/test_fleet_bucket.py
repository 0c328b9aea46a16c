"""The bucket of the whole fleet is that of the core; what is put back was never taken."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pggit_reactor.core.token_bucket import Bucket
from pggit_reactor.db.claims import LIMITS
from pggit_reactor.db.hot import HotStatement
from pggit_reactor.db.statements import statements
from pggit_reactor.testing.database import DatabaseTemplate

TAKE = HotStatement.of(statements("fleet")["take"])
GIVE_BACK = HotStatement.of(statements("fleet")["give_back"])
RATES = st.one_of(
    st.floats(0.01, 50_000).map(lambda rate: float(f"{rate:.6g}")), st.sampled_from([0.1, 1.0, 1000.0])
)


@pytest.fixture(scope="module")
def session(reactor_template: DatabaseTemplate) -> Iterator[psycopg.Connection]:
    with (
        reactor_template.clone() as database,
        psycopg.connect(database.dsn.reveal(), autocommit=True) as connection,
    ):
        connection.execute("SET ROLE pggit_worker")
        yield connection


def run(session, statement: HotStatement, **bound: object):
    words = {**LIMITS, **{name: str(value) for name, value in bound.items()}}
    return psycopg.RawCursor(session).execute(statement.text, [words[name] for name in statement.names])


def microseconds(session) -> int | None:
    (ahead,) = session.execute("SELECT bucket_tat - now() FROM pggit.fleet_limit").fetchone()
    return None if ahead is None else ahead // timedelta(microseconds=1)


@given(RATES, st.integers(1, 500), st.none() | st.integers(-5_000_000, 20_000_000), st.integers(1, 200))
@settings(deadline=None, max_examples=150)
def test_it_gives_what_the_core_says(session, rate, burst, ahead, wanted):
    bucket = Bucket(rate_per_s=rate, burst=burst)
    with session.transaction(force_rollback=True):
        session.execute("UPDATE pggit.fleet_limit SET bucket_tat = now() + %s * interval '1 us'", (ahead,))
        ((count, wait),) = run(session, TAKE, rate=rate, burst=burst, wanted=wanted).fetchall()
        after = microseconds(session)

    assert count == min(wanted, bucket.available(ahead, 0))
    expected = bucket.take(ahead, 0, count)
    assert after == expected
    if count == wanted:
        assert wait is None
    else:
        assert wait == pytest.approx(bucket.wait_seconds(expected, 0), abs=2e-6)


@given(RATES, st.integers(1, 500), st.integers(1, 200), st.data())
@settings(deadline=None, max_examples=100)
def test_what_is_put_back_can_be_taken_again_and_no_more(session, rate, burst, wanted, data):
    bucket = Bucket(rate_per_s=rate, burst=burst)
    with session.transaction(force_rollback=True):
        session.execute("UPDATE pggit.fleet_limit SET bucket_tat = NULL")
        ((count, _),) = run(session, TAKE, rate=rate, burst=burst, wanted=wanted).fetchall()
        back = data.draw(st.integers(0, count))
        run(session, GIVE_BACK, rate=rate, tokens=back)
        after = microseconds(session)

    assert bucket.take(None, 0, count - back) <= after <= bucket.take(None, 0, count - back) + 2


def test_a_row_that_was_lost_comes_back(session):
    with session.transaction(force_rollback=True):
        session.execute("RESET ROLE")
        session.execute("DELETE FROM pggit.fleet_limit")
        ((count, _),) = run(session, TAKE, rate=10, burst=5, wanted=8).fetchall()
        ((again, wait),) = run(session, TAKE, rate=10, burst=5, wanted=8).fetchall()

    assert (count, again) == (5, 0)
    assert wait == pytest.approx(0.1)
