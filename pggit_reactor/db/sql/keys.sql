-- name: key_checks
-- What proves the master keys that this database was sealed with.
SELECT c.key_id, c.check_value, c.created_at, c.retired_at
FROM pggit.key_check AS c
ORDER BY c.created_at, c.key_id;

-- name: add_key_check
-- Registers a master key, and yields to whoever was first: then no row comes back.
WITH added AS (
    INSERT INTO pggit.key_check (key_id, check_value) VALUES (%(key_id)s, %(check_value)s)
    ON CONFLICT (key_id) DO NOTHING
    RETURNING key_id
),
audited AS (
    INSERT INTO pggit.webhook_audit_log (operation, user_id, details)
    SELECT 'key_added', %(by)s, jsonb_build_object('key_id', a.key_id) FROM added AS a
)
SELECT a.key_id FROM added AS a;

-- name: sealed_counts
-- How many sealed values name each master key: the id stands in the value's head, after a format octet and its length.
-- Null is what is not of a form that this version knows.
SELECT
    CASE WHEN octet_length(v.sealed) > 3 AND get_byte(v.sealed, 0) = 1
              AND get_byte(v.sealed, 1) BETWEEN 1 AND least(32, octet_length(v.sealed) - 2)
         THEN encode(substr(v.sealed, 3, get_byte(v.sealed, 1)), 'escape') END AS key_id,
    count(*)
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
