-- The sleep gate: docs/decisions/0010-sleep-gate.md. Each statement is a transaction of its own, outside a pipeline.

-- name: open_gate
-- Producers whose trigger reads this value stay silent until it lapses, by the server's clock.
SELECT setval('pggit.reactor_gate', (extract(epoch FROM clock_timestamp()) * 1000)::bigint + %(milliseconds)s::bigint);

-- name: close_gate
-- Another worker's value is left alone: it answers for that one itself. Between the look and the write it may be
-- erased all the same, which costs notifications and loses nothing.
SELECT setval('pggit.reactor_gate', 0)
WHERE %(own_value)s::bigint IS NULL OR pg_sequence_last_value('pggit.reactor_gate'::regclass) = %(own_value)s::bigint;

-- name: own_xid
-- X: above the xid of everybody who read the gate before it was closed. The snapshot's xmax is not: it is one above
-- the latest *ended* transaction, which may be below a running one.
SELECT pg_current_xact_id()::text;

-- name: everybody_below_ended
SELECT pg_snapshot_xmin(pg_current_snapshot()) >= %(x)s::xid8;

-- name: producers_below
-- Who may still bring a silent row to light. Every silent producer has an xid below X and holds RowExclusiveLock on
-- the queue until its row is visible. They are known by xid, which outlives PREPARE TRANSACTION; a pid does not.
-- pg_locks is read once, so that both locks of a transaction are seen at the same moment.
WITH held AS MATERIALIZED (
    SELECT locktype, database, relation, transactionid, virtualtransaction, mode FROM pg_locks WHERE granted
)
SELECT running.xid::text
FROM pg_snapshot_xip(pg_current_snapshot()) AS running (xid)
WHERE running.xid < %(x)s::xid8
    AND EXISTS (
        SELECT FROM held AS own
        JOIN held AS queue USING (virtualtransaction)
        WHERE own.locktype = 'transactionid' AND own.mode = 'ExclusiveLock' AND own.transactionid = running.xid::xid
            AND queue.locktype = 'relation' AND queue.mode = 'RowExclusiveLock'
            AND queue.relation = 'pggit.alert_delivery_queue'::regclass
            AND queue.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    );

-- name: still_running
-- 'in progress' until the transaction's rows are visible to new snapshots, not only until its commit record is written.
SELECT listed.xid
FROM unnest(%(xids)s::text[]) AS listed (xid)
WHERE pg_xact_status(listed.xid::xid8) = 'in progress';
