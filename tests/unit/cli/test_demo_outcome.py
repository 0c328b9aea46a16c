from __future__ import annotations

import attrs
import pytest

from pggit_reactor.cli.demonstration.story import Outcome

GOOD = Outcome(alerts=10, arrived=10, again=3, same_id=True, bad_signatures=0, delivered=10, median_ms=1.94)


def test_a_good_outcome_says_so_in_one_line():
    assert GOOD.good
    assert GOOD.line(6.04) == (
        "demo: ok alerts=10 arrived=10 lost=0 twice=3 same_id=yes bad_signatures=0 median_ms=1.9 seconds=6.0"
    )


@pytest.mark.parametrize(
    "flaw",
    [{"arrived": 9}, {"again": 2}, {"same_id": False}, {"bad_signatures": 1}, {"delivered": 9}],
    ids=lambda flaw: next(iter(flaw)),
)
def test_any_flaw_makes_it_a_failure(flaw):
    outcome = attrs.evolve(GOOD, **flaw)

    assert not outcome.good
    assert outcome.line(1.0).startswith("demo: failed ")
