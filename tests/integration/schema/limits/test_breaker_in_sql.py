"""The circuit breaker in SQL is that of the core: alone, in settles, and in what old workers call."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pggit_reactor.core.breaker import (
    FAILURES_IN_A_ROW,
    PROBE_AGAIN_SECONDS,
    Breaker,
    Vote,
    open_seconds,
)
from pggit_reactor.testing.database import DatabaseTemplate

COLUMNS = (
    "failures", "window_started_at", "window_attempts", "window_failures", "opened_at", "opens", "closed_at",
)  # fmt: skip
AGES = st.none() | st.integers(-40_000_000, 700_000_000)
"""Microseconds ago; some times lie ahead, as after a clock that was set back."""


@pytest.fixture(scope="module")
def session(reactor_template: DatabaseTemplate) -> Iterator[psycopg.Connection]:
    with (
        reactor_template.clone() as database,
        psycopg.connect(database.dsn.reveal(), autocommit=True, options="-c TimeZone=UTC") as connection,
    ):
        yield connection


EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


def seconds(moment: datetime | None) -> float | None:
    """Return whole microseconds as a number of the core's: close enough to now that no float is too coarse."""
    return None if moment is None else (moment - EPOCH) / timedelta(microseconds=1) / 1e6


@st.composite
def breakers(draw) -> dict[str, int | None]:
    """Any breaker, possible or not: outsiders write these columns too. Times as microseconds before now."""
    attempts = draw(st.integers(0, 60))
    return {
        "failures": draw(st.integers(0, 9)),
        "window_started_at": draw(AGES),
        "window_attempts": attempts,
        "window_failures": draw(st.integers(0, attempts)),
        "opened_at": draw(AGES),
        "opens": draw(st.integers(0, 12)),
        "closed_at": draw(AGES),
    }


@given(breakers(), st.text("fa", max_size=40), st.sampled_from([None, *Vote]))
@example(
    {"failures": 4, "window_started_at": 30_000_000, "window_attempts": 19, "window_failures": 10, "opened_at": None,
     "opens": 1, "closed_at": 30_000_000}, "f", None,
)  # fmt: skip
@example(
    {"failures": 7, "window_started_at": 0, "window_attempts": 0, "window_failures": 0, "opened_at": None,
     "opens": 0, "closed_at": None}, "af", None,
)  # fmt: skip
@settings(deadline=None, max_examples=400)
def test_sql_and_core_say_the_same_of_any_breaker_and_any_batch(session, breaker, votes, probe):
    ages = {name: value if name.endswith("_at") else None for name, value in breaker.items()}
    columns = ", ".join(
        f"now() - %({name})s * interval '1 us'" if name.endswith("_at") else f"%({name})s::integer"
        for name in COLUMNS
    )
    with session.transaction():
        now, *found = session.execute(
            f"SELECT now(), b.* FROM pggit.breaker_after({columns}, %(votes)s, %(probe)s) AS b".encode(),
            {**breaker, "votes": votes, "probe": probe},
        ).fetchone()

    at = seconds(now)
    given_breaker = Breaker(
        **{
            name: value if not name.endswith("_at") else None if ages[name] is None else at - ages[name] / 1e6
            for name, value in breaker.items()
        }
    )
    expected = given_breaker.after(votes, now=at, probe=probe)
    for name, value in zip(COLUMNS, found, strict=True):
        wanted = getattr(expected, name)
        if name.endswith("_at") and wanted is not None:
            assert seconds(value) == pytest.approx(wanted, abs=1e-5)
        else:
            assert value == wanted, name


@given(st.integers(-3, 2**31 - 1))
@settings(deadline=None, max_examples=50)
def test_sql_and_core_open_a_breaker_for_as_long(session, opens):
    (found,) = session.execute(
        "SELECT extract(epoch FROM pggit.breaker_open_interval(%s))::float8", (opens,)
    ).fetchone()

    assert found == open_seconds(max(opens, 1))


# -- what old workers and operators do


@pytest.fixture
def webhook(session) -> Iterator[int]:
    """A registered webhook without a history."""
    with session.transaction(force_rollback=True):
        session.execute(
            "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin) VALUES (7, 'a', '', '')"
        )
        yield 7


def attempt(session, *statuses: int | None) -> None:
    for status in statuses:
        session.execute("SELECT pggit.update_webhook_health(7, %s, 20)", (status,))


def limit(session, column: str):
    return session.execute(
        f"SELECT {column} FROM pggit.webhook_limit WHERE webhook_id = 7".encode()
    ).fetchone()[0]


def health(session, column: str):
    return session.execute(
        f"SELECT {column} FROM pggit.webhook_health_metrics WHERE webhook_id = 7".encode()
    ).fetchone()[0]


def operations(session) -> list[str]:
    rows = session.execute(
        "SELECT operation FROM pggit.webhook_audit_log WHERE webhook_id = 7 ORDER BY audit_id"
    ).fetchall()
    return [row[0] for row in rows]


IS_OPEN = "coalesce(breaker_until > now(), false)"


