-- name: key_checks
-- What proves the master keys that this database was sealed with.
SELECT c.key_id, c.check_value, c.created_at, c.retired_at
FROM pggit.key_check AS c
ORDER BY c.created_at, c.key_id;

-- name: add_key_check
-- Registers a master key, and yields to whoever was first: then no row comes back.
WITH added AS (
    INSERT INTO pggit.key_check (key_id, check_value, created_by) VALUES (%(key_id)s, %(check_value)s, %(by)s)
    ON CONFLICT (key_id) DO NOTHING
    RETURNING key_id
),
audited AS (
    INSERT INTO pggit.webhook_audit_log (operation, user_id, details)
    SELECT 'key_added', %(by)s, jsonb_build_object('key_id', a.key_id) FROM added AS a
)
SELECT a.key_id FROM added AS a;

-- name: sealed_counts
-- How many sealed values name each master key. Null is what is not of a form that this version knows.
SELECT pggit.sealed_key_id(v.sealed) AS key_id, count(*)
FROM (
    SELECT w.sealed_url AS sealed FROM pggit.webhook AS w
    UNION ALL SELECT w.sealed_headers FROM pggit.webhook AS w WHERE w.sealed_headers IS NOT NULL
    UNION ALL SELECT w.sealed_ca FROM pggit.webhook AS w WHERE w.sealed_ca IS NOT NULL
    UNION ALL SELECT w.sealed_client_certificate FROM pggit.webhook AS w WHERE w.sealed_client_certificate IS NOT NULL
    UNION ALL SELECT s.sealed_secret FROM pggit.webhook_secret AS s
) AS v
GROUP BY 1
ORDER BY 1;

-- name: url_keys
-- The master keys that URLs are sealed with: id and salt, as the heads of sealed values of a known form hold them.
SELECT DISTINCT
    encode(substr(v.sealed_url, 3, v.id_octets), 'escape'),
    substr(v.sealed_url, 4 + v.id_octets, get_byte(v.sealed_url, 2 + v.id_octets))
FROM (
    SELECT w.sealed_url,
           CASE WHEN octet_length(w.sealed_url) > 3 AND get_byte(w.sealed_url, 0) = 1
                     AND get_byte(w.sealed_url, 1) BETWEEN 1 AND least(32, octet_length(w.sealed_url) - 3)
                THEN get_byte(w.sealed_url, 1) END AS id_octets
    FROM pggit.webhook AS w
) AS v
WHERE v.id_octets IS NOT NULL
ORDER BY 1, 2;

-- name: try_rotation_lock
-- One rotation at a time. The lock ends with the transaction, so no pooler can grant it twice.
SELECT pg_try_advisory_xact_lock(hashtextextended('pggit_reactor.key_rotation', 0));

-- name: worker_keys
-- Workers that were heard lately, and the keys that they have; has_heard: since the key came into use.
SELECT r.worker_id, r.host, r.pid, r.key_ids,
       NOT EXISTS (SELECT FROM pggit.key_check AS c WHERE c.key_id = %(key_id)s AND c.created_at >= r.heartbeat_at) AS has_heard
FROM pggit.reactor_worker AS r
WHERE r.state <> 'stopped' AND r.heartbeat_at > clock_timestamp() - make_interval(secs => %(silence_seconds)s)
ORDER BY r.worker_id, r.instance;

-- name: begin_resealing
-- Until the transaction ends: what is sealed anew is no change of its webhook.
SELECT set_config('pggit.resealing', 'on', true);

-- name: webhooks_to_reseal
-- A page of webhooks with a value that another key sealed. What has an unknown form stays, and is told by key status.
SELECT w.webhook_id, w.sealed_url, w.sealed_headers, w.sealed_ca, w.sealed_client_certificate
FROM pggit.webhook AS w
WHERE w.webhook_id > %(after_webhook_id)s
    AND (pggit.sealed_key_id(w.sealed_url) <> %(key_id)s
         OR pggit.sealed_key_id(w.sealed_headers) <> %(key_id)s
         OR pggit.sealed_key_id(w.sealed_ca) <> %(key_id)s
         OR pggit.sealed_key_id(w.sealed_client_certificate) <> %(key_id)s)
