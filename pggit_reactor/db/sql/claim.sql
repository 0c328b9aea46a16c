-- name: claim
-- Takes up to a budget of ready rows of each hot webhook under a lease, and tells when each webhook is next due.
-- One row a claimed delivery, and one with a null delivery_id for each webhook that may be sent to at all; in it, the
-- column of the revision holds the webhook's concurrency. Of a webhook with an order only heads are claimed: those that
-- pggit.order_heads finds, from a place on that the worker keeps for it.
-- For each distinct priority present the claim index is probed with equality and ready_at <= now(): one range over
-- all priorities would walk through every far retry. Leased rows are stepped over: no index knows a lease.
-- crash_count rises where a lease that ran out is taken over, its holder had fallen silent before it ran out, and the
-- claimer itself was heard all that time: so not for a lost database, not for an outcome that could not be written, and
-- not for callers of get_ready_deliveries, who send no heartbeats.
WITH hot AS MATERIALIZED (
    SELECT
        h.webhook_id,
        -- The worker plans with the concurrency that an earlier claim told it, or with a guess.
        greatest(least(h.budget, CASE w.ordering WHEN 'webhook' THEN 1 ELSE w.concurrency END - h.in_flight), 0) AS budget,
        CASE w.ordering WHEN 'webhook' THEN 1 ELSE w.concurrency END AS concurrency,
        w.ordering,
        w.ordering_since,
        h.place,
        w.revision,
        now() + greatest(make_interval(secs => %(lease_seconds)s), w.attempt_timeout + interval '3 s') AS lease_until,
        -- Found once and used twice: under somebody's old snapshot each walk steps over every row that was settled.
        ARRAY(
            WITH RECURSIVE level (priority) AS (
                (SELECT q.priority FROM pggit.alert_delivery_queue AS q
                 WHERE q.webhook_id = h.webhook_id AND q.ready_at IS NOT NULL
                 ORDER BY q.priority DESC LIMIT 1)
                UNION ALL
                SELECT (SELECT q.priority FROM pggit.alert_delivery_queue AS q
                        WHERE q.webhook_id = h.webhook_id AND q.ready_at IS NOT NULL AND q.priority < level.priority
                        ORDER BY q.priority DESC LIMIT 1)
                FROM level WHERE level.priority IS NOT NULL
            )
            SELECT level.priority FROM level WHERE level.priority IS NOT NULL
        ) AS priorities
    FROM unnest(%(webhook_ids)s::bigint[], %(budgets)s::integer[], %(in_flights)s::integer[], %(places)s::text[])
        AS h (webhook_id, budget, in_flight, place)
    JOIN pggit.webhook AS w ON w.webhook_id = h.webhook_id AND w.state = 'active'
    LEFT JOIN pggit.webhook_limit AS l ON l.webhook_id = h.webhook_id
    WHERE l.blocked_until IS NULL OR l.blocked_until <= now()
),
in_order AS MATERIALIZED (
    SELECT h.webhook_id, o.delivery_id, o.lease_token, o.leased_by, o.lease_expires_at, o.in_order, o.due_at, o.place
    FROM hot AS h
    CROSS JOIN LATERAL pggit.order_heads(h.webhook_id, h.ordering, h.ordering_since, h.budget, h.place) AS o
    WHERE h.ordering <> 'none'
),
picked AS MATERIALIZED (
    SELECT p.delivery_id, p.taken_over, p.crashed, p.in_order, h.lease_until, h.revision
    FROM hot AS h
    CROSS JOIN LATERAL (
        SELECT
            r.delivery_id,
            r.lease_token IS NOT NULL AS taken_over,
            r.lease_token IS NOT NULL
                AND r.leased_by NOT LIKE 'sql %%'
                AND NOT EXISTS (
                    SELECT FROM pggit.reactor_worker AS holder
                    WHERE holder.instance = r.leased_by
                        AND holder.heartbeat_at >= r.lease_expires_at - make_interval(secs => %(silence_seconds)s))
                AND EXISTS (
                    SELECT FROM pggit.reactor_worker AS me
                    WHERE me.instance = %(instance)s
                        AND me.steady_since <= r.lease_expires_at - make_interval(secs => %(silence_seconds)s)) AS crashed,
            r.in_order
        FROM (
            SELECT u.delivery_id, u.lease_token, u.leased_by, u.lease_expires_at, NULL::boolean AS in_order
            FROM unnest(CASE h.ordering WHEN 'none' THEN h.priorities END) AS level (priority)
            CROSS JOIN LATERAL (
                SELECT q.delivery_id, q.lease_token, q.leased_by, q.lease_expires_at
                FROM pggit.alert_delivery_queue AS q
                WHERE q.webhook_id = h.webhook_id AND q.priority = level.priority AND q.ready_at <= now()
                    AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())
                ORDER BY q.ready_at
                LIMIT h.budget
                FOR NO KEY UPDATE SKIP LOCKED
            ) AS u
            UNION ALL
            SELECT o.delivery_id, o.lease_token, o.leased_by, o.lease_expires_at, o.in_order
            FROM in_order AS o
            WHERE o.webhook_id = h.webhook_id AND o.delivery_id IS NOT NULL
        ) AS r
        LIMIT h.budget
    ) AS p
    WHERE h.priorities <> '{}'
),
claimed AS (
    UPDATE pggit.alert_delivery_queue AS q
    SET lease_token = %(lease_token)s,
        lease_expires_at = p.lease_until,
        leased_by = %(instance)s,
        crash_count = least(q.crash_count, 32766) + p.crashed::integer,
        -- Unchanged for a row without an order, or its claim would write to an index.
        order_claimed = CASE WHEN p.in_order THEN true ELSE q.order_claimed END
    FROM picked AS p
    WHERE q.delivery_id = p.delivery_id
    RETURNING q.*, p.taken_over, p.revision
)
SELECT
    c.webhook_id,
    c.delivery_id,
    c.uid_salt,
    c.revision,
    c.delivery_status,
    CASE WHEN octet_length(b.body) <= %(inline_bytes)s THEN b.body END AS body,
    octet_length(b.body) AS body_bytes,
    c.retry_count,
    c.max_retries,
    c.attempt_count,
    c.crash_count,
    CASE WHEN isfinite(coalesce(c.replayed_at, c.created_at))
         THEN extract(epoch FROM now() - coalesce(c.replayed_at, c.created_at))::float8 ELSE 0 END AS age_seconds,
    CASE WHEN isfinite(c.ready_at)
         THEN extract(epoch FROM clock_timestamp() - c.ready_at)::float8 ELSE 0 END AS waited_seconds,
    coalesce(c.expires_at <= now(), false) AS expired,
    c.headers::text AS headers,
    c.event_type,
    c.traceparent,
    c.taken_over,
    NULL::float8 AS next_due_seconds,
    NULL::text AS place
