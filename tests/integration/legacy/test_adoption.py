"""`migrate` over what pgGit left: in place, nothing lost, nothing changed in meaning (LEGACY 2 to 6, 15.21, 15.25)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from pggit_reactor.db.migrate import check, migrate
from pggit_reactor.db.sql_split import split_statements
from pggit_reactor.errors import DatabaseError, MigrationError
from pggit_reactor.testing.database import ReactorDatabase

FIXTURES = Path(__file__).with_name("fixtures")
WEEK1 = ("week1", "rows")
WEEK2 = ("week1", "week2", "rows", "rows2")
ALL = ("phase7", *WEEK2, "addons")

QUEUE = (
    "SELECT delivery_id, alert_id, webhook_id, message_body::text, delivery_status, retry_count, max_retries, {} "
    "FROM pggit.alert_delivery_queue ORDER BY delivery_id"
)
TIMES = ("next_retry_at", "created_at", "attempted_at", "delivered_at")


def queue_in(zone: str | None) -> str:
    """Return the query for the queue with times as texts in UTC; of plain timestamps, read in *zone*."""
    into = "AT TIME ZONE 'UTC'" if zone is None else f"AT TIME ZONE '{zone}' AT TIME ZONE 'UTC'"
    return QUEUE.format(", ".join(f"({time} {into})::text" for time in TIMES))


# What migrations make, without what is of one database only: object ids, and the names of primary keys.
SHAPE = {
    "columns": "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated,"
    " pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
    " LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum"
    " WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.attnum > 0"
    " AND NOT a.attisdropped AND c.relname !~ '^webhook_audit_log_' ORDER BY c.relname, a.attnum",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'pggit'::regnamespace AND contype <> 'n' AND conrelid::regclass::text !~ 'audit_log_'"
    " ORDER BY 1, 2",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'pggit'"
    " AND tablename !~ '^webhook_audit_log_' ORDER BY 1, 2",
    "functions": "SELECT oid::regprocedure::text, pg_get_function_result(oid), prosecdef, proconfig,"
    " md5(pg_get_functiondef(oid))"
    " FROM pg_proc WHERE pronamespace = 'pggit'::regnamespace ORDER BY 1",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'pggit' ORDER BY 1",
    "triggers": "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"
    " AND tgrelid::regclass::text LIKE 'pggit.%' ORDER BY 1, 2",
    "comments": "SELECT objoid::regclass::text, objsubid, description FROM pg_description"
    " WHERE classoid = 'pg_class'::regclass AND objoid IN"
    " (SELECT oid FROM pg_class WHERE relnamespace = 'pggit'::regnamespace) ORDER BY 1, 2",
    "options": "SELECT relname, reloptions FROM pg_class WHERE relnamespace = 'pggit'::regnamespace"
    " AND relkind IN ('r', 'p') AND relname !~ '^webhook_audit_log_' ORDER BY 1",
}
# Left as it was found: its times are plain, its checks have other names.
LEFT_ALONE = (
    "alert_observers",
    "alert_routing_rules",
    "alert_notification_webhooks",
    "alert_notification_queue",
)


async def shape(database: ReactorDatabase, what: str) -> list[tuple]:
    rows = await database.fetch(SHAPE[what])
    return [row for row in rows if not any(name in str(row[0]) for name in LEFT_ALONE)]


@pytest.mark.parametrize(
    "scripts", [("phase7",), WEEK1, WEEK2, ALL], ids=["phase 7", "week 1", "week 2", "all"]
)
async def test_an_adopted_schema_is_the_one_that_an_empty_database_gets(
    reactor_database, empty_database, load, scripts
):
    await load(*scripts)
    await migrate(await empty_database.connect())

    for what in SHAPE:
        assert await shape(empty_database, what) == await shape(reactor_database, what), what


@pytest.mark.parametrize("scripts", [WEEK1, WEEK2, ALL], ids=["week 1", "week 2", "all"])
async def test_every_row_is_kept_and_its_times_are_read_in_the_databases_zone(empty_database, load, scripts):
    await load(*scripts)
    before = await empty_database.fetch(queue_in("America/St_Johns"))
    log = await empty_database.fetch(
        "SELECT log_id, delivery_id, webhook_id, event_type, event_details,"
        " (created_at AT TIME ZONE 'America/St_Johns' AT TIME ZONE 'UTC')::text FROM"
        " pggit.alert_delivery_log ORDER BY 1"
    )
    await migrate(await empty_database.connect())

    assert len(before) == 6
    assert await empty_database.fetch(queue_in(None)) == before
    assert (
        await empty_database.fetch(
            "SELECT log_id, delivery_id, webhook_id, event_type, event_details, (created_at AT TIME ZONE 'UTC')::text"
            " FROM pggit.alert_delivery_log ORDER BY 1"
        )
        == log
    )
    # Summer and winter, by the offset of their own day.
    assert await empty_database.fetch(
        "SELECT (created_at AT TIME ZONE 'UTC')::text FROM pggit.alert_delivery_queue"
        " WHERE delivery_id IN (11, 13) ORDER BY 1"
    ) == [("2025-07-01 12:30:00",), ("2025-12-01 13:30:00.123456",)]


async def test_a_row_is_ready_where_it_was_and_the_others_are_not(empty_database, load):
    await load(*ALL)
    await migrate(await empty_database.connect())

    assert await empty_database.fetch(
        "SELECT delivery_id, ready_at <= now() FROM pggit.alert_delivery_queue ORDER BY 1"
    ) == [(11, True), (12, True), (13, None), (14, None), (15, False), (16, False)]
    assert await empty_database.fetch("SELECT delivery_id FROM pggit.get_ready_deliveries(100)") == [
        (11,),
        (12,),
    ]
    salts = await empty_database.fetch("SELECT count(DISTINCT uid_salt) FROM pggit.alert_delivery_queue")
    assert salts == [(6,)]


async def test_ids_go_on_where_they_were(empty_database, load):
    await load(*ALL)
    await migrate(await empty_database.connect())
    rows = await empty_database.fetch(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1, 1, '{}')"
        " RETURNING delivery_id"
    )
    audit = await empty_database.fetch_value("SELECT pggit.log_webhook_delivery(100, 11, 204)")

    assert rows == [(17,)]
    assert audit == 3


async def test_another_zone_may_be_named(empty_database, load):
    await load(*ALL)
    before = await empty_database.fetch(queue_in("Asia/Kathmandu"))
    await migrate(await empty_database.connect(), legacy_timezone="Asia/Kathmandu")

    assert await empty_database.fetch(queue_in(None)) == before


async def test_an_unknown_zone_is_refused_by_name(empty_database, load):
    await load(*ALL)

    with pytest.raises(MigrationError, match="legacy time zone 'Mars/Olympus' is not known"):
        await migrate(await empty_database.connect(), legacy_timezone="Mars/Olympus")


async def test_the_zone_of_the_session_alone_is_not_taken_for_the_databases(empty_database, load):
    await load(*ALL)
    await empty_database.execute(f"ALTER DATABASE {empty_database.name} RESET timezone")
    connection = await empty_database.connect(TimeZone="Asia/Tokyo")

    with pytest.raises(
        MigrationError, match=r"Asia/Tokyo is only this session's \(client\); say --legacy-timezone"
    ):
        await migrate(connection)


async def test_the_sessions_zone_does_not_matter_where_the_database_has_its_own(empty_database, load):
    await load(*ALL)
    before = await empty_database.fetch(queue_in("America/St_Johns"))
    await migrate(await empty_database.connect(TimeZone="Asia/Tokyo"))

    assert await empty_database.fetch(queue_in(None)) == before


async def test_a_second_run_does_nothing(empty_database, load):
    await load(*ALL)
    connection = await empty_database.connect()
    assert (await check(connection)).legacy
    await migrate(connection)
    files = (
        "SELECT relname, pg_relation_filenode(oid) FROM pg_class"
        " WHERE relnamespace = 'pggit'::regnamespace ORDER BY 1"
    )
    before = await empty_database.fetch(files)

    assert (await migrate(connection)).applied == ()
    assert await empty_database.fetch(files) == before
    assert (await check(connection)).is_current


async def test_foreign_keys_of_addons_are_kept_and_still_work(empty_database, load):
    await load(*ALL)
    keys = (
        "SELECT conname, conrelid::regclass::text, confrelid::regclass::text, convalidated FROM pg_constraint"
        " WHERE contype = 'f' AND connamespace IN ('pggit_traffic'::regnamespace, 'pggit_ml'::regnamespace) ORDER BY 1"
    )
    before = await empty_database.fetch(keys)
    await migrate(await empty_database.connect())

    assert len(before) == 3
    assert await empty_database.fetch(keys) == before
    with pytest.raises(DatabaseError) as caught:
        await empty_database.execute(
            "INSERT INTO pggit_traffic.webhook_share (webhook_id, weight) VALUES (5, 1)"
        )
    assert caught.value.sqlstate == "23503"
    await empty_database.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_id = 11")
    assert await empty_database.fetch("SELECT delivery_id FROM pggit_ml.forecast") == [(None,)]


VIEWS = """
SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner), c.reloptions::text,
       ARRAY(SELECT a::text FROM unnest(c.relacl) AS a ORDER BY 1),
       ARRAY(SELECT a.attname || ':' || a.attacl::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL),
       obj_description(c.oid, 'pg_class'), col_description(c.oid, 4)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'reports' AND c.relkind = 'v' ORDER BY 1, 2