ORDER BY w.webhook_id
LIMIT %(rows_max)s;

-- name: reseal_webhooks
-- Writes only where all values are still those that were opened. What somebody holds locked, or has changed, is left
-- for the next round.
WITH locked AS (
    SELECT w.webhook_id FROM pggit.webhook AS w
    WHERE w.webhook_id = ANY (%(webhook_ids)s::bigint[])
    ORDER BY w.webhook_id
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE pggit.webhook AS w
SET sealed_url = r.new_url, sealed_headers = r.new_headers, sealed_ca = r.new_ca, sealed_client_certificate = r.new_certificate
FROM unnest(
    %(webhook_ids)s::bigint[],
    %(old_sealed_url)s::bytea[], %(new_sealed_url)s::bytea[],
    %(old_sealed_headers)s::bytea[], %(new_sealed_headers)s::bytea[],
    %(old_sealed_ca)s::bytea[], %(new_sealed_ca)s::bytea[],
    %(old_sealed_client_certificate)s::bytea[], %(new_sealed_client_certificate)s::bytea[]
) AS r (webhook_id, old_url, new_url, old_headers, new_headers, old_ca, new_ca, old_certificate, new_certificate)
JOIN locked AS l ON l.webhook_id = r.webhook_id
WHERE w.webhook_id = r.webhook_id
    AND w.sealed_url = r.old_url
    AND w.sealed_headers IS NOT DISTINCT FROM r.old_headers
    AND w.sealed_ca IS NOT DISTINCT FROM r.old_ca
    AND w.sealed_client_certificate IS NOT DISTINCT FROM r.old_certificate
RETURNING w.webhook_id;

-- name: secrets_to_reseal
SELECT s.webhook_id, s.version, s.sealed_secret
FROM pggit.webhook_secret AS s
WHERE (s.webhook_id, s.version) > (%(after_webhook_id)s, %(after_version)s)
    AND pggit.sealed_key_id(s.sealed_secret) <> %(key_id)s
ORDER BY s.webhook_id, s.version
LIMIT %(rows_max)s;

-- name: reseal_secrets
WITH locked AS (
    SELECT s.webhook_id, s.version FROM pggit.webhook_secret AS s
    WHERE (s.webhook_id, s.version) IN (SELECT * FROM unnest(%(webhook_ids)s::bigint[], %(versions)s::integer[]))
    ORDER BY s.webhook_id, s.version
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE pggit.webhook_secret AS s
SET sealed_secret = r.new_secret
FROM unnest(
    %(webhook_ids)s::bigint[], %(versions)s::integer[], %(old_sealed_secret)s::bytea[], %(new_sealed_secret)s::bytea[]
) AS r (webhook_id, version, old_secret, new_secret)
JOIN locked AS l ON l.webhook_id = r.webhook_id AND l.version = r.version
WHERE s.webhook_id = r.webhook_id AND s.version = r.version AND s.sealed_secret = r.old_secret
RETURNING s.webhook_id, s.version;

-- name: audit_key
INSERT INTO pggit.webhook_audit_log (operation, user_id, details) VALUES (%(operation)s, %(by)s, %(details)s::jsonb);

-- name: lock_key
-- Waits for whoever is sealing with it, and keeps others from beginning.
SELECT c.retired_at FROM pggit.key_check AS c WHERE c.key_id = %(key_id)s FOR UPDATE;

-- name: retire_key
UPDATE pggit.key_check AS c SET retired_at = now(), retired_by = %(by)s
WHERE c.key_id = %(key_id)s AND c.retired_at IS NULL;
