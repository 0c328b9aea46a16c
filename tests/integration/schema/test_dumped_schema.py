"""The schema that the migrations make is the one in ``expected_schema.txt``, so that a diff shows what one did.

After a change of a migration, look at what changed and commit the file with it::

    PGGIT_REACTOR_WRITE_SCHEMA=1 ./dev test tests/integration/schema/test_dumped_schema.py

which writes it anew (and fails once, so that no run passes by writing what it should have compared). The dump
is made by catalogue queries of our own, and is the same for every version of PostgreSQL: what versions tell
differently (constraints for NOT NULL, which 18 lists; the owner's own grants) is left out.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

from pggit_reactor.testing.database import ReactorDatabase

EXPECTED = Path(__file__).with_name("expected_schema.txt")
WRITE = "PGGIT_REACTOR_WRITE_SCHEMA"

# Each gives the object, what stands before others within it, and a line about it.
QUERIES = {
    "relation": """
        SELECT c.oid::regclass::text, 0, concat_ws(' ',
            CASE c.relpersistence WHEN 'u' THEN 'unlogged' END,
            CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'S' THEN 'sequence'
                           WHEN 'v' THEN 'view' ELSE c.relkind::text END,
            c.oid::regclass::text,
            'of ' || (SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid),
            pg_get_expr(c.relpartbound, c.oid), pg_get_partkeydef(c.oid),
            'with (' || array_to_string(c.reloptions, ', ') || ')')
        FROM pg_class AS c WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind NOT IN ('i', 'I', 't', 'c')
    """,
    "column": """
        SELECT c.oid::regclass::text, 1000 + a.attnum, concat_ws(' ',
            'column', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
            CASE a.attgenerated WHEN 's' THEN 'stored' WHEN 'v' THEN 'virtual' ELSE 'default' END || ' '
                || regexp_replace(pg_get_expr(d.adbin, d.adrelid), '\\s+', ' ', 'g'))
        FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind IN ('r', 'p', 'v')
    """,
    "sequence": """
        SELECT s.seqrelid::regclass::text, 1000, format('%s from %s by %s, %s to %s, cache %s%s',
            s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
            (SELECT format(', owned by %s.%s', d.refobjid::regclass, a.attname) FROM pg_depend AS d
             JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
             WHERE d.objid = s.seqrelid AND d.deptype = 'a'))
        FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid WHERE c.relnamespace = 'pggit'::regnamespace
    """,
    "constraint": """
        SELECT k.conrelid::regclass::text, 3000,
            concat_ws(' ', 'constraint', k.conname, pg_get_constraintdef(k.oid),
                      CASE WHEN NOT k.convalidated THEN 'not validated' END)
        FROM pg_constraint AS k
        WHERE k.connamespace = 'pggit'::regnamespace AND k.contype <> 'n' AND k.conrelid <> 0
    """,
    "index": """
        SELECT i.indrelid::regclass::text, 4000, concat_ws(' ', pg_get_indexdef(i.indexrelid),
                                                           CASE WHEN NOT i.indisvalid THEN 'invalid' END)
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE c.relnamespace = 'pggit'::regnamespace
    """,
    "trigger": """
        SELECT t.tgrelid::regclass::text, 5000,
            concat_ws(' ', regexp_replace(pg_get_triggerdef(t.oid), '\\s+', ' ', 'g'),
                      CASE WHEN t.tgenabled <> 'O' THEN 'as ' || t.tgenabled::text END)
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = 'pggit'::regnamespace AND NOT t.tgisinternal
    """,
    "function": """
        SELECT p.oid::regprocedure::text, 0, concat_ws(' ', 'function', p.oid::regprocedure::text,
            'returns', pg_get_function_result(p.oid), 'in', l.lanname,
            CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END,
            'parallel ' || p.proparallel::text, CASE WHEN p.proisstrict THEN 'strict' END,
            CASE WHEN p.prosecdef THEN 'security definer' END, array_to_string(p.proconfig, ', '))
        FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE p.pronamespace = 'pggit'::regnamespace
    """,
    "function body": """
        SELECT p.oid::regprocedure::text, 1, concat_ws(' ', 'arguments (' || pg_get_function_arguments(p.oid) || ')',
            'body', md5(regexp_replace(coalesce(pg_get_function_sqlbody(p.oid), p.prosrc), '\\s+', ' ', 'g')))
        FROM pg_proc AS p WHERE p.pronamespace = 'pggit'::regnamespace
    """,
    "grant": """
        SELECT g.object, 6000, format('grant %s to %s',
            string_agg(g.privilege, ', ' ORDER BY g.privilege COLLATE "C"),
            CASE g.grantee WHEN 0 THEN 'public' ELSE g.grantee::regrole::text END)
        FROM (
            SELECT c.oid::regclass::text AS object, a.grantee, a.privilege_type AS privilege
            FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
            WHERE c.relnamespace = 'pggit'::regnamespace AND a.grantee <> c.relowner
            UNION ALL
            SELECT c.oid::regclass::text, x.grantee,
                format('%s (%s)', x.privilege_type, string_agg(a.attname, ', ' ORDER BY a.attnum))
            FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
            CROSS JOIN LATERAL aclexplode(a.attacl) AS x
            WHERE c.relnamespace = 'pggit'::regnamespace AND x.grantee <> c.relowner
            GROUP BY c.oid, x.grantee, x.privilege_type
            UNION ALL
            SELECT p.oid::regprocedure::text, a.grantee, a.privilege_type
            FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
            WHERE p.pronamespace = 'pggit'::regnamespace AND a.grantee <> p.proowner
            UNION ALL
            SELECT 'schema pggit', a.grantee, a.privilege_type
            FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
            WHERE n.nspname = 'pggit' AND a.grantee <> n.nspowner
        ) AS g
        GROUP BY g.object, g.grantee
    """,
}


async def dump(database: ReactorDatabase) -> str:
    """Return the schema as text: an object, and indented what belongs to it."""
    found: list[tuple[str, int, str]] = []
    for query in QUERIES.values():
        found += await database.fetch(query)
    pieces = [line if rank == 0 else f"    {line}" for _, rank, line in sorted(found)]
    return "\n".join(pieces) + "\n"


async def test_the_migrations_make_the_schema_that_is_committed(reactor_database):
    actual = await dump(reactor_database)
    expected = EXPECTED.read_text(encoding="utf-8") if EXPECTED.exists() else ""
    if os.environ.get(WRITE) and actual != expected:
        EXPECTED.write_text(actual, encoding="utf-8")
        pytest.fail(f"{EXPECTED.name} was written anew: look at its diff, and run again")

    difference = "\n".join(
        difflib.unified_diff(
            expected.splitlines(),
            actual.splitlines(),
            "expected_schema.txt",
            "the database",
            lineterm="",
            n=1,
        )
    )
    assert actual == expected, f"\n{difference}\nIf it is meant: {WRITE}=1, see the docstring of this module"


async def test_the_dump_sees_a_change_of_each_kind(reactor_database):
    before = await dump(reactor_database)
    changes = [
        "ALTER TABLE pggit.webhook ADD COLUMN extra integer DEFAULT 3",
        "ALTER TABLE pggit.webhook ALTER COLUMN burst SET DEFAULT 21",
        "ALTER TABLE pggit.webhook ALTER COLUMN labels DROP NOT NULL",
        "ALTER TABLE pggit.webhook DROP CONSTRAINT webhook_burst_check",
        "ALTER TABLE pggit.webhook SET (fillfactor = 50)",
        "CREATE INDEX ON pggit.webhook (state)",
        "DROP TRIGGER queue_after_update ON pggit.alert_delivery_queue",
        "ALTER TABLE pggit.alert_delivery_queue DISABLE TRIGGER queue_after_insert",
        "ALTER FUNCTION pggit.enqueue SECURITY INVOKER",
        "CREATE OR REPLACE FUNCTION pggit.queue_revive() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "GRANT SELECT (message_body) ON pggit.alert_delivery_queue TO pggit_reader",
        "REVOKE EXECUTE ON FUNCTION pggit.delivery_uid FROM PUBLIC",
        "GRANT CREATE ON SCHEMA pggit TO pggit_worker",
        "ALTER SEQUENCE pggit.reactor_gate MINVALUE -1",
    ]
    for change in changes:
        await reactor_database.execute(change)
        after = await dump(reactor_database)
        assert after != before, change
        before = after
