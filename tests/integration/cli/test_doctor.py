"""Each kind of trouble is made, found, and comes with what to do."""

from __future__ import annotations

import attrs
import psycopg
import pytest
from psycopg import sql

from pggit_reactor.db.diagnosis import Server, judge_clock, judge_server

SERVER = Server(
    version="18.1",
    version_number=180001,
    encoding="UTF8",
    database="pg",
    user="me",
    is_standby=False,
    is_read_only=False,
    replication_role="origin",
    notify_is_off=False,
    started="now",
    clock=1000.0,
)
SETTINGS = {"EGRESS_UNSAFE_ALLOW": ""}


@pytest.fixture
def examined(commands):
    """Run doctor; returns the findings that are not ok, by check, after looking at its exit status."""

    def examine(**settings: str | None) -> dict[str, list[dict]]:
        result = commands("doctor", "--json", **{**SETTINGS, **settings})
        found: dict[str, list[dict]] = {}
        for finding in result.json:
            found.setdefault(finding["check"], [])
            if finding["level"] != "ok":
                found[finding["check"]].append(finding)
        troubles = [finding for group in found.values() for finding in group if finding["level"] == "trouble"]
        assert result.status == (3 if troubles else 0)
        assert all(finding["remedy"] for finding in troubles)
        return found

    return examine


@pytest.fixture
def registered(commands, hook, database) -> None:
    """A webhook, and a worker that was heard just now."""
    commands.ok("webhook", "add", hook, "--id", "7")
    heard(database, 0)


def heard(
    database: psycopg.Connection, seconds_ago: float, worker_id: str = "w1", version: str = "1"
) -> None:
    database.execute(
        "INSERT INTO pggit.reactor_worker (instance, worker_id, version, host, pid, capacity, heartbeat_at)"
        " VALUES (%s, %s, %s, 'h', 1, 1, now() - make_interval(secs => %s))",
        (worker_id, worker_id, version, seconds_ago),
    )


@pytest.mark.usefixtures("registered")
def test_a_sound_installation_is_all_ok_and_exit_0(examined) -> None:
    found = examined()

    # The tests' own user is a superuser, which is worth a note.
    assert {check: [one["level"] for one in found[check]] for check in found if found[check]} == {
        "rights": ["note"]
    }
    assert set(found) == {
        "egress", "database", "clock", "migrations", "roles", "rights", "triggers", "listen", "keys", "queue",
        "webhooks", "certificates", "workers", "audit", "activity",
    }  # fmt: skip


def test_people_get_a_line_a_finding_and_what_to_do(commands) -> None:
    result = commands("doctor", MASTER_KEY=None)

    assert result.status == 3
    assert "trouble   keys          no master key is set" in result.out
    assert "do: make one with `pggit-reactor key new`" in result.out


@pytest.mark.usefixtures("registered")
def test_a_disabled_trigger_is_found(examined, database) -> None:
    database.execute("ALTER TABLE pggit.alert_delivery_queue DISABLE TRIGGER queue_after_insert")

    (finding,) = examined()["triggers"]
    assert finding["remedy"] == "ALTER TABLE pggit.alert_delivery_queue ENABLE TRIGGER queue_after_insert"
    database.execute(finding["remedy"])
    assert examined()["triggers"] == []


@pytest.mark.usefixtures("registered")
def test_a_missing_trigger_is_found(examined, database) -> None:
    database.execute("DROP TRIGGER queue_after_update ON pggit.alert_delivery_queue")

    (finding,) = examined()["triggers"]
    assert "queue_after_update" in finding["what"]


@pytest.mark.usefixtures("registered")
def test_every_trigger_of_the_schema_is_looked_at(commands, database) -> None:
    rows = database.execute(
        "SELECT count(*) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid"
        " WHERE c.relnamespace = 'pggit'::regnamespace AND NOT t.tgisinternal"
    ).fetchone()

    assert f"all {rows[0]} are enabled" in commands("doctor").out


