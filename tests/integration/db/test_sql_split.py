from __future__ import annotations

import pytest

from pggit_reactor.db.migrate import load_migrations
from pggit_reactor.db.sql_split import split_statements

FUNCTION = """CREATE OR REPLACE FUNCTION f(n int DEFAULT 1) RETURNS int LANGUAGE sql
BEGIN ATOMIC
    SELECT CASE WHEN n > 0 THEN 1; ELSE 2 END; -- the semicolon inside CASE is nonsense, and not ours to judge
    SELECT 2;
END"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", []),
        ("  -- nothing but; a comment\n /* and; /* a nested; */ one; */ ;; ", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1 ; SELECT 2;", ["SELECT 1 ;", "SELECT 2;"]),
        ("SELECT 'a;''b;' ; SELECT 2", ["SELECT 'a;''b;' ;", "SELECT 2"]),
        (r"SELECT E'a\';b' , 'c\'; SELECT 2", [r"SELECT E'a\';b' , 'c\';", "SELECT 2"]),
        ('SELECT ";""" AS ";" ; SELECT 2', ['SELECT ";""" AS ";" ;', "SELECT 2"]),
        ("DO $$ BEGIN; 'x $a$ END $$; SELECT 2", ["DO $$ BEGIN; 'x $a$ END $$;", "SELECT 2"]),
        ("DO $é1$ $$;$$ $é1$; SELECT $1;", ["DO $é1$ $$;$$ $é1$;", "SELECT $1;"]),
        ("SELECT a$b$c; SELECT 1e5;", ["SELECT a$b$c;", "SELECT 1e5;"]),
        (
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3;",
            ["CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);", "SELECT 3;"],
        ),
        (f"{FUNCTION};\nSELECT 1;", [f"{FUNCTION};", "SELECT 1;"]),
        (
            "BEGIN; SELECT CASE WHEN true THEN 1 END; END;",
            ["BEGIN;", "SELECT CASE WHEN true THEN 1 END;", "END;"],
        ),
        ("SELECT 1 -- tail; \n + 1; SELECT 2", ["SELECT 1 -- tail; \n + 1;", "SELECT 2"]),
        ("SELECT 'never closed; SELECT 2", ["SELECT 'never closed;", "SELECT 2"]),
        ("DO $$ never closed; SELECT 2", ["DO $$ never closed; SELECT 2"]),
        ("/* never closed; SELECT 2", []),
        ("SELECT ) ; SELECT 2", ["SELECT ) ;", "SELECT 2"]),
    ],
)
def test_a_script_is_cut_at_the_semicolons_that_end_a_statement(script, expected):
    assert [statement.text for statement in split_statements(script)] == expected


def test_the_line_is_that_of_the_first_word():
    script = "-- a comment\n\nSELECT\n  1;\n/* two\nlines */ SELECT 2; SELECT 3;\n\n\nSELECT 4"

    assert [statement.line for statement in split_statements(script)] == [3, 6, 6, 9]


def test_a_long_script_is_cut_in_linear_time():
    script = "SELECT ((1)), 'x', \"y\", $$z$$; -- c\n" * 20_000

    assert len(split_statements(script)) == 20_000


def test_our_own_migrations_lose_nothing_but_comments():
    for migration in load_migrations():
        statements = split_statements(migration.text)
        left = migration.text
        for statement in statements:
            before, found, left = left.partition(statement.text)
            assert found
            assert all(line.strip() == "" or line.strip().startswith("--") for line in before.splitlines())
