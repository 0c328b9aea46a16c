-- name: heartbeat
-- Says that this worker lives, and tells the database's time.
INSERT INTO pggit.reactor_worker AS r (instance, worker_id, version, host, pid, capacity, state, in_flight)
VALUES (%(instance)s, %(worker_id)s, %(version)s, %(host)s, %(pid)s, %(capacity)s, %(state)s, %(in_flight)s)
ON CONFLICT (instance) DO UPDATE
SET steady_since = CASE WHEN clock_timestamp() - r.heartbeat_at <= make_interval(secs => %(silence_seconds)s)
                        THEN r.steady_since ELSE clock_timestamp() END,
    heartbeat_at = clock_timestamp(), state = excluded.state, in_flight = excluded.in_flight
RETURNING extract(epoch FROM clock_timestamp())::float8;

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
