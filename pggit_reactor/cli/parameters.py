"""Parameters that several commands take."""

from __future__ import annotations

import re
from typing import Final

import click

_INTEGER: Final = re.compile(r"-?[0-9]{1,40}")
_BIGINT: Final = range(-(1 << 63), 1 << 63)


class BigintParameter(click.ParamType[int]):
    """A number that PostgreSQL's bigint holds."""

    name = "bigint"

    def convert(self, value: int | str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        number = value if isinstance(value, int) else int(value) if _INTEGER.fullmatch(value) else None
        if number is None or number not in _BIGINT:
            self.fail(f"{value!r} is not an id: it is no bigint", param, ctx)
        return number


class WebhookParameter(click.ParamType[int | str]):
    """An id or a name of a webhook; what is a number is an id."""

    name = "webhook"

    def convert(
        self, value: int | str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return an int for an id."""
        if isinstance(value, str) and not _INTEGER.fullmatch(value):
            return value
        return BIGINT.convert(value, param, ctx)


BIGINT: Final = BigintParameter()
WEBHOOK: Final = WebhookParameter()
webhook_argument = click.argument("which", metavar="ID", type=WEBHOOK)
