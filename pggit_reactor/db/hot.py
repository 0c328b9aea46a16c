"""Statements that run hundreds of times a second, without what psycopg does anew for each execution.

psycopg rewrites ``%(name)s`` to ``$1`` at every execution of a text longer than 4,096 octets, looks for the type
of each list by its elements, and prepares a statement once for each combination of types that it finds: int2[]
or int8[], text[] or a list of nothing but None. That cost more than the round trip. Here the placeholders are
rewritten once, and every parameter is text whose type the statement says (``::bigint[]``), so that there is one
prepared statement and one plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Self

import attrs
from psycopg import AsyncRawCursor
from psycopg.rows import TupleRow

from pggit_reactor.db.connection import TrioConnection, TrioCursor

_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s|%)")


class _RawTrioCursor(TrioCursor, AsyncRawCursor[TupleRow]):
    """A `TrioCursor` that takes the server's own placeholders."""


@attrs.frozen(kw_only=True)
class HotStatement:
    """A statement of ``db/sql`` in the server's own form. It runs prepared, so not through a pooler."""

    text: bytes
    names: tuple[str, ...]
    """What ``$1``, ``$2`` and so on stand for."""

    @classmethod
    def of(cls, sql: str) -> Self:
        """Rewrite a statement whose parameters are written ``%(name)s``."""
        numbers: dict[str, int] = {}

        def rewrite(match: re.Match[str]) -> str:
            if match[1] is None:
                return "%"
            return f"${numbers.setdefault(match[1], len(numbers) + 1)}"

        text = _PLACEHOLDER.sub(rewrite, sql).encode()
        return cls(text=text, names=tuple(numbers))

    async def fetch(self, connection: TrioConnection, parameters: Mapping[str, str]) -> list[TupleRow]:
        """Execute it and return its rows. *parameters* are in PostgreSQL's text form, by name."""
        cursor = _RawTrioCursor(connection)
        await cursor.execute(self.text, [parameters[name] for name in self.names], prepare=True)
        return await cursor.fetchall()


def integers(values: Iterable[int | None]) -> str:
    """Return an array of integers as PostgreSQL reads it."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def floats(values: Iterable[float | None]) -> str:
    """Return an array of floating-point numbers as PostgreSQL reads it."""
    return "{" + ",".join(["NULL" if value is None else repr(value) for value in values]) + "}"


def booleans(values: Iterable[bool]) -> str:
    """Return an array of booleans as PostgreSQL reads it."""
    return "{" + ",".join(["t" if value else "f" for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """Return an array of texts as PostgreSQL reads it. All are quoted, so none is taken for NULL or for a comma."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
