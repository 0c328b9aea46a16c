-- name: claim
-- Takes up to a budget of ready rows of each hot webhook under a lease, and tells when each webhook is next due.
-- One row a claimed delivery, and one with a null delivery_id for each webhook that is registered and active. It comes in
-- two forms, plain and limited: the marks are places for what follows below. Of a webhook with an order only heads are
-- claimed: those that pggit.order_heads finds, from a place on that the worker keeps for it.
-- For each distinct priority present the claim index is probed with equality and ready_at <= now(): one range over
-- all priorities would walk through every far retry. Leased rows are stepped over: no index knows a lease.
-- crash_count rises where a lease that ran out is taken over, its holder had fallen silent before it ran out, and the
-- claimer itself was heard all that time: so not for a lost database, not for an outcome that could not be written, and
-- not for callers of get_ready_deliveries, who send no heartbeats.
WITH /* hot */,
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
            FROM unnest(h.priorities) AS level (priority)
            CROSS JOIN LATERAL (
                SELECT q.delivery_id, q.lease_token, q.leased_by, q.lease_expires_at
                FROM pggit.alert_delivery_queue AS q
                WHERE q.webhook_id = h.webhook_id AND q.priority = level.priority AND q.ready_at <= now()
                    AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())
                ORDER BY q.ready_at
                LIMIT h.budget
                FOR NO KEY UPDATE SKIP LOCKED
            ) AS u
            /* heads */
        ) AS r
        LIMIT h.budget
    ) AS p
    WHERE h.budget > 0
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
) /* spent */
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
/* webhooks */;

-- name: priorities
-- The priorities present. Found once and used twice: under somebody's old snapshot each walk steps over every row that was
-- settled.
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
)

-- name: next_due
-- In how many seconds the next row is due that is not yet, within a day.
CASE WHEN h.priorities <> '{}' THEN (
        SELECT extract(epoch FROM min(n.ready_at) - now())::float8
        FROM unnest(h.priorities) AS level (priority)
        CROSS JOIN LATERAL (
            SELECT q.ready_at FROM pggit.alert_delivery_queue AS q
            WHERE q.webhook_id = h.webhook_id AND q.priority = level.priority
                AND q.ready_at > now() AND q.ready_at < now() + interval '1 day'
            ORDER BY q.ready_at LIMIT 1
        ) AS n
    ) END

-- name: hot_plain
-- What may be claimed of webhooks that have neither rate nor order: nothing is locked, and nothing but the queue is
-- written. One that has is only told to have it. It is a statement of its own because starting the other one takes 100 us longer.
hot AS MATERIALIZED (
    SELECT
        h.webhook_id,
        -- The worker plans with the concurrency that an earlier claim told it, or with a guess.
        CASE WHEN v.held_by IS NULL THEN greatest(least(h.budget, w.concurrency - h.in_flight), 0) ELSE 0 END AS budget,
        w.concurrency,
        w.weight,
        w.revision,
        now() + greatest(make_interval(secs => %(lease_seconds)s), w.attempt_timeout + interval '3 s') AS lease_until,
        v.held_by,
        l.blocked_until,
        CASE WHEN v.held_by IS NULL THEN /* priorities */ ELSE '{}' END AS priorities
    FROM unnest(%(webhook_ids)s::bigint[], %(budgets)s::integer[], %(in_flights)s::integer[])
        AS h (webhook_id, budget, in_flight)
    JOIN pggit.webhook AS w ON w.webhook_id = h.webhook_id AND w.state = 'active'
    LEFT JOIN pggit.webhook_limit AS l ON l.webhook_id = h.webhook_id
    CROSS JOIN LATERAL (SELECT CASE
        WHEN l.blocked_until > now() THEN 'blocked'
        WHEN w.rate_per_s > 0 OR w.ordering <> 'none' OR l.breaker_until IS NOT NULL
            OR l.recovering_since > now() - make_interval(secs => %(recovery_seconds)s) THEN 'limits' END AS held_by) AS v
)

-- name: webhooks_plain
-- Of a webhook: its concurrency, what holds it back, whether a plain claim gets none of it, and in how many seconds it is
-- worth asking again.
SELECT
    h.webhook_id, NULL, NULL, h.concurrency, h.held_by, NULL, NULL, NULL, h.weight, NULL, NULL, NULL, NULL,
    coalesce(h.held_by = 'limits', false), NULL, NULL, NULL, NULL,
    CASE WHEN h.held_by = 'blocked' THEN
        CASE WHEN h.blocked_until < now() + interval '1 day' THEN extract(epoch FROM h.blocked_until - now())::float8 END
    ELSE /* next_due */ END,
    NULL
