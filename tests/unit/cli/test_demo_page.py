from __future__ import annotations

import io

import pytest

from pggit_reactor.cli.demonstration.page import COLUMNS_MAX, PIPE_COLUMNS, Page


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell(stream: io.StringIO) -> str:
    page = Page(stream)
    page.title("A title")
    page.step(1, "A step")
    page.say("word " * 100)
    page.code("SELECT 1;")
    page.facts([("one", "1"), ("eleven", "11")])
    page.table(("alert", "id"), [("7", "abc"), ("1001", "d")], left=("id",))
    page.summary("demo: ok", good=True)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _colour_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_terminal_gets_styles():
    assert "\x1b[" in tell(Terminal())


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_none_gets_none(monkeypatch, name, value):
    monkeypatch.setenv(name, value)

    assert "\x1b" not in tell(Terminal())


def test_a_pipe_gets_plain_text_even_where_colour_is_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")

    assert "\x1b" not in tell(io.StringIO())


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_everything_is_ascii_and_fits_the_page(monkeypatch, stream):
    monkeypatch.setenv("NO_COLOR", "1")
    text = tell(stream)

    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= max(COLUMNS_MAX, PIPE_COLUMNS)


def test_columns_stand_below_each_other():
    lines = tell(io.StringIO()).splitlines()

    assert "   one      1" in lines
    assert "   eleven   11" in lines
    assert lines[lines.index("   alert   id") + 1 :][:2] == ["       7   abc", "    1001   d"]


def test_the_summary_is_one_line_of_its_own():
    assert "demo: ok" in tell(io.StringIO()).splitlines()
