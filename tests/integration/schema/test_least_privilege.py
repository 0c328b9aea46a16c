"""Every right of every role, found by trying, is one that ``expected_rights.txt`` names: no more and no less.

Each statement is one that would be done if it were allowed: what a role may is what PostgreSQL does not refuse
with 42501. "everybody" is a user who may use the schema and has no role. After a change of grants look at what
changed, and commit the file with it::

    PGGIT_REACTOR_WRITE_SCHEMA=1 ./dev test tests/integration/schema/test_least_privilege.py

which writes it anew, and fails once.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.errors import DatabaseError
from pggit_reactor.testing.database import ReactorDatabase

EXPECTED = Path(__file__).with_name("expected_rights.txt")
WRITE = "PGGIT_REACTOR_WRITE_SCHEMA"
ROLES = ("pggit_producer", "pggit_worker", "pggit_operator", "pggit_reader")
EVERYBODY = "reactor_everybody"
DENIED = "42501"
TABLES = """
    SELECT c.relname, c.relkind = 'v', array_agg(a.attname ORDER BY a.attnum),
        array_agg(a.attname ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '')
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind IN ('r', 'p', 'v')
    GROUP BY c.oid ORDER BY c.relname
"""
SEQUENCES = """
    SELECT c.relname FROM pg_class AS c
    WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind = 'S' ORDER BY 1
"""
# Those of triggers cannot be called; what aggregates and others do with NULL is not the question.
FUNCTIONS = """
    SELECT p.oid::regprocedure::text, format('%I.%I(%s)', 'pggit', p.proname, (
        SELECT string_agg('NULL::' || format_type(t, NULL), ', ' ORDER BY n)
        FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS u (t, n)))
    FROM pg_proc AS p
    WHERE p.pronamespace = 'pggit'::regnamespace AND p.prorettype <> 'trigger'::regtype ORDER BY 1
