"""Cuts a script of SQL into its statements, so that an error can name the line of the one that failed.

The rules are those of psql: a semicolon ends a statement unless it stands in a string, a quoted name, a
comment, a dollar quote, parentheses, or the ``BEGIN ATOMIC ... END`` body of a function. There are no
meta-commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import attrs

_TOKEN: Final = re.compile(
    r"""
      --[^\n]*                                  # comment to the end of the line
    | (?P<block>/\*)                            # block comment, nested
    | [eE]'(?:[^'\\]|\\.|'')*'                  # string with backslashes
    | '(?:[^']|'')*'                            # string
    | "(?:[^"]|"")*"                            # quoted name
    | (?P<tag>\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
    | [0-9]+                                    # so that the letters of 1e5 are no word
    | (?P<mark>[();])
    | \s+
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_EDGE: Final = re.compile(r"/\*|\*/")
_ROUTINE: Final = re.compile(r"CREATE (OR REPLACE )?(FUNCTION|PROCEDURE)\b")
_OPENING_WORDS_MAX: Final = 4


@attrs.frozen(kw_only=True)
class Statement:
    """One statement and the line (from 1) on which its first word stands."""

    text: str
    line: int


@attrs.define
class _State:
    """Where in a statement the reader is."""

    start: int | None = None
    parentheses: int = 0
    bodies: int = 0
    words: list[str] = attrs.Factory(list)

    def read_word(self, word: str) -> None:
        if len(self.words) < _OPENING_WORDS_MAX:
            self.words.append(word)
        if not _ROUTINE.match(" ".join(self.words)):
            return
        if word == "BEGIN" or (word == "CASE" and self.bodies):
            self.bodies += 1
        elif word == "END" and self.bodies:
            self.bodies -= 1

    def read_mark(self, mark: str) -> bool:
        """Return whether *mark* ends the statement."""
        if mark == "(":
            self.parentheses += 1
        elif mark == ")":
            self.parentheses = max(0, self.parentheses - 1)
        return mark == ";" and not self.parentheses and not self.bodies


def split_statements(script: str) -> tuple[Statement, ...]:
    """Return the statements of *script* in order; comments between them are left out."""
    return tuple(_statements(script))


def _statements(script: str) -> Iterator[Statement]:
    state = _State()
    position = counted = 0
    line = 1
    while position < len(script):
        token = _TOKEN.match(script, position)
        assert token is not None, "the last alternative takes anything"
        begin, position = position, _end_of(script, token)
        if token["block"] or token[0].startswith("--") or token[0].isspace():
            continue
        if token["mark"] and state.read_mark(token["mark"]):
            if state.start is not None:
                yield Statement(text=script[state.start : position], line=line)
            state = _State()
            continue
        if state.start is None:
            state.start = begin
            line += script.count("\n", counted, begin)
            counted = begin
        if token["word"]:
            state.read_word(token["word"].upper())
    if state.start is not None:
        yield Statement(text=script[state.start :].rstrip(), line=line)


def _end_of(script: str, token: re.Match[str]) -> int:
    """Return where *token* ends; what nobody closed ends with the script, and the server will say so."""
    if token["tag"]:
        closing = script.find(token["tag"], token.end())
        return len(script) if closing < 0 else closing + len(token["tag"])
    if not token["block"]:
        return token.end()
    depth, position = 1, token.end()
    while depth:
        edge = _BLOCK_EDGE.search(script, position)
        if edge is None:
            return len(script)
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position
