-- name: load
-- Registered webhooks with the secrets that are valid now, newest first, and in how many seconds these are others by the
-- passing of time alone.
SELECT
    w.webhook_id, w.name, w.revision, w.state, w.sealed_url, w.url_origin, w.concurrency,
    extract(epoch FROM w.attempt_timeout)::float8, w.max_attempts, extract(epoch FROM w.give_up_after)::float8,
    w.sealed_headers, w.signature_scope, w.max_body_bytes, w.pins, w.sealed_ca, w.sealed_client_certificate,
    s.versions, s.sealed_secrets,
    (SELECT extract(epoch FROM min(m.moment) - now())::float8
     FROM pggit.webhook_secret AS t CROSS JOIN LATERAL (VALUES (t.not_before), (t.expires_at)) AS m (moment)
     WHERE t.webhook_id = w.webhook_id AND m.moment > now()),
    w.status_policy::text
FROM pggit.webhook AS w
LEFT JOIN LATERAL (
    SELECT array_agg(t.version ORDER BY t.version DESC) AS versions,
           array_agg(t.sealed_secret ORDER BY t.version DESC) AS sealed_secrets
    FROM pggit.webhook_secret AS t
    WHERE t.webhook_id = w.webhook_id AND t.not_before <= now() AND (t.expires_at IS NULL OR t.expires_at > now())
) AS s ON true
WHERE w.webhook_id = ANY (%(webhook_ids)s::bigint[]);

-- name: pause_unopenable
-- A URL or secret that no key opens is never the alert's fault: its webhook pauses, and says why.
WITH paused AS (
    UPDATE pggit.webhook AS w
    SET state = 'paused', state_reason = %(reason)s, state_by = %(worker_id)s
    WHERE w.webhook_id = %(webhook_id)s AND w.state = 'active' AND w.revision = %(revision)s
    RETURNING w.webhook_id
)
INSERT INTO pggit.webhook_audit_log (webhook_id, operation, error_message, user_id)
SELECT p.webhook_id, 'webhook_paused', %(reason)s, %(worker_id)s FROM paused AS p;