"""


class Trial:
    """Tries statements as one user, and undoes each."""

    def __init__(self, session: TrioConnection) -> None:
        self._session = session

    async def may(self, statement: str, *, denied: str = "") -> bool:
        """Tell whether PostgreSQL lets the user do it; *denied* is what a refusal must say to count as one."""
        await self._session.execute("BEGIN")
        try:
            await self._session.execute(statement, prepare=False)
        except DatabaseError as error:
            return not (error.sqlstate == DENIED and denied in str(error))
        finally:
            await self._session.execute("ROLLBACK")
        return True

    async def columns(self, form: str, columns: Iterable[str]) -> list[str]:
        return [column for column in columns if await self.may(form.format(column))]


async def rights_on_table(
    trial: Trial, table: str, *, is_view: bool, columns: list[str], writable: list[str]
) -> list[str]:
    found = []
    forms = {"SELECT": (f"SELECT {{}} FROM pggit.{table} LIMIT 0", columns)}
    if not is_view:
        forms["INSERT"] = (f"INSERT INTO pggit.{table} ({{0}}) SELECT NULL WHERE false", writable)
        forms["UPDATE"] = (f"UPDATE pggit.{table} SET {{}} = DEFAULT WHERE false", writable)
    for verb, (form, wanted) in forms.items():
        may = await trial.columns(form, wanted)
        if may:
            found.append(verb if may == wanted else f"{verb} ({', '.join(may)})")
    if not is_view:
        whole = {
            "DELETE": f"DELETE FROM pggit.{table} WHERE false",
            "TRUNCATE": f"TRUNCATE pggit.{table}",
            "DROP": f"DROP TABLE pggit.{table}",
            "ALTER": f"ALTER TABLE pggit.{table} ADD COLUMN mine integer",
            "TRIGGER": f"CREATE TRIGGER mine BEFORE INSERT ON pggit.{table}"
            " FOR EACH ROW EXECUTE FUNCTION pggit.queue_revive()",
        }
        found += [verb for verb, statement in whole.items() if await trial.may(statement, denied="")]
    return found


async def all_rights(database: ReactorDatabase, user: str) -> list[str]:
    trial = Trial(await database.connect(role=user, client_min_messages="error", lock_timeout="2000"))
    found: list[tuple[str, list[str]]] = []
    for table, is_view, columns, writable in await database.fetch(TABLES):
        rights = await rights_on_table(trial, table, is_view=is_view, columns=columns, writable=writable)
        found.append((table, rights))
    for (sequence,) in await database.fetch(SEQUENCES):
        forms = {
            "last_value": f"SELECT last_value FROM pggit.{sequence}",
            "nextval": f"SELECT nextval('pggit.{sequence}')",
            "setval": f"SELECT setval('pggit.{sequence}', 1)",
        }
        found.append((sequence, [verb for verb, form in forms.items() if await trial.may(form)]))
    for name, call in await database.fetch(FUNCTIONS):
        refusal = "permission denied for function"
        found.append((name, ["EXECUTE"] if await trial.may(f"SELECT {call}", denied=refusal) else []))
    schema = {
        "CREATE TABLE": "CREATE TABLE pggit.mine ()",
        "CREATE FUNCTION": "CREATE FUNCTION pggit.mine() RETURNS integer RETURN 1",
    }
    found.append(("schema pggit", [what for what, form in schema.items() if await trial.may(form)]))
    return [
        f"{user.removeprefix('reactor_')}: {what}: {', '.join(rights)}" for what, rights in found if rights
    ]


@pytest.fixture
async def everybody(reactor_database):
    await reactor_database.execute(
        f"DO $$ BEGIN CREATE ROLE {EVERYBODY}; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    await reactor_database.execute(f"GRANT USAGE ON SCHEMA pggit TO {EVERYBODY}")
    yield EVERYBODY
    await reactor_database.execute(f"DROP OWNED BY {EVERYBODY}")


async def test_each_role_may_do_what_is_expected_and_nothing_else(reactor_database, everybody):
    lines = [line for user in (*ROLES, everybody) for line in await all_rights(reactor_database, user)]
    actual = "\n".join(lines) + "\n"
    expected = EXPECTED.read_text(encoding="utf-8") if EXPECTED.exists() else ""
    if os.environ.get(WRITE) and actual != expected:
        EXPECTED.write_text(actual, encoding="utf-8")
        pytest.fail(f"{EXPECTED.name} was written anew: look at its diff, and run again")

    difference = "\n".join(
        difflib.unified_diff(
            expected.splitlines(), actual.splitlines(), "expected", "tried", lineterm="", n=0
        )
    )
    assert actual == expected, f"\n{difference}\nIf it is meant: {WRITE}=1, see the docstring of this module"


async def test_nobody_but_their_owner_may_change_audit_rows_segments_or_gaps(reactor_database, everybody):
    """Said once more in words, whatever the file says."""
    partitions = [
        row[0]
        for row in await reactor_database.fetch(
            "SELECT inhrelid::regclass::text FROM pg_inherits"
            " WHERE inhparent = 'pggit.webhook_audit_log'::regclass"
        )
    ]
    tables = ["pggit.webhook_audit_log", "pggit.audit_segment", "pggit.audit_gap", *partitions]
    done = []
    for user in (*ROLES, everybody):
        trial = Trial(await reactor_database.connect(role=user))
        for table in tables:
            for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}", f"DROP TABLE {table}"):
                done += [(user, statement)] if await trial.may(statement) else []
        for change in ("error_message = NULL", "salt = NULL", "audit_id = 0", "occurred_at = now()"):
            statement = f"UPDATE pggit.webhook_audit_log SET {change}"
            done += [(user, statement)] if await trial.may(statement) else []
        statement = "UPDATE pggit.audit_segment SET seal = ''"
        done += [(user, statement)] if await trial.may(statement) else []
        for column, value in (("audit_id", "7"), ("erased_digest", "''")):
            statement = (
                f"INSERT INTO pggit.webhook_audit_log (operation, {column}) VALUES ('delivered', {value})"
            )
            done += [(user, statement)] if await trial.may(statement) else []

    assert done == []


async def test_no_grant_can_be_passed_on_and_no_default_privilege_is_left_behind(reactor_database):
    passed_on = await reactor_database.fetch(
        "SELECT c.relname FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a"
        " WHERE c.relnamespace = 'pggit'::regnamespace AND a.is_grantable AND a.grantee <> c.relowner"
        " UNION ALL SELECT p.proname FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(p.proacl) AS a"
        " WHERE p.pronamespace = 'pggit'::regnamespace AND a.is_grantable AND a.grantee <> p.proowner"
    )
    defaults = await reactor_database.fetch("SELECT defaclobjtype, defaclacl FROM pg_default_acl")

    assert (passed_on, defaults) == ([], [])


async def test_roles_own_nothing(reactor_database):
    owners = await reactor_database.fetch(
        "SELECT DISTINCT o.owner::regrole::text FROM ("
        " SELECT relowner AS owner FROM pg_class WHERE relnamespace = 'pggit'::regnamespace"
        " UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'pggit'::regnamespace"
        " UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname = 'pggit') AS o"
    )

    assert [row[0] for row in owners if row[0] in ROLES] == []


async def test_every_function_that_runs_as_its_owner_says_to_whom_it_is_granted(reactor_database):
    """A new one is EXECUTE for everybody until it is revoked."""
    open_to_all = await reactor_database.fetch(
        "SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'pggit'::regnamespace AND p.prosecdef"
        " AND p.proacl IS NULL"
    )

    # Old workers call these; they tell a webhook's id, and nothing of it.
    assert sorted(open_to_all) == [
        ("follow_breaker",),
        ("get_webhook_decrypted",),
        ("webhooks_in_order",),
        ("webhooks_on_hold",),
    ]
