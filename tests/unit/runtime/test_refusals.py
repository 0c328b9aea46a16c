"""Which webhook a refused claim is the fault of."""

from __future__ import annotations

import pytest

from pggit_reactor.core.model import WebhookId
from pggit_reactor.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    ReadOnlyDatabaseError,
    RowLockedError,
)
from pggit_reactor.runtime.refusals import BARRED_SECONDS_MIN, Suspects, is_about_rows

ONE, TWO, THREE = WebhookId(1), WebhookId(2), WebhookId(3)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DatabaseError("out of range", sqlstate="22003"), True),
        (DatabaseError("raised by a trigger", sqlstate="P0001"), True),
        (DatabaseError("refused before it was sent"), True),
        (RowLockedError("locked", sqlstate="55P03"), True),
        (DatabaseUnavailableError("statement timeout", sqlstate="57014"), True),
        (DatabaseUnavailableError("shutting down", sqlstate="57P01"), False),
        (DatabaseUnavailableError("lost"), False),
        (ReadOnlyDatabaseError("standby", sqlstate="25006"), False),
        (DatabaseError("disk full", sqlstate="53100"), False),
        (DatabaseError("internal error", sqlstate="XX000"), False),
    ],
)
def test_only_what_is_wrong_with_rows_is_about_rows(error: DatabaseError, expected: bool) -> None:
    assert is_about_rows(error) is expected


def test_without_suspects_a_plan_is_claimed_whole() -> None:
    suspects = Suspects()

    assert suspects.narrowed({ONE: 5, TWO: 3}) == {ONE: 5, TWO: 3}
    assert suspects.barred(0.0) == frozenset()


def test_after_a_refusal_each_webhook_of_it_is_claimed_for_alone_one_row_at_a_time() -> None:
    suspects = Suspects()

    assert suspects.refused({ONE: 5, TWO: 3}, now=0.0, took_seconds=0.1) is None
    assert suspects.narrowed({THREE: 4, TWO: 3, ONE: 5}) == {TWO: 1}
    assert suspects.barred(0.0) == frozenset()


def test_a_claim_that_succeeds_clears_its_webhook() -> None:
    suspects = Suspects()
    suspects.refused({ONE: 5, TWO: 3}, now=0.0, took_seconds=0.1)
    suspects.cleared([ONE])

    assert suspects.narrowed({ONE: 5}) == {ONE: 5}
    assert suspects.narrowed({ONE: 5, TWO: 3}) == {TWO: 1}


def test_who_is_refused_alone_is_barred_for_a_while_and_stays_a_suspect() -> None:
    suspects = Suspects()

    assert suspects.refused({ONE: 1}, now=100.0, took_seconds=0.1) == (ONE, 100.0 + BARRED_SECONDS_MIN)
    assert suspects.barred(100.0) == {ONE}
    assert suspects.barred(100.0 + BARRED_SECONDS_MIN) == frozenset()
    assert suspects.narrowed({TWO: 2, ONE: 5}) == {ONE: 1}


def test_who_took_long_to_be_refused_is_barred_for_longer() -> None:
    assert Suspects().refused({ONE: 1}, now=0.0, took_seconds=10.0) == (ONE, 100.0)


def test_one_webhook_with_many_rows_is_tried_with_one_row_before_it_is_guilty() -> None:
    suspects = Suspects()

    assert suspects.refused({ONE: 5}, now=0.0, took_seconds=0.1) is None
    assert suspects.narrowed({ONE: 5}) == {ONE: 1}
