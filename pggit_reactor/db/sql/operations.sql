-- name: pause
SELECT pggit.pause_webhook(
    %(webhook_id)s::bigint,
    coalesce(%(until)s::timestamptz, clock_timestamp() + make_interval(secs => %(seconds)s::float8)),
    %(reason)s::text);

-- name: resume
SELECT pggit.resume_webhook(%(webhook_id)s::bigint);

-- name: disable
SELECT pggit.disable_webhook(%(webhook_id)s::bigint, %(reason)s::text);

-- name: enable
SELECT pggit.enable_webhook(%(webhook_id)s::bigint);

-- name: reset
SELECT pggit.reset_webhook(%(webhook_id)s::bigint, %(reason)s::text);

-- name: replay
SELECT pggit.replay_delivery(%(which)s::text);

-- name: requeue
SELECT pggit.requeue_delivery(%(which)s::text);

-- name: cancel
SELECT pggit.cancel_delivery(%(which)s::text, %(reason)s::text);

-- name: explain
SELECT
    e.delivery_id, e.uid::text AS uid, e.webhook_id, e.webhook_name, e.delivery_status, e.waits_for, e.due_at::text AS due_at,
    e.explanation
FROM pggit.explain_delivery(%(which)s::text) AS e;
