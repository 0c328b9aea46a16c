"""Queue an alert in the transaction of the change that it tells of: both commit, or neither.

    python3 examples/python_producer.py WEBHOOK_ID

The database is that of PGGIT_REACTOR_DATABASE_URL. A failed backup is written down, and its alert with it.
"""

import os
import sys

import psycopg

from pggit_reactor.producer import enqueue


def record_backup(
    connection: psycopg.Connection, *, webhook_id: int, database: str, error: str | None
) -> int:
    """Write down how a backup went; one that failed is told to the webhook. Commits nothing: the caller does."""
    statement = "INSERT INTO backup_run (database_name, error) VALUES (%s, %s) RETURNING run_id"
    [(run_id,)] = connection.execute(statement, (database, error)).fetchall()
    if error is not None:
        enqueue(
            connection,
            webhook_id,
            {"alert": "backup failed", "database": database, "error": error, "run": run_id},
            event_type="backup.failed",
            # Should this be called again for the same run, the alert is there already.
            idempotency_key=f"backup:{run_id}",
            priority=10,
        )
    return run_id


def main(webhook_id: int) -> None:
    """Record a backup that failed, and one whose transaction fails after the alert was queued."""
    with psycopg.connect(os.environ["PGGIT_REACTOR_DATABASE_URL"]) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS backup_run"
            " (run_id bigserial PRIMARY KEY, database_name text NOT NULL, error text)"
        )
        connection.commit()
        with connection.transaction():
            run_id = record_backup(
                connection, webhook_id=webhook_id, database="orders", error="no space left"
            )
        print(f"backup run {run_id} is recorded, and its alert is on its way")
        try:
            with connection.transaction():
                record_backup(connection, webhook_id=webhook_id, database="users", error="never heard of")
                connection.execute("SELECT 1 / 0")
        except psycopg.Error as error:
            print(f"rolled back, row and alert: {error}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
