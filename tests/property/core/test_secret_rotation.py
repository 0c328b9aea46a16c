"""Secrets over time: somebody always signs, nobody signs longer than promised."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.secret_rotation import (
    SIGNING_MAX,
    Term,
    changes_at,
    ended_by_finish,
    is_old,
    next_rotation,
    plan_rotation,
    retirable,
    scheduled_grace,
    signing,
)
from pggit_reactor.errors import RotationError

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
moments = st.integers(0, 100).map(lambda days: EPOCH + timedelta(days=days))
graces = st.integers(0, 60).map(lambda days: timedelta(days=days))
positive = st.integers(1, 60).map(lambda days: timedelta(days=days))


@st.composite
def histories(draw: st.DrawFn) -> list[Term]:
    """Secrets as commands, schedules and people with SQL may leave them."""
    versions = draw(st.lists(st.integers(1, 9), max_size=5, unique=True))
    return [
        Term(version=version, not_before=draw(moments), expires_at=draw(st.none() | moments))
        for version in versions
    ]


def after(terms: list[Term], rotation, now: datetime) -> list[Term]:
    """Return the terms that a rotation leaves."""
    kept = [
        Term(
            version=term.version,
            not_before=term.not_before,
            expires_at=rotation.expiries.get(term.version, term.expires_at),
        )
        for term in terms
        if term.version not in rotation.ended
    ]
    return [*kept, Term(version=rotation.version, not_before=now)]


@given(terms=histories(), now=moments, grace=graces)
def test_a_new_secret_signs_first_and_those_before_sign_on_for_the_grace(terms, now, grace):
    try:
        rotation = plan_rotation(terms, now, grace=grace)
    except RotationError:
        assert sum(not term.has_expired(now) for term in terms) >= SIGNING_MAX
        return
    left = after(terms, rotation, now)

    before = signing(terms, now)
    assert signing(left, now) == (rotation.version, *(before if grace else ()))
    assert len(signing(left, now)) <= SIGNING_MAX
    for version in before if grace else ():
        (old,) = [term for term in terms if term.version == version]
        (term,) = [term for term in left if term.version == version]
        assert term.expires_at == min(old.expires_at or now + grace, now + grace)
    assert signing(left, now + grace) == (
        rotation.version,
        *(version for version in signing(left, now + grace) if version != rotation.version),
    )
    assert all(term.version == rotation.version or term.has_expired(now + grace) for term in left)


@given(terms=histories(), now=moments)
def test_finishing_leaves_the_newest_that_signs_alone(terms, now):
    ended = ended_by_finish(terms, now)
    left = [term for term in terms if term.version not in ended]

    assert signing(left, now) == signing(terms, now)[:1]


@given(terms=histories(), now=moments)
def test_retiring_changes_nothing_that_signs_and_leaves_no_webhook_without(terms, now):
    gone = retirable(terms, now)
    left = [term for term in terms if term.version not in gone]

    assert signing(left, now) == signing(terms, now)
    assert bool(left) == bool(terms)
    assert retirable(left, now) == ()


@given(terms=histories(), now=moments, later=moments)
def test_between_two_changes_the_same_sign(terms, now, later):
    change = changes_at(terms, now)
    if later >= now and (change is None or later < change):
        assert signing(terms, later) == signing(terms, now)
    assert change is None or change > now


@given(terms=histories(), now=moments, every=positive)
def test_a_rotation_puts_the_next_one_a_whole_period_off(terms, now, every):
    try:
        rotation = plan_rotation(terms, now, grace=scheduled_grace(timedelta(days=30), every))
    except RotationError:
        return
    left = after(terms, rotation, now)

    assert next_rotation(left, every) == now + every
    assert not is_old(left, now, reminder=every)
    assert is_old(left, now + every, reminder=every)


@given(st.data(), positive, st.integers(1, 12))
def test_a_schedule_alone_never_lets_more_than_two_sign_and_never_none(data, every, rounds):
    terms, now = [Term(version=1, not_before=EPOCH)], EPOCH
    for _ in range(rounds):
        due = next_rotation(terms, every)
        assert due is not None
        now = max(now, due) + data.draw(st.integers(0, 3)) * timedelta(days=1)
        terms = after(terms, plan_rotation(terms, now, grace=scheduled_grace(timedelta(days=30), every)), now)
        assert 1 <= len(signing(terms, now)) <= 2
        assert 1 <= len(signing(terms, now + every / 2)) <= 2


def test_without_a_secret_or_a_schedule_nothing_is_due():
    assert next_rotation([], timedelta(days=1)) is None
    assert next_rotation([Term(version=1, not_before=EPOCH)], None) is None
    assert not is_old([], EPOCH, reminder=timedelta(days=1))
    assert not is_old([Term(version=1, not_before=EPOCH)], EPOCH.replace(year=2100), reminder=timedelta(0))


def test_too_many_at_a_time_are_refused_with_the_way_out():
    terms = [Term(version=number, not_before=EPOCH) for number in range(1, SIGNING_MAX + 1)]
    with pytest.raises(RotationError, match="--finish"):
        plan_rotation(terms, EPOCH, grace=timedelta(days=1))

    assert plan_rotation(terms, EPOCH, grace=timedelta(0)).ended == (1, 2, 3, 4)
