"""Whatever is done to a sealed log is found."""

from __future__ import annotations

import tracemalloc

import pytest

from pggit_reactor.core.audit_chain import AuditRow

# Every kind of value, and every text that could be taken for another.
ODD_ROWS = [
    {},
    {"operation": "NULL", "user_id": "NULL"},
    {"webhook_id": "-9223372036854775808", "delivery_id": "9223372036854775807", "status_code": "-1"},
    {"error_message": "''", "details": "'{}'"},
    {
        "error_message": "E'a,b:\\n\\t\\\\ \\U0001F600 ü'",
        "details": """'{"b": [1.50, "ü", null], "a": 1e3}'""",
    },
    {"details": "'null'", "signature_verified": "true"},
    {"details": """to_jsonb(repeat('x', 20000))""", "signature_verified": "false"},
    {"ip_address": "'192.0.2.1'", "encryption_algorithm": "'aes-256-gcm'"},
    {"ip_address": "'2001:db8::/32'", "encryption_algorithm": "''"},
    {"ip_address": "'::ffff:192.0.2.1'"},
    {"occurred_at": "'infinity'"},
    {"occurred_at": "'-infinity'"},
    {"occurred_at": "NULL"},
    {"occurred_at": "'4713-01-01 00:00:00.000001 BC'"},
    {"occurred_at": "'294276-12-31 23:59:59.999999+00'"},
    {"occurred_at": "'1969-12-31 23:59:59.999999+00'"},
    {"request_id": "'00000000-0000-8000-8400-0000000000AB'", "user_id": "'5:a,-'"},
]
SETTINGS = {
    "DateStyle": "SQL,DMY",
    "TimeZone": "Asia/Kathmandu",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "lc_numeric": "C",
}


async def test_sql_and_python_hash_alike_whatever_the_session_is_set_to(chain):
    for columns in ODD_ROWS:
        await chain.log(**columns)
    worker = await chain.database.connect(**SETTINGS, role="pggit_worker")
    reader = await chain.database.connect(
        DateStyle="German", TimeZone="America/Caracas", role="pggit_operator"
    )
    chain.worker, chain.reader = worker, reader

    assert (await chain.seal()).row_count == len(ODD_ROWS)
    report = await chain.verify()
    assert (report.breaks, report.rows) == ((), len(ODD_ROWS))


CHANGES = {
    "row_changed": [
        "UPDATE pggit.webhook_audit_log SET operation = 'erased' WHERE audit_id = 3",
        "UPDATE pggit.webhook_audit_log SET user_id = NULL WHERE audit_id = 3",
        "UPDATE pggit.webhook_audit_log SET details = '{}' WHERE audit_id = 3",
        "UPDATE pggit.webhook_audit_log SET error_message = '' WHERE audit_id = 3",
        "UPDATE pggit.webhook_audit_log SET occurred_at = occurred_at + interval '1 us' WHERE audit_id = 3",
        "UPDATE pggit.webhook_audit_log SET salt = gen_random_uuid() WHERE audit_id = 3",
        "UPDATE pggit.webhook_audit_log SET erased_digest = sha256(''), details = NULL, error_message = NULL"
        " WHERE audit_id = 3",
        # Two rows change places.
        "UPDATE pggit.webhook_audit_log SET audit_id = -audit_id WHERE audit_id IN (2, 3);"
        "UPDATE pggit.webhook_audit_log SET audit_id = 5 + audit_id WHERE audit_id IN (-2, -3)",
    ],
    "row_missing": [
        "DELETE FROM pggit.webhook_audit_log WHERE audit_id = 3",
        "DELETE FROM pggit.webhook_audit_log WHERE audit_id <= 4",
        "TRUNCATE pggit.webhook_audit_log",
    ],
    "row_inserted": [
        "INSERT INTO pggit.webhook_audit_log (audit_id, operation) VALUES (0, 'failed')",
        "INSERT INTO pggit.webhook_audit_log (audit_id, operation) VALUES (-7, 'failed')",
    ],
    "segment_missing": [
        "DELETE FROM pggit.audit_segment WHERE number = 1",
        "DELETE FROM pggit.audit_segment WHERE number = 2",
    ],
    "segment_changed": [
        "UPDATE pggit.audit_segment SET row_count = 1 WHERE number = 2",
        "UPDATE pggit.audit_segment SET sealed_at = now() - interval '1 day' WHERE number = 2",
        "UPDATE pggit.audit_segment SET previous_hash = rows_hash WHERE number = 2",
        "UPDATE pggit.audit_segment SET hash = rows_hash WHERE number = 2",
        "UPDATE pggit.audit_segment SET late_ids = '{1}' WHERE number = 2",
        "UPDATE pggit.audit_segment SET open_ids = '{[3,4)}' WHERE number = 2",
        "UPDATE pggit.audit_segment SET is_checkpoint = true WHERE number = 2",
    ],
    "seal_wrong": ["UPDATE pggit.audit_segment SET seal = sha256('x') || seal WHERE number = 2"],
}


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for kind, changes in CHANGES.items() for change in changes]
)
async def test_a_change_of_a_sealed_log_is_found(chain, kind, change):
    await chain.log(6, error_message="'no answer'", details="jsonb_build_object('n', n)")
    for _ in range(3):
        await chain.seal(rows_max=2)
    assert (await chain.verify()).ok
    for statement in change.split(";"):
        await chain.database.execute(statement)

    assert kind in await chain.kinds()


