"""What the demo prints: plain sentences, SQL, tables. Styled on a terminal only, and not with NO_COLOR.

Everything is ASCII, so that no terminal and no pipe can choke on it.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS: Final = 96
"""Where nobody tells how wide the page is."""
COLUMNS_MIN: Final = 72
COLUMNS_MAX: Final = 110
TABLE_COLUMNS_MAX: Final = 250
INDENT: Final = "   "


class Page:
    """Where the demo is told. A reader who goes away shows as `BrokenPipeError`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._is_terminal = self._stream.isatty()

    def title(self, text: str) -> None:
        """Print what all of it is about."""
        self._print(Text(text, style="bold"))

    def step(self, number: int, text: str) -> None:
        """Begin a step."""
        self._print(Text(f"\n{number}. {text}", style="bold cyan"))

    def say(self, text: str) -> None:
        """Print sentences, wrapped."""
        width = self._columns() - len(INDENT)
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        self._print(Text("\n".join(INDENT + line for line in lines)))

    def code(self, text: str) -> None:
        """Print SQL or a command as it was run, never wrapped."""
        self._print(Text(textwrap.indent(text, INDENT * 2), style="green"))

    def gap(self) -> None:
        """Print an empty line."""
        self._print(Text(""))

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print names and what there is to say of them, aligned."""
        longest = max(len(name) for name, _ in rows)
        self._print(Text("\n".join(f"{INDENT}{name:<{longest}}   {text}" for name, text in rows)))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()
    ) -> None:
        """Print a table; numbers stand right, the columns named in *left* stand left."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for column in columns:
            table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        lines = self._render(table).splitlines()
        self._write("".join(f"{INDENT}{line}".rstrip() + "\n" for line in lines))

    def summary(self, text: str, *, good: bool) -> None:
        """Print the one line that says how it ended, unwrapped, for people and for grep."""
        self._print(Text(f"\n{text}", style="bold green" if good else "bold red"))

    def _columns(self) -> int:
        if not self._is_terminal:
            return PIPE_COLUMNS
        # Never narrower than the tables, which do not wrap, and not wider than one likes to read.
        return max(COLUMNS_MIN, min(COLUMNS_MAX, Console(file=self._stream).width))

    def _print(self, text: Text) -> None:
        self._write(self._render(text))

    def _render(self, what: Text | Table) -> str:
        # Rendered apart and written by ourselves: rich ends the process by itself at a broken pipe.
        text = io.StringIO()
        console = Console(
            file=text,
            width=TABLE_COLUMNS_MAX,
            force_terminal=self._is_terminal and not os.environ.get("NO_COLOR"),
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
        )
        console.print(what, soft_wrap=isinstance(what, Text))
        return text.getvalue()

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
