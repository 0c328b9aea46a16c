-- name: list
-- Deliveries, the newest first; a page ends where the next begins. Raw times may be infinite or beyond Python's years,
-- so they come as text.
SELECT
    q.delivery_id, q.uid_salt, q.alert_id, q.webhook_id, w.name AS webhook_name, q.delivery_status, q.failed_reason,
    q.attempt_count, q.last_status, q.last_error, q.event_type, q.created_at::text, q.next_retry_at::text,
    q.delivered_at::text
FROM pggit.alert_delivery_queue AS q
LEFT JOIN pggit.webhook AS w ON w.webhook_id = q.webhook_id
WHERE (%(before)s::bigint IS NULL OR q.delivery_id < %(before)s)
    AND (%(webhook_id)s::bigint IS NULL OR q.webhook_id = %(webhook_id)s)
    AND (%(status)s::text IS NULL OR q.delivery_status = %(status)s)
    AND (%(reason)s::text IS NULL OR q.failed_reason = %(reason)s)
ORDER BY q.delivery_id DESC
LIMIT %(rows_max)s;

-- name: show
-- One delivery, by id; with a uid, its 58 bits of salt must be the row's too.
SELECT
    q.delivery_id, q.uid_salt, q.alert_id, q.webhook_id, w.name AS webhook_name, 
    CASE WHEN w.state = 'active' AND EXISTS (
        SELECT FROM pggit.webhook_limit AS l WHERE l.webhook_id = w.webhook_id AND l.paused_until > now())
        THEN 'paused' ELSE w.state END AS webhook_state,
    q.delivery_status, q.failed_reason, q.attempt_count, q.retry_count, q.max_retries, q.crash_count, q.last_status,
    q.last_error, q.event_type, q.priority, q.ordering_key, q.idempotency_key, q.traceparent,
    octet_length(q.message_body::text) AS body_bytes, q.created_at::text, q.ready_at::text, q.next_retry_at::text,
    q.attempted_at::text, q.delivered_at::text, q.expires_at::text, q.replayed_at::text,
    CASE WHEN q.lease_expires_at > clock_timestamp() THEN q.leased_by END AS leased_by,
    CASE WHEN q.lease_expires_at > clock_timestamp() THEN q.lease_expires_at::text END AS lease_expires_at
FROM pggit.alert_delivery_queue AS q
LEFT JOIN pggit.webhook AS w ON w.webhook_id = q.webhook_id
WHERE q.delivery_id = %(delivery_id)s::bigint
    AND (%(salt_bits)s::bigint IS NULL OR (q.uid_salt & 288230376151711743) = %(salt_bits)s);

-- name: log
-- What happened to a delivery, the oldest first.
SELECT g.log_id, g.created_at::text AS at, g.event_type AS event, coalesce(g.event_details, '{}') AS details
FROM pggit.alert_delivery_log AS g
WHERE g.delivery_id = %(delivery_id)s
ORDER BY g.log_id
LIMIT %(rows_max)s;

-- name: body
SELECT q.message_body::text
FROM pggit.alert_delivery_queue AS q
WHERE q.delivery_id = %(delivery_id)s;
