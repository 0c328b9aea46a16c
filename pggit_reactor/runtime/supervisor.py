"""Restarts what fails, with backoff, counted and aloud.

One policy for a loop inside a worker (`supervise`) and for a worker process (`processes.py`). Here, and
nowhere else, an unexpected `Exception` is caught whole: a bug in one loop must not stop the others, and must
not be silent either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Never, Protocol

import attrs
import trio

from pggit_reactor.errors import ConfigurationError, SchemaTooNewError
from pggit_reactor.observability.logs import Logger, get_logger
from pggit_reactor.runtime.clock import Clock

RESTART_SECONDS_MIN: Final = 0.1
RESTART_SECONDS_MAX: Final = 5.0
GOOD_RUN_SECONDS: Final = 30.0
"""A run of this length forgives all failures before it."""

_INCURABLE = (ConfigurationError, SchemaTooNewError)
"""Another start would fail the same way: these end the process, with their own exit status."""

_log = get_logger("supervisor")


class RestartCounter(Protocol):
    """Where restarts are counted; `Metrics` is one."""

    def loop_restarted(self, loop: str) -> None:
        """Count one restart of *loop*."""


@attrs.define(eq=False)
class RestartBackoff:
    """Full jitter between 0.1 s and a ceiling that doubles with each failure in a row, up to 5 s."""

    failures: int = 0

    def failed(self, *, ran_seconds: float, draw: float) -> float:
        """Record a failure after a run of *ran_seconds*; return the seconds to wait before the next start."""
        assert 0 <= draw < 1
        self.failures = 1 if ran_seconds >= GOOD_RUN_SECONDS else self.failures + 1
        # The shift is bounded so that a loop which fails for a year costs no bignum.
        ceiling = min(RESTART_SECONDS_MAX, RESTART_SECONDS_MIN * (1 << min(self.failures, 16)))
        return RESTART_SECONDS_MIN + draw * (ceiling - RESTART_SECONDS_MIN)


async def supervise(
    name: str,
    run: Callable[[], Awaitable[None]],
    *,
    clock: Clock,
    metrics: RestartCounter,
    log: Logger = _log,
) -> None:
    """Run *run* until it returns; start it again after each unexpected error.

    `ConfigurationError` and `SchemaTooNewError` pass up, alone even where they came in a group, because
    another start would not cure them. Cancellation passes, and takes errors that came beside it into the log:
    they are the end of a loop that was being stopped anyway.
    """
    backoff = RestartBackoff()
    while True:
        started = trio.current_time()
        try:
            await run()
        except Exception as error:  # the one place; see the top
            _pass_incurable(error)
            delay = backoff.failed(ran_seconds=trio.current_time() - started, draw=clock.draw())
            metrics.loop_restarted(name)
            log.exception(
                "loop_failed",
                loop=name,
                failures=backoff.failures,
                restart_in_seconds=round(delay, 3),
                exc_info=error,
            )
            await trio.sleep(delay)
        except BaseExceptionGroup as group:
            _pass_cancelled(group, name=name, log=log)
        else:
            return


def _pass_incurable(error: Exception) -> None:
    if isinstance(error, _INCURABLE):
        raise error
    if isinstance(error, ExceptionGroup):
        incurable = _first_leaf(error, _INCURABLE)
        if incurable is not None:
            raise incurable from error


def _pass_cancelled(group: BaseExceptionGroup[BaseException], *, name: str, log: Logger) -> Never:
    """Raise what must pass of a group that is more than ordinary exceptions; log the rest."""
    ordinary, rest = group.split(Exception)
    assert rest is not None  # a group of Exceptions alone is an ExceptionGroup, which the clause above took
    if ordinary is not None:
        _pass_incurable(ordinary)
        log.error("loop_failed_while_stopping", loop=name, exc_info=ordinary)
    raise rest


def _first_leaf(group: ExceptionGroup[Exception], kinds: tuple[type[Exception], ...]) -> Exception | None:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            leaf = _first_leaf(error, kinds)
            if leaf is not None:
                return leaf
        elif isinstance(error, kinds):
            return error
    return None
