"""The prediction of failures: bounded, explained, calm about health, and wiser for what it saw."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.risk import (
    ALARM_AT,
    FEATURES,
    HORIZON_SECONDS,
    RUN_MAX,
    WINDOW_ATTEMPTS_MIN,
    WINDOW_SECONDS,
    RiskModel,
    WebhookFigures,
    has_become_at_risk,
)

ENDS = st.lists(
    st.tuples(st.booleans(), st.none() | st.floats(0, 20), st.floats(0, 40)), min_size=1, max_size=200
)
WALL = 1_800_000_000.0


def replay(ends, *, model: RiskModel | None = None):
    """Yield figures, the risk if there was a look, and the failures before it, after each attempt."""
    model, figures, now = model or RiskModel(), WebhookFigures(), 0.0
    past: list[tuple[float, bool]] = []
    for failed, seconds, gap in ends:
        now += gap
        past.append((now, failed))
        yield figures, model.ended(figures, failed=failed, seconds=seconds, now=now, wall=WALL + now), past


@given(ENDS)
def test_a_risk_is_a_probability_and_its_parts_are_the_figures(ends):
    for _, risk, _ in replay(ends):
        if risk is not None:
            assert 0 < risk.probability < 1
            assert tuple(risk.contributions) == FEATURES
            assert all(part >= 0 for part in risk.contributions.values())


@given(ENDS)
def test_the_plain_rule_is_five_in_a_row_or_over_half_of_twenty_in_thirty_seconds(ends):
    for figures, risk, past in replay(ends):
        run = next((number for number, (_, failed) in enumerate(reversed(past)) if not failed), len(past))
        second = past[-1][0] // 1
        window = [failed for at, failed in past if at // 1 > second - WINDOW_SECONDS]
        half = len(window) >= WINDOW_ATTEMPTS_MIN and 2 * sum(window) > len(window)
        assert figures.is_open == (run >= RUN_MAX or (past[-1][1] and half))
        assert risk is None or not figures.is_open


@given(st.lists(st.floats(0.001, 0.02), min_size=50, max_size=300))
def test_a_healthy_webhook_is_never_at_risk(latencies):
    for _, risk, _ in replay([(False, seconds, 1.0) for seconds in latencies]):
        assert risk is None or risk.probability < 0.1


def test_one_that_fades_is_at_risk_before_the_plain_rule_opens():
    draw = random.Random(1)
    healthy = [(False, 0.05, 1.0)] * 300
    fading = [(draw.random() < share / 100, 0.05 + share / 50, 1.0) for share in range(1, 100)]
    alarm = opening = None
    for number, (figures, risk, _) in enumerate(replay([*healthy, *fading])):
        if risk is not None and alarm is None and has_become_at_risk(figures, risk):
            alarm = number
        if figures.is_open and opening is None:
            opening = number

    assert alarm is not None
    assert opening is not None
    assert 300 < alarm < opening


def test_an_alarm_is_news_once_until_the_risk_is_clearly_lower():
    model, figures = RiskModel(), WebhookFigures()
    high, between, low = ((1.0, 4.0, 1.0, 0.0), (0.2, 1.6, 0.2, 0.0), (0.0, 0.0, 0.0, 0.0))
    assert model.risk(high).probability >= ALARM_AT > model.risk(between).probability

    told = [
        has_become_at_risk(figures, model.risk(values)) for values in (high, high, between, high, low, high)
    ]

    assert told == [True, False, False, False, False, True]


def test_what_came_of_it_is_learnt():
    """A slowness that is always followed by an outage comes to count for more, one that never is for less."""
    slow = (0.0, 2.0, 0.0, 0.0)
    before = RiskModel().risk(slow).probability
    learnt = {}
    for outage in (True, False):
        model = RiskModel()
        for _ in range(300):
            figures = WebhookFigures()
            figures.pending.append((0.0, slow))
            ends = [(True, 1.0, 10.0)] * RUN_MAX if outage else [(False, 1.0, HORIZON_SECONDS + 1)]
            now = 0.0
            for failed, seconds, gap in ends:
                now += gap
                model.ended(figures, failed=failed, seconds=seconds, now=now, wall=WALL)
        learnt[outage] = model.risk(slow).probability

    assert learnt[False] < before < learnt[True]


@pytest.mark.parametrize("hours_ahead", [0, 1, 23])
def test_the_hour_that_fails_each_day_counts_when_it_comes(hours_ahead):
    figures = WebhookFigures()
    for hour in range(24 * 20):
        for _ in range(60):
            figures.count(failed=hour % 24 == 3, seconds=0.05, now=hour * 3600.0, wall=hour * 3600.0)

    hour = figures.values(wall=(3 - hours_ahead) % 24 * 3600.0 + 600)[FEATURES.index("hour")]
    assert (hour > 0.5) == (hours_ahead == 0)
