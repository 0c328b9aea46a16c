"""What `/health` and `/ready` say: named checks, each with a reason.

`/health` asks whether the process lives: each watched loop made progress within its bound. A database that is
down does not make it fail, since a restart would not cure it. `/ready` asks whether the process does its
work: it has started, its required checks pass and it is not draining.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs
import trio

from pggit_reactor.observability.redaction import mask_text

REASON_CHARS_MAX: Final = 200


@attrs.frozen(kw_only=True)
class Check:
    """One named condition, as a probe reports it."""

    ok: bool
    reason: str = ""
    """For people, one line; empty where all is well."""
    required: bool = True
    """A check that is not required is shown, and does not make the report fail."""


@attrs.frozen(kw_only=True)
class Report:
    """The answer of a probe."""

    checks: Mapping[str, Check]

    @property
    def ok(self) -> bool:
        """Whether every required check passes."""
        return all(check.ok for check in self.checks.values() if check.required)

    def as_json(self) -> dict[str, object]:
        """Return the shape of DESIGN 8: ``{"status": ..., "checks": {NAME: {"ok", "reason"}}}``."""
        return {
            "status": "ok" if self.ok else "failing",
            "checks": {name: {"ok": check.ok, "reason": check.reason} for name, check in self.checks.items()},
        }


class LoopWatch:
    """Proof of life of one loop: call it at each turn, and while waiting on purpose (a reconnect, a poll)."""

    __slots__ = ("_now", "_seen", "within_seconds")

    def __init__(self, *, within_seconds: float, now: Callable[[], float]) -> None:
        assert within_seconds > 0
        self.within_seconds = within_seconds
        self._now = now
        self._seen = now()

    def __call__(self) -> None:
        """Say that the loop made progress now."""
        self._seen = self._now()

    def check(self) -> Check:
        """Judge the time since the last progress."""
        silent = self._now() - self._seen
        if silent <= self.within_seconds:
            return Check(ok=True)
        return Check(ok=False, reason=f"no progress for {silent:.0f} s; allowed: {self.within_seconds:g} s")


class Health:
    """The state of one process, written by its loops and read by its probes. Not for use between threads."""

    def __init__(self, *, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._started = False
        self._draining = False
        self._watches: dict[str, LoopWatch] = {}
        self._checks: dict[str, Check] = {}

    def mark_started(self) -> None:
        """The process has done all that it does once; from here `/ready` may say yes."""
        self._started = True

    def mark_draining(self) -> None:
        """The process takes no new work, for good."""
        self._draining = True

    def watch(self, loop: str, *, within_seconds: float) -> LoopWatch:
        """Expect progress of *loop* at least each *within_seconds*, from now; call the result at each turn.

        Watching a name again (the loop was restarted) returns the same watch, so that a loop which only ever
        restarts is found out.
        """
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches[loop] = LoopWatch(within_seconds=within_seconds, now=self._now)
        return watch

    def unwatch(self, loop: str) -> None:
        """Expect nothing of *loop* any more: it has ended on purpose."""
        self._watches.pop(loop, None)

    def set_check(self, name: str, *, ok: bool, reason: str = "", required: bool = True) -> None:
        """Set a check of `/ready`, such as ``database`` or, not required, ``listener``."""
        line = " ".join(mask_text(reason).split())[:REASON_CHARS_MAX]
        self._checks[name] = Check(ok=ok, reason=line, required=required)

    def health(self) -> Report:
        """Return what `/health` says now."""
        return Report(checks={name: watch.check() for name, watch in self._watches.items()})

    def ready(self) -> Report:
        """Return what `/ready` says now."""
        started = Check(ok=self._started, reason="" if self._started else "still starting")
        draining = Check(ok=not self._draining, reason="draining" if self._draining else "")
        return Report(checks={"started": started, "not_draining": draining, **self._checks})