FROM claimed AS c
CROSS JOIN LATERAL (SELECT c.message_body::text AS body OFFSET 0) AS b
UNION ALL
SELECT
    h.webhook_id, NULL, NULL, h.concurrency, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    CASE WHEN h.ordering <> 'none' THEN (
        SELECT extract(epoch FROM o.due_at - now())::float8 FROM in_order AS o
        WHERE o.webhook_id = h.webhook_id AND o.delivery_id IS NULL
    ) WHEN h.priorities <> '{}' THEN (
        SELECT extract(epoch FROM min(n.ready_at) - now())::float8
        FROM unnest(h.priorities) AS level (priority)
        CROSS JOIN LATERAL (
            SELECT q.ready_at FROM pggit.alert_delivery_queue AS q
            WHERE q.webhook_id = h.webhook_id AND q.priority = level.priority
                AND q.ready_at > now() AND q.ready_at < now() + interval '1 day'
            ORDER BY q.ready_at LIMIT 1
        ) AS n
    ) END,
    (SELECT o.place FROM in_order AS o WHERE o.webhook_id = h.webhook_id AND o.delivery_id IS NULL)
FROM hot AS h;

-- name: release
-- Gives back what was claimed and not sent; the queue's own trigger NOTIFYs, since the row is due.
UPDATE pggit.alert_delivery_queue AS q
SET lease_token = NULL, lease_expires_at = NULL, leased_by = NULL
FROM unnest(%(delivery_ids)s::bigint[], %(lease_tokens)s::bigint[]) AS mine (delivery_id, lease_token)
WHERE q.delivery_id = mine.delivery_id AND q.lease_token = mine.lease_token;

-- name: body
-- The payload of a delivery that is too large to come with its claim.
SELECT q.message_body::text
FROM pggit.alert_delivery_queue AS q
WHERE q.delivery_id = %(delivery_id)s AND q.lease_token = %(lease_token)s;

