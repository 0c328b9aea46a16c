"""The Retry-After field (RFC 9110, 10.2.3): seconds, or a date in one of HTTP's three formats (5.6.7)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

RETRY_AFTER_SECONDS_MAX: Final = 3600.0

# More digits than any number of seconds that we would not cap; int() of a longer text costs time or raises.
_SECONDS_DIGITS_MAX: Final = 9

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = f"(?P<month>{'|'.join(_MONTHS)})"
_DAY: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY: Final = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_CLOCK: Final = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        f"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_CLOCK} GMT",
        f"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_CLOCK} GMT",
        f"{_DAY} {_MONTH} (?P<day>[0-9 ][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})",
    )
)
_SECONDS: Final = re.compile("[0-9]+")


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Return the wait that *value* asks for, in seconds up to `RETRY_AFTER_SECONDS_MAX`; None for nonsense.

    *now* is Unix time. A date that has passed is a wait of 0.
    """
    if value is None:
        return None
    text = value.strip(" \t")
    if _SECONDS.fullmatch(text):
        digits = text.lstrip("0")
        seconds = float(digits or "0") if len(digits) <= _SECONDS_DIGITS_MAX else RETRY_AFTER_SECONDS_MAX
        return min(seconds, RETRY_AFTER_SECONDS_MAX)
    date = _http_date(text, now=now)
    return None if date is None else min(max(date - now, 0.0), RETRY_AFTER_SECONDS_MAX)


def _http_date(text: str, *, now: float) -> float | None:
    """Return *text* as Unix time. A wrong name of the day is forgiven: what it would add is in the date."""
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            break
    else:
        return None
    second = int(match["second"])
    year = int(match["year"])
    try:
        # A leap second is grammatical (second = 60), and Python's datetime has none.
        date = datetime(
            _whole_year(year, now=now) if len(match["year"]) == 2 else year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            min(second, 59) if second <= 60 else second,
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return date.timestamp() + (1 if second == 60 else 0)


def _whole_year(year: int, *, now: float) -> int:
    """Return the year that two digits mean: the one that is at most 50 years ahead, or less behind."""
    this_year = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=now)).year
    first = this_year - 49
    return first + (year - first) % 100
