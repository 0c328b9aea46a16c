"""Statements whose parameters are text of ours: PostgreSQL must read back what was meant."""

from __future__ import annotations

import math

import pytest

from pggit_reactor.db.hot import HotStatement, booleans, floats, integers, texts
from pggit_reactor.errors import DatabaseError

AWKWARD_TEXTS = [
    "",
    "plain",
    "NULL",
    "null",
    'a "quoted" word',
    "back\\slash\\",
    "a,b",
    "{a}",
    " edge ",
    "é☃",
    None,
]
AWKWARD_FLOATS = [0.0, -0.5, 1e-300, 1.7976931348623157e308, 0.1 + 0.2, math.inf, -math.inf, None]
AWKWARD_INTEGERS = [0, -1, 2**63 - 1, -(2**63), None]


@pytest.mark.parametrize(
    ("kind", "written", "values"),
    [
        ("text", texts(AWKWARD_TEXTS), AWKWARD_TEXTS),
        ("float8", floats(AWKWARD_FLOATS), AWKWARD_FLOATS),
        ("bigint", integers(AWKWARD_INTEGERS), AWKWARD_INTEGERS),
        ("boolean", booleans([True, False]), [True, False]),
        ("text", texts([]), []),
    ],
)
async def test_postgresql_reads_an_array_as_it_was_meant(reactor_database, kind, written, values):
    statement = HotStatement.of(f"SELECT %(array)s::{kind}[]")

    assert await statement.fetch(await reactor_database.connect(), {"array": written}) == [(values,)]


def test_a_placeholder_is_rewritten_once_for_each_name_and_a_doubled_percent_sign_is_one():
    statement = HotStatement.of("SELECT %(b)s, %(a)s, %(b)s, 7 %% 4")

    assert statement.text == b"SELECT $1, $2, $1, 7 % 4"
    assert statement.names == ("b", "a")


async def test_a_hot_statement_is_prepared_once_whatever_its_values_are(reactor_database):
    connection = await reactor_database.connect()
    statement = HotStatement.of("SELECT %(ids)s::bigint[], %(words)s::text[]")

    for ids, words in ((integers([1]), texts([None])), (integers([2**40]), texts(["a"])), ("{}", "{}")):
        await statement.fetch(connection, {"ids": ids, "words": words})

    rows = await (
        await connection.execute("SELECT parameter_types::text FROM pg_prepared_statements")
    ).fetchall()
    assert rows == [("{bigint[],text[]}",)]


async def test_a_text_that_postgresql_cannot_hold_is_an_error_of_ours_and_not_cut_short(reactor_database):
    connection = await reactor_database.connect()

    with pytest.raises(DatabaseError):
        await HotStatement.of("SELECT %(words)s::text[]").fetch(connection, {"words": texts(["a\0b"])})

    assert await (await connection.execute("SELECT 1")).fetchall() == [(1,)]
