"""Commands as people should run them: as a login that is in one role and is nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo


@pytest.fixture
def login(reactor_database, database) -> Iterator:
    """Make a login that is only in a role; returns its DSN."""
    made = []

    def make(role: str) -> str:
        name = f"only_{role}_{reactor_database.name}"
        database.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pw' IN ROLE {}").format(
                sql.Identifier(name), sql.Identifier(role)
            )
        )
        made.append(name)
        parts = conninfo_to_dict(reactor_database.dsn.reveal())
        return make_conninfo(**{**parts, "user": name, "password": "pw"})  # type: ignore[arg-type]

    yield make
    for name in made:
        database.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_an_operator_can_do_all_of_an_operators_work(commands, login, hook, database, tmp_path):
    commands.environ["PGGIT_REACTOR_DATABASE_URL"] = login("pggit_operator")
    webhook = commands.ok("webhook", "add", hook, "--name", "a").last_word
    with psycopg.connect(commands.environ["PGGIT_REACTOR_DATABASE_URL"], autocommit=True) as operator:
        (delivery,) = operator.execute("SELECT pggit.enqueue(%s, '{}')", (webhook,)).fetchone()
    for words in (
        ["webhook", "list"],
        ["webhook", "show", "a", "--reveal"],
        ["webhook", "set", "a", "burst=7"],
        ["webhook", "pause", "a"],
        ["webhook", "resume", "a"],
        ["webhook", "disable", "a"],
        ["webhook", "enable", "a"],
        ["delivery", "list"],
        ["delivery", "show", str(delivery)],
        ["delivery", "explain", str(delivery)],
        ["delivery", "requeue", str(delivery)],
        ["delivery", "cancel", str(delivery)],
        ["delivery", "replay", str(delivery)],
        ["route", "add", "--severity", "WARNING", webhook],
        ["route", "list"],
        ["route", "explain", "--severity", "WARNING"],
        ["key", "status"],
        ["queue", "stats"],
        ["queue", "prune", "--delivered", "1d"],
        ["audit", "list"],
        ["audit", "export"],
        ["audit", "verify"],
        ["erase", "--webhook", webhook, "--yes"],
        ["webhook", "remove", "a"],
    ):
        commands.ok(*words)
    found = {one["check"]: one for one in commands("doctor", "--json").json}
    assert found["rights"]["level"] == "ok"

    audited = database.execute(
        "SELECT DISTINCT operation FROM pggit.webhook_audit_log WHERE request_id IS NOT NULL"
    )
    assert {row[0] for row in audited} >= {
        "webhook_added", "webhook_changed", "webhook_paused", "webhook_resumed", "webhook_disabled", "webhook_enabled",
        "delivery_cancelled", "delivery_replayed", "rule_added", "secret_revealed", "erased", "webhook_removed",
    }  # fmt: skip


def test_a_reader_counts_and_may_do_no_more(commands, login, hook, enqueued):
    webhook = commands.ok("webhook", "add", hook).last_word
    delivery = enqueued(int(webhook))
    commands.environ["PGGIT_REACTOR_DATABASE_URL"] = login("pggit_reader")

    assert "pending" in commands.ok("queue", "stats").out
    commands.ok("delivery", "explain", str(delivery))
    for words in (
        ["webhook", "pause", webhook],
        ["delivery", "cancel", str(delivery)],
        ["audit", "list"],
        ["audit", "export"],
        ["queue", "prune", "--delivered", "1d"],
        ["erase", "--webhook", webhook, "--yes"],
        ["webhook", "add", hook],
    ):
        result = commands(*words)
        assert result.status == 1, words


def test_a_worker_can_do_none_of_an_operators_work(commands, login, hook, enqueued):
    webhook = commands.ok("webhook", "add", hook).last_word
    delivery = enqueued(int(webhook))
    commands.environ["PGGIT_REACTOR_DATABASE_URL"] = login("pggit_worker")

    for words in (
        ["webhook", "set", webhook, "burst=7"],
        ["webhook", "remove", webhook],
        ["delivery", "cancel", str(delivery)],
        ["audit", "list"],
        ["erase", "--webhook", webhook, "--yes"],
    ):
        assert commands(*words).status == 1, words