@pytest.mark.parametrize("status", [0, None, 500, 503, 599])
def test_old_workers_open_it_by_five_failures_in_a_row(session, webhook, status):
    attempt(session, *[status] * (FAILURES_IN_A_ROW - 1))
    assert limit(session, IS_OPEN) is False
    attempt(session, status)

    assert limit(session, "breaker_until = now() + interval '60 s'") is True
    assert health(session, "health_status") == "degraded"
    assert operations(session) == ["breaker_opened"]


@pytest.mark.parametrize("status", [200, 204, 400, 404, 410])
def test_an_answer_that_an_old_worker_got_ends_the_row(session, webhook, status):
    attempt(session, 500, 500, 500, 500, status, 500, 500, 500, 500)

    assert limit(session, IS_OPEN) is False


@pytest.mark.parametrize("status", [408, 425, 429])
def test_what_says_nothing_about_health_neither_counts_nor_ends_the_row(session, webhook, status):
    attempt(session, 500, 500, 500, 500, status)
    assert limit(session, IS_OPEN) is False
    attempt(session, 500)

    assert limit(session, IS_OPEN) is True


def test_an_old_workers_success_closes_it_into_a_slow_start(session, webhook):
    attempt(session, *[500] * 5, 200)

    assert limit(session, "breaker_until IS NULL AND recovering_since = now()") is True
    assert health(session, "health_status") == "healthy"
    assert operations(session) == ["breaker_opened", "breaker_closed"]


def test_while_it_is_open_old_workers_failures_change_nothing(session, webhook):
    attempt(session, *[500] * 5)
    before = limit(session, "webhook_limit::text")
    attempt(session, *[0] * 30)

    assert limit(session, "webhook_limit::text") == before
    assert health(session, "consecutive_failures") == 35
    assert operations(session) == ["breaker_opened"]


def test_old_workers_open_none_for_an_id_that_nothing_registered(session):
    with session.transaction(force_rollback=True):
        attempt(session, *[500] * 6)

        assert session.execute("SELECT count(*) FROM pggit.webhook_limit").fetchone() == (0,)
        assert health(session, "breaker_opened_at IS NOT NULL") is True
        # Registered later, it begins with a probe.
        session.execute(
            "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin) VALUES (7, 'a', '', '')"
        )
        assert limit(session, "breaker_until = now()") is True


def test_the_legacy_update_that_resets_a_webhook_closes_its_breaker_without_a_slow_start(session, webhook):
    attempt(session, *[500] * 5)
    session.execute("UPDATE pggit.webhook_limit SET probe_until = now() + interval '4 s', probe_token = 1")
    session.execute(
        "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = 'healthy',"
        " last_check_at = now() WHERE health_status <> 'healthy'"
    )

    assert limit(session, "num_nulls(breaker_until, probe_until, probe_token, recovering_since)") == 4
    assert health(session, "breaker_failures + breaker_opens + breaker_window_attempts") == 0
    assert health(session, "num_nulls(breaker_opened_at, breaker_closed_at, breaker_window_started_at)") == 3
    assert operations(session) == ["breaker_opened", "breaker_closed"]


def test_the_legacy_update_ends_a_slow_start(session, webhook):
    attempt(session, *[500] * 5, 200, 500)
    assert limit(session, "recovering_since IS NOT NULL") is True
    session.execute(
        "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = 'healthy'"
    )

    assert limit(session, "recovering_since IS NULL") is True


def test_a_limit_row_that_was_lost_comes_back_with_its_breaker(session, webhook):
    attempt(session, *[500] * 5)
    session.execute("DELETE FROM pggit.webhook_limit")
    session.execute("UPDATE pggit.webhook SET labels = '{}'")

    assert limit(session, "breaker_until = now()") is True


def test_reset_webhook_closes_ends_what_holds_and_says_what_it_was(session, webhook):
    attempt(session, *[500] * 5)
    session.execute("UPDATE pggit.webhook_limit SET retry_after_until = now() + interval '1 h'")
    (said,) = session.execute("SELECT pggit.reset_webhook(7, 'they mended it')").fetchone()

    assert said.startswith("webhook 7 (a) is reset: its breaker was open until ")
    assert ", its receiver had asked to wait until " in said
    assert limit(session, "blocked_until IS NULL AND recovering_since IS NULL") is True
    assert health(session, "(consecutive_failures, breaker_failures, breaker_opens, health_status)") == (
        "0",
        "0",
        "0",
        "healthy",
    )
    assert operations(session) == ["breaker_opened", "breaker_closed", "webhook_reset"]
    (details,) = session.execute(
        "SELECT details FROM pggit.webhook_audit_log WHERE operation = 'webhook_reset'"
    ).fetchone()
    assert details["reason"] == "they mended it"


def test_reset_webhook_of_one_that_nothing_held_says_so(session, webhook):
    (said,) = session.execute("SELECT pggit.reset_webhook(7)").fetchone()

    assert said == "webhook 7 (a) is reset: nothing had held it back; it is sent to at once, at its full pace"


def test_a_probe_that_told_nothing_leaves_a_pause(session, webhook):
    attempt(session, *[500] * 5)
    session.execute("SELECT pggit.change_limit(7, 'a worker', p_probe_over => true)")

    pause = limit(session, "extract(epoch FROM probe_until - now())::float8")
    assert (pause, limit(session, "probe_token IS NULL")) == (PROBE_AGAIN_SECONDS, True)
