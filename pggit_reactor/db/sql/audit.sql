-- name: sealing_state
-- Whether there may be something to seal, and the end of the chain. The newest id first: see `holders`.
SELECT
    coalesce(pg_sequence_last_value('pggit.webhook_audit_log_audit_id_seq'::regclass), 0) AS newest_id,
    EXISTS (SELECT FROM pggit.audit_gap) AS has_gaps;

-- name: holders
-- Transactions that hold the audit log for writing: an INSERT takes this lock before it draws an id, and it is given
-- back after the row can be seen. So who is not named here, asked after the id was read, brings no row below it any more.
SELECT DISTINCT l.virtualtransaction
FROM pg_locks AS l
WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND (l.relation = 'pggit.webhook_audit_log'::regclass
         OR l.relation IN (SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = 'pggit.webhook_audit_log'::regclass));

-- name: try_sealing_lock
SELECT pg_try_advisory_xact_lock(hashtextextended('pggit_reactor.audit', 0));

-- name: last_segment
SELECT
    s.number, s.from_id, s.to_id, s.row_count, s.late_ids, s.open_ids::text, s.rows_hash, s.previous_hash, s.previous_proven,
    trunc(extract(epoch FROM s.sealed_at) * 1000000)::bigint, s.key_id, s.hash, s.seal, s.is_checkpoint
FROM pggit.audit_segment AS s
ORDER BY s.number DESC
LIMIT 1;

-- name: next_segment
SELECT n.number, n.from_id, n.to_id, n.row_count, n.late_ids, n.open_ids::text, n.rows_hash, n.sealed_us
FROM pggit.next_audit_segment(%(to_id)s::bigint, %(holders)s::text[], %(running)s::text[], %(rows_max)s::integer) AS n;

-- name: add_segment
SELECT pggit.add_audit_segment(
    %(number)s::bigint, %(from_id)s::bigint, %(to_id)s::bigint, %(row_count)s::integer, %(late_ids)s::bigint[],
    %(open_ids)s::int8multirange, %(rows_hash)s::bytea, %(previous_hash)s::bytea, %(previous_proven)s::boolean,
    %(sealed_us)s::bigint, %(key_id)s::text, %(hash)s::bytea, %(seal)s::bytea);

-- name: segments
-- A page of the chain, in order.
SELECT
    s.number, s.from_id, s.to_id, s.row_count, s.late_ids, s.open_ids::text, s.rows_hash, s.previous_hash, s.previous_proven,
    trunc(extract(epoch FROM s.sealed_at) * 1000000)::bigint, s.key_id, s.hash, s.seal, s.is_checkpoint
FROM pggit.audit_segment AS s
WHERE s.number > %(after)s AND s.number <= %(last)s
ORDER BY s.number
LIMIT %(rows_max)s;

-- name: late_elsewhere
-- Rows of some ranges that other segments, up to one, name as late.
SELECT u.audit_id
FROM pggit.audit_segment AS s
CROSS JOIN LATERAL unnest(s.late_ids) AS u (audit_id)
WHERE s.late_ids <> '{}' AND s.number <= %(last)s AND u.audit_id BETWEEN %(from_id)s AND %(to_id)s;

-- name: rows
-- A page of rows as the hashes take them; every text by functions of PostgreSQL alone, and no setting changes it.
SELECT
    a.audit_id, a.webhook_id::text, a.delivery_id::text, a.operation::text, a.status_code::text, a.error_message,
    a.signature_verified::text, a.encryption_algorithm, host(a.ip_address) || '/' || masklen(a.ip_address),
    trunc(extract(epoch FROM a.occurred_at) * 1000000)::text, a.user_id, a.request_id::text, a.details::text, a.salt::text,
    encode(a.erased_digest, 'hex')
FROM pggit.webhook_audit_log AS a
WHERE a.audit_id >= %(from_id)s AND a.audit_id <= %(to_id)s
ORDER BY a.audit_id
LIMIT %(rows_max)s;

