"""Retry-After, over all its forms and over nonsense."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pggit_reactor.core.retry_after import RETRY_AFTER_SECONDS_MAX, parse_retry_after
from pggit_reactor.testing import strategies as our

NOVEMBER_1994 = 784_111_777.0  # The date of RFC 9110's own example.


@given(asked=st.integers(0, 10**400), zeros=st.integers(0, 3))
def test_seconds_are_taken_and_capped(asked, zeros):
    assert parse_retry_after("0" * zeros + str(asked), now=0.0) == min(asked, RETRY_AFTER_SECONDS_MAX)


def test_more_digits_than_python_would_convert_are_capped():
    assert parse_retry_after("9" * 100_000, now=0.0) == RETRY_AFTER_SECONDS_MAX


@given(pair=our.http_dates(years=(1990, 2060)), ahead=st.integers(-7200, 7200))
def test_a_date_in_each_format_is_the_time_until_then(pair, ahead):
    text, moment = pair
    now = moment.timestamp() - ahead

    assert parse_retry_after(text, now=now) == min(max(ahead, 0), RETRY_AFTER_SECONDS_MAX)


@pytest.mark.parametrize(
    "value",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", " 60\t"],
)
def test_the_examples_of_rfc_9110_are_understood(value):
    assert parse_retry_after(value, now=NOVEMBER_1994 - 60) == 60


def test_a_leap_second_is_the_second_after():
    assert parse_retry_after("Sat, 31 Dec 2016 23:59:60 GMT", now=1_483_228_790.0) == 10


@pytest.mark.parametrize(("year", "now", "wait"), [(76, 1_700_000_000.0, 0.0), (20, 4_733_510_340.0, 60.0)])
def test_two_digits_of_year_are_the_century_that_is_near(year, now, wait):
    """76 is past in 2023; 20 is 2120 for a reader on its first of January (a minute before)."""
    assert parse_retry_after(f"Monday, 01-Jan-{year} 00:00:00 GMT", now=now) == wait


@given(value=st.text(max_size=64))
def test_nonsense_is_none_and_never_an_error(value):
    assume(not value.strip(" \t").isascii() or not value.strip(" \t").isdigit())

    assert parse_retry_after(value, now=0.0) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "-1",
        "+1",
        "1.5",
        "1e3",
        "0x10",
        "१२",
        "60 s",
        "6 0",
        "tomorrow",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "sun, 06 nov 1994 08:49:37 gmt",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
    ],
)
def test_what_rfc_9110_does_not_have_is_ignored(value):
    assert parse_retry_after(value, now=NOVEMBER_1994) is None
