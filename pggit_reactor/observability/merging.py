"""One set of metrics out of several processes'.

Counters and histograms add up. A gauge has a declared rule, because the sum of two workers' views of one
queue is a lie. What a process counted must outlive it: Prometheus takes a counter that falls for a restart
and counts the rest anew, so a `Ledger` keeps the last known counters of a process that is gone or silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

SeriesKey = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its sorted labels."""


class Merge(Enum):
    """How the values of one gauge of several processes become one."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    EXTREME = "extreme"
    """The value farthest from zero, with its sign."""


_COMBINE: Final[Mapping[Merge, Callable[[float, float], float]]] = MappingProxyType(
    {
        Merge.SUM: lambda one, other: one + other,
        Merge.MAX: max,
        Merge.MIN: min,
        Merge.EXTREME: lambda one, other: max(one, other, key=abs),
    }
)

GAUGE_MERGE: Final[Mapping[str, Merge]] = MappingProxyType(
    {
        "webhook_queue_depth": Merge.MAX,  # each worker counts the same queue
        "worker_health_status": Merge.MAX,  # distinct by its label worker_id
        "pggit_reactor_attempts_in_flight": Merge.SUM,
        "pggit_reactor_body_bytes_in_memory": Merge.SUM,
        "pggit_reactor_settle_backlog": Merge.SUM,
        "pggit_reactor_queue_depth": Merge.MAX,
        "pggit_reactor_queue_oldest_age_seconds": Merge.MAX,
        "pggit_reactor_notify_lag_seconds": Merge.MAX,
        "pggit_reactor_clock_skew_seconds": Merge.EXTREME,
        "pggit_reactor_notification_queue_usage_ratio": Merge.MAX,
        "pggit_reactor_webhooks_paused_unopenable": Merge.MAX,
        "pggit_reactor_webhook_secrets_old": Merge.MAX,
        "pggit_reactor_egress_relaxations": Merge.MAX,
        "pggit_reactor_unknown_webhook_rows": Merge.MAX,
        "pggit_reactor_webhook_breakers": Merge.MAX,
        "pggit_reactor_build_info": Merge.MAX,
        "process_virtual_memory_bytes": Merge.SUM,
        "process_resident_memory_bytes": Merge.SUM,
        "process_open_fds": Merge.SUM,
        "process_max_fds": Merge.MIN,
        "process_start_time_seconds": Merge.MIN,
    }
)

_ADDING_TYPES: Final = frozenset({"counter", "histogram", "summary"})


def families_without_created(families: Iterable[Metric]) -> Iterator[Metric]:
    """Yield *families* without ``_created`` samples: a series for each one, which no query reads."""
    for family in families:
        if family.type in _ADDING_TYPES:
            kept = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield _family(family, kept)
        elif not family.name.endswith("_created"):  # what the text format makes of them
            yield family


class Ledger:
    """What one process after another counted under one name, so that its counters never fall."""

    def __init__(self) -> None:
        self._last: tuple[Metric, ...] = ()
        self._ended: list[Metric] = []

    def heard(self, families: Iterable[Metric]) -> None:
        """Remember what the running process just answered."""
        self._last = tuple(families)

    def ended(self) -> None:
        """The process is gone; its successor counts from zero."""
        self._ended = merge([self._ended, _adding(self._last)])
        self._last = ()

    def families(self, *, answering: bool) -> list[Metric]:
        """Return counters of all processes, and gauges of the running one where it is *answering* now."""
        return merge([self._ended, self._last if answering else _adding(self._last)])


class Families(Collector):
    """Families that are already there, as a collector."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        return self._families


def merge(sources: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Return the families of all *sources* as one set, in order of first appearance; inputs stay whole."""
    shapes: dict[str, Metric] = {}
    series: dict[str, dict[SeriesKey, float]] = {}
    for families in sources:
        for family in families:
            shapes.setdefault(family.name, family)
            _add(series.setdefault(family.name, {}), family)
    return [_family(shape, _samples(series[name])) for name, shape in shapes.items()]


def _add(series: dict[SeriesKey, float], family: Metric) -> None:
    rule = Merge.SUM if family.type in _ADDING_TYPES else GAUGE_MERGE.get(family.name, Merge.MAX)
    combine = _COMBINE[rule]
    for sample in family.samples:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        series[key] = combine(series[key], sample.value) if key in series else sample.value


def _samples(series: Mapping[SeriesKey, float]) -> list[Sample]:
    return [Sample(name, dict(labels), value) for (name, labels), value in series.items()]


def _adding(families: Iterable[Metric]) -> Iterator[Metric]:
    return (family for family in families if family.type in _ADDING_TYPES)


def _family(shape: Metric, samples: list[Sample]) -> Metric:
    family = Metric(shape.name, shape.documentation, shape.type)
    family.samples = samples
    return family
