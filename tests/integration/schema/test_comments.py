"""Every object of the schema says what it is.

Left out: constraints, indexes that are constraints, and sequences behind a column, whose names say it;
partitions, which are their table.
"""

from __future__ import annotations

import pytest

SILENT = {
    "schema": """
        SELECT n.nspname FROM pg_namespace AS n
        WHERE n.nspname = 'pggit' AND obj_description(n.oid, 'pg_namespace') IS NULL
        """,
    "tables, views, sequences and indexes": """
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'pggit'::regnamespace AND obj_description(c.oid, 'pg_class') IS NULL
            AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'i', 'I')
            AND (NOT c.relispartition OR c.relname = 'webhook_audit_log_default')
            AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x'))
            AND NOT EXISTS (
                SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
        """,
    "columns": """
        SELECT c.relname || '.' || a.attname
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL
        """,
    "functions": """
        SELECT p.oid::regprocedure::text FROM pg_proc AS p
        WHERE p.pronamespace = 'pggit'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
        """,
    "types": """
        SELECT t.typname FROM pg_type AS t
        WHERE t.typnamespace = 'pggit'::regnamespace AND t.typtype IN ('e', 'd')
            AND obj_description(t.oid, 'pg_type') IS NULL
        """,
    "triggers": """
        SELECT t.tgname || ' on ' || c.relname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = 'pggit'::regnamespace AND NOT t.tgisinternal
            AND obj_description(t.oid, 'pg_trigger') IS NULL
        """,
}


@pytest.mark.parametrize("kind", SILENT)
async def test_every_object_has_a_comment(reactor_database, kind):
    assert await reactor_database.fetch(SILENT[kind]) == []


@pytest.mark.parametrize(
    ("kind", "statement", "name"),
    [
        ("tables, views, sequences and indexes", "CREATE TABLE pggit.silent ()", "silent"),
        ("tables, views, sequences and indexes", "CREATE INDEX silent ON pggit.webhook (weight)", "silent"),
        ("columns", "ALTER TABLE pggit.webhook ADD silent int", "webhook.silent"),
        ("functions", "CREATE FUNCTION pggit.silent() RETURNS int LANGUAGE sql RETURN 1", "pggit.silent()"),
    ],
)
async def test_an_object_without_one_is_seen(reactor_database, kind, statement, name):
    await reactor_database.execute(statement)

    assert await reactor_database.fetch(SILENT[kind]) == [(name,)]
