-- name: settle
-- Writes a batch of outcomes: queue row (fenced by its lease token), log, audit, health with its circuit breaker, what the
-- limits must know, and a webhook that is gone. Returns the rows that were settled; what is missing was locked by somebody
-- or fenced: see unsettled. Nothing is joined twice, so that the plan is nested loops over primary keys whatever the
-- statistics say. It comes in two forms, for batches of answers alone and for all others: the marks are places for what
-- follows below. Starting the whole of it takes 200 us longer.
-- Rows are locked health first, then limits, then the registry, each in order of webhook_id, so that settlers cannot
-- deadlock.
WITH outcome AS MATERIALIZED (
    SELECT *
    FROM unnest(
        %(delivery_ids)s::bigint[], %(lease_tokens)s::bigint[], %(statuses)s::text[], %(delay_seconds)s::float8[],
        %(retry_steps)s::integer[], %(crash_steps)s::integer[], %(attempts)s::boolean[], %(http_statuses)s::integer[],
        %(elapsed_ms)s::float8[], %(errors)s::text[], %(excerpts)s::text[], %(failed_reasons)s::text[], %(uids)s::uuid[] /* more_arrays */
    ) WITH ORDINALITY AS o (
        delivery_id, lease_token, status, delay_seconds, retry_step, crash_step, attempted, http_status, elapsed_ms,
        error, excerpt, failed_reason, uid, /* more_columns */ number)
),
mine AS MATERIALIZED (
    SELECT o.*
    FROM outcome AS o
    JOIN pggit.alert_delivery_queue AS q ON q.delivery_id = o.delivery_id AND q.lease_token = o.lease_token
    FOR NO KEY UPDATE OF q SKIP LOCKED
),
settled AS (
    UPDATE pggit.alert_delivery_queue AS q
    SET delivery_status = o.status,
        -- Bounded: whatever an outsider wrote there, an outcome must fit.
        retry_count = least(q.retry_count, 2147483646) + o.retry_step,
        crash_count = least(q.crash_count, 32766) + o.crash_step,
        attempt_count = least(q.attempt_count, 2147483646) + o.attempted::integer,
        next_retry_at = CASE WHEN o.delay_seconds IS NULL THEN q.next_retry_at
                             ELSE now() + make_interval(secs => o.delay_seconds) END,
        attempted_at = CASE WHEN o.attempted THEN now() ELSE q.attempted_at END,
        delivered_at = CASE WHEN o.status = 'delivered' THEN now() ELSE q.delivered_at END,
        last_status = CASE WHEN o.attempted THEN o.http_status ELSE q.last_status END,
        last_error = o.error || coalesce(': ' || o.excerpt, ''),
        failed_reason = o.failed_reason,
        lease_token = NULL,
        lease_expires_at = NULL,
        leased_by = NULL
    FROM mine AS o
    WHERE q.delivery_id = o.delivery_id AND q.lease_token = o.lease_token
    RETURNING q.webhook_id, q.retry_count, q.attempt_count, o.*
),
logged AS (
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
    SELECT s.delivery_id, s.webhook_id, s.status, jsonb_strip_nulls(jsonb_build_object(
        'http_status', s.http_status, 'response_time_ms', round(s.elapsed_ms::numeric, 2), 'error', s.error,
        'retry_count', s.retry_count, 'attempt', s.attempt_count, 'reason', s.failed_reason, 'worker', %(worker_id)s::text))
    FROM settled AS s
),
audited AS (
    INSERT INTO pggit.webhook_audit_log (
        webhook_id, delivery_id, operation, status_code, error_message, user_id, request_id, salt)
    SELECT s.webhook_id, s.delivery_id, CASE s.status WHEN 'retrying' THEN 'retried' ELSE s.status END,
        s.http_status, s.error, %(worker_id)s, s.uid,
        -- Where there is no text, there is nothing to salt: the dice take 3 us a row.
        CASE WHEN s.error IS NOT NULL THEN gen_random_uuid() END
    FROM settled AS s
),
tally AS MATERIALIZED (
    SELECT
        s.webhook_id,
        count(*) FILTER (WHERE s.attempted) AS total,
        count(*) FILTER (WHERE s.status = 'delivered') AS successes,
        sum(s.elapsed_ms::numeric) FILTER (WHERE s.attempted) AS sum_ms,
        max(s.elapsed_ms::numeric) FILTER (WHERE s.attempted) AS max_ms,
        min(s.elapsed_ms::numeric) FILTER (WHERE s.attempted) AS min_ms,
        max(s.number) FILTER (WHERE s.status = 'delivered') AS last_success,
        array_agg(s.number) FILTER (WHERE s.attempted AND s.status <> 'delivered') AS failures,
        (array_agg(s.http_status ORDER BY s.number DESC) FILTER (WHERE s.attempted))[1] AS last_http_status,
        (array_agg(s.status ORDER BY s.number DESC) FILTER (WHERE s.attempted))[1] AS last_word
        /* more_tally */
    FROM settled AS s
    GROUP BY s.webhook_id
),
health AS (
    INSERT INTO pggit.webhook_health_metrics AS h (
        webhook_id, total_deliveries, successful_deliveries, failed_deliveries, avg_response_time_ms, max_response_time_ms,
        min_response_time_ms, health_status, last_check_at, last_success_at, last_failure_at, consecutive_failures, updated_at,
        breaker_failures, breaker_window_started_at, breaker_window_attempts, breaker_window_failures, breaker_opened_at,
        breaker_opens, breaker_closed_at, breaker_votes)
    SELECT
        t.webhook_id, t.total, t.successes, t.total - t.successes, t.sum_ms / t.total, t.max_ms, t.min_ms,
        CASE /* first_status */
             ELSE 'unavailable' END,
        now(),
        CASE WHEN t.successes > 0 THEN now() END,
        CASE WHEN t.successes < t.total THEN now() END,
        (SELECT count(*) FROM unnest(t.failures) AS f (number) WHERE t.last_success IS NULL OR f.number > t.last_success),
        now(),
        /* first_counts */, t.total
    FROM tally AS t
    /* first_breaker */
    WHERE t.total > 0
    ORDER BY t.webhook_id
    ON CONFLICT (webhook_id) DO UPDATE SET
        total_deliveries = least(9223372036854775807, coalesce(h.total_deliveries, 0)::numeric + excluded.total_deliveries),
        successful_deliveries =
            least(9223372036854775807, coalesce(h.successful_deliveries, 0)::numeric + excluded.successful_deliveries),
        failed_deliveries = least(9223372036854775807, coalesce(h.failed_deliveries, 0)::numeric + excluded.failed_deliveries),
        avg_response_time_ms = CASE
            WHEN h.avg_response_time_ms IS NULL THEN excluded.avg_response_time_ms
            ELSE (h.avg_response_time_ms * coalesce(h.total_deliveries, 0)
                  + excluded.avg_response_time_ms * excluded.total_deliveries)
                 / (coalesce(h.total_deliveries, 0)::numeric + excluded.total_deliveries) END,
        max_response_time_ms = greatest(h.max_response_time_ms, excluded.max_response_time_ms),
        min_response_time_ms = least(h.min_response_time_ms, excluded.min_response_time_ms),
        last_check_at = excluded.last_check_at,
        last_success_at = coalesce(excluded.last_success_at, h.last_success_at),
        last_failure_at = coalesce(excluded.last_failure_at, h.last_failure_at),
        consecutive_failures = least(2147483647, excluded.consecutive_failures::bigint
            + CASE WHEN excluded.successful_deliveries > 0 THEN 0 ELSE coalesce(h.consecutive_failures, 0) END),
        updated_at = excluded.updated_at,
        breaker_votes = least(9223372036854775807, h.breaker_votes::numeric + excluded.breaker_votes),
        /* breaker */
    /* transitions */
) /* limits */
SELECT s.delivery_id, s.lease_token, NULL AS word FROM settled AS s
/* breakers */;