FROM hot AS h

-- name: hot_limited
-- Of a webhook with a rate, or whose breaker is not closed, the limit row is locked before it is read. No more rows are taken
-- than there are tokens (core/token_bucket.py is the same arithmetic), and one where the breaker is half-open: the probe.
-- Nobody waits for that lock: who loses gets the id back as busy.
asked AS MATERIALIZED (
    SELECT
        a.*,
        greatest(1, floor(a.whole_concurrency * a.share))::integer AS concurrency,
        a.whole_rate * a.share AS rate,
        a.whole_rate IS NOT NULL OR a.is_half_open AS takes_lock
    FROM (
        SELECT
            h.webhook_id,
            h.budget,
            h.in_flight,
            h.place,
            CASE w.ordering WHEN 'webhook' THEN 1 ELSE w.concurrency END AS whole_concurrency,
            w.weight,
            w.ordering,
            w.ordering_since,
            w.revision,
            now() + greatest(make_interval(secs => %(lease_seconds)s), w.attempt_timeout + interval '3 s') AS lease_until,
            CASE WHEN w.rate_per_s > 0 THEN least(greatest(w.rate_per_s, %(rate_min)s), %(rate_max)s)::float8 END AS whole_rate,
            w.burst,
            l.webhook_id IS NULL AS is_missing,
            CASE WHEN l.blocked_until > now() THEN l.blocked_until END AS blocked_until,
            l.breaker_until IS NOT NULL AS is_half_open,
            -- The slow start of Breaker.share in core/breaker.py.
            CASE WHEN abs(extract(epoch FROM now() - l.recovering_since)) < %(recovery_seconds)s
                 THEN %(recovery_share)s + (1 - %(recovery_share)s::float8)
                      * greatest(0, extract(epoch FROM now() - l.recovering_since)::float8) / %(recovery_seconds)s
                 ELSE 1 END AS share
        FROM unnest(%(webhook_ids)s::bigint[], %(budgets)s::integer[], %(in_flights)s::integer[], %(places)s::text[])
            AS h (webhook_id, budget, in_flight, place)
        JOIN pggit.webhook AS w ON w.webhook_id = h.webhook_id AND w.state = 'active'
        LEFT JOIN pggit.webhook_limit AS l ON l.webhook_id = h.webhook_id
        OFFSET 0
    ) AS a
),
-- As they are now that they are locked, not as they were when the statement began.
locked AS MATERIALIZED (
    SELECT
        l.webhook_id, l.bucket_tat,
        CASE WHEN l.blocked_until > now() THEN l.blocked_until END AS blocked_until,
        l.breaker_until IS NOT NULL AS is_half_open,
        CASE WHEN l.probe_until > now() THEN l.probe_until END AS probe_until
    FROM pggit.webhook_limit AS l
    WHERE l.webhook_id = ANY (ARRAY(
        SELECT a.webhook_id FROM asked AS a WHERE a.takes_lock AND a.blocked_until IS NULL))
    FOR NO KEY UPDATE SKIP LOCKED
),
bucket AS MATERIALIZED (
    SELECT
        b.*,
        b.debt > b.size / b.rate + %(disorder_seconds)s AS is_mended,
        CASE WHEN b.debt > b.size / b.rate + %(disorder_seconds)s THEN b.size / b.rate ELSE b.debt END AS missing
    FROM (
        SELECT
            k.webhook_id, k.blocked_until, k.is_half_open, k.probe_until, k.bucket_tat,
            a.rate,
            greatest(1, floor(least(a.burst, a.whole_rate * %(fill_seconds)s) * a.share)) AS size,
            -- Bounded, because infinity cannot be subtracted from.
            extract(epoch FROM greatest(least(coalesce(k.bucket_tat, now()), now() + interval '7000 days'), now())
                               - now())::float8 AS debt
        FROM locked AS k
        JOIN asked AS a ON a.webhook_id = k.webhook_id
    ) AS b
),
hot AS MATERIALIZED (
    SELECT
        h.*,
        CASE WHEN h.budget > 0 AND h.ordering = 'none' THEN /* priorities */ ELSE '{}' END AS priorities
    FROM (
        SELECT
            a.webhook_id,
            a.concurrency,
            a.weight,
            a.ordering,
            a.ordering_since,
            a.place,
            a.revision,
            a.lease_until,
            v.held_by,
            greatest(a.blocked_until, b.blocked_until) AS blocked_until,
            a.share < 1 AS grows, a.takes_lock,
            b.rate, b.size, b.missing, b.is_mended, b.is_half_open, b.probe_until, b.bucket_tat, t.tokens,
            -- The worker plans with the concurrency that an earlier claim told it, or with a guess.
            CASE WHEN v.held_by IS NULL THEN greatest(least(
                a.budget, CASE WHEN b.is_half_open THEN 1 ELSE a.concurrency - a.in_flight END, t.tokens), 0)
            ELSE 0 END AS budget
        FROM asked AS a
        LEFT JOIN bucket AS b ON b.webhook_id = a.webhook_id
        CROSS JOIN LATERAL (SELECT floor(b.size - b.missing * b.rate + %(tolerance)s)::integer AS tokens OFFSET 0) AS t
        CROSS JOIN LATERAL (SELECT CASE
            WHEN a.blocked_until IS NOT NULL OR b.blocked_until IS NOT NULL THEN 'blocked'
            WHEN a.takes_lock AND b.webhook_id IS NULL THEN CASE WHEN a.is_missing THEN 'missing' ELSE 'busy' END
            WHEN b.is_half_open AND b.probe_until IS NOT NULL THEN 'probe' END AS held_by OFFSET 0) AS v
    ) AS h
),
in_order AS MATERIALIZED (
    SELECT h.webhook_id, o.delivery_id, o.lease_token, o.leased_by, o.lease_expires_at, o.in_order, o.due_at, o.place
    FROM hot AS h
    CROSS JOIN LATERAL pggit.order_heads(h.webhook_id, h.ordering, h.ordering_since, h.budget, h.place) AS o
    WHERE h.ordering <> 'none'
)

