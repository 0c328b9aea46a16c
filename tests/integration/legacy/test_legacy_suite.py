"""The 28 integration tests of LEGACY 14: the file that any psql runs, and what takes sessions or a worker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from statistics import median
from time import perf_counter

import psycopg
import pytest
import trio

from pggit_reactor.receiver import verify
from pggit_reactor.testing.receiver import answer
from pggit_reactor.testing.rig import SIGNING_SECRET, Rig, arrivals

SCRIPT = Path(__file__).parents[2] / "legacy" / "integration.sql"
NUMBERS = [
    int(number) for number in re.findall(r"^-- (\d+): ", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
]
# A call over the wire may take as many round trips: 10 ms where SELECT 1 takes 0.1.
ROUND_TRIPS_MAX = 100


def test_the_script_holds_the_28_tests():
    assert list(range(1, 29)) == NUMBERS


def run_psql(postgres_server, database, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [postgres_server.bin_dir / "psql", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", *arguments,
         database.dsn.reveal()],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_psql_runs_all_28_and_leaves_nothing_behind(postgres_server, reactor_database):
    done = run_psql(postgres_server, reactor_database, "--file", str(SCRIPT))
    print(done.stderr)  # noqa: T201  # figures

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DO\n") == 28 + 1
    with psycopg.connect(reactor_database.dsn.reveal()) as connection:
        assert connection.execute("SELECT count(*) FROM pggit.alert_delivery_queue").fetchone() == (0,)


# What the script must notice, each a promise that is broken.
SABOTAGE = {
    1: "ALTER TABLE pggit.alert_delivery_queue ALTER COLUMN max_retries DROP NOT NULL;"
    " CREATE FUNCTION pggit.spoil() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN NEW.delivery_status := ''failed''; RETURN NEW; END';"
    " CREATE TRIGGER spoil BEFORE INSERT ON pggit.alert_delivery_queue FOR EACH ROW EXECUTE FUNCTION pggit.spoil()",
    6: "CREATE OR REPLACE FUNCTION pggit.update_webhook_health(p_webhook_id bigint, p_http_status integer,"
    " p_response_time_ms integer, p_error_message text DEFAULT NULL) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
    11: "CREATE OR REPLACE VIEW pggit.v_webhook_health_dashboard AS"
    " SELECT 'healthy' AS health_status, 1::bigint AS webhook_count,"
    " 1.0 AS avg_response_ms, 1.0 AS max_response_ms, 1.0 AS min_response_ms, 0::bigint AS failures_1h,"
    " 0::bigint AS failures_24h, now() AS calculated_at",
    26: "ALTER TABLE pggit.webhook_health_metrics DROP CONSTRAINT health_status_check",
}


@pytest.mark.parametrize("number", SABOTAGE)
def test_the_script_fails_where_a_promise_is_broken(postgres_server, reactor_database, number: int):
    with psycopg.connect(reactor_database.dsn.reveal(), autocommit=True) as connection:
        connection.execute(SABOTAGE[number])
    done = run_psql(postgres_server, reactor_database, "--file", str(SCRIPT))

    assert done.returncode == 3
    assert done.stdout.count("DO\n") == number - 1 + (number > 20)


async def claim(connection, limit: int = 10) -> list[int]:
    cursor = await connection.execute("SELECT delivery_id FROM pggit.get_ready_deliveries(%s)", (limit,))
    return [row[0] for row in await cursor.fetchall()]


async def queue(database, count: int) -> list[int]:
    rows = await database.fetch(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)"
        " SELECT n, 900 + n %% 3, '{}' FROM generate_series(1, %s) AS n RETURNING delivery_id",
        (count,),
    )
    return [row[0] for row in rows]


async def test_19_an_open_transaction_that_took_four_of_six_leaves_two_to_another_session(reactor_database):
    ids = await queue(reactor_database, 6)
    one, two = await reactor_database.connect(), await reactor_database.connect()
    await one.execute("BEGIN")
    first = await claim(one, 4)
    with trio.fail_after(5):
        second = await claim(two, 4)
    await one.execute("ROLLBACK")

    assert (len(first), sorted(first + second)) == (4, sorted(ids))
    # Nobody holds what was rolled back.
    assert sorted(await claim(two)) == sorted(first)


async def test_19_two_callers_in_autocommit_share_no_row(reactor_database):
    ids = await queue(reactor_database, 300)
    connections = [await reactor_database.connect() for _ in range(6)]
    got: list[int] = []

    async def drain(connection) -> None:
        while batch := await claim(connection, 7):
            got.extend(batch)

    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(drain, connection)

    assert sorted(got) == sorted(ids)


async def test_20_a_call_waits_for_no_other_session(reactor_database):
    await queue(reactor_database, 6)
    one, two = await reactor_database.connect(), await reactor_database.connect()
    await one.execute("BEGIN")
    await one.execute("SELECT FROM pggit.alert_delivery_queue FOR UPDATE")
    with trio.fail_after(5):
        assert await claim(two) == []
    await one.execute("ROLLBACK")
    assert len(await claim(two)) == 6


CALLS = {
    21: "SELECT * FROM pggit.get_ready_deliveries(100)",
    22: "SELECT pggit.update_webhook_health(10001, 200, 45, NULL)",
    23: "SELECT * FROM pggit.v_webhook_performance",
}


@pytest.mark.parametrize("number", CALLS)
async def test_21_to_23_a_call_takes_few_round_trips(reactor_database, number: int):
    await reactor_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at)"
        " SELECT n, 10000 + n % 100, '{}', now() - make_interval(secs => n * 0.05) FROM generate_series(1, 3000) AS n"
    )
    await reactor_database.execute(
        "SELECT pggit.update_webhook_health(10000 + n % 100, 200, n % 90) FROM generate_series(1, 500) AS n"
    )
    connection = await reactor_database.connect()

    async def milliseconds(query: str) -> float:
        began = perf_counter()
        await (await connection.execute(query)).fetchall()
        return (perf_counter() - began) * 1000

    turns = [(await milliseconds("SELECT 1"), await milliseconds(CALLS[number])) for _ in range(21)]
    one, call = (median(column) for column in zip(*turns, strict=True))
    print(f"{CALLS[number]}: {call:.2f} ms, {call / one:.1f} x SELECT 1 ({one:.3f} ms)")  # noqa: T201  # figures
    assert call / one <= ROUND_TRIPS_MAX


async def test_27_an_alert_goes_through_a_worker_and_every_table_agrees(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        (delivery_id,) = await rig.database.fetch(
            "SELECT pggit.observer_queue_alert(p_alert_id => 27, p_webhook_id => %s, p_message_body"
            " => '{\"z_score\": 3.5}')",
            (webhook_id,),
        )
        await rig.until_status(delivery_id[0], "delivered")

    (request,) = rig.receiver.requests
    verify(request.body, dict(request.headers), SIGNING_SECRET)
    assert request.body == b'{"z_score": 3.5}'
    events = await rig.database.fetch("SELECT event_type FROM pggit.get_delivery_log(%s)", delivery_id)
    assert events == [("queued",), ("delivered",)]
    assert await rig.database.fetch(
        "SELECT health_status, total_deliveries, success_rate_percent, success_freshness"
        " FROM pggit.v_webhook_performance JOIN pggit.webhook_health_metrics USING (webhook_id,"
        " health_status, total_deliveries)"
        " WHERE webhook_id = %s",
        (webhook_id,),
    ) == [("healthy", 1, 100, "healthy_recent")]
    assert await rig.database.fetch("SELECT * FROM pggit.count_pending_by_status()") == [(0, 0, 1, 0, 1)]


async def test_28_an_alert_that_always_fails_is_retried_and_then_failed(rig: Rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", *[answer(503)] * 4)
    async with rig.worker():
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "failed")

    assert len(arrivals(rig.receiver)) == 4
    assert len(set(arrivals(rig.receiver))) == 1
    events = await rig.database.fetch("SELECT event_type FROM pggit.get_delivery_log(%s)", (delivery_id,))
    assert [event for (event,) in events] == ["retrying", "retrying", "retrying", "failed"]
    assert await rig.database.fetch(
        "SELECT retry_count, event_details ->> 'http_status', failed_reason FROM pggit.v_failed_deliveries"
    ) == [(3, "503", "exhausted")]
    assert await rig.database.fetch(
        "SELECT health_status, consecutive_failures FROM pggit.v_degraded_webhooks"
    ) == [("degraded", 4)]
