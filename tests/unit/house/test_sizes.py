"""Files of one idea, functions that fit a screen."""

from __future__ import annotations

import ast

import pytest

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
SOURCES = (".py", ".sql", ".js", ".css", ".html", ".sh", "dev", ".ci/run")
# A longer file needs a reason that a reader would accept.
LONGER_FILES = {
    "migrations/0001_delivery.sql": "the first schema is one step, never edited once released",
    "migrations/0002_legacy_surface.sql": "what old callers know, in one place to compare with what they were told",
    "migrations/0009_audit.sql": "the chain, what is dropped of it and what is erased of it keep each other's promises",
}


def test_no_source_file_is_longer_than_one_idea(texts: dict[str, str]) -> None:
    lengths = {path: text.count("\n") for path, text in texts.items() if path.endswith(SOURCES)}
    long = {path: lines for path, lines in lengths.items() if lines > FILE_LINES_MAX}

    assert {path: lines for path, lines in long.items() if path not in LONGER_FILES} == {}
    assert [path for path in LONGER_FILES if path not in long] == []


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of the body without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return node.end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_is_longer_than_a_screen(texts: dict[str, str]) -> None:
    long = [
        f"{path}:{node.lineno}: {node.name} has {function_lines(node)} lines"
        for path, text in texts.items()
        if path.endswith(".py") or path == "dev"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if function_lines(node) > FUNCTION_LINES_MAX
    ]

    assert long == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    return 1\n", 1),
        ("def f():\n    '''Promise.\n\n    More.'''\n    a = 1\n    return a\n", 2),
        ("async def f():\n    '''Only words.'''\n", 0),
    ],
)
def test_a_docstring_does_not_count_as_length(source: str, lines: int) -> None:
    assert function_lines(ast.parse(source).body[0]) == lines
