-- name: next_id
SELECT pggit.next_webhook_id();

-- name: add
INSERT INTO pggit.webhook (
    webhook_id, name, sealed_url, url_origin, rate_per_s, burst, concurrency, attempt_timeout, max_attempts,
    give_up_after, sealed_headers, max_body_bytes, signature_scope, pins, sealed_ca, ca_fingerprints, ca_expires_at,
    sealed_client_certificate, client_certificate_fingerprints, client_certificate_expires_at, rotate_every, weight, status_policy,
    ordering, labels, state_by)
VALUES (
    %(webhook_id)s, %(name)s, %(sealed_url)s, %(url_origin)s, coalesce(%(rate_per_s)s::numeric, 100),
    coalesce(%(burst)s::integer, 20), coalesce(%(concurrency)s::integer, 32),
    make_interval(secs => %(attempt_timeout)s::float8), %(max_attempts)s::integer,
    make_interval(secs => coalesce(%(give_up_after)s::float8, 259200)), %(sealed_headers)s, %(max_body_bytes)s::integer,
    coalesce(%(signature_scope)s, 'full'), %(pins)s::text[], %(sealed_ca)s, %(ca_fingerprints)s::text[],
    %(ca_expires_at)s::timestamptz, %(sealed_client_certificate)s, %(client_certificate_fingerprints)s::text[],
    %(client_certificate_expires_at)s::timestamptz,
    make_interval(secs => %(rotate_every)s::float8), coalesce(%(weight)s::integer, 1), %(status_policy)s::jsonb,
    coalesce(%(ordering)s, 'none'), %(labels)s::jsonb, %(by)s);

-- name: add_secret
INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret, algorithm, public_key, created_by)
VALUES (%(webhook_id)s, %(version)s, %(sealed_secret)s, %(algorithm)s, %(public_key)s, %(by)s);

-- name: change
-- Writes every changeable column: the row is locked and was read in the same transaction.
UPDATE pggit.webhook AS w
SET name = %(name)s,
    sealed_url = %(sealed_url)s,
    url_origin = %(url_origin)s,
    rate_per_s = coalesce(%(rate_per_s)s::numeric, 100),
    burst = coalesce(%(burst)s::integer, 20),
    concurrency = coalesce(%(concurrency)s::integer, 32),
    attempt_timeout = make_interval(secs => %(attempt_timeout)s::float8),
    max_attempts = %(max_attempts)s::integer,
    give_up_after = make_interval(secs => coalesce(%(give_up_after)s::float8, 259200)),
    sealed_headers = %(sealed_headers)s,
    max_body_bytes = %(max_body_bytes)s::integer,
    signature_scope = coalesce(%(signature_scope)s, 'full'),
    pins = %(pins)s::text[],
    sealed_ca = %(sealed_ca)s,
    ca_fingerprints = %(ca_fingerprints)s::text[],
    ca_expires_at = %(ca_expires_at)s::timestamptz,
    sealed_client_certificate = %(sealed_client_certificate)s,
    client_certificate_fingerprints = %(client_certificate_fingerprints)s::text[],
    client_certificate_expires_at = %(client_certificate_expires_at)s::timestamptz,
    rotate_every = make_interval(secs => %(rotate_every)s::float8),
    weight = coalesce(%(weight)s::integer, 1),
    status_policy = %(status_policy)s::jsonb,
    ordering = coalesce(%(ordering)s, 'none'),
    labels = %(labels)s::jsonb
WHERE w.webhook_id = %(webhook_id)s;

-- name: remove
DELETE FROM pggit.webhook AS w WHERE w.webhook_id = %(webhook_id)s;

-- name: audit
-- Beside whom the program names stands whom PostgreSQL authenticated, and from where.
INSERT INTO pggit.webhook_audit_log (
    webhook_id, operation, status_code, error_message, user_id, ip_address, request_id, details)
VALUES (
    %(webhook_id)s, %(operation)s, %(status_code)s, %(error_message)s, %(by)s, inet_client_addr(), %(request_id)s,
    %(details)s::jsonb || jsonb_build_object('database_user', session_user));

-- name: find
-- By id or by name, locked against other changes until the transaction ends.
SELECT
    w.webhook_id, w.name, w.sealed_url, w.url_origin, w.sealed_headers, w.labels,
    w.sealed_ca, w.ca_fingerprints, w.ca_expires_at,
    w.sealed_client_certificate, w.client_certificate_fingerprints, w.client_certificate_expires_at,
    w.rate_per_s::float8, w.burst, w.concurrency, extract(epoch FROM w.attempt_timeout)::float8, w.max_attempts,
    extract(epoch FROM w.give_up_after)::float8, w.max_body_bytes, w.signature_scope, w.pins,
    extract(epoch FROM w.rotate_every)::float8,
    w.weight, w.status_policy, w.ordering