-- name: discover
-- Webhooks that may be sent to and have a row that is not leased and due, or will be within the horizon; and in how many
-- seconds. Walks webhook_limit, which is small, and probes the claim index: once where nothing waits, and a priority at
-- a time where something does. The registry is asked about the latter only: most webhooks are idle or blocked.
WITH waiting AS MATERIALIZED (
    SELECT l.webhook_id
    FROM pggit.webhook_limit AS l
    CROSS JOIN LATERAL (
        SELECT FROM pggit.alert_delivery_queue AS q
        WHERE q.webhook_id = l.webhook_id AND q.ready_at IS NOT NULL
        LIMIT 1
    ) AS something
    WHERE l.blocked_until IS NULL OR l.blocked_until <= now()
)
SELECT l.webhook_id, extract(epoch FROM soonest.first_at - now())::float8
FROM waiting AS l
JOIN pggit.webhook AS w ON w.webhook_id = l.webhook_id AND w.state = 'active'
CROSS JOIN LATERAL (
    WITH RECURSIVE level (priority) AS (
        (SELECT q.priority FROM pggit.alert_delivery_queue AS q
         WHERE q.webhook_id = l.webhook_id AND q.ready_at IS NOT NULL AND w.ordering = 'none'
         ORDER BY q.priority DESC LIMIT 1)
        UNION ALL
        SELECT (SELECT q.priority FROM pggit.alert_delivery_queue AS q
                WHERE q.webhook_id = l.webhook_id AND q.ready_at IS NOT NULL AND q.priority < level.priority
                ORDER BY q.priority DESC LIMIT 1)
        FROM level WHERE level.priority IS NOT NULL
    )
    -- The first row's own time would be read in vain where it may be minus infinity.
    SELECT min(greatest(first.ready_at, now())) AS first_at
    FROM level
    CROSS JOIN LATERAL (
        SELECT q.ready_at FROM pggit.alert_delivery_queue AS q
        WHERE q.webhook_id = l.webhook_id AND q.priority = level.priority
            AND q.ready_at <= now() + make_interval(secs => %(horizon_seconds)s)
            AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())
        ORDER BY q.ready_at
        LIMIT 1
    ) AS first
) AS due
CROSS JOIN LATERAL (
    -- Where there is an order, followers are due and may not go: only heads count. Behind a place there may be some.
    SELECT CASE w.ordering WHEN 'none' THEN due.first_at ELSE (
        SELECT min(CASE WHEN o.delivery_id IS NULL AND o.place = '' THEN o.due_at ELSE now() END)
        FROM pggit.order_heads(l.webhook_id, w.ordering, w.ordering_since, 1, NULL, p_only_looks => true) AS o
    ) END AS first_at
) AS soonest
WHERE soonest.first_at <= now() + make_interval(secs => %(horizon_seconds)s);

-- name: adopt_unknown
-- Finds ids in the queue that have no limit row (a recursive skip scan of the claim index) and gives them one:
-- blocked until something registers them. Returns how many were unknown and how many are registered.
WITH RECURSIVE seen (webhook_id) AS (
    (SELECT q.webhook_id FROM pggit.alert_delivery_queue AS q WHERE q.ready_at IS NOT NULL ORDER BY q.webhook_id LIMIT 1)
    UNION ALL
    SELECT (SELECT q.webhook_id FROM pggit.alert_delivery_queue AS q
            WHERE q.ready_at IS NOT NULL AND q.webhook_id > seen.webhook_id
            ORDER BY q.webhook_id LIMIT 1)
    FROM seen WHERE seen.webhook_id IS NOT NULL
)
INSERT INTO pggit.webhook_limit (webhook_id, unknown_since)
SELECT s.webhook_id, CASE WHEN w.webhook_id IS NULL THEN now() END
FROM seen AS s
LEFT JOIN pggit.webhook AS w ON w.webhook_id = s.webhook_id
WHERE s.webhook_id IS NOT NULL
    AND NOT EXISTS (SELECT FROM pggit.webhook_limit AS l WHERE l.webhook_id = s.webhook_id)
ORDER BY s.webhook_id
LIMIT 10000
ON CONFLICT (webhook_id) DO NOTHING;

-- name: end_unknown
-- Deliveries whose webhook nothing registered within the hold become dead, a bounded batch at a time. The hold counts
-- from when the id was first seen, or from when the row came, whichever is later: a late alert gets its whole hold.
WITH due AS (
    SELECT q.delivery_id
    FROM pggit.webhook_limit AS l
    JOIN pggit.alert_delivery_queue AS q ON q.webhook_id = l.webhook_id
    WHERE l.unknown_since <= now() - make_interval(secs => %(hold_seconds)s)
        AND q.ready_at <= now()
        AND greatest(q.created_at, q.replayed_at) <= now() - make_interval(secs => %(hold_seconds)s)
        AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())
        AND NOT EXISTS (SELECT FROM pggit.webhook AS w WHERE w.webhook_id = l.webhook_id)
    LIMIT %(rows_max)s
    FOR NO KEY UPDATE OF q SKIP LOCKED
),
ended AS (
    UPDATE pggit.alert_delivery_queue AS q
    SET delivery_status = 'failed', failed_reason = 'unknown_webhook',
        last_error = 'no webhook with this id was registered within the hold',
        lease_token = NULL, lease_expires_at = NULL, leased_by = NULL
    FROM due WHERE q.delivery_id = due.delivery_id
    RETURNING q.delivery_id, q.webhook_id
),
logged AS (
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
    SELECT e.delivery_id, e.webhook_id, 'failed', jsonb_build_object('reason', 'unknown_webhook') FROM ended AS e
)
SELECT count(*) FROM ended;

-- name: prune_limits
-- Limit rows of ids that nothing registered and that no longer have rows waiting.
DELETE FROM pggit.webhook_limit AS l
WHERE l.unknown_since IS NOT NULL
    AND NOT EXISTS (SELECT FROM pggit.webhook AS w WHERE w.webhook_id = l.webhook_id)
    AND NOT EXISTS (SELECT FROM pggit.alert_delivery_queue AS q WHERE q.webhook_id = l.webhook_id AND q.ready_at IS NOT NULL);