-- name: heads
-- What webhooks with an order add to what is picked.
            UNION ALL
            SELECT o.delivery_id, o.lease_token, o.leased_by, o.lease_expires_at, o.in_order
            FROM in_order AS o
            WHERE o.webhook_id = h.webhook_id AND o.delivery_id IS NOT NULL

-- name: spent
-- On conflict and not an UPDATE: that would look for the row as it was when the statement began.
, spent AS (
    INSERT INTO pggit.webhook_limit AS l (webhook_id, bucket_tat, probe_until, probe_token)
    SELECT
        h.webhook_id,
        CASE WHEN h.rate IS NULL THEN coalesce(h.bucket_tat, now())
             ELSE now() + make_interval(secs => h.missing) + ceil(got.rows * 1000000 / h.rate) * interval '1 us' END,
        CASE WHEN h.is_half_open AND got.rows > 0 THEN h.lease_until END,
        CASE WHEN h.is_half_open AND got.rows > 0 THEN %(lease_token)s::bigint END
    FROM hot AS h
    CROSS JOIN LATERAL (SELECT count(*) AS rows FROM claimed AS c WHERE c.webhook_id = h.webhook_id AND h.takes_lock) AS got
    WHERE h.takes_lock AND (got.rows > 0 OR h.is_mended)
    ON CONFLICT (webhook_id) DO UPDATE SET
        bucket_tat = excluded.bucket_tat,
        probe_until = coalesce(excluded.probe_until, l.probe_until),
        probe_token = coalesce(excluded.probe_token, l.probe_token)
    RETURNING CASE WHEN l.probe_token = %(lease_token)s THEN
        pggit.note_probe(l.webhook_id, split_part(%(instance)s, '#', 1), l.probe_until) END
)

