-- name: server
SELECT
    current_setting('server_version'), current_setting('server_version_num')::integer, current_setting('server_encoding'),
    current_database(), current_user, pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
    current_setting('session_replication_role'), coalesce(current_setting('pggit.notify', true), '') = 'off',
    pg_postmaster_start_time()::text, extract(epoch FROM clock_timestamp())::float8;

-- name: roles
-- The roles of the first migration, and whether the current user may do what each is for.
SELECT r.role, p.rolname IS NOT NULL AS is_there
FROM unnest(ARRAY['pggit_producer', 'pggit_worker', 'pggit_operator', 'pggit_reader']) AS r (role)
LEFT JOIN pg_roles AS p ON p.rolname = r.role;

-- name: lacking_rights
-- What a worker needs and the current user lacks.
SELECT w.relation, w.privileges
FROM (VALUES
    ('pggit.alert_delivery_queue', 'SELECT, UPDATE'), ('pggit.alert_delivery_log', 'INSERT'),
    ('pggit.webhook_audit_log', 'INSERT'), ('pggit.webhook_health_metrics', 'SELECT, INSERT, UPDATE'),
    ('pggit.webhook_limit', 'SELECT, INSERT, UPDATE, DELETE'), ('pggit.reactor_worker', 'SELECT, INSERT, UPDATE, DELETE'),
    ('pggit.webhook', 'SELECT'), ('pggit.webhook_secret', 'SELECT'), ('pggit.key_check', 'SELECT')
) AS w (relation, privileges)
WHERE EXISTS (
    SELECT FROM regexp_split_to_table(w.privileges, ', ') AS p (privilege)
    -- Of the audit log some columns are nobody's to write.
    WHERE NOT CASE WHEN w.relation = 'pggit.webhook_audit_log' THEN has_column_privilege(w.relation, 'operation', p.privilege)
                   ELSE has_table_privilege(w.relation, p.privilege) END
);

-- name: own_rights
-- Whether the current user is a superuser, and whether it owns the tables or may become who does.
SELECT r.rolsuper, pg_has_role(r.rolname, c.relowner, 'MEMBER')
FROM pg_roles AS r
CROSS JOIN pg_class AS c
WHERE r.rolname = current_user AND c.oid = 'pggit.alert_delivery_queue'::regclass;

-- name: leaks
-- What everybody may do in the schema beyond reading the gate: by ALTER DEFAULT PRIVILEGES, or a careless GRANT.
SELECT format('%%s on %%s', string_agg(l.privilege_type, ', ' ORDER BY l.privilege_type), l.object)
FROM (
    SELECT c.oid::regclass::text AS object, a.privilege_type
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
    WHERE c.relnamespace = 'pggit'::regnamespace AND a.grantee = 0 AND c.oid <> 'pggit.reactor_gate'::regclass
    UNION ALL
    SELECT 'function ' || p.oid::regprocedure::text, 'EXECUTE'
    FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
    WHERE p.pronamespace = 'pggit'::regnamespace AND a.grantee = 0 AND p.prosecdef
        -- Callers of the original may call these.
        AND p.proname NOT IN ('get_webhook_decrypted', 'webhooks_on_hold', 'webhooks_in_order', 'follow_breaker', 'observer_queue_alert')
    UNION ALL
    SELECT 'schema pggit', a.privilege_type
    FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
    WHERE n.nspname = 'pggit' AND a.grantee = 0 AND a.privilege_type = 'CREATE'
) AS l
GROUP BY l.object
ORDER BY l.object
LIMIT %(ids_max)s;

-- name: unpinned
-- Functions that run as their owner and let their caller choose what a name means.
SELECT p.oid::regprocedure::text
FROM pg_proc AS p
WHERE p.pronamespace = 'pggit'::regnamespace AND p.prosecdef
    AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS s (setting) WHERE s.setting LIKE 'search_path=%%pg_temp')
    -- Of pgGit's own, in the same schema, these are not ours to mend.
    AND obj_description(p.oid, 'pg_proc') IS NOT NULL
ORDER BY 1
LIMIT %(ids_max)s;

