-- The delivery queue, its log, health, audit and webhook registry; the triggers that wake workers; roles and grants.
--
-- Locks and rewrites: creates only; nothing that exists is changed.
-- Time columns are timestamptz: sessions in different zones must agree on what is due.

---------------------------------------------------------------------------------------------------------------------
-- Delivery uid: the stable id on the wire
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.delivery_uid(delivery_id bigint, uid_salt bigint) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN (
    substr(lpad(to_hex(delivery_id), 16, '0'), 1, 8)
    || '-' || substr(lpad(to_hex(delivery_id), 16, '0'), 9, 4)
    || '-8' || substr(lpad(to_hex(delivery_id), 16, '0'), 13, 3)
    || '-' || substr(to_hex((-9223372036854775808) | ((delivery_id & 15) << 58) | (uid_salt & 288230376151711743)), 1, 4)
    || '-' || substr(to_hex((-9223372036854775808) | ((delivery_id & 15) << 58) | (uid_salt & 288230376151711743)), 5, 12)
)::uuid;
COMMENT ON FUNCTION pggit.delivery_uid(bigint, bigint) IS
    'UUID version 8 (RFC 9562) of a delivery: the 64 bits of delivery_id and the low 58 of uid_salt around version and variant.';

CREATE FUNCTION pggit.split_delivery_uid(uid uuid, OUT delivery_id bigint, OUT uid_salt_bits bigint)
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
BEGIN ATOMIC
    SELECT
        ('x' || substr(h.digits, 1, 12) || substr(h.digits, 14, 3)
            || to_hex(('x' || substr(h.digits, 17, 16))::bit(64)::bigint >> 58 & 15))::bit(64)::bigint,
        ('x' || substr(h.digits, 17, 16))::bit(64)::bigint & 288230376151711743
    FROM (SELECT replace(uid::text, '-', '') AS digits) AS h;
END;
COMMENT ON FUNCTION pggit.split_delivery_uid(uuid) IS
    'The inverse of delivery_uid: delivery_id, and the low 58 bits of uid_salt for comparison.';

---------------------------------------------------------------------------------------------------------------------
-- Queue
---------------------------------------------------------------------------------------------------------------------