async def test_who_writes_the_chain_anew_without_the_key_is_found(chain, ring_of):
    """With all rights in the database, hashes can be made anew; seals cannot."""
    await chain.log(4)
    await chain.seal(rows_max=2)
    await chain.seal(rows_max=2)
    await chain.database.execute("UPDATE pggit.webhook_audit_log SET user_id = 'eve' WHERE audit_id = 1")
    await chain.database.execute("TRUNCATE pggit.audit_segment")
    honest, chain.sealer = chain.sealer, type(chain.sealer)(ring_of(("test", 66)))
    await chain.seal()

    assert await chain.kinds(check_seal=None) == set()
    assert await chain.kinds(check_seal=honest.check) == {"seal_wrong"}
    chain.sealer = type(chain.sealer)(ring_of(("unheard-of", 66)))
    await chain.database.execute("TRUNCATE pggit.audit_segment")
    await chain.seal()
    assert await chain.kinds(check_seal=honest.check) == {"seal_unproven"}


async def test_an_end_that_was_cut_off_is_found_by_the_anchor_alone(chain):
    await chain.log(2)
    await chain.seal(rows_max=1)
    second = await chain.seal(rows_max=1)
    await chain.database.execute("DELETE FROM pggit.webhook_audit_log WHERE audit_id = 2")
    await chain.database.execute("DELETE FROM pggit.audit_segment WHERE number = 2")

    assert await chain.kinds() == set()
    assert await chain.kinds(anchor=(second.number, second.hash.hex())) == {"anchor"}


async def test_what_is_not_sealed_is_told_of(chain):
    await chain.log()
    await chain.seal()
    await chain.log(3, occurred_at="'infinity'")
    report = await chain.verify()

    assert (report.ok, report.rows, report.tail_rows, report.tail_oldest_at) == (True, 1, 3, "infinity")


async def test_rows_that_retention_drops_meanwhile_are_not_missed(chain):
    await chain.log(3)
    for _ in range(3):
        await chain.seal(rows_max=1)

    async def drop() -> None:
        await chain.database.execute("UPDATE pggit.audit_segment SET is_checkpoint = true WHERE number = 2")
        await chain.database.execute("DELETE FROM pggit.audit_segment WHERE number = 1")
        await chain.database.execute("DELETE FROM pggit.webhook_audit_log WHERE audit_id <= 2")

    class Reader:
        """The reader's connection, before whose third statement rows are dropped."""

        def __init__(self, connection) -> None:
            self._connection, self._count = connection, 0

        async def execute(self, *arguments):
            self._count += 1
            if self._count == 4:
                await drop()
            return await self._connection.execute(*arguments)

    chain.reader = Reader(chain.reader)
    report = await chain.verify()

    assert (report.breaks, report.rows, report.dropped_before_id) == ((), 1, 3)


@pytest.mark.long
async def test_a_large_log_is_verified_in_bounded_memory(chain):
    rows = 300_000
    await chain.log(
        rows, error_message="CASE WHEN n % 20 = 0 THEN 'no answer' END", request_id="gen_random_uuid()"
    )
    while await chain.seal() is not None:
        pass
    tracemalloc.start()
    report = await chain.verify()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (report.ok, report.rows) == (True, rows)
    assert peak < 32 * 1024 * 1024


async def test_an_empty_log_is_whole(chain):
    report = await chain.verify()

    assert (report.ok, report.segments, report.last_number) == (True, 0, None)


def test_a_row_shows_nobody_its_texts():
    row = AuditRow(audit_id=1, error_message="s3cret", details='{"s3cret": 1}', salt="s3cret")

    assert "s3cret" not in repr(row)