@pytest.mark.usefixtures("registered")
def test_a_phase_7_that_came_later_and_is_not_attached_is_found(examined, database) -> None:
    database.execute("CREATE TABLE pggit.alert_notification_queue (queue_id bigint)")
    (finding,) = examined()["triggers"]
    assert "attach_alert_queue" in finding["remedy"]

    database.execute("SELECT pggit.attach_alert_queue()")
    assert examined()["triggers"] == []


@pytest.mark.usefixtures("registered")
def test_a_pause_for_a_time_is_told_until_it_ends(examined, database) -> None:
    (webhook_id,) = database.execute("SELECT webhook_id FROM pggit.webhook LIMIT 1").fetchone()
    database.execute("SELECT pggit.pause_webhook(%s, now() + interval '1 hour', 'why')", (webhook_id,))
    (finding,) = examined()["webhooks"]
    assert "is paused until" in finding["what"]
    assert finding["remedy"].endswith(f"pggit-reactor webhook resume {webhook_id}")

    database.execute("UPDATE pggit.webhook_limit SET paused_until = now() - interval '1 s'")
    assert examined()["webhooks"] == []


@pytest.mark.usefixtures("registered")
def test_replica_sessions_and_silenced_producers_are_found(examined, database, reactor_database) -> None:
    name = sql.Identifier(reactor_database.name)
    database.execute(sql.SQL("ALTER DATABASE {} SET session_replication_role = replica").format(name))
    database.execute(sql.SQL("ALTER DATABASE {} SET pggit.notify = off").format(name))

    assert [finding["level"] for finding in examined()["triggers"]] == ["trouble", "note"]


@pytest.mark.usefixtures("registered")
def test_a_listen_url_of_another_database_is_found(examined, postgres_server) -> None:
    (finding,) = examined(DATABASE_LISTEN_URL=postgres_server.dsn_for("template1").reveal())["listen"]

    assert "another server or database" in finding["what"]


@pytest.mark.usefixtures("registered")
def test_a_listen_url_that_does_not_connect_is_found(examined) -> None:
    (finding,) = examined(DATABASE_LISTEN_URL="postgresql://127.0.0.1:1/x?connect_timeout=1")["listen"]

    assert "PGGIT_REACTOR_DATABASE_LISTEN_URL" in finding["remedy"]


@pytest.mark.usefixtures("registered")
def test_wrong_and_missing_keys_are_found(examined, other_key) -> None:
    (wrong,) = examined(MASTER_KEY=other_key)["keys"]
    missing, unused = sorted(
        examined(MASTER_KEY=other_key.replace("test:", "new:"))["keys"], key=lambda f: f["level"] == "note"
    )

    assert "'test' is wrong, and seals 2" in wrong["what"]
    assert "'test' is missing" in missing["what"]
    assert unused["level"] == "note"


@pytest.mark.usefixtures("registered")
def test_a_malformed_key_text_is_a_finding_and_not_shown(examined, commands) -> None:
    (finding,) = examined(MASTER_KEY="s3cret")["keys"]

    assert finding["level"] == "trouble"
    assert "s3cret" not in commands.printed


@pytest.mark.usefixtures("registered")
def test_rows_that_are_never_due_are_found_and_the_remedy_cures_them(examined, database, enqueued) -> None:
    enqueued(7)
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'retrying', next_retry_at = NULL"
    )

    (finding,) = examined()["queue"]
    assert finding["what"].startswith("1 deliveries are never due")
    database.execute(finding["remedy"])
    assert examined()["queue"] == []


@pytest.mark.usefixtures("registered")
def test_deliveries_for_unregistered_ids_are_found_by_id(examined, enqueued) -> None:
    for webhook_id in (-5, 99, 99):
        enqueued(webhook_id)

    assert [finding["what"].partition(",")[0] for finding in examined()["queue"]] == [
        "1 deliveries wait for webhook -5",
        "2 deliveries wait for webhook 99",
    ]


