-- name: heartbeat
-- Says that this worker lives and which master keys it has, and tells the database's time and the keys in use there. Of
-- those only the proved ones count; the two are compared here, so that no key can come into use in between.
INSERT INTO pggit.reactor_worker AS r (instance, worker_id, version, host, pid, capacity, state, in_flight, key_ids)
VALUES (%(instance)s, %(worker_id)s, %(version)s, %(host)s, %(pid)s, %(capacity)s, %(state)s, %(in_flight)s, ARRAY(
    SELECT k.key_id FROM unnest(%(key_ids)s::text[]) WITH ORDINALITY AS k (key_id, place)
    WHERE k.key_id = ANY (%(proved_key_ids)s::text[])
        OR NOT EXISTS (SELECT FROM pggit.key_check AS c WHERE c.key_id = k.key_id AND c.retired_at IS NULL)
    ORDER BY k.place))
ON CONFLICT (instance) DO UPDATE
SET steady_since = CASE WHEN clock_timestamp() - r.heartbeat_at <= make_interval(secs => %(silence_seconds)s)
                        THEN r.steady_since ELSE clock_timestamp() END,
    heartbeat_at = clock_timestamp(), state = excluded.state, in_flight = excluded.in_flight, key_ids = excluded.key_ids
RETURNING extract(epoch FROM clock_timestamp())::float8,
    ARRAY(SELECT c.key_id FROM pggit.key_check AS c WHERE c.retired_at IS NULL);

-- name: learn
-- Writes how many attempts at once receivers were found able to bear; null where their limit is all that counts again.
-- Rows that somebody holds locked are left out, and written by a later heartbeat. Returns those that were not.
WITH told AS (
    SELECT t.webhook_id, t.level
    FROM unnest(%(webhook_ids)s::bigint[], %(levels)s::smallint[]) AS t (webhook_id, level)
),
mine AS MATERIALIZED (
    SELECT l.webhook_id
    FROM pggit.webhook_limit AS l
    WHERE l.webhook_id IN (SELECT t.webhook_id FROM told AS t)
    ORDER BY l.webhook_id
    FOR NO KEY UPDATE SKIP LOCKED
),
written AS (
    UPDATE pggit.webhook_limit AS l
    SET learned_concurrency = t.level, learned_at = CASE WHEN t.level IS NOT NULL THEN now() END
    FROM mine AS m
    JOIN told AS t ON t.webhook_id = m.webhook_id
    WHERE l.webhook_id = m.webhook_id
)
SELECT l.webhook_id
FROM pggit.webhook_limit AS l
WHERE l.webhook_id IN (SELECT t.webhook_id FROM told AS t) AND l.webhook_id NOT IN (SELECT m.webhook_id FROM mine AS m);

-- name: learned
-- What workers found out of late.
SELECT l.webhook_id, l.learned_concurrency
FROM pggit.webhook_limit AS l
WHERE l.learned_at > now() - interval '1 hour' AND l.learned_concurrency IS NOT NULL
ORDER BY l.learned_at DESC
LIMIT %(rows_max)s;

-- name: try_chores_lock
-- One worker at a time does the chores; the lock ends with the transaction, so no pooler can grant it twice.
SELECT pg_try_advisory_xact_lock(hashtextextended('pggit_reactor.chores', 0));

-- name: forget_silent_workers
DELETE FROM pggit.reactor_worker AS r WHERE r.heartbeat_at < now() - interval '1 day';

-- name: add_audit_partitions
SELECT pggit.add_audit_partitions();

-- name: queue_figures
-- Depth by status, counted up to a cap, and the age of the oldest row that is due. Read at a scrape, so it must stay
-- cheap: it never counts further than the cap, and goes by the claim index, which knows no rows that are done, whatever
-- the statistics say.
SELECT
    c.status,
    c.depth,
    coalesce(extract(epoch FROM now() - c.oldest)::float8, 0)
FROM (
    SELECT q.delivery_status AS status, count(*) AS depth,
           min(q.ready_at) FILTER (WHERE isfinite(q.ready_at) AND q.ready_at <= now()) AS oldest
    FROM (SELECT delivery_status, ready_at FROM pggit.alert_delivery_queue
          WHERE ready_at IS NOT NULL ORDER BY webhook_id, priority DESC, ready_at LIMIT %(rows_max)s) AS q
    GROUP BY q.delivery_status
) AS c;

-- name: side_figures
SELECT
    pg_notification_queue_usage()::float8,
    (SELECT count(*) FROM pggit.webhook AS w WHERE w.state = 'paused' AND w.state_reason LIKE 'no key opens%%'),
    (SELECT count(*) FROM (
        SELECT FROM pggit.webhook_limit AS l
        CROSS JOIN LATERAL (
            SELECT FROM pggit.alert_delivery_queue AS q
            WHERE q.webhook_id = l.webhook_id AND q.ready_at IS NOT NULL
            ORDER BY q.priority DESC, q.ready_at LIMIT %(rows_max)s
        ) AS q
        WHERE l.unknown_since IS NOT NULL LIMIT %(rows_max)s) AS waiting),
    b.open, b.half_open, b.recovering
FROM (
    SELECT
        count(*) FILTER (WHERE l.breaker_until > now()) AS open,
        count(*) FILTER (WHERE l.breaker_until <= now()) AS half_open,
        count(*) FILTER (WHERE l.recovering_since BETWEEN now() - make_interval(secs => %(recovery_seconds)s) AND now())
            AS recovering
    FROM pggit.webhook_limit AS l
) AS b;
