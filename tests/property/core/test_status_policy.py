"""A webhook's own table of statuses: total, bounded in what it changes, and read whatever somebody stored."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.model import Answer
from pggit_reactor.core.outcomes import Verdict, classify
from pggit_reactor.core.status_policy import NAMES_MAX, NO_POLICY, Meaning, StatusPolicy, parse_words
from pggit_reactor.errors import ConfigurationError
from pggit_reactor.testing import strategies as our

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def expected(answer: Answer, policy: StatusPolicy) -> Verdict:
    """The sentences of docs/receivers.md, once more, over what a webhook without a table has."""
    default, names = classify(answer), policy.table()
    own = names.get(str(answer.status))
    if own == "permanent":
        return Verdict.PERMANENT
    if default is Verdict.THROTTLED:
        return default
    if own is None and answer.status != 410 and 300 <= answer.status <= 599:
        own = names.get(f"{answer.status // 100}xx")
    return Verdict(own) if own is not None else default


@given(answer=our.answers(), policy=our.status_policies())
def test_the_table_counts_as_the_page_says(answer, policy):
    assert classify(answer, policy) is expected(answer, policy)


@given(status=st.integers(), policy=our.status_policies())
def test_no_table_makes_a_success_of_a_failure_or_the_reverse(status, policy):
    is_success = classify(Answer(status=status), policy) is Verdict.DELIVERED

    assert is_success == (200 <= status <= 299)


@given(outcome=our.attempt_failures(), policy=our.status_policies())
def test_what_has_no_status_is_none_of_a_tables_business(outcome, policy):
    assert classify(outcome, policy) is classify(outcome)


@given(policy=our.status_policies())
def test_a_table_survives_the_registry_and_the_command_line(policy):
    table = policy.table()

    assert StatusPolicy.read(json.dumps(table)) == policy
    assert not table or parse_words(f"{name}:{meaning}" for name, meaning in table.items()) == policy


@given(stored=any_json.map(json.dumps) | st.text())
def test_whatever_is_stored_is_read_and_what_cannot_be_changes_nothing(stored):
    policy = StatusPolicy.read(stored)

    if policy.complaint is not None:
        assert policy.complaint.startswith("status_policy")
        assert len(policy.complaint) < 200
        assert policy.table() == {}


@pytest.mark.parametrize(
    "stored",
    [
        "null",
        "[]",
        '"404"',
        "[" * 99_999,
        '{"404": 1}',
        '{"404": []}',
        '{"1": "permanent"}',
        '{"2xx": "transient"}',
    ],
)
def test_nonsense_has_a_complaint(stored):
    assert StatusPolicy.read(stored).complaint is not None


def test_an_empty_table_and_none_are_no_complaint():
    assert StatusPolicy.read("{}") == StatusPolicy.read(None) == NO_POLICY


def test_a_table_is_bounded():
    table = {str(300 + number): "transient" for number in range(NAMES_MAX + 1)}

    with pytest.raises(ConfigurationError, match="at most 64"):
        StatusPolicy.parse(table)


@pytest.mark.parametrize("meaning", Meaning)
def test_410_by_its_number_disables_nothing(meaning):
    assert classify(Answer(status=410), StatusPolicy.parse({"410": meaning})) == meaning
    assert classify(Answer(status=410), StatusPolicy.parse({"4xx": meaning})) is Verdict.GONE
