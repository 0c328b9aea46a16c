-- name: settle
-- Writes a batch of outcomes: queue row (fenced by its lease token), log, audit, health, and a webhook that is gone.
-- Returns the rows that were settled; what is missing was locked by somebody or fenced: see unsettled. Nothing is
-- joined twice, so that the plan is nested loops over primary keys whatever the statistics say.
-- Rows of the registry, and then of health, are locked in order of webhook_id, so that settlers cannot deadlock.
WITH outcome AS MATERIALIZED (
    SELECT *
    FROM unnest(
        %(delivery_ids)s::bigint[], %(lease_tokens)s::bigint[], %(statuses)s::text[], %(delay_seconds)s::float8[],
        %(retry_steps)s::integer[], %(crash_steps)s::integer[], %(attempts)s::boolean[], %(http_statuses)s::integer[],
        %(elapsed_ms)s::float8[], %(errors)s::text[], %(excerpts)s::text[], %(failed_reasons)s::text[], %(uids)s::uuid[], %(disables)s::boolean[]
    ) WITH ORDINALITY AS o (
        delivery_id, lease_token, status, delay_seconds, retry_step, crash_step, attempted, http_status, elapsed_ms,
        error, excerpt, failed_reason, uid, disable, number)
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
tally AS (
    SELECT
        s.webhook_id,
        count(*) AS total,
        count(*) FILTER (WHERE s.status = 'delivered') AS successes,
        sum(s.elapsed_ms::numeric) AS sum_ms, max(s.elapsed_ms::numeric) AS max_ms, min(s.elapsed_ms::numeric) AS min_ms,
        max(s.number) FILTER (WHERE s.status = 'delivered') AS last_success,
        array_agg(s.number) FILTER (WHERE s.status <> 'delivered') AS failures,
        (array_agg(s.http_status ORDER BY s.number DESC))[1] AS last_http_status,
        (array_agg(s.status ORDER BY s.number DESC))[1] AS last_word
    FROM settled AS s
    WHERE s.attempted
    GROUP BY s.webhook_id
),
health AS (
    INSERT INTO pggit.webhook_health_metrics AS h (
        webhook_id, total_deliveries, successful_deliveries, failed_deliveries, avg_response_time_ms, max_response_time_ms,
        min_response_time_ms, health_status, last_check_at, last_success_at, last_failure_at, consecutive_failures, updated_at)
    SELECT
        t.webhook_id, t.total, t.successes, t.total - t.successes, t.sum_ms / t.total, t.max_ms, t.min_ms,
        CASE WHEN t.last_word = 'delivered' THEN 'healthy'
             WHEN coalesce(t.last_http_status, 0) = 0 OR t.last_http_status >= 500 THEN 'degraded'
             ELSE 'unavailable' END,
        now(),
        CASE WHEN t.successes > 0 THEN now() END,
        CASE WHEN t.successes < t.total THEN now() END,
        (SELECT count(*) FROM unnest(t.failures) AS f (number) WHERE t.last_success IS NULL OR f.number > t.last_success),
        now()
    FROM tally AS t
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
        health_status = excluded.health_status,
        last_check_at = excluded.last_check_at,
        last_success_at = coalesce(excluded.last_success_at, h.last_success_at),
        last_failure_at = coalesce(excluded.last_failure_at, h.last_failure_at),
        consecutive_failures = least(2147483647, excluded.consecutive_failures::bigint
            + CASE WHEN excluded.successful_deliveries > 0 THEN 0 ELSE coalesce(h.consecutive_failures, 0) END),
        updated_at = excluded.updated_at
),
leaving AS MATERIALIZED (
    SELECT w.webhook_id
    FROM pggit.webhook AS w
    WHERE w.state <> 'disabled'
        AND w.webhook_id = ANY (ARRAY(SELECT s.webhook_id FROM settled AS s WHERE s.disable))
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
SELECT s.delivery_id, s.lease_token FROM settled AS s;

-- name: unsettled
-- Of deliveries that a settle passed over, those whose lease is still ours: somebody holds the row locked.
SELECT o.delivery_id, o.lease_token
FROM unnest(%(delivery_ids)s::bigint[], %(lease_tokens)s::bigint[]) AS o (delivery_id, lease_token)
JOIN pggit.alert_delivery_queue AS q ON q.delivery_id = o.delivery_id AND q.lease_token = o.lease_token;