-- name: webhooks_limited
-- As webhooks_plain. What holds it back may also be: busy, missing (no limit row), tokens (there are no more), or probe (one
-- is under way; it is this worker's if it got a row). `retry_count` says whether the concurrency grows, `taken_over` whether
-- its attempts take tokens.
SELECT
    h.webhook_id, NULL, NULL, h.concurrency, f.held_by, NULL, NULL, h.grows::integer, h.weight, NULL, NULL, NULL, NULL,
    h.takes_lock OR h.grows OR h.ordering <> 'none', NULL, NULL, NULL, h.rate IS NOT NULL,
    CASE f.held_by
        WHEN 'blocked' THEN
            CASE WHEN h.blocked_until < now() + interval '1 day' THEN extract(epoch FROM h.blocked_until - now())::float8 END
        WHEN 'probe' THEN
            extract(epoch FROM least(coalesce(h.probe_until, h.lease_until), now() + interval '1 day') - now())::float8
        WHEN 'tokens' THEN greatest(
            h.missing + (got.rows + 1 - h.size) / h.rate,
            least(%(wake_seconds)s, h.size / h.rate / 2))
        ELSE CASE WHEN h.ordering <> 'none' THEN (
            SELECT extract(epoch FROM o.due_at - now())::float8 FROM in_order AS o
            WHERE o.webhook_id = h.webhook_id AND o.delivery_id IS NULL
        ) ELSE /* next_due */ END END,
    (SELECT o.place FROM in_order AS o WHERE o.webhook_id = h.webhook_id AND o.delivery_id IS NULL)
FROM hot AS h
CROSS JOIN LATERAL (SELECT count(*) AS rows FROM claimed AS c WHERE c.webhook_id = h.webhook_id AND h.takes_lock) AS got
CROSS JOIN LATERAL (SELECT coalesce(h.held_by, CASE
    WHEN h.is_half_open AND got.rows > 0 THEN 'probe' WHEN got.rows >= h.tokens THEN 'tokens' END) AS held_by OFFSET 0) AS f;

-- name: release
-- Gives back what was claimed and not sent; the queue's own trigger NOTIFYs, since the row is due. A probe that was not sent
-- leaves its place to another.
WITH released AS (
    UPDATE pggit.alert_delivery_queue AS q
    SET lease_token = NULL, lease_expires_at = NULL, leased_by = NULL
    FROM unnest(%(delivery_ids)s::bigint[], %(lease_tokens)s::bigint[]) AS mine (delivery_id, lease_token)
    WHERE q.delivery_id = mine.delivery_id AND q.lease_token = mine.lease_token
    RETURNING q.webhook_id, mine.lease_token
),
probes AS MATERIALIZED (
    SELECT l.webhook_id
    FROM pggit.webhook_limit AS l
    WHERE l.webhook_id = ANY (ARRAY(SELECT r.webhook_id FROM released AS r))
        AND l.probe_token = ANY (%(lease_tokens)s::bigint[])
    ORDER BY l.webhook_id
    FOR NO KEY UPDATE
),
given_up AS (
    UPDATE pggit.webhook_limit AS l
    SET probe_until = NULL, probe_token = NULL
    FROM probes AS p
    WHERE l.webhook_id = p.webhook_id
)
SELECT count(*) FROM released;

-- name: take_token
-- One token more of a webhook's bucket, for an attempt that begins later than its claim allows; no row where there is none.
UPDATE pggit.webhook_limit AS l
SET bucket_tat = greatest(l.bucket_tat, now()) + ceil(1000000 / w.rate) * interval '1 us'
FROM (
    SELECT r.webhook_id, b.rate, greatest(1, floor(least(r.burst, b.rate * %(fill_seconds)s))) AS size
    FROM pggit.webhook AS r
    CROSS JOIN LATERAL (SELECT least(greatest(r.rate_per_s, %(rate_min)s), %(rate_max)s)::float8 AS rate) AS b
    WHERE r.webhook_id = %(webhook_id)s AND r.rate_per_s > 0
) AS w
WHERE l.webhook_id = w.webhook_id
    AND extract(epoch FROM greatest(least(coalesce(l.bucket_tat, now()), now() + interval '7000 days'), now())
                           - now())::float8 * w.rate
        <= w.size - 1 + %(tolerance)s
RETURNING l.webhook_id;

-- name: body
-- The payload of a delivery that is too large to come with its claim.
SELECT q.message_body::text
FROM pggit.alert_delivery_queue AS q
WHERE q.delivery_id = %(delivery_id)s AND q.lease_token = %(lease_token)s;

-- name: discover
-- Webhooks that may be sent to and have a row that is not leased and due, now or within the horizon; and in how many
-- seconds, the end of what blocks them awaited. Walks webhook_limit, which is small, and probes the claim index: once where nothing waits, and a priority at
-- a time where something does. The registry is asked about the latter only: most webhooks are idle or blocked.
WITH waiting AS MATERIALIZED (
    SELECT l.webhook_id, l.blocked_until
    FROM pggit.webhook_limit AS l
    CROSS JOIN LATERAL (
        SELECT FROM pggit.alert_delivery_queue AS q
        WHERE q.webhook_id = l.webhook_id AND q.ready_at IS NOT NULL
        LIMIT 1
    ) AS something
    WHERE l.blocked_until IS NULL OR l.blocked_until <= now() + make_interval(secs => %(horizon_seconds)s)
)
SELECT l.webhook_id, extract(epoch FROM greatest(soonest.first_at, l.blocked_until) - now())::float8
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