-- name: rows_by_id
SELECT
    a.audit_id, a.webhook_id::text, a.delivery_id::text, a.operation::text, a.status_code::text, a.error_message,
    a.signature_verified::text, a.encryption_algorithm, host(a.ip_address) || '/' || masklen(a.ip_address),
    trunc(extract(epoch FROM a.occurred_at) * 1000000)::text, a.user_id, a.request_id::text, a.details::text, a.salt::text,
    encode(a.erased_digest, 'hex')
FROM pggit.webhook_audit_log AS a
WHERE a.audit_id = ANY (%(ids)s)
ORDER BY a.audit_id;

-- name: ids_below
-- Rows before a point, none of which a segment up to one names as late; bounded.
SELECT a.audit_id
FROM pggit.webhook_audit_log AS a
WHERE a.audit_id <= %(to_id)s
    AND NOT EXISTS (SELECT FROM pggit.audit_segment AS s WHERE s.late_ids <> '{}' AND a.audit_id = ANY (s.late_ids))
ORDER BY a.audit_id
LIMIT %(rows_max)s;

-- name: waited_for
-- Of ids that no segment held a moment ago: those that one holds by now, or that are still waited for.
SELECT u.audit_id
FROM unnest(%(ids)s::bigint[]) AS u (audit_id)
WHERE EXISTS (SELECT FROM pggit.audit_gap AS g WHERE u.audit_id BETWEEN g.from_id AND g.to_id)
    OR EXISTS (SELECT FROM pggit.audit_segment AS s WHERE s.late_ids <> '{}' AND u.audit_id = ANY (s.late_ids));

-- name: first_number
SELECT min(s.number) FROM pggit.audit_segment AS s;

-- name: segment_hash
SELECT s.hash FROM pggit.audit_segment AS s WHERE s.number = %(number)s;

-- name: tail
-- What is not sealed yet: how many rows beyond the chain, counted up to a bound, and the oldest of them.
SELECT count(*), min(t.occurred_at)::text
FROM (
    SELECT a.occurred_at FROM pggit.webhook_audit_log AS a WHERE a.audit_id > %(to_id)s ORDER BY a.audit_id LIMIT %(rows_max)s
) AS t;

-- name: prune
SELECT pggit.prune_audit(%(days)s::integer, %(rows_max)s::integer);

-- name: drop_partitions
SELECT pggit.drop_audit_partitions();

-- name: entry
-- What people and archives see of a row; times in UTC whatever the session's zone.
    a.audit_id,
    CASE WHEN isfinite(a.occurred_at) THEN to_char(a.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
         ELSE a.occurred_at::text END AS occurred_at,
    a.operation, a.webhook_id, a.delivery_id, a.user_id, host(a.ip_address) AS ip_address, a.request_id::text AS request_id,
    a.status_code, a.signature_verified, a.encryption_algorithm, a.error_message, a.details,
    a.erased_digest IS NOT NULL AS erased

-- name: list
-- The newest rows that match.
SELECT
    /* entry */
FROM pggit.webhook_audit_log AS a
WHERE (%(webhook_id)s::bigint IS NULL OR a.webhook_id = %(webhook_id)s)
    AND (%(delivery_id)s::bigint IS NULL OR a.delivery_id = %(delivery_id)s)
    AND (%(operation)s::text IS NULL OR a.operation = %(operation)s)
    AND (%(user_id)s::text IS NULL OR a.user_id = %(user_id)s OR a.details ->> 'actor' = %(user_id)s)
    AND (%(since)s::timestamptz IS NULL OR a.occurred_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR a.occurred_at < %(until)s)
    AND (%(before)s::bigint IS NULL OR a.audit_id < %(before)s)
ORDER BY a.audit_id DESC
LIMIT %(rows_max)s;

-- name: export
SELECT
    /* entry */
FROM pggit.webhook_audit_log AS a
WHERE a.audit_id >= %(from_id)s AND a.audit_id <= %(to_id)s
ORDER BY a.audit_id
LIMIT %(rows_max)s;

-- name: settled_up_to
-- Up to which id no row can come any more that is not there: the end of the chain, or just below what it waits for.
SELECT coalesce((SELECT min(g.from_id) - 1 FROM pggit.audit_gap AS g),
                (SELECT s.to_id FROM pggit.audit_segment AS s ORDER BY s.number DESC LIMIT 1));
