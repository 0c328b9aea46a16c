"""Metrics of several processes made one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from pggit_reactor.observability.merging import Ledger, families_without_created, merge


def counter(value: float, label: str = "a") -> Metric:
    family = CounterMetricFamily("hits", "", labels=["who"])
    family.add_metric([label], value)
    return family


def gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(name, "", value=value)


def values(families: list[Metric]) -> dict[str, float]:
    return {s.name + "".join(s.labels.values()): s.value for family in families for s in family.samples}


def test_counters_add_up_by_label() -> None:
    merged = merge([[counter(1), counter(5, "b")], [counter(2)]])

    assert values(merged) == {"hits_totala": 3, "hits_totalb": 5}


def test_each_gauge_follows_its_rule() -> None:
    def merged(name: str, *numbers: float) -> float:
        return values(merge([[gauge(name, number)] for number in numbers]))[name]

    assert merged("pggit_reactor_attempts_in_flight", 3, 4) == 7
    assert merged("webhook_queue_depth", 10, 12) == 12
    assert merged("process_max_fds", 1024, 512) == 512
    assert merged("pggit_reactor_clock_skew_seconds", 0.5, -3.0, 1.0) == -3.0
    assert merged("of_a_newer_version", 1, 2) == 2


def test_merging_leaves_its_sources_as_they_were() -> None:
    one, other = counter(1), counter(2)
    merge([[one], [other]])

    assert (one.samples[0].value, other.samples[0].value) == (1, 2)


def test_what_the_text_format_makes_of_created_series_is_left_out_too() -> None:
    families = [counter(1), gauge("hits_created", 1e9), gauge("level", 1)]

    assert [family.name for family in families_without_created(families)] == ["hits", "level"]


@given(
    st.lists(
        st.one_of(st.floats(0, 1e6).map(lambda grown: ("grow", grown)), st.sampled_from([("end", 0.0)])),
        max_size=30,
    )
)
def test_the_counters_of_a_ledger_never_fall(steps: list[tuple[str, float]]) -> None:
    ledger, count, shown = Ledger(), 0.0, 0.0
    for step, grown in steps:
        if step == "end":
            ledger.ended()
            count = 0.0
        else:
            count += grown
            ledger.heard([counter(count), gauge("level", 1)])
        for answering in (True, False):
            now = values(ledger.families(answering=answering)).get("hits_totala", 0.0)
            assert now >= shown - 1e-6
            shown = now


def test_a_silent_process_keeps_its_counters_and_loses_its_gauges() -> None:
    ledger = Ledger()
    ledger.heard([counter(4), gauge("level", 1)])

    assert values(ledger.families(answering=True)) == {"hits_totala": 4, "level": 1}
    assert values(ledger.families(answering=False)) == {"hits_totala": 4}


def test_counters_of_a_successor_add_to_those_of_the_process_that_ended() -> None:
    ledger = Ledger()
    ledger.heard([counter(4)])
    ledger.ended()
    ledger.heard([counter(1)])

    assert values(ledger.families(answering=True)) == {"hits_totala": 5}
