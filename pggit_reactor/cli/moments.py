"""Times on the command line: how long, and until when."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

import click

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h|d)?")
_UNIT_SECONDS: Final = MappingProxyType({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0})
_FROM_NOW_SECONDS_MAX: Final = 366 * 86_400.0


def seconds_of(word: str) -> float | None:
    """Return the seconds that *word* means, such as ``90m`` or ``1.5h``; a bare number counts seconds.

    None for what is no duration.
    """
    match = _DURATION.fullmatch(word)
    return float(match[1]) * _UNIT_SECONDS[match[2] or "s"] if match else None


class MomentParameter(click.ParamType[float | datetime]):
    """A moment: seconds from now, whose now is the database's, or a time with its zone."""

    name = "moment"

    def convert(
        self, value: str | float | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | datetime:
        """Return seconds for a duration, an aware datetime for a time; one without a zone is of this machine's."""
        if not isinstance(value, str):
            return value
        seconds = seconds_of(value) if not value.isdecimal() else None
        if seconds is not None and 0 < seconds <= _FROM_NOW_SECONDS_MAX:
            return seconds
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value[:40]!r} is no moment; right is a time such as 2030-01-31T18:00+01:00, or 90m, 2h, 7d"
            )
        return moment.astimezone()


class PastParameter(click.ParamType[datetime]):
    """A moment that is over: so long ago, by this machine's clock, or a time with its zone."""

    name = "moment"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return an aware datetime; a time without a zone is of this machine's."""
        if not isinstance(value, str):
            return value
        seconds = seconds_of(value) if not value.isdecimal() else None
        if seconds is not None:
            return datetime.fromtimestamp(time.time() - seconds, UTC)
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            self.fail(
                f"{value[:40]!r} is no moment; right is a time such as 2026-11-24T18:00+01:00, or 2h, 7d"
            )


class AgeParameter(click.ParamType[float]):
    """How long ago something must have happened, in seconds."""

    name = "age"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds; a bare number is refused, for it says no unit."""
        if not isinstance(value, str):
            return value
        seconds = seconds_of(value) if not value.isdecimal() else None
        if seconds is None:
            self.fail(f"{value[:40]!r} is no age; right is a number with its unit, such as 30d or 12h")
        return seconds


MOMENT: Final = MomentParameter()
PAST: Final = PastParameter()
AGE: Final = AgeParameter()