"""


async def test_views_of_users_are_made_again_with_owner_grants_options_and_comments(empty_database, load):
    await load(*ALL)
    await empty_database.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO legacy_worker")
    before = await empty_database.fetch(VIEWS)
    daily = await empty_database.fetch("SELECT day::text, failures FROM reports.daily")
    await migrate(await empty_database.connect())

    assert [row[1] for row in before] == ["Recent failures", "daily", "depth", "stuck"]
    after = await empty_database.fetch(VIEWS)
    # A view without grants has no list of them; one that lost its defaults again has the owner's own.
    assert [row[:4] + row[5:] for row in after] == [row[:4] + row[5:] for row in before]
    own = {"reactor=arwdDxtm/reactor", "reactor=arwdDxt/reactor", "legacy_analyst=arwdDxtm/legacy_analyst",
           "legacy_analyst=arwdDxt/legacy_analyst"}  # fmt: skip
    assert [set(row[4]) - own for row in after] == [set(row[4]) - own for row in before]
    assert [(day[:10], count) for day, count in daily] == [
        (day[:10], count)
        for day, count in await empty_database.fetch("SELECT day::text, failures FROM reports.daily")
    ]
    assert await empty_database.fetch("SELECT delivery_id FROM reports.stuck") == [(14,)]
    assert await empty_database.fetch("SELECT * FROM reports.depth") == [(6,)]
    dashboard = await empty_database.connect(role="legacy_dashboard")
    cursor = await dashboard.execute('SELECT delivery_id FROM reports."Recent failures"')
    assert await cursor.fetchall() == [(14,)]


async def test_grants_are_kept_on_tables_functions_and_legacy_views(empty_database, load):
    await load(*ALL)
    await migrate(await empty_database.connect())
    worker = await empty_database.connect(role="legacy_worker")
    dashboard = await empty_database.connect(role="legacy_dashboard")

    (row,) = await (await worker.execute("SELECT delivery_id FROM pggit.get_ready_deliveries(1)")).fetchall()
    await worker.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered', delivered_at = now(),"
        " attempted_at = now()"
        " WHERE delivery_id = %s",
        row,
    )
    await worker.execute("SELECT pggit.update_webhook_health(100, 200, 45, NULL)")
    await worker.execute("SELECT pggit.observer_queue_alert(1, 2, '{}')")
    await worker.execute("SELECT pggit.log_webhook_delivery(100, 11, 200)")
    assert await (await worker.execute("SELECT pggit.get_webhook_decrypted(100)")).fetchall() == [(None,)]
    await dashboard.execute("SELECT * FROM pggit.v_failed_deliveries")
    await dashboard.execute("GRANT SELECT ON pggit.v_failed_deliveries TO legacy_worker")
    for statement in (
        "SELECT * FROM pggit.get_ready_deliveries(1)",
        "SELECT pggit.observer_queue_alert(1, 2, '{}')",
    ):
        with pytest.raises(DatabaseError) as caught:
            await dashboard.execute(statement)
        assert caught.value.sqlstate == "42501"


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        (
            "CREATE MATERIALIZED VIEW reports.old AS SELECT created_at FROM pggit.alert_delivery_queue",
            r"reports\.old \(a materialized view\)",
        ),
        (
            "CREATE VIEW reports.utc AS SELECT created_at AT TIME ZONE 'UTC' AS t FROM pggit.alert_delivery_log",
            r"reports\.utc \(it says AT TIME ZONE",
        ),
        (
            "CREATE INDEX by_day ON pggit.alert_delivery_queue (date_trunc('day', created_at))",
            r"pggit\.by_day \(an index on an expression of a time\)",
        ),
        (
            "CREATE FUNCTION reports.f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM pggit.alert_delivery_queue"
            " WHERE created_at > '2025-01-01'; END",
            r"function reports\.f\(\) \(it uses a time column\)",
        ),
        (
            "CREATE FUNCTION reports.f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM reports.daily; END",
            r"function reports\.f\(\) \(it uses a view that is made anew\)",
        ),
        (
            "CREATE POLICY recent ON pggit.alert_delivery_queue USING (created_at > '2025-01-01')",
            r"policy recent on table pggit\.alert_delivery_queue \(it uses a time column\)",
        ),
        (
            "CREATE TABLE reports.seen (audit_id bigint REFERENCES pggit.webhook_audit_log)",
            r"seen_audit_id_fkey of reports\.seen \(a foreign key to the audit log",
        ),
        (
            "CREATE RULE r AS ON INSERT TO pggit_ml.forecast DO ALSO UPDATE pggit.webhook_health_metrics"
            " SET last_check_at = now()",
            r"pggit_ml\.forecast \(it has a rule\)",
        ),
    ],
)  # fmt: skip
async def test_what_cannot_be_kept_is_named_and_nothing_is_changed(
    empty_database, load, statement, complaint
):
    await load(*ALL)
    await empty_database.execute(statement)
    before = [await empty_database.fetch(query) for query in (queue_in("UTC"), *SHAPE.values(), VIEWS)]

    with pytest.raises(MigrationError, match=f"drop these, migrate, and create them again: .*{complaint}"):
        await migrate(await empty_database.connect())
    assert [
        await empty_database.fetch(query) for query in (queue_in("UTC"), *SHAPE.values(), VIEWS)
    ] == before


async def test_a_view_that_cannot_be_put_back_is_named_and_nothing_is_changed(empty_database, load):
    await load(*ALL)
    await empty_database.execute(
        "CREATE VIEW reports.span AS SELECT make_date(2025, 1, 1) - created_at AS age,"
        " tsrange(created_at, NULL) AS span"
        " FROM pggit.alert_delivery_queue"
    )
    before = [await empty_database.fetch(query) for query in (queue_in("UTC"), *SHAPE.values(), VIEWS)]

    with pytest.raises(MigrationError, match=r"view reports\.span cannot be put back .* drop it, migrate"):
        await migrate(await empty_database.connect())
    assert [
        await empty_database.fetch(query) for query in (queue_in("UTC"), *SHAPE.values(), VIEWS)
    ] == before


async def test_tables_of_somebody_else_are_refused(empty_database):
    await empty_database.execute("CREATE SCHEMA pggit")
    await empty_database.execute(
        "CREATE TABLE pggit.alert_delivery_queue (delivery_id bigserial, alert_id text, created_at date)"
    )

    with pytest.raises(
        MigrationError, match=r"not the tables of pgGit's phase 8; .*alert_delivery_queue\.alert_id bigint"
    ):
        await migrate(await empty_database.connect())


async def test_the_old_audit_log_is_the_first_partition(empty_database, load):
    await load(*ALL)
    await empty_database.execute("SELECT setval('pggit.webhook_audit_log_audit_id_seq', 20000005)")
    await migrate(await empty_database.connect())
    await empty_database.execute("INSERT INTO pggit.webhook_audit_log (operation) VALUES ('rate_limited')")

    assert await empty_database.fetch(
        "SELECT tableoid::regclass::text, audit_id, operation, (occurred_at AT TIME ZONE 'UTC')::text"
        " FROM pggit.webhook_audit_log WHERE user_id IS NOT NULL ORDER BY audit_id"
    ) == [
        ("pggit.webhook_audit_log_p2", 1, "delivered", "2025-07-01 12:38:00"),
        ("pggit.webhook_audit_log_p2", 2, "failed", "2025-12-01 13:30:01"),
    ]
    assert await empty_database.fetch(
        "SELECT tableoid::regclass::text, audit_id FROM pggit.webhook_audit_log WHERE operation = 'rate_limited'"
    ) == [("pggit.webhook_audit_log_p2", 20000006)]
    assert await empty_database.fetch_value("SELECT pggit.add_audit_partitions()") == 2


async def test_phase_7_is_left_alone_but_for_the_function_whose_name_is_taken(empty_database, load):
    await load("phase7")
    await migrate(await empty_database.connect())

    assert await empty_database.fetch("SELECT name, enabled FROM pggit.alert_notification_webhooks") == [
        ("slack-default", False)
    ]
    assert await empty_database.fetch("SELECT severity_level, webhook_id FROM pggit.alert_routing_rules") == [
        ("CRITICAL", 1)
    ]
    assert await empty_database.fetch("SELECT pggit.get_webhook_decrypted(1)") == [(None,)]
    # No id that phase 7 uses is given to anybody else.
    assert await empty_database.fetch_value("SELECT pggit.next_webhook_id()") == 2


async def test_observers_keep_their_counts(empty_database, load):
    await load(*ALL)
    await migrate(await empty_database.connect())
    await empty_database.execute("SELECT pggit.process_failed_deliveries()")

    assert await empty_database.fetch(
        "SELECT execution_count, last_execution_at IS NOT NULL FROM pggit.alert_observers ORDER BY 1 DESC LIMIT 2"
    ) == [(42, True), (0, False)]


async def test_writers_of_the_old_schema_wait_for_the_adoption_and_go_on(empty_database, load):
    """An old worker and a producer do not stop while the operator migrates."""
    await load(*ALL)
    writers = [await empty_database.connect() for _ in range(3)]
    written = [0]
    done = trio.Event()

    async def write(connection) -> None:
        while not done.is_set():
            cursor = await connection.execute(
                "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body,"
                " delivery_status, retry_count,"
                " max_retries, created_at) VALUES (1, 100, '{}', 'pending', 0, 3, CURRENT_TIMESTAMP)"
                " RETURNING delivery_id",
                prepare=False,
            )
            ((delivery_id,),) = await cursor.fetchall()
            await connection.execute(
                "UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered', delivered_at = CURRENT_TIMESTAMP,"
                " attempted_at = CURRENT_TIMESTAMP WHERE delivery_id = %s",
                (delivery_id,),
                prepare=False,
            )
            await connection.execute(
                "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type) VALUES"
                " (%s, 100, 'delivered')",
                (delivery_id,),
                prepare=False,
            )
            written[0] += 1

    async with trio.open_nursery() as nursery:
        for connection in writers:
            nursery.start_soon(write, connection)
        while written[0] < 50:
            await trio.lowlevel.checkpoint()
        await migrate(await empty_database.connect())
        now = written[0]
        while written[0] < now + 50:
            await trio.lowlevel.checkpoint()
        done.set()

    assert await empty_database.fetch(
        "SELECT count(*), count(*) FILTER (WHERE delivered_at >= created_at AND delivered_at < now() + interval '1 s')"
        " FROM pggit.alert_delivery_queue WHERE delivery_id > 16"
    ) == [(written[0], written[0])]


async def test_tables_of_week_2_are_adopted_where_week_1_was_never_loaded(reactor_database, empty_database):
    """The original's second file could be loaded alone: its tables came to be, its functions failed."""
    script = FIXTURES.joinpath("week2.sql").read_text(encoding="utf-8")
    await empty_database.execute("CREATE SCHEMA pggit")
    for statement in split_statements(script):
        if statement.text.startswith(("CREATE TABLE", "CREATE INDEX")):
            await empty_database.execute(statement.text)
    await empty_database.execute("INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (1)")
    await migrate(await empty_database.connect())

    for what in SHAPE:
        assert await shape(empty_database, what) == await shape(reactor_database, what), what
    assert await empty_database.fetch("SELECT webhook_id FROM pggit.webhook_health_metrics") == [(1,)]


