"""`migrate --rehearse DUMP` and `migrate --legacy-timezone`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pggit_reactor.db.embedded import EmbeddedPostgres
from pggit_reactor.testing.database import ReactorDatabase

ALL = ("phase7", "week1", "week2", "rows", "rows2", "addons")
FORMS = {"plain": "pggit.sql", "custom": "pggit.dump", "tar": "pggit.tar", "directory": "pggit.dir"}


def run_command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PGGIT", "DATABASE"))}
    return subprocess.run(
        [sys.executable, "-m", "pggit_reactor", "migrate", *arguments],
        env=kept | {f"PGGIT_REACTOR_{name}": value for name, value in settings.items()},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
async def dump(postgres_server: EmbeddedPostgres, empty_database: ReactorDatabase, load, tmp_path: Path):
    await load(*ALL)
    # Rows that look like statements of the dump.
    await empty_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES"
        " (1, 1, to_jsonb(E'\nCREATE EXTENSION nothing;\n\\\\connect elsewhere\n'::text))"
    )

    def make(form: str, *options: str) -> Path:
        path = tmp_path / FORMS[form]
        subprocess.run(
            [postgres_server.bin_dir / "pg_dump", f"--format={form}", f"--file={path}", *options,
             f"--dbname={empty_database.dsn.reveal()}"],
            check=True, timeout=60,
        )  # fmt: skip
        return path

    return make


@pytest.fixture
def server(postgres_server: EmbeddedPostgres) -> dict[str, str]:
    """The rehearsal's server is of the version that made the dump."""
    return {"POSTGRES_BIN": str(postgres_server.bin_dir)}


@pytest.mark.parametrize("form", FORMS)
async def test_a_dump_of_any_form_is_rehearsed_and_told_in_rows_time_and_locks(dump, server, form: str):
    path = dump(form)
    done = run_command("--rehearse", str(path), "--legacy-timezone", "America/St_Johns", "--json", **server)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    tables = {table["name"]: table for table in report["tables"]}
    locks = {lock["name"]: lock["mode"] for lock in report["locks"]}

    assert tables["pggit.alert_delivery_queue"] == {
        "name": "pggit.alert_delivery_queue", "rows_before": 7, "rows_after": 7, "rewritten": True,
    }  # fmt: skip
    assert tables["pggit_traffic.webhook_share"]["rewritten"] is False
    assert tables["pggit.webhook_audit_log"]["rows_after"] == 2
    assert locks["pggit.alert_delivery_queue"] == "AccessExclusiveLock"
    assert "pggit_traffic.webhook_share" not in locks
    assert report["migrate_seconds"] > 0
    assert report["applied"][0] == "0001_delivery.sql"
    assert report["legacy_timezone"] == "America/St_Johns"


async def test_a_rehearsal_reads_well_and_says_which_zone_it_took(dump, server):
    done = run_command("--rehearse", str(dump("custom")), **server)

    assert done.returncode == 0, done.stderr
    assert "pggit.alert_delivery_queue: 7 rows, rewritten" in done.stdout
    assert "locked to the end: pggit.alert_delivery_queue (AccessExclusiveLock)" in done.stdout
    assert "note: a dump does not tell the database's zone" in done.stdout


async def test_what_the_real_run_would_refuse_fails_the_rehearsal(empty_database, dump, server):
    await empty_database.execute(
        "CREATE MATERIALIZED VIEW reports.old AS SELECT created_at FROM pggit.alert_delivery_queue"
    )
    done = run_command("--rehearse", str(dump("custom")), **server)

    assert done.returncode == 1
    assert "drop these, migrate, and create them again: reports.old (a materialized view)" in done.stderr


def test_extensions_that_the_server_lacks_are_named(tmp_path: Path, server):
    path = tmp_path / "dump.sql"
    path.write_text('CREATE EXTENSION IF NOT EXISTS "no-such-thing" WITH SCHEMA public;\n', encoding="utf-8")
    done = run_command("--rehearse", str(path), **server)

    assert done.returncode == 2
    assert "the dump needs no-such-thing, which the PostgreSQL in" in done.stderr
    assert "PGGIT_REACTOR_POSTGRES_BIN" in done.stderr


@pytest.mark.parametrize(
    ("text", "status", "complaint"),
    [
        ("SELECT 1 / 0;\n", 1, "dump.sql cannot be restored"),
        ("\\connect other\n", 2, "without --create"),
        (None, 2, "cannot be read: No such file or directory"),
    ],
)
def test_a_dump_that_is_none_is_refused_in_one_line(
    tmp_path: Path, server, text, status: int, complaint: str
):
    path = tmp_path / "dump.sql"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    done = run_command("--rehearse", str(path), **server)

    assert done.returncode == status
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_rehearse_and_check_exclude_each_other(tmp_path: Path):
    assert run_command("--check", "--rehearse", str(tmp_path)).returncode == 2


async def test_the_command_reads_old_times_in_the_zone_it_is_told(empty_database, load):
    await load(*ALL, zone="UTC")
    dsn = empty_database.dsn.reveal()
    refused = run_command("--legacy-timezone", "Mars/Olympus", DATABASE_URL=dsn)
    done = run_command("--legacy-timezone", "Europe/Berlin", DATABASE_URL=dsn)

    assert (refused.returncode, "legacy time zone" in refused.stderr) == (1, True)
    assert done.returncode == 0, done.stderr
    assert (
        await empty_database.fetch_value(
            "SELECT (created_at AT TIME ZONE 'UTC')::text FROM pggit.alert_delivery_queue WHERE delivery_id = 13"
        )
        == "2025-07-01 08:00:00"
    )
