-- name: terms
-- All versions of a webhook's secret, and the database's time, by which they are judged.
SELECT s.version, s.not_before, s.expires_at, s.algorithm, now()
FROM pggit.webhook_secret AS s
WHERE s.webhook_id = %(webhook_id)s
ORDER BY s.version;

-- name: expire
UPDATE pggit.webhook_secret AS s
SET expires_at = e.expires_at
FROM unnest(%(versions)s::integer[], %(moments)s::timestamptz[]) AS e (version, expires_at)
WHERE s.webhook_id = %(webhook_id)s AND s.version = e.version;

-- name: end
DELETE FROM pggit.webhook_secret AS s
WHERE s.webhook_id = %(webhook_id)s AND s.version = ANY (%(versions)s::integer[]);

-- name: due
-- Webhooks whose schedule wants a new secret now, longest due first.
SELECT w.webhook_id, n.version, n.algorithm, extract(epoch FROM w.rotate_every)::float8
FROM pggit.webhook AS w
CROSS JOIN LATERAL (
    SELECT s.version, s.algorithm, s.not_before FROM pggit.webhook_secret AS s
    WHERE s.webhook_id = w.webhook_id ORDER BY s.version DESC LIMIT 1
) AS n
WHERE w.rotate_every IS NOT NULL AND w.state <> 'disabled' AND n.not_before + w.rotate_every <= now()
ORDER BY n.not_before + w.rotate_every
LIMIT %(rows_max)s;

-- name: rotate_due
SELECT pggit.rotate_due_secret(
    %(webhook_id)s, %(version)s, %(sealed_secret)s, %(algorithm)s, %(public_key)s,
    make_interval(secs => %(grace_seconds)s), %(by)s);

-- name: retire_expired
SELECT pggit.retire_expired_secrets(%(by)s);

-- name: old
-- The webhooks whose newest secret is older than people want it to be, the oldest first, and how many there are in all.
SELECT w.webhook_id, count(*) OVER ()
FROM pggit.webhook AS w
CROSS JOIN LATERAL (
    SELECT s.not_before FROM pggit.webhook_secret AS s
    WHERE s.webhook_id = w.webhook_id ORDER BY s.version DESC LIMIT 1
) AS n
WHERE w.state <> 'disabled' AND n.not_before + make_interval(secs => %(reminder_seconds)s) <= now()
ORDER BY n.not_before, w.webhook_id
LIMIT %(rows_max)s;
