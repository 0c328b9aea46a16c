"""One `/metrics`, `/health` and `/ready` for all workers of a supervisor.

Each request asks every worker, at once and for at most 1 s. A worker that does not answer adds no gauge and
has `worker_health_status` 0; what it had counted stays in the sums, because a counter that falls and rises
again would be counted twice by every ``rate()``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, cast

import attrs
import trio
from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from pggit_reactor.observability.exposition import render
from pggit_reactor.observability.health import REASON_CHARS_MAX, Check, Report
from pggit_reactor.observability.merging import Families, Ledger, merge
from pggit_reactor.runtime.child import Child, describe_status
from pggit_reactor.runtime.http_wire import fetch, unix_connector

ANSWER_SECONDS_MAX: Final = 1.0
START_SECONDS_MAX: Final = 10.0
"""So long a worker may be silent after its start without `/health` failing."""
_UP_METRIC: Final = "worker_health_status"


@attrs.define(eq=False, kw_only=True)
class Member:
    """One of the workers: what stays the same over its restarts, and its process of now."""

    worker_id: str
    socket_path: Path
    child: Child | None = None
    """None while it is not running."""
    last_status: int = 0
    """Of the last process that ended."""
    ran_seconds: float = 0.0
    restarts: int = 0
    draining: bool = False
    ledger: Ledger = attrs.field(factory=Ledger)

    def ended(self, status: int, *, at: float) -> None:
        """The process of now has ended."""
        assert self.child is not None
        self.ran_seconds = at - self.child.started
        self.last_status = status
        self.child = None
        self.ledger.ended()


class FleetProbes:
    """The probes of the supervisor: those of its members, asked and made one."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._members = tuple(members)

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the sum of all members' metrics, and the supervisor's own."""
        up = await self._hear_metrics()
        sources = [member.ledger.families(answering=member in up) for member in self._members]
        families = [family for family in merge(sources) if family.name != _UP_METRIC]
        families += [_up(self._members, up), _running(self._members), _restarts(self._members)]
        return await render(Families(families), accept=accept)

    async def health(self) -> Report:
        """Return each worker's check. One that is being started (again) is in good hands: no failure."""
        answers = await self._ask("/health")
        return Report(checks={m.worker_id: _health_check(m, answers.get(m.worker_id)) for m in self._members})

    async def ready(self) -> Report:
        """Return each worker's check; all have to be ready."""
        answers = await self._ask("/ready")
        return Report(checks={m.worker_id: _ready_check(m, answers.get(m.worker_id)) for m in self._members})

    async def _hear_metrics(self) -> Mapping[Member, float]:
        """Ask all members for their metrics and remember them; return who answered, and whether it is up."""
        processes = {member.worker_id: member.child for member in self._members}
        answers = await self._ask("/metrics")
        up: dict[Member, float] = {}
        for member in self._members:
            status, body = answers.get(member.worker_id, (0, b""))
            # What a process said that has ended since belongs to nobody: its ledger is closed.
            if status == 200 and member.child is not None and member.child is processes[member.worker_id]:
                families = _parse(body)
                if families is not None:
                    member.ledger.heard(families)
                    up[member] = _up_value(families)
        return up

    async def _ask(self, path: str) -> Mapping[str, tuple[int, bytes]]:
        """Return status and body by worker id, of those that answer in time."""
        answers: dict[str, tuple[int, bytes]] = {}

        async def ask(member: Member) -> None:
            try:
                answers[member.worker_id] = await fetch(unix_connector(str(member.socket_path)), path)
            except OSError:
                return  # not there (yet), or gone in the middle: it did not answer

        with trio.move_on_after(ANSWER_SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for member in self._members:
                    if member.child is not None:
                        nursery.start_soon(ask, member)
        return answers


def _parse(body: bytes) -> list[Metric] | None:
    try:
        return list(text_string_to_metric_families(body.decode("utf-8", "replace")))
    except ValueError:
        return None


def _up_value(families: Iterable[Metric]) -> float:
    values = (sample.value for family in families if family.name == _UP_METRIC for sample in family.samples)
    return max(values, default=0)


def _health_check(member: Member, answer: tuple[int, bytes] | None) -> Check:
    if member.child is None:
        reason = f"not running since {describe_status(member.last_status)}; being started again"
        return Check(ok=True, reason=reason)
    if answer is None:
        starting = trio.current_time() - member.child.started < START_SECONDS_MAX
        return Check(ok=starting, reason="starting" if starting else "no answer")
    return _relayed_check(answer)


def _ready_check(member: Member, answer: tuple[int, bytes] | None) -> Check:
    if member.draining:
        return Check(ok=False, reason="draining")
    if member.child is None:
        return Check(ok=False, reason=f"not running since {describe_status(member.last_status)}")
    return Check(ok=False, reason="no answer") if answer is None else _relayed_check(answer)


def _relayed_check(answer: tuple[int, bytes]) -> Check:
    status, body = answer
    return Check(ok=True) if status == 200 else Check(ok=False, reason=_reasons(body))


def _reasons(body: bytes) -> str:
    """Return the reasons of a worker's failing report in one line."""
    try:
        checks = cast("dict[str, dict[str, object]]", json.loads(body)["checks"])
        failing = [f"{name}: {check['reason']}" for name, check in checks.items() if not check["ok"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "failing, without a reason"
    return "; ".join(failing)[:REASON_CHARS_MAX]


def _up(members: Iterable[Member], up: Mapping[Member, float]) -> Metric:
    family = GaugeMetricFamily(_UP_METRIC, "1 up, 0 down.", labels=["worker_id"])
    for member in members:
        family.add_metric([member.worker_id], up.get(member, 0))
    return family


def _running(members: Iterable[Member]) -> Metric:
    count = sum(member.child is not None for member in members)
    return GaugeMetricFamily("pggit_reactor_worker_processes", "Worker processes that run.", value=count)


def _restarts(members: Iterable[Member]) -> Metric:
    text = "Worker processes started again."
    family = CounterMetricFamily("pggit_reactor_worker_process_restarts", text, labels=["worker_id"])
    for member in members:
        family.add_metric([member.worker_id], member.restarts)
    return family