@pytest.mark.parametrize("options", [{"role": "legacy_owner"}, {}], ids=["by itself", "by a superuser"])
async def test_tables_of_a_role_that_is_no_superuser_are_adopted(
    empty_database, load, options: dict[str, str]
):
    await load(*WEEK2)
    await empty_database.execute(
        "DO $$ BEGIN CREATE ROLE legacy_owner; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    await empty_database.execute(f"GRANT ALL ON DATABASE {empty_database.name} TO legacy_owner")
    await empty_database.execute("ALTER SCHEMA pggit OWNER TO legacy_owner")
    owned = await empty_database.fetch(
        "SELECT format('ALTER %%s %%s OWNER TO legacy_owner', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,"
        " c.oid::regclass) FROM pg_class AS c WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind IN ('r', 'v')"
        " UNION ALL SELECT format('ALTER FUNCTION %%s OWNER TO legacy_owner', p.oid::regprocedure) FROM pg_proc AS p"
        " WHERE p.pronamespace = 'pggit'::regnamespace",
        (),
    )
    for (statement,) in owned:
        await empty_database.execute(statement)
    before = await empty_database.fetch(queue_in("America/St_Johns"))
    await migrate(await empty_database.connect(**options))

    assert await empty_database.fetch(queue_in(None)) == before
    assert await empty_database.fetch(
        "SELECT DISTINCT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = ANY (ARRAY["
        "'pggit.alert_delivery_queue', 'pggit.webhook_audit_log', 'pggit.webhook_audit_log_audit_id_seq']::regclass[])",
        (),
    ) == [("legacy_owner",)]