-- name: triggers
-- Each trigger that must fire: whether it is there, and whether it is enabled for ordinary sessions.
SELECT w.relation, w.trigger, t.tgenabled IS NOT NULL AS is_there, coalesce(t.tgenabled IN ('O', 'A'), false) AS fires
FROM (VALUES
    ('pggit.alert_delivery_queue', 'queue_after_insert'), ('pggit.alert_delivery_queue', 'queue_a_void_lease'),
    ('pggit.alert_delivery_queue', 'queue_b_revive'), ('pggit.alert_delivery_queue', 'queue_after_update'),
    ('pggit.alert_delivery_queue', 'queue_c_stay_erased'), ('pggit.alert_delivery_queue', 'queue_after_delete'),
    ('pggit.alert_delivery_queue', 'queue_after_revive'), ('pggit.alert_delivery_queue', 'queue_after_leaving'),
    ('pggit.alert_delivery_queue', 'queue_audit_removal'), ('pggit.webhook', 'webhook_audited'),
    ('pggit.webhook', 'webhook_before_ordering_insert'), ('pggit.webhook', 'webhook_before_ordering_update'),
    ('pggit.webhook', 'webhook_after_rate_change'), ('pggit.webhook_limit', 'webhook_limit_before_insert'),
    ('pggit.webhook_secret', 'webhook_secret_audited'),
    ('pggit.webhook', 'webhook_before_change'), ('pggit.webhook', 'webhook_after_change'),
    ('pggit.webhook', 'webhook_after_remove'), ('pggit.webhook_secret', 'webhook_secret_after_change'),
    ('pggit.webhook', 'webhook_after_insert'), ('pggit.webhook', 'webhook_before_reseal'),
    ('pggit.webhook', 'webhook_refuse_retired_key'), ('pggit.webhook_secret', 'webhook_secret_refuse_retired_key'),
    ('pggit.webhook_secret', 'webhook_secret_after_add_or_remove'),
    ('pggit.webhook_health_metrics', 'health_after_reset'),
    ('pggit.alert_routing_rules', 'rule_after_change'), ('pggit.routing_default', 'routing_default_after_change'),
    -- Of pgGit's phase 7, which may be installed later than this schema.
    ('pggit.alert_notification_queue', 'trigger_alert_queue')
) AS w (relation, trigger)
LEFT JOIN pg_trigger AS t ON t.tgrelid = to_regclass(w.relation) AND t.tgname = w.trigger
WHERE w.trigger <> 'trigger_alert_queue' OR to_regclass(w.relation) IS NOT NULL;

-- name: never_ready
-- Rows that no claim will ever find, counted up to a bound: retrying without a time, or due at infinity.
SELECT count(*) FROM (
    SELECT FROM pggit.alert_delivery_queue AS q WHERE q.ready_at = 'infinity' LIMIT %(rows_max)s
) AS stuck;

-- name: unregistered
-- Ids that deliveries wait for and nothing has registered, by a skip scan of the claim index; since when, and how many.
WITH RECURSIVE seen (webhook_id) AS (
    (SELECT q.webhook_id FROM pggit.alert_delivery_queue AS q WHERE q.ready_at IS NOT NULL ORDER BY q.webhook_id LIMIT 1)
    UNION ALL
    SELECT (SELECT q.webhook_id FROM pggit.alert_delivery_queue AS q
            WHERE q.ready_at IS NOT NULL AND q.webhook_id > seen.webhook_id
            ORDER BY q.webhook_id LIMIT 1)
    FROM seen WHERE seen.webhook_id IS NOT NULL
)
SELECT
    s.webhook_id,
    (SELECT count(*) FROM (SELECT FROM pggit.alert_delivery_queue AS q
                           WHERE q.webhook_id = s.webhook_id AND q.ready_at IS NOT NULL LIMIT %(rows_max)s) AS waiting)
FROM seen AS s
WHERE s.webhook_id IS NOT NULL AND NOT EXISTS (SELECT FROM pggit.webhook AS w WHERE w.webhook_id = s.webhook_id)
ORDER BY s.webhook_id
LIMIT %(ids_max)s;

-- name: halted
-- Webhooks that are paused, for a time or until resumed, or disabled.
SELECT
    w.webhook_id, w.name,
    CASE WHEN w.state = 'active' THEN 'paused until ' || l.paused_until ELSE w.state END,
    coalesce(w.state_reason, 'no reason was given'),
    (SELECT count(*) FROM (SELECT FROM pggit.alert_delivery_queue AS q
                           WHERE q.webhook_id = w.webhook_id AND q.ready_at IS NOT NULL LIMIT %(rows_max)s) AS waiting)
