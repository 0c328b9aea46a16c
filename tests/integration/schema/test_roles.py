"""What each role may and may not do, by trying."""

from __future__ import annotations

import pytest

from pggit_reactor.errors import DatabaseError

DENIED = "42501"

INSERT = "INSERT INTO pggit.alert_delivery_queue"
THREE = "(alert_id, webhook_id, message_body"
LEASE = "UPDATE pggit.alert_delivery_queue SET lease_token = 1"

MAY = {
    "pggit_producer": [
        f"{INSERT} {THREE}) VALUES (1, 7, '{{}}') RETURNING delivery_id",
        f"{INSERT} {THREE}, delivery_status, retry_count, max_retries, created_at)"
        " VALUES (1, 7, '{}', 'pending', 0, 3, now())",
        f"{INSERT} {THREE}, event_type, idempotency_key, priority, next_retry_at, expires_at, headers, ordering_key,"
        " traceparent) VALUES (1, 7, '{}', 'a', 'b', 1, now(), now(), '{}', 'c', 'd')",
        "SELECT pggit.enqueue(7, '{}')",
        "SELECT delivery_id FROM pggit.alert_delivery_queue",
        "SELECT nextval('pggit.alert_id_seq')",
        "SELECT last_value FROM pggit.reactor_gate",
        "SELECT pggit.delivery_uid(1, 2)",
        "SELECT pggit.check_delivery_headers('{}')",
    ],
    "pggit_worker": [
        "SELECT * FROM pggit.alert_delivery_queue",
        LEASE,
        "SELECT * FROM pggit.webhook",
        "SELECT * FROM pggit.webhook_secret",
        "SELECT * FROM pggit.key_check",
        "SELECT * FROM pggit.schema_migration",
        "UPDATE pggit.webhook SET state = 'paused', state_reason = 'why', state_by = 'me'",
        "INSERT INTO pggit.webhook_audit_log (webhook_id, operation) VALUES (7, 'delivered')",
        "DELETE FROM pggit.reactor_worker",
        "DELETE FROM pggit.webhook_limit",
        "SELECT pggit.add_audit_partitions()",
        "SELECT setval('pggit.reactor_gate', 0)",
        "SELECT count(*) FROM pggit.webhook_audit_log_default",
        "SELECT pggit.retire_expired_secrets('me')",
        "SELECT pggit.rotate_due_secret(7, 2, '', 'hmac-sha256', NULL, interval '1 d', 'me')",
    ],
    "pggit_operator": [
        "SELECT * FROM pggit.alert_delivery_queue",
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', next_retry_at = NULL",
        "DELETE FROM pggit.alert_delivery_queue WHERE delivery_status = 'pending'",
        "SELECT pggit.enqueue(7, '{}')",
        "SELECT pggit.next_webhook_id()",
        "SELECT * FROM pggit.alert_delivery_log",
        "SELECT * FROM pggit.webhook_audit_log",
        "SELECT * FROM pggit.reactor_worker",
        "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = 'healthy'",
        "INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (9) ON CONFLICT (webhook_id) DO NOTHING",
        "UPDATE pggit.webhook_limit SET paused_until = now()",
        "DELETE FROM pggit.webhook",
        "SELECT count(*) FROM pggit.webhook_audit_log_default",
        "UPDATE pggit.key_check SET retired_at = now(), retired_by = 'me'",
        "SELECT * FROM pggit.rotation_history",
    ],
    "pggit_reader": [
        "SELECT delivery_id, alert_id, webhook_id, delivery_status, retry_count, max_retries, next_retry_at,"
        " created_at, attempted_at, delivered_at, uid_salt, lease_expires_at, leased_by, held_until, priority,"
        " event_type, expires_at, last_status, last_error, failed_reason, attempt_count, crash_count, replayed_at,"
        " ready_at FROM pggit.alert_delivery_queue",
        "SELECT delivery_status, count(*), min(created_at) FROM pggit.alert_delivery_queue GROUP BY 1",
        "SELECT webhook_id, name, url_origin, state, labels FROM pggit.webhook",
        "SELECT * FROM pggit.webhook_health_metrics",
        "SELECT * FROM pggit.reactor_worker",
        "SELECT * FROM pggit.webhook_limit",
        "SELECT * FROM pggit.schema_migration",
        "SELECT * FROM pggit.rotation_history",
    ],
}