@pytest.mark.usefixtures("registered")
def test_a_webhook_that_no_key_opens_is_trouble_and_one_that_is_paused_a_note(examined, database) -> None:
    database.execute("UPDATE pggit.webhook SET state = 'paused', state_reason = 'maintenance'")
    assert [finding["level"] for finding in examined()["webhooks"]] == ["note"]

    database.execute("UPDATE pggit.webhook SET state_reason = 'no key opens it: ...'")
    assert [finding["level"] for finding in examined()["webhooks"]] == ["trouble"]


def test_no_worker_is_a_note_while_nothing_waits(examined) -> None:
    (finding,) = examined()["workers"]

    assert (finding["level"], finding["what"]) == ("note", "no worker runs")


@pytest.mark.usefixtures("registered")
def test_overdue_rows_are_trouble(examined, database, enqueued) -> None:
    enqueued(7)
    database.execute("UPDATE pggit.alert_delivery_queue SET created_at = now() - interval '10 minutes'")

    (finding,) = examined()["workers"]
    assert finding["what"] == "1 deliveries have been due for over 60 s; 1 worker(s) live"


@pytest.mark.usefixtures("registered")
def test_leased_rows_and_fresh_rows_are_not_overdue(examined, database, enqueued) -> None:
    enqueued(7)
    leased = enqueued(7)
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET created_at = now() - interval '10 minutes', lease_token = 1,"
        " lease_expires_at = now() + interval '30 s' WHERE delivery_id = %s",
        (leased,),
    )

    assert examined()["workers"] == []


@pytest.mark.usefixtures("registered")
def test_silent_workers_and_mixed_versions_are_noted(examined, database) -> None:
    heard(database, 300, "w2")
    heard(database, 1, "w3", version="2")

    silent, versions = examined()["workers"]
    assert "w2 was last heard 300 s ago" in silent["what"]
    assert "1, 2" in versions["what"]


@pytest.mark.usefixtures("registered")
def test_rows_in_the_default_audit_partition_are_found(examined, database) -> None:
    database.execute("SELECT setval('pggit.webhook_audit_log_audit_id_seq', 90000000)")
    missing = examined()["audit"]
    database.execute("INSERT INTO pggit.webhook_audit_log (operation) VALUES ('erased')")
    fallen = examined()["audit"]

    assert [finding["what"].split()[0] for finding in (*missing, *fallen)] == ["the", "1"]


@pytest.mark.usefixtures("registered")
def test_old_transactions_are_found_without_their_query(
    examined, database, monkeypatch, reactor_database
) -> None:
    monkeypatch.setattr("pggit_reactor.db.diagnosis.LONG_TRANSACTION_SECONDS", 0.0)
    with psycopg.connect(reactor_database.dsn.reveal(), application_name="old") as other:
        other.execute("SELECT 's3cret'")
        pid = other.info.backend_pid
        found = examined()["activity"]

    assert [finding for finding in found if finding["what"].startswith(f"process {pid} (")]
    assert "s3cret" not in str(found)


@pytest.mark.usefixtures("registered")
def test_relaxations_of_the_policy_are_noted(examined) -> None:
    unsafe, ports = examined(EGRESS_UNSAFE_ALLOW="127.0.0.0/8:*", EGRESS_PORTS="443,8443")["egress"]

    assert "127.0.0.0/8:*" in unsafe["what"]
    assert "8443" in ports["what"]


@pytest.mark.usefixtures("registered")
def test_the_proxy_is_named_without_its_password(examined, commands) -> None:
    (finding,) = examined(EGRESS_PROXY_URL="http://me:hunter22@proxy.internal:3128")["egress"]

    assert finding["level"] == "note"
    assert "through the proxy http://proxy.internal:3128 (egress.proxy_url)" in finding["what"]
    assert "hunter22" not in commands.printed