FROM pggit.webhook AS w
LEFT JOIN pggit.webhook_limit AS l ON l.webhook_id = w.webhook_id
WHERE w.state <> 'active' OR l.paused_until > now()
ORDER BY w.webhook_id
LIMIT %(ids_max)s;

-- name: status_policies
-- Tables of statuses as stored, for a program to read.
SELECT w.webhook_id, w.name, w.status_policy::text
FROM pggit.webhook AS w
WHERE w.status_policy IS NOT NULL
ORDER BY w.webhook_id
LIMIT %(rows_max)s;

-- name: workers
SELECT
    r.worker_id, r.version, r.state,
    extract(epoch FROM clock_timestamp() - r.heartbeat_at)::float8 AS silent_seconds
FROM pggit.reactor_worker AS r
WHERE r.state <> 'stopped'
ORDER BY r.worker_id;

-- name: overdue
-- How many deliveries of active webhooks have been due for longer than a worker takes, counted up to a bound.
SELECT count(*) FROM (
    SELECT FROM pggit.webhook AS w
    JOIN pggit.alert_delivery_queue AS q ON q.webhook_id = w.webhook_id
    WHERE w.state = 'active' AND q.ready_at < now() - make_interval(secs => %(late_seconds)s)
        AND (q.lease_expires_at IS NULL OR q.lease_expires_at < now())
    LIMIT %(rows_max)s
) AS late;

-- name: audit_partitions
-- Rows that a late chore let fall into the default partition (counted up to a bound), and how far partitions reach.
SELECT
    (SELECT count(*) FROM (SELECT FROM pggit.webhook_audit_log_default LIMIT %(rows_max)s) AS fallen),
    to_regclass(format('pggit.webhook_audit_log_p%%s',
                       coalesce(pg_sequence_last_value('pggit.webhook_audit_log_audit_id_seq'::regclass), 0) / 10000000))
        IS NOT NULL,
    coalesce(pg_sequence_last_value('pggit.webhook_audit_log_audit_id_seq'::regclass), 0)
        - coalesce((SELECT s.to_id FROM pggit.audit_segment AS s ORDER BY s.number DESC LIMIT 1), 0),
    coalesce((SELECT s.sealed_at FROM pggit.audit_segment AS s ORDER BY s.number DESC LIMIT 1), '-infinity')
        < clock_timestamp() - make_interval(secs => %(late_seconds)s)
    AND EXISTS (SELECT FROM pggit.reactor_worker AS r
                WHERE r.state = 'running' AND r.heartbeat_at > clock_timestamp() - interval '30 s'
                    AND r.started_at < clock_timestamp() - make_interval(secs => %(late_seconds)s));

-- name: notification_queue
SELECT pg_notification_queue_usage()::float8;

-- name: long_transactions
-- Transactions that hold back vacuum. Never the query: it may hold a payload.
SELECT
    a.pid, coalesce(a.usename, '?'), coalesce(a.application_name, ''), coalesce(a.state, '?'),
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.xact_start < clock_timestamp() - make_interval(secs => %(seconds)s)
    AND a.pid <> pg_backend_pid()
ORDER BY a.xact_start
LIMIT %(ids_max)s;

-- name: prepared_transactions
SELECT p.gid, p.owner, extract(epoch FROM clock_timestamp() - p.prepared)::float8
FROM pg_prepared_xacts AS p
WHERE p.database = current_database() AND p.prepared < clock_timestamp() - make_interval(secs => %(seconds)s)
ORDER BY p.prepared
LIMIT %(ids_max)s;

-- name: expiring_certificates
-- Certificates of webhooks' own that have expired or will soon, the first to expire first.
SELECT c.webhook_id, c.name, c.kind, c.expires_at::date::text, extract(epoch FROM c.expires_at - now())::float8
FROM (
    SELECT w.webhook_id, w.name, 'ca' AS kind, w.ca_expires_at AS expires_at FROM pggit.webhook AS w
    UNION ALL
    SELECT w.webhook_id, w.name, 'client_certificate', w.client_certificate_expires_at FROM pggit.webhook AS w
) AS c
WHERE c.expires_at < now() + make_interval(secs => %(seconds)s)
ORDER BY c.expires_at, c.webhook_id
LIMIT %(ids_max)s;
