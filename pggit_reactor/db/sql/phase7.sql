-- name: is_there
SELECT to_regclass('pggit.alert_notification_webhooks') IS NOT NULL;

-- name: webhooks
SELECT
    p.webhook_id, p.webhook_type, p.name, p.channel_or_recipient AS channel, coalesce(p.enabled, false) AS is_enabled,
    coalesce(p.webhook_url_encrypted, '') AS encrypted_url, w.webhook_id IS NOT NULL AS is_registered
FROM pggit.alert_notification_webhooks AS p
LEFT JOIN pggit.webhook AS w ON w.webhook_id = p.webhook_id
ORDER BY p.webhook_id;

-- name: taken_names
SELECT w.name FROM pggit.webhook AS w;
