"""A few seconds for each fuzz target: all seeds and past findings, then what Hypothesis makes of them.

`./dev fuzz TARGET` goes on for as long as one likes (fuzz/__main__.py).
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.corpus import seeds
from fuzz.mutations import mutated
from fuzz.targets import TARGETS

EXAMPLES_MAX = 400


@pytest.mark.parametrize(("target", "name"), [(target, name) for target in TARGETS for name in seeds(target)])
def test_each_seed_and_past_finding_passes(target, name):
    TARGETS[target](seeds(target)[name])


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_seeds_pass(target):
    mutants = st.builds(mutated, st.just(tuple(seeds(target).values())), st.randoms(use_true_random=False))

    @settings(max_examples=EXAMPLES_MAX, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(octets=st.one_of(mutants, st.binary(max_size=300)))
    def run(octets: bytes) -> None:
        TARGETS[target](octets)

    run()


def test_a_target_finds_what_is_wrong(monkeypatch):
    """A fuzz target that cannot fail tests nothing."""
    from fuzz import targets

    monkeypatch.setattr(targets, "parse_retry_after", lambda _text, *, now: 59.0)
    monkeypatch.setattr(targets, "verify", lambda *_arguments, **_options: None)
    monkeypatch.setattr(targets, "judge_addresses", lambda _target, addresses, _rules: tuple(addresses))
    for target, octets in {
        "retry_after": b"60",
        "verifier": b"\0=\0=\0v1,AAAA\0\0\0",
        "address": bytes([10, 0, 0, 1]),
    }.items():
        with pytest.raises(AssertionError):
            TARGETS[target](octets)
