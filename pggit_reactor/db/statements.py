"""Loads the named statements of ``db/sql/*.sql``.

SQL is written, read, formatted and explained as SQL; Python binds its parameters (``%(name)s``) and types its rows.
A file holds one subject. Each statement begins with ``-- name: NAME`` and ends at the next one.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import LiteralString

_HEAD = re.compile(r"^-- name: ([a-z][a-z0-9_]*)\s*$", re.MULTILINE)
_MARK = re.compile(r"/\* [a-z_]+ \*/")


@cache
def statements(subject: str) -> MappingProxyType[str, LiteralString]:
    """Return the statements of ``db/sql/SUBJECT.sql`` by name, without comments and the closing semicolon.

    Raises `FileNotFoundError` for an unknown subject and `ValueError` for a file that names a statement twice.
    """
    text = files("pggit_reactor.db").joinpath("sql", f"{subject}.sql").read_text("utf-8")
    _, *pieces = _HEAD.split(text)
    named = list(zip(pieces[::2], pieces[1::2], strict=True))
    found = {name: _bare(body) for name, body in named}
    if len(found) != len(named):
        raise ValueError(f"db/sql/{subject}.sql names a statement twice")
    return MappingProxyType(found)


def filled(template: LiteralString, **parts: LiteralString) -> LiteralString:
    """Return *template* with each mark ``/* name */`` replaced by the part of that name, and by nothing where there is
    none: a statement that comes in several forms.

    Raises `ValueError` for a part without a place.
    """
    for name, part in parts.items():
        mark = f"/* {name} */"
        if mark not in template:
            raise ValueError(f"the statement has no place for {name}")
        template = template.replace(mark, part)
    return _MARK.sub("", template)


def _bare(body: str) -> LiteralString:
    # The files are ours and shipped with the package, which is what LiteralString asks for.
    lines = (line for line in body.splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(lines).strip().removesuffix(";")
