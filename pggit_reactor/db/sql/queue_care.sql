-- name: prune
SELECT p.deliveries, p.log_rows, p.next_id
FROM pggit.prune_deliveries(
    clock_timestamp() - make_interval(secs => %(delivered_seconds)s::float8),
    clock_timestamp() - make_interval(secs => %(failed_seconds)s::float8),
    %(after_id)s::bigint, %(rows_max)s::integer) AS p;

-- name: count_prunable
-- What prune would remove now; reads the whole queue.
SELECT
    count(*) FILTER (WHERE q.delivery_status = 'delivered'
                     AND greatest(q.delivered_at, q.created_at) < clock_timestamp() - make_interval(secs => %(delivered_seconds)s::float8)),
    count(*) FILTER (WHERE q.delivery_status = 'failed'
                     AND greatest(q.attempted_at, q.created_at, q.replayed_at) < clock_timestamp() - make_interval(secs => %(failed_seconds)s::float8))
FROM pggit.alert_delivery_queue AS q;

-- name: stats
-- The whole queue by status and reason; only columns that a reader may see.
SELECT
    q.delivery_status, q.failed_reason, count(*) AS rows,
    count(*) FILTER (WHERE q.ready_at <= now() AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())) AS due,
    count(*) FILTER (WHERE q.lease_expires_at > now()) AS being_sent,
    min(q.created_at)::text AS oldest, max(q.created_at)::text AS newest
FROM pggit.alert_delivery_queue AS q
GROUP BY q.delivery_status, q.failed_reason
ORDER BY array_position(ARRAY['pending', 'retrying', 'delivered', 'failed'], q.delivery_status), count(*) DESC;

-- name: count_erasable
-- What erase would touch now.
SELECT
    count(*),
    count(*) FILTER (WHERE q.delivery_status IN ('pending', 'retrying')),
    count(*) FILTER (WHERE q.lease_expires_at > clock_timestamp()),
    coalesce(max(q.delivery_id), 0)
FROM pggit.alert_delivery_queue AS q
WHERE q.erased_at IS NULL AND (q.webhook_id = %(webhook_id)s::bigint OR q.alert_id = %(alert_id)s::bigint);

-- name: count_erasable_audit
SELECT count(*), coalesce(max(a.audit_id), 0)
FROM pggit.webhook_audit_log AS a
WHERE a.webhook_id = %(webhook_id)s::bigint AND a.operation IS DISTINCT FROM 'erased'
    AND (a.error_message IS NOT NULL OR a.details IS NOT NULL);

-- name: erase_deliveries
SELECT e.deliveries, e.cancelled, e.log_rows, e.audit_rows, e.in_flight, e.next_id
FROM pggit.erase_deliveries(
    %(webhook_id)s::bigint, %(alert_id)s::bigint, %(after_id)s::bigint, %(to_id)s::bigint, %(rows_max)s::integer) AS e;

-- name: erase_audit
SELECT e.audit_rows, e.next_id
FROM pggit.erase_audit(%(webhook_id)s::bigint, %(after_id)s::bigint, %(to_id)s::bigint, %(rows_max)s::integer) AS e;