-- name: first_counts_of_answers
-- What a batch of answers makes of a breaker without a history.
0, now(), t.total, 0, NULL, 0, NULL

-- name: breaker_of_answers
-- Answers end a run of failures and fill the window. They open nothing, and while it is open they mean nothing: a probe is no
-- such batch.
health_status = CASE WHEN h.breaker_opened_at IS NOT NULL AND excluded.health_status = 'healthy' THEN 'degraded'
                     ELSE excluded.health_status END,
breaker_failures = CASE WHEN h.breaker_opened_at IS NULL THEN 0 ELSE h.breaker_failures END,
breaker_window_started_at = CASE
    WHEN h.breaker_opened_at IS NOT NULL
        OR now() >= h.breaker_window_started_at AND now() < h.breaker_window_started_at + interval '30 s'
    THEN h.breaker_window_started_at ELSE now() END,
breaker_window_attempts = CASE
    WHEN h.breaker_opened_at IS NOT NULL THEN h.breaker_window_attempts
    WHEN now() >= h.breaker_window_started_at AND now() < h.breaker_window_started_at + interval '30 s'
    THEN least(h.breaker_window_attempts, 1000000) + excluded.breaker_window_attempts
    ELSE excluded.breaker_window_attempts END,
breaker_window_failures = CASE
    WHEN h.breaker_opened_at IS NOT NULL
        OR now() >= h.breaker_window_started_at AND now() < h.breaker_window_started_at + interval '30 s'
    THEN h.breaker_window_failures ELSE 0 END

