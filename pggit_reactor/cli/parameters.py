"""Parameters that several commands take."""

from __future__ import annotations

import re
from typing import Final

import click

_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
_BIGINT: Final = range(-(1 << 63), 1 << 63)

BIGINT: Final = click.IntRange(_BIGINT.start, _BIGINT.stop - 1)


class WebhookParameter(click.ParamType[int | str]):
    """An id or a name of a webhook; what is a number is an id."""

    name = "webhook"

    def convert(
        self, value: int | str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return an int for an id."""
        if isinstance(value, int) or not _INTEGER.fullmatch(value):
            return value
        if int(value) not in _BIGINT:
            self.fail(f"{value} is not an id: it is no bigint", param, ctx)
        return int(value)


WEBHOOK: Final = WebhookParameter()
webhook_argument = click.argument("which", metavar="ID", type=WEBHOOK)
