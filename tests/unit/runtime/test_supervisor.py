"""Restarting a failed loop: when, how often, how loudly, and what passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.errors import ConfigurationError, DatabaseError, KeyringError, SchemaTooNewError
from pggit_reactor.runtime.supervisor import (
    GOOD_RUN_SECONDS,
    RESTART_SECONDS_MAX,
    RESTART_SECONDS_MIN,
    RestartBackoff,
    supervise,
)


class TestClock:
    """A clock that always draws the same."""

    __test__ = False

    def __init__(self, drawn: float = 0.5) -> None:
        self.drawn = drawn

    def wall(self) -> float:
        return 0.0

    def draw(self) -> float:
        return self.drawn

    def random_token(self) -> int:
        return 1


class Counter:
    def __init__(self) -> None:
        self.restarts: list[str] = []

    def loop_restarted(self, loop: str) -> None:
        self.restarts.append(loop)


class Loop:
    """Plays one step a run: raise an error, or return; remembers when each run began."""

    def __init__(self, *steps: BaseException | None, each_lasts: float = 0.0) -> None:
        self.steps = list(steps)
        self.each_lasts = each_lasts
        self.began: list[float] = []

    async def run(self) -> None:
        self.began.append(trio.current_time())
        await trio.sleep(self.each_lasts)
        step = self.steps.pop(0)
        if step is not None:
            raise step


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def log() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def gaps(loop: Loop) -> list[float]:
    return [
        round(after - before - loop.each_lasts, 6)
        for before, after in zip(loop.began, loop.began[1:], strict=False)
    ]


async def test_a_loop_that_returns_has_ended_on_purpose(counter: Counter, autojump_clock: object) -> None:
    loop = Loop(None)
    await supervise("claimer", loop.run, clock=TestClock(), metrics=counter)

    assert len(loop.began) == 1
    assert counter.restarts == []


async def test_failures_in_a_row_wait_longer_up_to_the_bound(
    counter: Counter, autojump_clock: object
) -> None:
    loop = Loop(*[ValueError("bug")] * 8, None)
    await supervise("claimer", loop.run, clock=TestClock(0.5), metrics=counter)

    assert gaps(loop) == [0.15, 0.25, 0.45, 0.85, 1.65, 2.55, 2.55, 2.55]


async def test_a_good_run_forgives_the_failures_before_it(counter: Counter, autojump_clock: object) -> None:
    loop = Loop(*[ValueError("bug")] * 3, None, each_lasts=GOOD_RUN_SECONDS)
    await supervise("claimer", loop.run, clock=TestClock(0.5), metrics=counter)

    assert gaps(loop) == [0.15, 0.15, 0.15]


async def test_each_restart_is_counted_and_logged_with_its_error(
    counter: Counter, log: list[dict[str, object]], autojump_clock: object
) -> None:
    error = DatabaseError("relation is gone", sqlstate="42P01")
    loop = Loop(error, ExceptionGroup("two", [ValueError("a"), OSError("b")]), None)
    await supervise("settler", loop.run, clock=TestClock(), metrics=counter)

    assert counter.restarts == ["settler", "settler"]
    assert [(entry["event"], entry["log_level"], entry["loop"]) for entry in log] == [
        ("loop_failed", "error", "settler")
    ] * 2
    assert log[0]["exc_info"] is error
    assert [entry["failures"] for entry in log] == [1, 2]


@pytest.mark.parametrize(
    "error", [ConfigurationError("no"), KeyringError("wrong key"), SchemaTooNewError("newer")], ids=repr
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda error: error,
        lambda error: ExceptionGroup("nursery", [ValueError("beside"), error]),
        lambda error: ExceptionGroup("outer", [ExceptionGroup("inner", [error])]),
    ],
    ids=["alone", "in a group", "in a group in a group"],
)
async def test_what_another_start_would_not_cure_passes_up_alone(
    counter: Counter, error: Exception, wrap: Callable[[Exception], Exception]
) -> None:
    loop = Loop(wrap(error), None)
    with pytest.raises(type(error)) as caught:
        await supervise("claimer", loop.run, clock=TestClock(), metrics=counter)

    assert caught.value is error
    assert len(loop.began) == 1
    assert counter.restarts == []


async def test_cancellation_passes_in_the_loop_and_in_the_wait_for_a_restart(
    counter: Counter, autojump_clock: object
) -> None:
    with trio.move_on_after(10) as in_loop:
        await supervise("a", trio.sleep_forever, clock=TestClock(), metrics=counter)
    loop = Loop(ValueError("bug"), None)
    with trio.move_on_after(0.01) as in_wait:
        await supervise("b", loop.run, clock=TestClock(), metrics=counter)

    assert in_loop.cancelled_caught
    assert in_wait.cancelled_caught
    assert counter.restarts == ["b"]


async def test_an_error_beside_a_cancellation_is_logged_and_the_loop_ends(
    counter: Counter, log: list[dict[str, object]], autojump_clock: object
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("while closing")

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)

    with trio.move_on_after(1) as scope:
        await supervise("listener", run, clock=TestClock(), metrics=counter)

    assert scope.cancelled_caught
    assert [entry["event"] for entry in log] == ["loop_failed_while_stopping"]
    assert counter.restarts == []


async def test_what_is_no_exception_passes_with_its_group(counter: Counter) -> None:
    group = BaseExceptionGroup("nursery", [ValueError("beside"), KeyboardInterrupt()])
    with pytest.raises(BaseExceptionGroup) as caught:
        await supervise("claimer", Loop(group).run, clock=TestClock(), metrics=counter)

    assert [type(error) for error in caught.value.exceptions] == [KeyboardInterrupt]


async def test_a_configuration_error_beside_an_interrupt_still_passes(counter: Counter) -> None:
    group = BaseExceptionGroup("nursery", [ConfigurationError("no"), KeyboardInterrupt()])
    with pytest.raises(ConfigurationError):
        await supervise("claimer", Loop(group).run, clock=TestClock(), metrics=counter)


@given(
    runs=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1, exclude_max=True)), min_size=1, max_size=50)
)
def test_every_wait_lies_between_its_bounds(runs: list[tuple[float, float]]) -> None:
    backoff = RestartBackoff()
    for ran_seconds, draw in runs:
        delay = backoff.failed(ran_seconds=ran_seconds, draw=draw)
        assert RESTART_SECONDS_MIN <= delay <= RESTART_SECONDS_MAX
        if ran_seconds >= GOOD_RUN_SECONDS:
            assert delay <= 2 * RESTART_SECONDS_MIN


def test_a_year_of_failures_costs_no_bignum() -> None:
    backoff = RestartBackoff(failures=10**9)

    assert backoff.failed(ran_seconds=0, draw=0.999_999) <= RESTART_SECONDS_MAX
