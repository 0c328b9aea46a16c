"""`queue stats`, `queue prune` and `erase`."""

from __future__ import annotations

import pytest


@pytest.fixture
def insert(database):
    """INSERT deliveries, with values of columns; returns their ids."""

    def rows(count: int = 1, **columns: object) -> list[int]:
        values = {"alert_id": 1, "webhook_id": 7, "message_body": '{"a": 1}', **columns}
        places = ", ".join(f"%({name})s" for name in values)
        found = database.execute(
            f"INSERT INTO pggit.alert_delivery_queue ({', '.join(values)})"
            f" SELECT {places} FROM generate_series(1, {count}) RETURNING delivery_id",
            values,
        ).fetchall()
        return [row[0] for row in found]

    return rows


def left(database) -> list[int]:
    query = "SELECT delivery_id FROM pggit.alert_delivery_queue ORDER BY 1"
    return [row[0] for row in database.execute(query).fetchall()]


def test_the_queue_is_counted_by_status_and_reason(commands, insert):
    assert "the queue is empty" in commands.ok("queue", "stats").out
    insert(2)
    insert(delivery_status="failed", failed_reason="exhausted")
    insert(lease_token=1, lease_expires_at="2999-01-01")
    counted = commands.ok("queue", "stats", "--json").json

    assert [
        (row["delivery_status"], row["failed_reason"], row["rows"], row["due"], row["being_sent"])
        for row in counted
    ] == [("pending", None, 3, 2, 1), ("failed", "exhausted", 1, 0, 0)]
    assert "exhausted" in commands.ok("queue", "stats").out


@pytest.fixture
def aged(insert):
    """Old and new rows of every status; the ids of the old delivered and the old failed one."""
    old = {"created_at": "2020-01-01"}
    insert(created_at="2020-01-01")
    insert(delivery_status="retrying", next_retry_at="2020-01-02", **old)
    (delivered,) = insert(delivery_status="delivered", delivered_at="2020-01-02", **old)
    (failed,) = insert(delivery_status="failed", attempted_at="2020-01-02", **old)
    insert(delivery_status="delivered", delivered_at="now", **old)
    insert(delivery_status="failed", attempted_at="now", **old)
    insert(delivery_status="failed", attempted_at="2020-01-02", replayed_at="now", **old)
    return delivered, failed


def test_only_what_is_over_and_old_is_pruned_with_its_log(commands, database, aged):
    delivered, _ = aged
    before = left(database)
    database.execute(
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type)"
        " SELECT delivery_id, 7, 'queued' FROM pggit.alert_delivery_queue"
    )
    asked = commands.ok("queue", "prune", "--delivered", "30d", "--failed", "90d", "--dry-run")
    assert (asked.out, left(database)) == ("would remove 1 delivered and 1 failed deliveries\n", before)

    assert commands.ok("queue", "prune", "--delivered", "30d").out == "removed 1 deliveries and 1 log rows\n"
    assert left(database) == [one for one in before if one != delivered]
    commands.ok("queue", "prune", RETENTION_FAILED_DAYS="90")
    assert left(database) == [one for one in before if one not in aged]


def test_pruning_works_in_batches_and_passes_over_what_is_locked(
    commands, database, insert, reactor_database
):
    import psycopg

    ids = insert(4100, delivery_status="delivered", created_at="2020-01-01")
    with psycopg.connect(reactor_database.dsn.reveal()) as other:
        other.execute("SELECT FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", (ids[5],))
        out = commands.ok("queue", "prune", "--delivered", "1d").out

    assert (out, left(database)) == ("removed 4099 deliveries and 0 log rows\n", [ids[5]])


def test_without_an_age_nothing_is_pruned(commands, insert):
    insert(delivery_status="delivered", created_at="2020-01-01")

    result = commands("queue", "prune")
    assert (result.status, "nothing says how old is old" in result.err) == (2, True)
    assert commands("queue", "prune", "--delivered", "30").status == 2


def test_erasing_is_told_first_and_done_with_yes(commands, database, insert):
    insert(2)
    insert(webhook_id=8)
    told = commands.ok("erase", "--webhook", "7")
    assert "would erase deliveries         2" in told.out
    assert commands.ok("erase", "--webhook", "7", "--json").json["undelivered"] == 2
    body = "SELECT count(*) FROM pggit.alert_delivery_queue WHERE message_body <> 'null'"
    assert database.execute(body).fetchone() == (3,)

    done = commands.ok("erase", "--webhook", "7", "--yes", "--json").json
    assert (done["deliveries"], done["cancelled"], done["in_flight"]) == (2, 2, 0)
    assert database.execute(body).fetchone() == (1,)
    assert "erased deliveries   1" in commands.ok("erase", "--alert", "1", "--yes").out


def test_what_is_being_sent_is_said_to_be_left(commands, insert):
    insert(lease_token=1, lease_expires_at="2999-01-01")

    result = commands("erase", "--alert", "1", "--yes", "--wait", "0.1")
    assert (result.status, "1 deliveries are being sent" in result.err) == (1, True)


@pytest.mark.parametrize("wrong", [[], ["--webhook", "1", "--alert", "1"]])
def test_one_subject_is_asked_for(commands, wrong):
    assert commands("erase", *wrong, "--yes").status == 2