PAYLOADS_AND_SEALED = [
    *(
        f"SELECT {column} FROM pggit.alert_delivery_queue"
        for column in (
            "message_body",
            "headers",
            "idempotency_key",
            "ordering_key",
            "traceparent",
            "lease_token",
            "*",
        )
    ),
    *(
        f"SELECT {column} FROM pggit.webhook"
        for column in (
            "sealed_url",
            "sealed_headers",
            "sealed_ca",
            "sealed_client_certificate",
            "pins",
            "template",
            "filter",
            "*",
        )
    ),
    "SELECT version FROM pggit.webhook_secret",
    "SELECT key_id FROM pggit.key_check",
    "SELECT FROM pggit.alert_delivery_log",
    "SELECT FROM pggit.webhook_audit_log",
    "SELECT FROM pggit.webhook_audit_log_p0",
    "COPY pggit.alert_delivery_queue TO STDOUT",
]
REWRITING_HISTORY = [
    f"{verb} pggit.{table}{rest}"
    for table in ("webhook_audit_log", "webhook_audit_log_p0", "webhook_audit_log_default")
    for verb, rest in (
        ("UPDATE", " SET operation = 'failed'"),
        ("DELETE FROM", ""),
        ("TRUNCATE", ""),
        ("DROP TABLE", ""),
        ("ALTER TABLE", " DISABLE TRIGGER ALL"),
    )
] + [
    "UPDATE pggit.alert_delivery_log SET event_type = 'failed'",
    "DELETE FROM pggit.alert_delivery_log",
    "TRUNCATE pggit.alert_delivery_queue CASCADE",
    "DELETE FROM pggit.schema_migration",
    "UPDATE pggit.schema_migration SET digest = ''",
    "DROP TRIGGER queue_after_insert ON pggit.alert_delivery_queue",
    "CREATE TABLE pggit.mine ()",
    "CREATE FUNCTION pggit.enqueue(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
]
MAY_NOT = {
    "pggit_producer": [
        *(statement for statement in PAYLOADS_AND_SEALED if "lease_token" not in statement),
        *REWRITING_HISTORY,
        "SELECT webhook_id FROM pggit.alert_delivery_queue",
        LEASE,
        "DELETE FROM pggit.alert_delivery_queue",
        *(
            f"{INSERT} {THREE}, {column}) VALUES (1, 7, '{{}}', NULL)"
            for column in (
                "delivery_id",
                "uid_salt",
                "lease_token",
                "lease_expires_at",
                "leased_by",
                "held_until",
                "attempted_at",
                "delivered_at",
                "last_status",
                "last_error",
                "failed_reason",
                "attempt_count",
                "crash_count",
                "replayed_at",
            )
        ),
        "SELECT name FROM pggit.webhook",
        "SELECT webhook_id FROM pggit.webhook_health_metrics",
        "INSERT INTO pggit.webhook_audit_log (webhook_id, operation) VALUES (7, 'delivered')",
        "SELECT setval('pggit.reactor_gate', 0)",
        "SELECT nextval('pggit.reactor_gate')",
        "SELECT pggit.next_webhook_id()",
        "SELECT pggit.add_audit_partitions()",
        "SELECT pggit.retire_expired_secrets('me')",
        "SELECT pggit.rotate_due_secret(7, 2, '', 'hmac-sha256', NULL, interval '1 d', 'me')",
        "SELECT pggit.refuse_retired_key()",
        "SELECT FROM pggit.rotation_history",
    ],
    "pggit_worker": [
        *REWRITING_HISTORY,
        f"{INSERT} {THREE}) VALUES (1, 7, '{{}}')",
        "DELETE FROM pggit.alert_delivery_queue",
        "SELECT FROM pggit.alert_delivery_log",
        "SELECT FROM pggit.webhook_audit_log",
        "SELECT error_message FROM pggit.webhook_audit_log_default",
        "DELETE FROM pggit.webhook",
        "UPDATE pggit.webhook SET sealed_url = ''",
        "UPDATE pggit.webhook SET concurrency = 256",
        "UPDATE pggit.webhook_secret SET sealed_secret = ''",
        "INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret) VALUES (7, 2, '')",
        "INSERT INTO pggit.key_check (key_id, check_value) VALUES ('a', '')",
        "UPDATE pggit.key_check SET check_value = ''",
        "DELETE FROM pggit.webhook_secret",
        "UPDATE pggit.webhook SET rotate_every = interval '1 s'",
        "DELETE FROM pggit.webhook_health_metrics",
        "SELECT pggit.enqueue(7, '{}')",
        "SELECT pggit.next_webhook_id()",
    ],
    "pggit_operator": [
        *REWRITING_HISTORY,
        f"{INSERT} {THREE}) VALUES (1, 7, '{{}}')",
        "DELETE FROM pggit.reactor_worker",
        "UPDATE pggit.reactor_worker SET state = 'stopped'",
        "SELECT setval('pggit.reactor_gate', 0)",
        "SELECT nextval('pggit.reactor_gate')",
        "SELECT pggit.add_audit_partitions()",
        "DELETE FROM pggit.key_check",
    ],
    "pggit_reader": [
        *PAYLOADS_AND_SEALED,
        *REWRITING_HISTORY,
        LEASE,
        f"{INSERT} {THREE}) VALUES (1, 7, '{{}}')",
        "SELECT pggit.enqueue(7, '{}')",
        "SELECT setval('pggit.reactor_gate', 0)",
        "UPDATE pggit.webhook SET state = 'active'",
        "UPDATE pggit.webhook_limit SET paused_until = now()",
        "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0",
        "DELETE FROM pggit.reactor_worker",
    ],
}