-- name: first_status_of_answers
WHEN t.last_word = 'delivered' THEN 'healthy'
WHEN coalesce(t.last_http_status, 0) = 0 OR t.last_http_status >= 500 THEN 'degraded'

-- name: more_arrays
, %(disables)s::boolean[], %(votes)s::text[], %(probes)s::boolean[], %(hold_seconds)s::float8[]

-- name: more_columns
disable, vote, probe, hold_seconds,

-- name: more_tally
-- A letter an outcome, the latest first, as the other aggregates are sorted.
, coalesce(string_agg(s.vote, '' ORDER BY s.number DESC), '') AS votes_backwards,
max(s.hold_seconds) AS hold_seconds,
bool_or(s.disable) AS leaves,
-- Only who holds the probe's token speaks for it: the breaker may have been reset, or opened anew, meanwhile.
CASE WHEN bool_or(s.probe) AND EXISTS (
    SELECT FROM pggit.webhook_limit AS l
    WHERE l.webhook_id = s.webhook_id AND l.probe_token = max(s.lease_token) FILTER (WHERE s.probe))
     THEN max(s.vote) FILTER (WHERE s.probe) END AS probe_vote

-- name: first_status_of_any
WHEN t.last_word = 'delivered' AND b.opened_at IS NULL THEN 'healthy'
WHEN t.last_word = 'delivered' OR coalesce(t.last_http_status, 0) = 0 OR t.last_http_status >= 500 THEN 'degraded'

-- name: first_counts_of_any
coalesce(b.failures, 0), now(), length(t.votes_backwards), coalesce(b.window_failures, 0), b.opened_at, coalesce(b.opens, 0), NULL

-- name: first_breaker
-- What a webhook's first batch makes of a new breaker; of others it is not used.
LEFT JOIN LATERAL pggit.breaker_after(0, NULL, 0, 0, NULL, 0, NULL, reverse(t.votes_backwards), NULL) AS b
    ON strpos(t.votes_backwards, 'f') > 0

-- name: breaker_of_any
(health_status, breaker_failures, breaker_window_started_at, breaker_window_attempts, breaker_window_failures,
 breaker_opened_at, breaker_opens, breaker_closed_at) = (
    SELECT
        CASE WHEN b.opened_at IS NOT NULL AND excluded.health_status = 'healthy' THEN 'degraded' ELSE excluded.health_status END,
        b.failures, b.window_started_at, b.window_attempts, b.window_failures, b.opened_at, b.opens, b.closed_at
    FROM tally AS t
    CROSS JOIN LATERAL pggit.breaker_after(
        h.breaker_failures, h.breaker_window_started_at, h.breaker_window_attempts, h.breaker_window_failures,
        h.breaker_opened_at, h.breaker_opens, h.breaker_closed_at, reverse(t.votes_backwards), t.probe_vote) AS b
    WHERE t.webhook_id = excluded.webhook_id)