FROM pggit.webhook AS w
WHERE w.webhook_id = %(webhook_id)s::bigint OR w.name = %(name)s::text
FOR UPDATE;

-- name: records
-- What people may see of webhooks; one, or all in the order of their ids.
SELECT
    w.webhook_id, w.name, w.url_origin,
    CASE WHEN w.state = 'active' AND p.until IS NOT NULL THEN 'paused' ELSE w.state END AS state,
    -- What a pause left behind that has ended by itself is no reason any more.
    CASE WHEN w.state <> 'active' OR p.until IS NOT NULL THEN w.state_reason END AS state_reason,
    w.state_since, w.state_by, p.until AS paused_until,
    w.rate_per_s::float8 AS rate_per_s, w.burst, w.concurrency,
    extract(epoch FROM w.attempt_timeout)::float8 AS attempt_timeout_seconds, w.max_attempts,
    extract(epoch FROM w.give_up_after)::float8 AS give_up_after_seconds, w.max_body_bytes, w.signature_scope,
    w.ordering,
    w.weight, w.status_policy,
    extract(epoch FROM w.rotate_every)::float8 AS rotate_every_seconds,
    (SELECT s.not_before + w.rotate_every FROM pggit.webhook_secret AS s WHERE s.webhook_id = w.webhook_id
     ORDER BY s.version DESC LIMIT 1) AS next_rotation,
    w.sealed_headers IS NOT NULL AS has_headers, coalesce(w.pins, '{}') AS pins,
    coalesce(w.ca_fingerprints, '{}') AS ca_fingerprints, w.ca_expires_at,
    coalesce(w.client_certificate_fingerprints, '{}') AS client_certificate_fingerprints, w.client_certificate_expires_at,
    w.labels, w.created_at, w.updated_at,
    (SELECT coalesce(json_agg(json_build_object('version', s.version, 'not_before', s.not_before,
                                                'expires_at', s.expires_at, 'created_at', s.created_at,
                                                'created_by', s.created_by, 'algorithm', s.algorithm,
                                                'public_key', s.public_key) ORDER BY s.version DESC), '[]')
     FROM pggit.webhook_secret AS s WHERE s.webhook_id = w.webhook_id) AS secrets,
    (SELECT l.learned_concurrency FROM pggit.webhook_limit AS l
     WHERE l.webhook_id = w.webhook_id AND l.learned_at > now() - interval '1 hour') AS learned_concurrency,
    CASE WHEN b.breaker_until > now() THEN 'open'
         WHEN b.breaker_until IS NOT NULL THEN 'half_open'
         WHEN b.recovering_since BETWEEN now() - make_interval(secs => %(recovery_seconds)s) AND now() THEN 'recovering'
         ELSE 'closed' END AS breaker,
    b.breaker_until, CASE WHEN b.retry_after_until > now() THEN b.retry_after_until END AS retry_after_until,
    h.health_status, coalesce(h.total_deliveries, 0) AS attempts, coalesce(h.successful_deliveries, 0) AS successes
FROM pggit.webhook AS w
LEFT JOIN pggit.webhook_health_metrics AS h ON h.webhook_id = w.webhook_id
LEFT JOIN pggit.webhook_limit AS b ON b.webhook_id = w.webhook_id
LEFT JOIN LATERAL (
    SELECT l.paused_until AS until FROM pggit.webhook_limit AS l
    WHERE l.webhook_id = w.webhook_id AND l.paused_until > now()) AS p ON true
WHERE %(all)s::boolean OR w.webhook_id = %(webhook_id)s::bigint OR w.name = %(name)s::text
ORDER BY w.webhook_id;

-- name: registered
SELECT FROM pggit.webhook AS w WHERE w.webhook_id = %(webhook_id)s;

-- name: waiting
-- How many deliveries wait for an id, counted up to a bound.
SELECT count(*) FROM (
    SELECT FROM pggit.alert_delivery_queue AS q
    WHERE q.webhook_id = %(webhook_id)s AND q.ready_at IS NOT NULL
    LIMIT %(rows_max)s
) AS waiting;

-- name: sealed_secrets
SELECT s.version, s.sealed_secret
FROM pggit.webhook_secret AS s
WHERE s.webhook_id = %(webhook_id)s
ORDER BY s.version DESC;