@pytest.fixture
async def session_of(reactor_database, rows):
    """Opens sessions of a role, in a database that holds one of everything."""
    await rows.webhook(7)
    await rows.queue()

    async def open_session(role: str):
        return await reactor_database.connect(role=role)

    return open_session


@pytest.mark.parametrize("role", MAY)
async def test_a_role_may_do_what_it_is_for(session_of, role):
    session = await session_of(role)
    refused = []
    for statement in MAY[role]:
        await session.execute("BEGIN")
        try:
            await session.execute(statement)
        except DatabaseError as error:
            refused.append((statement, str(error)))
        await session.execute("ROLLBACK")

    assert refused == []


@pytest.mark.parametrize("role", MAY_NOT)
async def test_a_role_may_do_no_more(session_of, role):
    session = await session_of(role)
    allowed = []
    for statement in MAY_NOT[role]:
        await session.execute("BEGIN")
        try:
            await session.execute(statement)
        except DatabaseError as error:
            if error.sqlstate != DENIED:
                allowed.append((statement, str(error)))
        else:
            allowed.append((statement, "was done"))
        await session.execute("ROLLBACK")

    assert allowed == []


async def test_the_public_may_read_the_gate_and_nothing_else(reactor_database):
    """Functions that are PUBLIC's run as their caller, and the gate is asked by the triggers of every producer."""
    tables = await reactor_database.fetch(
        "SELECT c.relname, a.privilege_type FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a"
        " WHERE c.relnamespace = 'pggit'::regnamespace AND a.grantee = 0"
    )
    definers = await reactor_database.fetch(
        "SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'pggit'::regnamespace AND p.prosecdef"
        " AND has_function_privilege('public', p.oid, 'EXECUTE')"
    )

    # Old workers call these with rights of pgGit's time: they tell which ids are registered, on hold, or in order, and
    # make the limits say what the health rows, which old workers write, say already.
    of_old_workers = [
        ("follow_breaker",),
        ("get_webhook_decrypted",),
        ("webhooks_in_order",),
        ("webhooks_on_hold",),
    ]
    assert (tables, sorted(definers)) == ([("reactor_gate", "SELECT")], of_old_workers)
    assert not await reactor_database.fetch_value("SELECT has_schema_privilege('public', 'pggit', 'USAGE')")


async def test_every_function_that_runs_as_its_owner_pins_its_search_path(reactor_database):
    functions = await reactor_database.fetch(
        "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'pggit'::regnamespace AND prosecdef"
    )

    assert {name for name, _ in functions} >= {"enqueue", "next_webhook_id", "publish", "pause_webhook"}
    assert [
        name for name, config in functions if "search_path=pg_catalog, pg_temp" not in (config or [])
    ] == []


async def test_no_role_is_a_member_of_another_or_may_log_in(reactor_database):
    roles = await reactor_database.fetch(
        "SELECT rolname, rolcanlogin, rolsuper, rolcreaterole, rolbypassrls,"
        " ARRAY(SELECT roleid::regrole::text FROM pg_auth_members WHERE member = r.oid)"
        " FROM pg_roles AS r WHERE rolname LIKE 'pggit%' ORDER BY 1"
    )

    assert roles == [
        (role, False, False, False, False, [])
        for role in ("pggit_operator", "pggit_producer", "pggit_reader", "pggit_worker")
    ]


async def test_an_audit_row_that_a_late_chore_let_fall_is_no_reason_to_fall_for_the_next(reactor_database):
    """One transaction holds all chores: a partition that cannot be made would undo the others, for ever."""
    await reactor_database.execute("SELECT setval('pggit.webhook_audit_log_audit_id_seq', 35000000)")
    await reactor_database.execute("INSERT INTO pggit.webhook_audit_log (operation) VALUES ('erased')")
    worker = await reactor_database.connect(role="pggit_worker", client_min_messages="error")
    added = []
    for _ in range(2):
        cursor = await worker.execute("SELECT pggit.add_audit_partitions()")
        added += await cursor.fetchone()
    for last in (39_999_999, 49_999_999):
        await reactor_database.execute("SELECT setval('pggit.webhook_audit_log_audit_id_seq', %s)", (last,))
        await reactor_database.execute("INSERT INTO pggit.webhook_audit_log (operation) VALUES ('erased')")

    assert added == [2, 0]
    assert await reactor_database.fetch(
        "SELECT tableoid::regclass::text, audit_id FROM pggit.webhook_audit_log ORDER BY 2"
    ) == [
        ("pggit.webhook_audit_log_default", 35000001),
        ("pggit.webhook_audit_log_p4", 40000000),
        ("pggit.webhook_audit_log_p5", 50000000),
    ]
