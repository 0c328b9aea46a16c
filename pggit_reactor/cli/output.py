"""How records are printed: as a table or a list for people, as JSON for programs.

Texts come from the database, where any producer may have written them: for people, whatever a terminal
could take for a command is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final

import attrs
import click

_GAP: Final = "  "
_NOTHING: Final = "-"

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object) -> None:
    """Print *value*, of attrs classes and plain values, as one JSON document."""
    click.echo(json.dumps(_plain(value), indent=2))


def print_table(rows: Sequence[Mapping[str, object]], *, when_empty: str) -> None:
    """Print *rows* under their names, in columns; *when_empty* where there is none."""
    if not rows:
        click.echo(when_empty)
        return
    lines = [[name.replace("_", " ") for name in rows[0]]]
    lines += [[text(value) for value in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo(_GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, a line each."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' ').ljust(width)}{_GAP}{text(value)}".rstrip())


def text(value: object) -> str:
    """Return *value* as a person reads it, in one line without control characters."""
    return _printable(_words(value)) or _NOTHING


def _words(value: object) -> str:
    match value:
        case None:
            words = ""
        case bool():
            words = "yes" if value else "no"
        case datetime():
            words = value.astimezone().isoformat(sep=" ", timespec="seconds")
        case float():
            words = f"{value:.15g}"
        case Mapping():
            words = ", ".join(f"{name}={inner}" for name, inner in value.items())
        case list() | tuple():
            words = ", ".join(map(str, value))
        case _:
            words = str(value)
    return words


def _printable(words: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def _plain(value: object) -> object:
    """Return *value* as JSON can hold it."""
    kind: type[Any] = type(value)
    if attrs.has(kind):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(kind)}
    match value:
        case Mapping():
            plain: object = {str(name): _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            plain = [_plain(inner) for inner in value]
        case datetime():
            plain = value.isoformat()
        case Enum():
            plain = value.value
        case _:
            plain = value
    return plain
