from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum

import attrs
import pytest

from pggit_reactor.cli.output import print_facts, print_json, print_table, text


class Colour(StrEnum):
    RED = "red"


@attrs.frozen(kw_only=True)
class Inner:
    colour: Colour
    at: datetime


@attrs.frozen(kw_only=True)
class Outer:
    inner: tuple[Inner, ...]
    labels: dict[str, str | None]


def test_records_become_plain_json(capsys) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    print_json(Outer(inner=(Inner(colour=Colour.RED, at=moment),), labels={"a": None}))

    assert json.loads(capsys.readouterr().out) == {
        "inner": [{"colour": "red", "at": "2026-01-02T00:00:00+00:00"}],
        "labels": {"a": None},
    }


def test_json_is_ascii_so_that_no_terminal_acts_on_it(capsys) -> None:
    print_json({"a": "\x9b31mß"})

    assert capsys.readouterr().out.isascii()


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), ("", "-"), (True, "yes"), (False, "no"), (0, "0"), (2.5, "2.5"), (72.0, "72"), ([1, 2], "1, 2"),
     ({"a": "b"}, "a=b"), ({}, "-"), ("a\x1b[0m\nb", "a\ufffd[0m\ufffdb"), (Colour.RED, "red")],
)  # fmt: skip
def test_a_value_is_one_line_of_harmless_words(value, words) -> None:
    assert text(value) == words


def test_columns_are_as_wide_as_their_widest_cell(capsys) -> None:
    print_table([{"id": 1, "the_name": "a"}, {"id": 100, "the_name": "long name"}], when_empty="none")

    assert capsys.readouterr().out.splitlines() == ["id   the name", "1    a", "100  long name"]


def test_an_empty_table_is_a_sentence(capsys) -> None:
    print_table([], when_empty="none yet")

    assert capsys.readouterr().out == "none yet\n"


def test_facts_are_a_line_each(capsys) -> None:
    print_facts({"a": 1, "long_name": None})

    assert capsys.readouterr().out.splitlines() == ["a          1", "long name  -"]