def test_a_user_without_a_workers_rights_is_told_the_grant(
    examined, database, reactor_database, request
) -> None:
    name = f"poor_{reactor_database.name}"
    identifier = sql.Identifier(name)
    database.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pw'").format(identifier))
    request.addfinalizer(
        lambda: database.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(identifier))
    )
    database.execute(sql.SQL("GRANT pggit_reader TO {}").format(identifier))
    url = reactor_database.dsn.reveal().replace("postgresql://", "").partition("@")[2]

    found = examined(DATABASE_URL=f"postgresql://{name}:pw@{url}")
    (finding,) = found["roles"]
    assert finding["remedy"] == f'GRANT pggit_worker TO "{name}"'
    assert "cannot be looked at" in found["keys"][0]["what"]


def test_a_schema_that_is_not_migrated_is_found_and_ends_the_look(examined, postgres_server) -> None:
    found = examined(DATABASE_URL=postgres_server.dsn_for("template1").reveal())

    assert found["migrations"][0]["remedy"] == "run `pggit-reactor migrate`"
    assert "queue" not in found


def test_a_database_that_does_not_answer_is_a_finding(examined) -> None:
    (finding,) = examined(DATABASE_URL="postgresql://127.0.0.1:1/x")["database"]

    assert "cannot connect" in finding["what"]


def test_no_database_url_is_a_configuration_error(commands) -> None:
    assert commands("doctor", DATABASE_URL=None).status == 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version_number": 140009, "version": "14.9"}, "too old"),
        ({"encoding": "LATIN1"}, "encoding"),
        ({"is_standby": True, "is_read_only": True}, "standby"),
        ({"is_read_only": True}, "read-only"),
    ],
)
def test_a_server_that_will_not_do_is_trouble(change, word) -> None:
    (finding,) = judge_server(attrs.evolve(SERVER, **change))
    assert finding.level == "trouble"
    assert word in finding.what


@pytest.mark.parametrize(("wall", "level"), [(1000.9, "ok"), (1001.1, "trouble"), (998.9, "trouble")])
def test_clocks_may_differ_by_a_second(wall, level) -> None:
    assert [finding.level for finding in judge_clock(SERVER, wall=wall)] == [level]


def test_a_status_policy_that_cannot_be_read_is_found(examined, registered, database) -> None:
    database.execute("""UPDATE pggit.webhook SET status_policy = '{"404": "later"}'""")

    (finding,) = examined()["webhooks"]
    assert 'calls "404" "later"' in finding["what"]
    assert "webhook set 7 status_policy=" in finding["remedy"]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("leak", "said"),
    [
        ("GRANT SELECT ON pggit.webhook_secret TO PUBLIC", "SELECT on pggit.webhook_secret"),
        ("GRANT CREATE ON SCHEMA pggit TO PUBLIC", "CREATE on schema pggit"),
        (
            "GRANT EXECUTE ON FUNCTION pggit.next_webhook_id TO PUBLIC",
            "EXECUTE on function pggit.next_webhook_id()",
        ),
        ("GRANT USAGE ON SEQUENCE pggit.reactor_gate TO PUBLIC", None),
        ("ALTER FUNCTION pggit.enqueue RESET ALL", "search_path: pggit.enqueue"),
        ("ALTER FUNCTION pggit.enqueue SET search_path = public", "search_path: pggit.enqueue"),
    ],
)
def test_what_everybody_may_do_and_must_not_is_found(examined, database, leak, said) -> None:
    database.execute(leak)

    troubles = [one["what"] for one in examined()["rights"] if one["level"] == "trouble"]
    assert [said in what for what in troubles] == ([True] if said else [])


@pytest.mark.usefixtures("registered")
def test_audit_rows_that_nobody_seals_are_found(examined, database) -> None:
    database.execute("UPDATE pggit.reactor_worker SET started_at = now() - interval '1 hour'")
    database.execute(
        "INSERT INTO pggit.webhook_audit_log (operation) SELECT 'erased' FROM generate_series(1, 2000)"
    )

    (finding,) = examined()["audit"]
    assert "are not sealed" in finding["what"]