CREATE TABLE pggit.alert_delivery_queue (
    delivery_id bigserial PRIMARY KEY,
    alert_id bigint NOT NULL,
    webhook_id bigint NOT NULL,
    message_body jsonb NOT NULL,
    delivery_status text NOT NULL DEFAULT 'pending'
        CONSTRAINT delivery_status_check CHECK (delivery_status IN ('pending', 'retrying', 'delivered', 'failed')),
    retry_count integer NOT NULL DEFAULT 0 CONSTRAINT retry_count_check CHECK (retry_count >= 0),
    max_retries integer NOT NULL DEFAULT 3 CONSTRAINT max_retries_check CHECK (max_retries > 0),
    next_retry_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    attempted_at timestamptz,
    delivered_at timestamptz,
    -- Of the version 4 UUID's last 64 bits the low 62 are random; the delivery uid uses 58 of them.
    uid_salt bigint NOT NULL
        DEFAULT ('x' || right(replace(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint,
    lease_token bigint,
    lease_expires_at timestamptz,
    leased_by text,
    held_until timestamptz,
    priority smallint NOT NULL DEFAULT 0,
    ordering_key text,
    idempotency_key text,
    event_type text,
    headers jsonb,
    traceparent text,
    expires_at timestamptz,
    last_status integer,
    last_error text,
    failed_reason text CONSTRAINT failed_reason_check CHECK (
        failed_reason IN ('permanent', 'exhausted', 'gone', 'expired', 'cancelled', 'url_refused', 'unknown_webhook',
                          'too_large', 'bad_headers', 'template', 'crash')),
    attempt_count integer NOT NULL DEFAULT 0,
    crash_count smallint NOT NULL DEFAULT 0,
    replayed_at timestamptz,
    -- Readiness follows every UPDATE by itself, also those of old workers and operators.
    -- A retrying row without a time is never ready (legacy); a lease is kept out, so that a claim is a HOT update.
    ready_at timestamptz GENERATED ALWAYS AS (
        CASE delivery_status
            WHEN 'pending' THEN greatest(created_at, next_retry_at, held_until)
            WHEN 'retrying' THEN
                CASE WHEN next_retry_at IS NULL THEN 'infinity'::timestamptz
                     ELSE greatest(created_at, next_retry_at, held_until) END
        END) STORED
) WITH (
    -- Room for a second version of every row of a page: a burst is claimed in the order in which it was inserted.
    fillfactor = 45,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);
CREATE INDEX alert_delivery_queue_claim_idx ON pggit.alert_delivery_queue (webhook_id, priority DESC, ready_at)
    WHERE ready_at IS NOT NULL;
CREATE UNIQUE INDEX alert_delivery_queue_idempotency_idx ON pggit.alert_delivery_queue (webhook_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

COMMENT ON TABLE pggit.alert_delivery_queue IS
    'One row a delivery: an alert for a webhook. INSERT alert_id, webhook_id, message_body; a worker does the rest.';
COMMENT ON COLUMN pggit.alert_delivery_queue.attempted_at IS 'When the latest attempt ended.';
COMMENT ON COLUMN pggit.alert_delivery_queue.lease_token IS 'Fences writes: a settle with another token changes nothing.';
COMMENT ON COLUMN pggit.alert_delivery_queue.held_until IS 'Claims of SQL callers that take over 1,000 rows; otherwise null.';
COMMENT ON COLUMN pggit.alert_delivery_queue.attempt_count IS 'All attempts ever; retry_count starts again when a row is re-queued.';
COMMENT ON COLUMN pggit.alert_delivery_queue.crash_count IS 'How often a worker died while it held the row.';
COMMENT ON COLUMN pggit.alert_delivery_queue.ready_at IS 'When the row may be claimed; null when it is done, infinity when never.';

CREATE SEQUENCE pggit.alert_id_seq;
COMMENT ON SEQUENCE pggit.alert_id_seq IS 'Alert ids of callers of enqueue and publish that bring none of their own.';

---------------------------------------------------------------------------------------------------------------------
-- Log, health, audit
---------------------------------------------------------------------------------------------------------------------

CREATE TABLE pggit.alert_delivery_log (
    log_id bigserial PRIMARY KEY,
    delivery_id bigint NOT NULL REFERENCES pggit.alert_delivery_queue (delivery_id) ON DELETE CASCADE,
    webhook_id bigint NOT NULL,
    event_type text NOT NULL CONSTRAINT event_type_check CHECK (
        event_type IN ('queued', 'attempt', 'delivered', 'retrying', 'failed', 'escalated')),
    event_details jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX alert_delivery_log_delivery_idx ON pggit.alert_delivery_log (delivery_id);
CREATE INDEX alert_delivery_log_webhook_idx ON pggit.alert_delivery_log (webhook_id, log_id);
CREATE INDEX alert_delivery_log_rare_idx ON pggit.alert_delivery_log (event_type, log_id)
    WHERE event_type IN ('queued', 'retrying', 'failed', 'escalated');
CREATE INDEX alert_delivery_log_created_idx ON pggit.alert_delivery_log USING brin (created_at);
COMMENT ON TABLE pggit.alert_delivery_log IS 'What happened to each delivery, one row an event.';

CREATE TABLE pggit.webhook_health_metrics (
    metric_id bigserial PRIMARY KEY,
    webhook_id bigint NOT NULL UNIQUE,
    total_deliveries bigint DEFAULT 0 CONSTRAINT total_deliveries_check CHECK (total_deliveries >= 0),
    successful_deliveries bigint DEFAULT 0 CONSTRAINT successful_deliveries_check CHECK (successful_deliveries >= 0),
    failed_deliveries bigint DEFAULT 0 CONSTRAINT failed_deliveries_check CHECK (failed_deliveries >= 0),
    avg_response_time_ms numeric(10, 2) CONSTRAINT avg_response_time_ms_check CHECK (avg_response_time_ms >= 0),
    max_response_time_ms numeric(10, 2) CONSTRAINT max_response_time_ms_check CHECK (max_response_time_ms >= 0),
    min_response_time_ms numeric(10, 2) CONSTRAINT min_response_time_ms_check CHECK (min_response_time_ms >= 0),
    health_status text NOT NULL DEFAULT 'unknown' CONSTRAINT health_status_check CHECK (
        health_status IN ('healthy', 'degraded', 'unavailable', 'unknown')),
    last_check_at timestamptz,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    consecutive_failures integer DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    breaker_failures integer NOT NULL DEFAULT 0,
    breaker_window_started_at timestamptz,
    breaker_window_attempts integer NOT NULL DEFAULT 0,
    breaker_window_failures integer NOT NULL DEFAULT 0,
    breaker_opened_at timestamptz,
    breaker_opens integer NOT NULL DEFAULT 0
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE pggit.webhook_health_metrics IS
    'One row a webhook that was ever attempted. The breaker columns count transient failures only; they are not yet enforced.';

-- Partitioned by audit_id, which must stay the primary key; a chore adds partitions ahead of the sequence.
-- The default partition catches what a late chore missed, so that an attempt can always be settled.
CREATE TABLE pggit.webhook_audit_log (
    audit_id bigserial PRIMARY KEY,
    webhook_id bigint,
    delivery_id bigint,
    operation varchar(50) CONSTRAINT operation_check CHECK (operation IN (
        'delivered', 'failed', 'retried', 'signature_verified', 'key_rotated', 'url_decrypted', 'authentication_failed',
        'rate_limited',
        'webhook_added', 'webhook_changed', 'webhook_removed', 'webhook_paused', 'webhook_resumed', 'webhook_disabled',
        'webhook_enabled', 'webhook_tested', 'secret_added', 'secret_rotated', 'secret_retired', 'secret_revealed',
        'key_added', 'key_retired', 'delivery_replayed', 'delivery_cancelled', 'rule_added', 'rule_changed',
        'rule_removed', 'token_issued', 'token_revoked', 'erased', 'schema_migrated')),
    status_code integer,
    error_message text,
    signature_verified boolean,
    encryption_algorithm text,
    ip_address inet,
    occurred_at timestamptz DEFAULT now(),
    user_id text,
    request_id uuid,
    details jsonb
) PARTITION BY RANGE (audit_id);
CREATE TABLE pggit.webhook_audit_log_default PARTITION OF pggit.webhook_audit_log DEFAULT;
CREATE TABLE pggit.webhook_audit_log_p0 PARTITION OF pggit.webhook_audit_log
    FOR VALUES FROM (MINVALUE) TO (10000000);
CREATE INDEX webhook_audit_log_webhook_idx ON pggit.webhook_audit_log (webhook_id, occurred_at DESC);
CREATE INDEX webhook_audit_log_rare_idx ON pggit.webhook_audit_log (operation, occurred_at DESC)
    WHERE operation NOT IN ('delivered', 'failed', 'retried');
COMMENT ON TABLE pggit.webhook_audit_log IS 'Every attempt, and every change by people. Append-only for workers.';

CREATE FUNCTION pggit.add_audit_partitions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Keeps two partitions of 10,000,000 ids ahead of the sequence; returns how many were added. Rows that a late chore
-- let fall into the default partition keep theirs from being made; they must not keep the next ones from it too.
DECLARE
    width CONSTANT bigint := 10000000;
    reached bigint := coalesce(pg_sequence_last_value('pggit.webhook_audit_log_audit_id_seq'::regclass), 0) / width;
    added integer := 0;
BEGIN
    FOR number IN reached .. reached + 2 LOOP
        IF to_regclass(format('pggit.webhook_audit_log_p%s', number)) IS NULL THEN
            BEGIN
                EXECUTE format(
                    'CREATE TABLE pggit.webhook_audit_log_p%s PARTITION OF pggit.webhook_audit_log FOR VALUES FROM (%s) TO (%s)',
                    number, number * width, (number + 1) * width);
                added := added + 1;
            EXCEPTION WHEN check_violation THEN
                RAISE WARNING 'rows in pggit.webhook_audit_log_default keep partition % from being made', number;
            END;
        END IF;
    END LOOP;
    RETURN added;
END $$;
COMMENT ON FUNCTION pggit.add_audit_partitions() IS 'A chore of the workers: keeps audit partitions ahead of the sequence.';

---------------------------------------------------------------------------------------------------------------------
-- Webhook registry
---------------------------------------------------------------------------------------------------------------------

CREATE SEQUENCE pggit.webhook_id_seq;
CREATE SEQUENCE pggit.webhook_revision_seq;

CREATE TABLE pggit.webhook (
    webhook_id bigint PRIMARY KEY,
    name text NOT NULL UNIQUE CONSTRAINT webhook_name_check CHECK (name ~ '^[^[:cntrl:]]{1,255}$'),
    sealed_url bytea NOT NULL,
    url_origin text NOT NULL,
    state text NOT NULL DEFAULT 'active' CONSTRAINT webhook_state_check CHECK (state IN ('active', 'paused', 'disabled')),
    state_reason text,
    state_since timestamptz NOT NULL DEFAULT now(),
    state_by text,
    rate_per_s numeric NOT NULL DEFAULT 100 CONSTRAINT webhook_rate_per_s_check CHECK (rate_per_s >= 0),
    burst integer NOT NULL DEFAULT 20 CONSTRAINT webhook_burst_check CHECK (burst >= 1),
    concurrency integer NOT NULL DEFAULT 32 CONSTRAINT webhook_concurrency_check CHECK (concurrency BETWEEN 1 AND 256),
    ordering text NOT NULL DEFAULT 'none' CONSTRAINT webhook_ordering_check CHECK (ordering IN ('none', 'webhook', 'key')),
    attempt_timeout interval CONSTRAINT webhook_attempt_timeout_check
        CHECK (attempt_timeout BETWEEN interval '0.1 s' AND interval '20 s'),
    max_attempts integer CONSTRAINT webhook_max_attempts_check CHECK (max_attempts BETWEEN 1 AND 1000),
    give_up_after interval NOT NULL DEFAULT interval '72 hours'
        CONSTRAINT webhook_give_up_after_check CHECK (give_up_after > interval '0' AND give_up_after <= interval '365 days'),
    sealed_headers bytea,
    pins text[],
    sealed_ca bytea,
    sealed_client_certificate bytea,
    template text,
    filter text,
    status_policy jsonb,
    max_body_bytes integer CONSTRAINT webhook_max_body_bytes_check CHECK (max_body_bytes BETWEEN 1 AND 16777216),
    weight integer NOT NULL DEFAULT 1 CONSTRAINT webhook_weight_check CHECK (weight BETWEEN 1 AND 100),
    rotate_every interval,
    signature_scope text NOT NULL DEFAULT 'full'
        CONSTRAINT webhook_signature_scope_check CHECK (signature_scope IN ('full', 'body-only')),
    labels jsonb NOT NULL DEFAULT '{}' CONSTRAINT webhook_labels_check CHECK (jsonb_typeof(labels) = 'object'),
    revision bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE pggit.webhook IS 'Registered receivers. URL, headers and certificates are sealed; keys live outside the database.';
COMMENT ON COLUMN pggit.webhook.url_origin IS 'Scheme, host and port, for people; the path may hold a secret.';
COMMENT ON COLUMN pggit.webhook.revision IS 'Changes with the registration and its secrets; workers compare it with their copy.';
COMMENT ON COLUMN pggit.webhook.attempt_timeout IS 'Total deadline of an attempt; null: the setting delivery.timeout_seconds.';
COMMENT ON COLUMN pggit.webhook.signature_scope IS 'body-only leaves the time unsigned in X-pgGit-Signature: for receivers of the old guide.';

CREATE TABLE pggit.webhook_secret (
    webhook_id bigint NOT NULL REFERENCES pggit.webhook (webhook_id) ON DELETE CASCADE,
    version integer NOT NULL,
    sealed_secret bytea NOT NULL,
    not_before timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text,
    PRIMARY KEY (webhook_id, version)
);
COMMENT ON TABLE pggit.webhook_secret IS 'Signing secrets, sealed; the valid ones all sign, newest first.';

CREATE TABLE pggit.webhook_limit (
    webhook_id bigint PRIMARY KEY,
    bucket_tat timestamptz,
    probe_until timestamptz,
    breaker_until timestamptz,
    retry_after_until timestamptz,
    paused_until timestamptz,
    unknown_since timestamptz,
    blocked_until timestamptz GENERATED ALWAYS AS (
        CASE WHEN unknown_since IS NOT NULL THEN 'infinity'::timestamptz
             ELSE greatest(breaker_until, retry_after_until, paused_until) END) STORED
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE pggit.webhook_limit IS
    'Shared limits, one row a webhook id that was registered or seen. bucket_tat and probe_until are not yet enforced.';
COMMENT ON COLUMN pggit.webhook_limit.unknown_since IS 'Deliveries exist for an id that nothing has registered; they wait for it.';

CREATE TABLE pggit.reactor_worker (
    instance text PRIMARY KEY,
    worker_id text NOT NULL,
    version text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    capacity integer NOT NULL,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'draining', 'stopped')),
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    steady_since timestamptz NOT NULL DEFAULT now(),
    in_flight integer NOT NULL DEFAULT 0
) WITH (fillfactor = 40);
COMMENT ON TABLE pggit.reactor_worker IS 'Workers and when they were last heard; instance is what leased_by holds.';
COMMENT ON COLUMN pggit.reactor_worker.steady_since IS
    'Since when its heartbeats have come without a gap: only a worker that saw the database live on may call another dead.';

CREATE TABLE pggit.key_check (
    key_id text PRIMARY KEY,
    check_value bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz
);
COMMENT ON TABLE pggit.key_check IS 'Proves that a master key is the one this database was sealed with, without telling the key.';

CREATE FUNCTION pggit.next_webhook_id() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- As the owner: of the tables of phase 7 an operator may know nothing.
-- Skips every id that rows of any kind already use: only an explicit id adopts one.
-- Registering is rare; a scan of the queue for an unused id is the price of never adopting strangers' rows.
DECLARE
    candidate bigint;
    elsewhere text;
    used boolean;
BEGIN
    LOOP
        candidate := nextval('pggit.webhook_id_seq');
        used := EXISTS (SELECT FROM pggit.webhook AS w WHERE w.webhook_id = candidate)
            OR EXISTS (SELECT FROM pggit.webhook_limit AS l WHERE l.webhook_id = candidate)
            OR EXISTS (SELECT FROM pggit.webhook_health_metrics AS h WHERE h.webhook_id = candidate)
            OR EXISTS (SELECT FROM pggit.alert_delivery_log AS g WHERE g.webhook_id = candidate)
            OR EXISTS (SELECT FROM pggit.alert_delivery_queue AS q WHERE q.webhook_id = candidate);
        FOREACH elsewhere IN ARRAY ARRAY['pggit.alert_routing_rules', 'pggit.alert_notification_webhooks'] LOOP
            IF NOT used AND to_regclass(elsewhere) IS NOT NULL THEN
                EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE webhook_id = $1)', elsewhere) INTO used USING candidate;
            END IF;
        END LOOP;
        IF NOT used THEN
            RETURN candidate;
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION pggit.next_webhook_id() IS 'An id that no webhook, delivery, log, health row or rule has ever used.';

CREATE FUNCTION pggit.webhook_before_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := nextval('pggit.webhook_revision_seq');
    IF TG_OP = 'UPDATE' THEN
        NEW.updated_at := now();
        IF NEW.state IS DISTINCT FROM OLD.state THEN
            NEW.state_since := now();
        END IF;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER webhook_before_change BEFORE INSERT OR UPDATE ON pggit.webhook
    FOR EACH ROW EXECUTE FUNCTION pggit.webhook_before_change();

CREATE FUNCTION pggit.webhook_after_change() RETURNS trigger LANGUAGE plpgsql AS $$
-- Registered (or resumed): deliveries that waited for it may go.
BEGIN
    INSERT INTO pggit.webhook_limit AS l (webhook_id) VALUES (NEW.webhook_id)
    ON CONFLICT (webhook_id) DO UPDATE SET unknown_since = NULL WHERE l.unknown_since IS NOT NULL;
    PERFORM pg_notify('pggit_delivery', NEW.webhook_id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER webhook_after_change AFTER INSERT OR UPDATE ON pggit.webhook
    FOR EACH ROW EXECUTE FUNCTION pggit.webhook_after_change();

CREATE FUNCTION pggit.webhook_after_remove() RETURNS trigger LANGUAGE plpgsql AS $$
-- What is still queued for it is now for an unknown webhook, and its hold begins.
BEGIN
    UPDATE pggit.webhook_limit SET unknown_since = now() WHERE webhook_id = OLD.webhook_id;
    RETURN NULL;
END $$;
CREATE TRIGGER webhook_after_remove AFTER DELETE ON pggit.webhook
    FOR EACH ROW EXECUTE FUNCTION pggit.webhook_after_remove();

CREATE FUNCTION pggit.webhook_secret_after_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE pggit.webhook SET revision = 0 WHERE webhook_id = coalesce(NEW.webhook_id, OLD.webhook_id);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.webhook_secret_after_change() IS 'Touches the webhook, whose own trigger gives it a new revision.';
CREATE TRIGGER webhook_secret_after_change AFTER INSERT OR UPDATE OR DELETE ON pggit.webhook_secret
    FOR EACH ROW EXECUTE FUNCTION pggit.webhook_secret_after_change();

---------------------------------------------------------------------------------------------------------------------
-- Waking the workers
---------------------------------------------------------------------------------------------------------------------

-- Epoch milliseconds until which producers may stay silent; see docs/decisions/0010-sleep-gate.md.
-- Unlogged: a write costs no WAL flush, and a crash or a promotion, which cuts off whoever answers for an opening,
-- leaves it closed.
CREATE UNLOGGED SEQUENCE pggit.reactor_gate MINVALUE 0 START 0;
COMMENT ON SEQUENCE pggit.reactor_gate IS 'Not a counter: epoch ms until which producers need not NOTIFY. Set by workers.';

CREATE FUNCTION pggit.queue_after_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Once a statement, as the owner: it must ask no right of a producer that the INSERT itself did not ask. It has to
-- be an AFTER trigger: the gate may only be read by whoever has an xid. A value further ahead than a worker ever
-- writes (2 s) is nonsense, a restored backup or a clock set back, and silences nobody.
-- The payload is a hint: up to 64 webhook ids, or empty for "look yourself".
DECLARE
    webhook_count integer;
    hint text;
BEGIN
    IF pg_sequence_last_value('pggit.reactor_gate'::regclass) - date_part('epoch', clock_timestamp()) * 1000
            BETWEEN 0 AND 2000
        OR current_setting('pggit.notify', true) = 'off' THEN
        RETURN NULL;
    END IF;
    SELECT count(*), string_agg(webhook_id::text, ',') INTO webhook_count, hint
    FROM (SELECT DISTINCT webhook_id FROM inserted LIMIT 65) AS seen;
    IF webhook_count > 0 THEN
        PERFORM pg_notify('pggit_delivery', CASE WHEN webhook_count <= 64 THEN hint ELSE '' END);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER queue_after_insert AFTER INSERT ON pggit.alert_delivery_queue
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION pggit.queue_after_insert();

CREATE FUNCTION pggit.queue_void_lease() RETURNS trigger LANGUAGE plpgsql AS $$
-- An old worker or an operator decided: whoever held the row no longer does. Moved to another webhook, it must not
-- be settled by what the first one answered. A worker's own settle changes the token, so it never comes here.
BEGIN
    NEW.lease_token := NULL;
    NEW.lease_expires_at := NULL;
    NEW.leased_by := NULL;
    NEW.held_until := NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER queue_a_void_lease BEFORE UPDATE ON pggit.alert_delivery_queue FOR EACH ROW
    WHEN (OLD.lease_token IS NOT NULL AND NEW.lease_token = OLD.lease_token
          AND (NEW.delivery_status IS DISTINCT FROM OLD.delivery_status
               OR NEW.next_retry_at IS DISTINCT FROM OLD.next_retry_at
               OR NEW.webhook_id <> OLD.webhook_id))
    EXECUTE FUNCTION pggit.queue_void_lease();

CREATE FUNCTION pggit.queue_revive() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.replayed_at := now();
    NEW.failed_reason := NULL;
    NEW.crash_count := 0;
    IF NEW.expires_at <= now() THEN
        NEW.expires_at := NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER queue_b_revive BEFORE UPDATE ON pggit.alert_delivery_queue FOR EACH ROW
    WHEN (OLD.delivery_status IN ('failed', 'delivered') AND NEW.delivery_status IN ('pending', 'retrying'))
    EXECUTE FUNCTION pggit.queue_revive();

CREATE FUNCTION pggit.queue_after_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('pggit.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('pggit_delivery', NEW.webhook_id::text);
    END IF;
    RETURN NULL;
END $$;
-- Re-queued, due sooner, moved to another webhook, or due and no longer leased. A worker's own settle only ever
-- puts a row off or ends it, so it does not match.
CREATE TRIGGER queue_after_update AFTER UPDATE ON pggit.alert_delivery_queue FOR EACH ROW
    WHEN (NEW.ready_at IS NOT NULL
          AND (OLD.ready_at IS NULL OR NEW.ready_at < OLD.ready_at OR NEW.webhook_id <> OLD.webhook_id
               OR (OLD.lease_token IS NOT NULL AND NEW.lease_token IS NULL AND NEW.ready_at <= now())))
    EXECUTE FUNCTION pggit.queue_after_update();

---------------------------------------------------------------------------------------------------------------------
-- For producers
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.check_delivery_headers(headers jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
-- Null where the headers may be sent, else what is wrong with them. The worker's rules are the same.
DECLARE
    name text;
    value jsonb;
BEGIN
    IF headers IS NULL OR jsonb_typeof(headers) = 'null' THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(headers) <> 'object' THEN
        RETURN 'headers must be a JSON object of strings';
    END IF;
    IF (SELECT count(*) FROM jsonb_object_keys(headers)) > 32 OR octet_length(headers::text) > 8192 THEN
        RETURN 'headers hold more than 32 fields or 8192 octets';
    END IF;
    -- COLLATE "C": in a Turkish database lower('I') is no i, and TRAILER would pass for another name.
    IF (SELECT count(DISTINCT lower(k COLLATE "C")) <> count(*) FROM jsonb_object_keys(headers) AS k) THEN
        RETURN 'headers name the same field twice, in different case';
    END IF;
    FOR name, value IN SELECT * FROM jsonb_each(headers) LOOP
        IF name !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]{1,128}$' THEN
            RETURN format('header name %s is not a token of letters, digits and -', quote_literal(left(name, 64)));
        END IF;
        IF lower(name COLLATE "C") IN ('host', 'connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization',
                           'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'expect', 'user-agent',
                           'accept-encoding', 'traceparent')
            OR lower(name COLLATE "C") ~ '^(content-|webhook-|x-pggit-)' THEN
            RETURN format('header %s is set by the sender itself', name);
        END IF;
        IF jsonb_typeof(value) <> 'string' OR (value #>> '{}') !~ '^([\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?)?$' THEN
            RETURN format('the value of header %s must be a string of printable ASCII without outer spaces', name);
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.check_delivery_headers(jsonb) IS 'Null where these headers may be sent with a delivery, else what is wrong.';

CREATE FUNCTION pggit.enqueue(
    p_webhook_id bigint,
    p_body jsonb,
    p_alert_id bigint DEFAULT NULL,
    p_event_type text DEFAULT NULL,
    p_idempotency_key text DEFAULT NULL,
    p_priority integer DEFAULT 0,
    p_deliver_after timestamptz DEFAULT NULL,
    p_expires_at timestamptz DEFAULT NULL,
    p_headers jsonb DEFAULT NULL,
    p_ordering_key text DEFAULT NULL,
    p_traceparent text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_id bigint;
    complaint text;
    body_bytes integer;
    body_bytes_max integer;
BEGIN
    IF p_webhook_id IS NULL THEN
        RAISE EXCEPTION 'p_webhook_id is null; give the id of a webhook' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF p_body IS NULL THEN
        RAISE EXCEPTION 'p_body is null; give a JSON value (the JSON null is ''null''::jsonb)'
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF p_priority IS NULL OR p_priority NOT BETWEEN -32768 AND 32767 THEN
        RAISE EXCEPTION 'p_priority is %; allowed: -32768 to 32767, higher goes first', coalesce(p_priority::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_expires_at <= now() THEN
        RAISE EXCEPTION 'p_expires_at is %, which is past; give a later time or null', p_expires_at
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_expires_at <= p_deliver_after THEN
        RAISE EXCEPTION 'p_expires_at is %, which is not after p_deliver_after (%); give a later time or null',
            p_expires_at, p_deliver_after USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF length(p_idempotency_key) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'p_idempotency_key must be 1 to 255 characters or null' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF length(p_ordering_key) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'p_ordering_key must be 1 to 255 characters or null' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_traceparent !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RAISE EXCEPTION 'p_traceparent is not a W3C traceparent such as 00-<32 hex>-<16 hex>-01'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF length(p_event_type) NOT BETWEEN 1 AND 128 OR p_event_type !~ '^[\x21-\x7e]+$' THEN
        RAISE EXCEPTION 'p_event_type must be 1 to 128 printable ASCII characters without spaces'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    complaint := pggit.check_delivery_headers(p_headers);
    IF complaint IS NOT NULL THEN
        RAISE EXCEPTION 'p_headers: %', complaint USING ERRCODE = 'invalid_parameter_value';
    END IF;
    body_bytes := octet_length(p_body::text);
    body_bytes_max := coalesce((SELECT w.max_body_bytes FROM pggit.webhook AS w WHERE w.webhook_id = p_webhook_id), 1048576);
    IF body_bytes > body_bytes_max THEN
        RAISE EXCEPTION 'p_body has % octets as text; webhook % takes at most % (its max_body_bytes)',
            body_bytes, p_webhook_id, body_bytes_max USING ERRCODE = 'program_limit_exceeded';
    END IF;
    INSERT INTO pggit.alert_delivery_queue (
        alert_id, webhook_id, message_body, event_type, idempotency_key, priority, next_retry_at, expires_at, headers,
        ordering_key, traceparent)
    VALUES (
        coalesce(p_alert_id, nextval('pggit.alert_id_seq')), p_webhook_id, p_body, p_event_type, p_idempotency_key,
        p_priority, p_deliver_after, p_expires_at, p_headers, p_ordering_key, p_traceparent)
    ON CONFLICT (webhook_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING delivery_id INTO new_id;
    IF new_id IS NULL THEN
        SELECT q.delivery_id INTO new_id FROM pggit.alert_delivery_queue AS q
        WHERE q.webhook_id = p_webhook_id AND q.idempotency_key = p_idempotency_key;
        IF new_id IS NULL THEN
            RAISE EXCEPTION 'a delivery with this idempotency key for webhook % was removed at this moment; call again',
                p_webhook_id USING ERRCODE = 'serialization_failure';
        END IF;
    END IF;
    RETURN new_id;
END $$;
COMMENT ON FUNCTION pggit.enqueue(bigint, jsonb, bigint, text, text, integer, timestamptz, timestamptz, jsonb, text, text) IS
    'Queues one delivery and returns its delivery_id; a known idempotency key returns the existing id and inserts nothing.';

---------------------------------------------------------------------------------------------------------------------
-- Roles and grants: created where permitted; a migrating role without CREATEROLE goes on without them
---------------------------------------------------------------------------------------------------------------------

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['pggit_producer', 'pggit_worker', 'pggit_operator', 'pggit_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN insufficient_privilege THEN
                RAISE NOTICE 'role % does not exist and % may not create it; its grants are left out', role, current_user;
            END;
        END IF;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION pggit.enqueue(bigint, jsonb, bigint, text, text, integer, timestamptz, timestamptz, jsonb, text, text)
    FROM PUBLIC;
REVOKE ALL ON FUNCTION pggit.add_audit_partitions() FROM PUBLIC;
REVOKE ALL ON FUNCTION pggit.queue_after_insert() FROM PUBLIC;
REVOKE ALL ON FUNCTION pggit.next_webhook_id() FROM PUBLIC;
GRANT SELECT ON SEQUENCE pggit.reactor_gate TO PUBLIC;

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT g.role, g.privilege FROM (VALUES
            ('pggit_producer', 'USAGE ON SCHEMA pggit'),
            ('pggit_producer', 'INSERT (alert_id, webhook_id, message_body, delivery_status, retry_count, max_retries, created_at,'
                               ' event_type, idempotency_key, priority, next_retry_at, expires_at, headers, ordering_key,'
                               ' traceparent), SELECT (delivery_id) ON pggit.alert_delivery_queue'),
            ('pggit_producer', 'USAGE ON SEQUENCE pggit.alert_delivery_queue_delivery_id_seq, pggit.alert_id_seq'),
            ('pggit_producer', 'EXECUTE ON FUNCTION pggit.enqueue'),
            ('pggit_worker', 'USAGE ON SCHEMA pggit'),
            ('pggit_worker', 'SELECT, UPDATE ON pggit.alert_delivery_queue'),
            ('pggit_worker', 'INSERT ON pggit.alert_delivery_log, pggit.webhook_audit_log'),
            ('pggit_worker', 'SELECT (audit_id) ON pggit.webhook_audit_log_default'),
            ('pggit_worker', 'SELECT, INSERT, UPDATE ON pggit.webhook_health_metrics'),
            ('pggit_worker', 'SELECT, INSERT, UPDATE, DELETE ON pggit.webhook_limit, pggit.reactor_worker'),
            ('pggit_worker', 'SELECT, UPDATE (state, state_reason, state_by, state_since, revision, updated_at) ON pggit.webhook'),
            ('pggit_worker', 'SELECT ON pggit.webhook_secret, pggit.key_check, pggit.schema_migration'),
            ('pggit_worker', 'SELECT, UPDATE ON SEQUENCE pggit.reactor_gate'),
            ('pggit_worker', 'USAGE ON SEQUENCE pggit.alert_delivery_log_log_id_seq, pggit.webhook_audit_log_audit_id_seq,'
                             ' pggit.webhook_health_metrics_metric_id_seq, pggit.webhook_revision_seq'),
            ('pggit_worker', 'EXECUTE ON FUNCTION pggit.add_audit_partitions'),
            ('pggit_operator', 'USAGE ON SCHEMA pggit'),
            ('pggit_operator', 'SELECT, UPDATE, DELETE ON pggit.alert_delivery_queue'),
            ('pggit_operator', 'SELECT ON pggit.alert_delivery_log, pggit.webhook_audit_log, pggit.reactor_worker,'
                               ' pggit.schema_migration'),
            ('pggit_operator', 'SELECT (audit_id) ON pggit.webhook_audit_log_default'),
            ('pggit_operator', 'INSERT ON pggit.alert_delivery_log, pggit.webhook_audit_log'),
            ('pggit_operator', 'SELECT, INSERT, UPDATE ON pggit.webhook_health_metrics, pggit.key_check'),
            ('pggit_operator', 'SELECT, INSERT, UPDATE, DELETE ON pggit.webhook, pggit.webhook_secret, pggit.webhook_limit'),
            ('pggit_operator', 'USAGE ON SEQUENCE pggit.alert_delivery_log_log_id_seq, pggit.webhook_audit_log_audit_id_seq,'
                               ' pggit.webhook_health_metrics_metric_id_seq, pggit.webhook_revision_seq'),
            ('pggit_operator', 'EXECUTE ON FUNCTION pggit.enqueue'),
            ('pggit_operator', 'EXECUTE ON FUNCTION pggit.next_webhook_id'),
            ('pggit_reader', 'USAGE ON SCHEMA pggit'),
            ('pggit_reader', 'SELECT (delivery_id, alert_id, webhook_id, delivery_status, retry_count, max_retries, next_retry_at,'
                             ' created_at, attempted_at, delivered_at, uid_salt, lease_expires_at, leased_by, held_until, priority,'
                             ' event_type, expires_at, last_status, last_error, failed_reason, attempt_count, crash_count,'
                             ' replayed_at, ready_at) ON pggit.alert_delivery_queue'),
            ('pggit_reader', 'SELECT ON pggit.webhook_health_metrics, pggit.reactor_worker, pggit.webhook_limit,'
                             ' pggit.schema_migration'),
            ('pggit_reader', 'SELECT (webhook_id, name, url_origin, state, state_reason, state_since, state_by, rate_per_s, burst,'
                             ' concurrency, ordering, attempt_timeout, max_attempts, give_up_after, max_body_bytes, weight,'
                             ' rotate_every, signature_scope, labels, revision, created_at, updated_at) ON pggit.webhook')
        ) AS g (role, privilege)
        WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = g.role)
    LOOP
        EXECUTE format('GRANT %s TO %I', wanted.privilege, wanted.role);
    END LOOP;
END $$;
