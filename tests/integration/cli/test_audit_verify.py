"""`audit verify` as a person types it, over what a worker sealed."""

from __future__ import annotations

import pytest
import trio

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.audit_chain import open_horizon, seal_segment
from pggit_reactor.db.connect import open_connection
from pggit_reactor.security.audit_seal import AuditSealer
from pggit_reactor.security.keyring import Keyring


@pytest.fixture
def sealed(commands, reactor_database, hook):
    """Seals what is in the log; the first time there is the registration of a webhook in it."""
    commands.ok("webhook", "add", hook)

    async def seal() -> None:
        sealer = AuditSealer(Keyring.parse(Secret(commands.environ["PGGIT_REACTOR_MASTER_KEY"])))
        async with open_connection(reactor_database.dsn, application_name="a worker") as connection:
            horizon = await open_horizon(connection, sealer.key_id)
            assert horizon is not None
            await seal_segment(connection, sealer, horizon)

    def run() -> None:
        trio.run(seal)

    run()
    return run


def test_a_whole_log_is_said_to_be_whole_with_an_anchor_to_note(commands, sealed):
    told = commands.ok("audit", "verify")
    report = commands.ok("audit", "verify", "--json").json

    assert "whole" in told.out
    assert (report["ok"], report["segments"], report["seals_checked"], report["tail_rows"]) == (True, 1, 1, 0)
    anchor = f"{report['last_number']}:{report['last_hash']}"
    assert told.last_word == anchor
    commands.ok("audit", "verify", "--anchor", anchor)


def test_a_changed_row_ends_in_trouble(commands, sealed, database):
    database.execute("UPDATE pggit.webhook_audit_log SET user_id = 'eve' WHERE operation = 'webhook_added'")
    result = commands("audit", "verify")

    assert result.status == 3
    assert "BROKEN in 1 place(s)" in result.out
    assert "row_changed: segment 1" in result.out


def test_an_anchor_that_is_not_the_chains_ends_in_trouble(commands, sealed):
    result = commands("audit", "verify", "--anchor", f"1:{'0' * 64}", "--json")

    assert (result.status, result.json["breaks"][0]["kind"]) == (3, "anchor")
    assert commands("audit", "verify", "--anchor", "1").status == 2


def test_without_a_key_the_hashes_alone_are_checked(commands, sealed, other_key):
    result = commands.ok("audit", "verify", MASTER_KEY=None)

    assert "not looked at: no master key is set" in result.out
    assert commands("audit", "verify", MASTER_KEY=other_key).status == 2


def test_rows_that_no_worker_has_sealed_are_told_of(commands, sealed, hook):
    commands.ok("webhook", "add", hook)

    assert "2 row(s), the oldest of " in commands.ok("audit", "verify").out
