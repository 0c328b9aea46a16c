"""What `/health` and `/ready` say in each state of a worker."""

from __future__ import annotations

import pytest

from pggit_reactor.observability.health import REASON_CHARS_MAX, Health


class Now:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def health(now: Now) -> Health:
    return Health(now=now)


def test_a_worker_is_ready_once_started_with_its_checks_passing(health: Health) -> None:
    health.set_check("database", ok=True)
    assert not health.ready().ok
    assert health.ready().checks["started"].reason == "still starting"

    health.mark_started()

    assert health.ready().ok


def test_a_lost_database_makes_it_unready_and_leaves_it_healthy(health: Health) -> None:
    health.mark_started()
    health.watch("claimer", within_seconds=10)
    health.set_check("database", ok=False, reason="connection refused")

    assert not health.ready().ok
    assert health.ready().checks["database"].reason == "connection refused"
    assert health.health().ok

    health.set_check("database", ok=True)

    assert health.ready().ok


def test_a_draining_worker_is_not_ready_again(health: Health) -> None:
    health.mark_started()
    health.mark_draining()
    health.set_check("database", ok=True)

    assert not health.ready().ok
    assert health.ready().checks["not_draining"].reason == "draining"
    assert health.health().ok


def test_a_check_that_is_not_required_is_shown_and_fails_nothing(health: Health) -> None:
    health.mark_started()
    health.set_check("listener", ok=False, reason="pooler; polling carries on", required=False)

    report = health.ready().as_json()
    assert report["status"] == "ok"
    assert report["checks"]["listener"] == {"ok": False, "reason": "pooler; polling carries on"}


def test_a_loop_without_progress_in_its_bound_makes_the_process_unhealthy(health: Health, now: Now) -> None:
    beat = health.watch("claimer", within_seconds=10)
    health.watch("settler", within_seconds=60)
    now.seconds += 10
    assert health.health().ok

    now.seconds += 1
    report = health.health()
    assert not report.ok
    assert report.checks["claimer"].reason == "no progress for 11 s; allowed: 10 s"
    assert report.checks["settler"].ok

    beat()

    assert health.health().ok


def test_a_loop_that_only_ever_restarts_is_found_out(health: Health, now: Now) -> None:
    for _ in range(6):
        health.watch("claimer", within_seconds=10)
        now.seconds += 2

    assert not health.health().ok


def test_a_loop_that_ended_on_purpose_is_expected_no_more(health: Health, now: Now) -> None:
    health.watch("claimer", within_seconds=10)
    health.unwatch("claimer")
    health.unwatch("never seen")
    now.seconds += 100

    assert health.health().ok
    assert health.health().checks == {}


def test_reasons_are_one_short_line_without_secrets(health: Health) -> None:
    health.set_check("database", ok=False, reason="at postgresql://u:hunter2@db/x\n" + "long " * 100)

    reason = health.ready().checks["database"].reason
    assert "hunter2" not in reason
    assert "\n" not in reason
    assert len(reason) == REASON_CHARS_MAX