-- name: transitions
RETURNING
    h.webhook_id, h.breaker_opens, h.breaker_closed_at,
    CASE WHEN h.breaker_opened_at = now() THEN h.breaker_opened_at END AS opened_at,
    h.breaker_closed_at = now() AS closed

-- name: limits
-- What the claims must know of it, in order of webhook_id; and webhooks that are gone.
, changed AS MATERIALIZED (
    SELECT c.*, pggit.change_limit(
        c.webhook_id, %(worker_id)s, c.opened_at, c.opens, c.closed, c.closed_at, c.probe_over, c.hold_seconds)
    FROM (
        SELECT
            e.webhook_id, max(e.opened_at) AS opened_at, max(e.opens) AS opens, bool_or(e.closed) AS closed,
            max(e.closed_at) AS closed_at, bool_or(e.probe_over) AS probe_over, max(e.hold_seconds) AS hold_seconds
        FROM (
            SELECT h.webhook_id, h.opened_at, h.breaker_opens AS opens, coalesce(h.closed, false) AS closed,
                CASE WHEN h.closed THEN h.breaker_closed_at END AS closed_at, false AS probe_over, NULL::float8 AS hold_seconds
            FROM health AS h
            WHERE h.opened_at IS NOT NULL OR h.closed
            UNION ALL
            -- One that answered closes, even where somebody removed the health row that knew of the breaker.
            SELECT t.webhook_id, NULL, NULL, coalesce(t.probe_vote = 'a', false), CASE WHEN t.probe_vote = 'a' THEN now() END,
                t.probe_vote IS NOT NULL, t.hold_seconds
            FROM tally AS t
            WHERE t.probe_vote IS NOT NULL OR t.hold_seconds IS NOT NULL OR t.leaves
        ) AS e
        GROUP BY e.webhook_id
        ORDER BY e.webhook_id
        OFFSET 0
    ) AS c
),
leaving AS MATERIALIZED (
    SELECT w.webhook_id
    FROM pggit.webhook AS w
    WHERE w.state <> 'disabled'
        AND w.webhook_id = ANY (ARRAY(
            SELECT s.webhook_id FROM settled AS s
            -- Which are all locked by now.
            JOIN changed AS c ON c.webhook_id = s.webhook_id
            WHERE s.disable))
    ORDER BY w.webhook_id
    FOR NO KEY UPDATE
),
gone AS (
    UPDATE pggit.webhook AS w
    SET state = 'disabled', state_reason = 'the receiver answered 410 Gone', state_by = %(worker_id)s
    FROM leaving AS l
    WHERE w.webhook_id = l.webhook_id
    RETURNING w.webhook_id
),
gone_audited AS (
    INSERT INTO pggit.webhook_audit_log (webhook_id, operation, error_message, user_id)
    SELECT g.webhook_id, 'webhook_disabled', 'the receiver answered 410 Gone', %(worker_id)s FROM gone AS g
)

-- name: breakers
-- And the webhooks whose breaker changed, or that are held, with a word.
UNION ALL
SELECT c.webhook_id, CASE WHEN c.opened_at IS NOT NULL THEN extract(epoch FROM pggit.breaker_open_interval(c.opens))::bigint END,
    CASE WHEN c.opened_at IS NOT NULL THEN 'opened' WHEN c.closed THEN 'closed' ELSE 'held' END
FROM changed AS c

-- name: unsettled
-- Of deliveries that a settle passed over, those whose lease is still ours: somebody holds the row locked.
SELECT o.delivery_id, o.lease_token
FROM unnest(%(delivery_ids)s::bigint[], %(lease_tokens)s::bigint[]) AS o (delivery_id, lease_token)
JOIN pggit.alert_delivery_queue AS q ON q.delivery_id = o.delivery_id AND q.lease_token = o.lease_token;
