"""Each command either changes nothing or leaves the audit row that stands here; a new command has to choose."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from pggit_reactor.cli.main import cli
from pggit_reactor.db.migrate import load_migrations, migrate
from pggit_reactor.testing.database import DatabaseTemplate, ReactorDatabase

CHANGES_NOTHING = {
    "demo", "up", "worker", "doctor", "psql", "url check", "completion", "key new", "key status",
    "key url-key", "receiver check",
    "webhook list", "webhook show", "delivery list", "delivery show", "delivery explain", "route list",
    "route explain", "queue stats", "audit list", "audit verify", "audit export",
}  # fmt: skip
"""Commands that change nothing in the database, or only through others of these (`up`, `demo`)."""
AUDITED_ELSEWHERE = {
    "migrate": "below, for it needs an older schema",
    "webhook import-phase7": "tests/integration/cli/test_webhook_import.py, with phase 7's tables",
    "key rotate": "tests/integration/cli/test_key_rotate.py, with two keys",
    "webhook test": "tests/integration/cli/test_webhook_trial.py, with a receiver",
}
# In an order in which each can be done. {w}: a webhook, {d}: a delivery.
CHANGES = [
    ("webhook add", ["{hook}", "--name", "a"], {"webhook_added", "secret_added", "key_added"}),
    ("webhook show", ["a", "--reveal"], {"url_decrypted", "secret_revealed"}),
    ("webhook set", ["a", "burst=7"], {"webhook_changed"}),
    ("webhook rotate-secret", ["a"], {"secret_rotated"}),
    ("webhook reset", ["a"], {"webhook_reset"}),
    ("webhook pause", ["a"], {"webhook_paused"}),
    ("webhook resume", ["a"], {"webhook_resumed"}),
    ("webhook disable", ["a"], {"webhook_disabled"}),
    ("webhook enable", ["a"], {"webhook_enabled"}),
    ("delivery requeue", ["{d}"], {"delivery_replayed"}),
    ("delivery cancel", ["{d}"], {"delivery_cancelled"}),
    ("delivery replay", ["{d}"], {"delivery_replayed"}),
    ("route add", ["--severity", "INFO", "a"], {"rule_added"}),
    ("route remove", ["1"], {"rule_removed"}),
    ("erase", ["--webhook", "1", "--yes"], {"erased"}),
    ("queue prune", ["--failed", "0s"], {"deliveries_deleted"}),
    ("webhook remove", ["a"], {"webhook_removed"}),
]


def leaves(command: click.Command, name: str = "") -> Iterator[str]:
    if isinstance(command, click.Group):
        for word in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), word)
            assert below is not None
            yield from leaves(below, f"{name} {word}".strip())
    else:
        yield name


def test_every_command_is_known_here():
    known = CHANGES_NOTHING | set(AUDITED_ELSEWHERE) | {name for name, _, _ in CHANGES}

    assert set(leaves(cli)) - known == set()


def test_each_change_leaves_its_row_with_who_and_where(commands, database, hook, enqueued):
    newest = 0
    delivery = 0
    for name, arguments, operations in CHANGES:
        words = [word.format(hook=hook, d=delivery) for word in arguments]
        commands.ok("--as", "ada", *name.split(), *words)
        rows = database.execute(
            "SELECT audit_id, operation, user_id, details ->> 'actor', ip_address::text FROM pggit.webhook_audit_log"
            " WHERE audit_id > %s ORDER BY audit_id",
            (newest,),
        ).fetchall()
        assert {row[1] for row in rows} == operations, name
        assert all("ada" in {row[2], row[3]} for row in rows), name
        assert all(row[4] == "127.0.0.1/32" for row in rows if row[1] != "key_added"), name
        newest = rows[-1][0]
        delivery = delivery or enqueued(1)


@pytest.fixture
def one_migration_behind(postgres_server) -> Iterator[ReactorDatabase]:
    with DatabaseTemplate(postgres_server, load_migrations()[:-1]) as template, template.clone() as database:
        yield database


async def test_an_upgrade_of_the_schema_leaves_a_row(one_migration_behind):
    await migrate(await one_migration_behind.connect())

    assert await one_migration_behind.fetch("SELECT operation, details FROM pggit.webhook_audit_log") == [
        ("schema_migrated", {"versions": [load_migrations()[-1].version]})
    ]
