"""A click group whose commands are imported when they are run, and not when they are listed.

`--help` must answer at once, so the one-line summaries stand in a table here beside the module names; a test
compares them with what each command says of itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module

import attrs
import click


@attrs.frozen
class Lazy:
    """Where a command lives, and its summary."""

    module: str
    """Under `pggit_reactor.cli`."""
    attribute: str
    summary: str
    """The first sentence of the command's own help, without the full stop."""

    def load(self) -> click.Command:
        """Import the module and return the command."""
        command = getattr(import_module(f"pggit_reactor.cli.{self.module}"), self.attribute)
        assert isinstance(command, click.Command)
        return command


class LazyGroup(click.Group):
    """A group over a table of `Lazy` commands, which are listed in the table's order."""

    def __init__(self, *, lazy: Mapping[str, Lazy], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]  # click's own options, passed through
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the table's order."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        lazy = self.lazy.get(cmd_name)
        return None if lazy is None else lazy.load()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown name, with a guess."""
        if args[0] not in self.lazy and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}{guess(args[0], self.lazy)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in self.lazy.items()])


def guess(wrong: str, known: Mapping[str, object]) -> str:
    """Return ``; did you mean ...?`` with the closest of *known*, or an empty text."""
    close = difflib.get_close_matches(wrong.casefold(), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
