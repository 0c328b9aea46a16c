-- The delivery queue, its log, health, audit and webhook registry; the triggers that wake workers; roles and grants.
--
-- On a database without pgGit's phase 8 it creates only. On one with phase 8 it adopts the tables in place. Locks and
-- rewrites there: ACCESS EXCLUSIVE on queue, log, health, audit log and all views on them, taken at the start and held to
-- the end; each table is rewritten once, by one ALTER TABLE (1 s per 1,000,000 rows), and its indexes are built anew.
-- Time columns are timestamptz: sessions in different zones must agree on what is due.
--
-- Mended: it failed where an old audit log belonged to another role than the one that migrates.
-- mends 7581f10b3b439775d193f8b45f9e102f1fa35c6539643d6ab53cfa404679f3dc

---------------------------------------------------------------------------------------------------------------------
-- Adoption: what pgGit left is looked at, and what stands in the way is set aside; 0002 puts it back
---------------------------------------------------------------------------------------------------------------------

CREATE TABLE pggit.adoption_saved (
    place integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    object text NOT NULL,
    statements text[] NOT NULL
);
COMMENT ON TABLE pggit.adoption_saved IS 'Only while migrate runs: statements that put back what it had to drop.';

CREATE FUNCTION pggit.adoption_grants(target text, acl aclitem[], owner oid, column_name text DEFAULT NULL) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN ARRAY(
    SELECT format('GRANT %s%s ON %s TO %s%s', a.privilege_type, ' (' || quote_ident(column_name) || ')', target,
                  CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                  CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM aclexplode(acl) AS a
    WHERE a.grantee <> owner
);

CREATE FUNCTION pggit.adoption_zone() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- The zone in which old plain timestamps are read: what migrate was told, else the database's own. A zone that only
-- this session has (its client's, or its role's) says nothing about the sessions that wrote the rows.
DECLARE
    zone text := nullif(current_setting('pggit.legacy_timezone', true), '');
    zone_source text;
BEGIN
    IF zone IS NULL THEN
        SELECT split_part(s.setting, '=', 2) INTO zone
        FROM pg_db_role_setting AS d
        CROSS JOIN LATERAL unnest(d.setconfig) AS s (setting)
        WHERE d.setdatabase = (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
            AND d.setrole = 0 AND lower(split_part(s.setting, '=', 1)) = 'timezone';
    END IF;
    IF zone IS NULL THEN
        SELECT p.setting, p.source INTO zone, zone_source FROM pg_settings AS p WHERE p.name = 'TimeZone';
        IF zone_source IN ('client', 'session', 'user', 'database user') THEN
            RAISE EXCEPTION 'the zone of the old timestamps is unknown: % is only this session''s (%); say --legacy-timezone',
                zone, zone_source USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END IF;
    BEGIN
        PERFORM now() AT TIME ZONE zone;
    EXCEPTION WHEN invalid_parameter_value THEN
        RAISE EXCEPTION 'legacy time zone % is not known to this server; right would be a name such as Europe/Berlin or UTC',
            quote_literal(zone) USING ERRCODE = 'invalid_parameter_value';
    END;
    RETURN zone;
END $$;

CREATE FUNCTION pggit.adoption_clauses(table_name text, checked text[], times text[]) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- The part of a table's one ALTER TABLE that only an old table needs: its own checks of the columns that we check go,
-- and plain timestamps become instants. Empty for a new table.
DECLARE
    relation CONSTANT oid := to_regclass(format('pggit.%I', table_name));
    clauses text[];
BEGIN
    SELECT array_agg(format('DROP CONSTRAINT %I', c.conname)) INTO clauses
    FROM pg_constraint AS c
    WHERE c.conrelid = relation AND c.contype = 'c' AND c.conkey <@ ARRAY(
        SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = ANY (checked));
    clauses := clauses || ARRAY(
        SELECT format('ALTER COLUMN %1$I DROP DEFAULT, ALTER COLUMN %1$I TYPE timestamptz USING %1$I AT TIME ZONE %2$L',
                      a.attname, pggit.adoption_zone())
        FROM pg_attribute AS a
        WHERE a.attrelid = relation AND a.attname = ANY (times) AND a.atttypid = 'timestamp'::regtype);
    RETURN coalesce(nullif(array_to_string(clauses, ', '), '') || ', ', '');
END $$;

DO $$
DECLARE
    tables CONSTANT text[] := ARRAY['alert_delivery_queue', 'alert_delivery_log', 'webhook_health_metrics', 'webhook_audit_log'];
    views CONSTANT text[] := ARRAY['v_webhook_health_dashboard', 'v_degraded_webhooks', 'v_webhook_performance',
                                   'v_delivery_queue_status', 'v_delivery_performance', 'v_failed_deliveries'];
    functions CONSTANT text[] := ARRAY[
        'get_ready_deliveries(integer)', 'update_webhook_health(bigint, integer, integer, text)',
        'get_webhook_decrypted(bigint)', 'count_pending_by_status()', 'log_webhook_delivery(bigint, bigint, integer, boolean)',
        'observer_queue_alert(bigint, bigint, jsonb)', 'observer_deliver_alert(bigint)', 'observer_escalate_failed_alerts()',
        'get_delivery_status(bigint)', 'get_delivery_log(bigint)', 'count_pending_deliveries()', 'process_failed_deliveries()',
        'retry_delivery(bigint)', 'reset_stuck_deliveries()'];
    tries_max CONSTANT integer := 1000;
    lock_timeout CONSTANT text := current_setting('lock_timeout');
    roots oid[];
    wrong text;
    wanted text;
    found record;
BEGIN
    SELECT string_agg(format('%s.%s %s', e.table_name, e.column_name, e.type), ', ') INTO wrong
    FROM (VALUES
        ('alert_delivery_queue', 'delivery_id', 'bigint'), ('alert_delivery_queue', 'alert_id', 'bigint'),
        ('alert_delivery_queue', 'webhook_id', 'bigint'), ('alert_delivery_queue', 'message_body', 'jsonb'),
        ('alert_delivery_queue', 'delivery_status', 'text'), ('alert_delivery_queue', 'retry_count', 'integer'),
        ('alert_delivery_queue', 'max_retries', 'integer'), ('alert_delivery_queue', 'next_retry_at', 'timestamp'),
        ('alert_delivery_queue', 'created_at', 'timestamp'), ('alert_delivery_queue', 'attempted_at', 'timestamp'),
        ('alert_delivery_queue', 'delivered_at', 'timestamp'),
        ('alert_delivery_log', 'log_id', 'bigint'), ('alert_delivery_log', 'delivery_id', 'bigint'),
        ('alert_delivery_log', 'webhook_id', 'bigint'), ('alert_delivery_log', 'event_type', 'text'),
        ('alert_delivery_log', 'event_details', 'jsonb'), ('alert_delivery_log', 'created_at', 'timestamp'),
        ('webhook_health_metrics', 'metric_id', 'bigint'), ('webhook_health_metrics', 'webhook_id', 'bigint'),
        ('webhook_health_metrics', 'total_deliveries', 'bigint'), ('webhook_health_metrics', 'successful_deliveries', 'bigint'),
        ('webhook_health_metrics', 'failed_deliveries', 'bigint'), ('webhook_health_metrics', 'avg_response_time_ms', 'numeric(10,2)'),
        ('webhook_health_metrics', 'max_response_time_ms', 'numeric(10,2)'),
        ('webhook_health_metrics', 'min_response_time_ms', 'numeric(10,2)'), ('webhook_health_metrics', 'health_status', 'text'),
        ('webhook_health_metrics', 'last_check_at', 'timestamp'), ('webhook_health_metrics', 'last_success_at', 'timestamp'),
        ('webhook_health_metrics', 'last_failure_at', 'timestamp'), ('webhook_health_metrics', 'consecutive_failures', 'integer'),
        ('webhook_health_metrics', 'created_at', 'timestamp'), ('webhook_health_metrics', 'updated_at', 'timestamp'),
        ('webhook_audit_log', 'audit_id', 'bigint'), ('webhook_audit_log', 'webhook_id', 'bigint'),
        ('webhook_audit_log', 'delivery_id', 'bigint'), ('webhook_audit_log', 'operation', 'character varying(50)'),
        ('webhook_audit_log', 'status_code', 'integer'), ('webhook_audit_log', 'error_message', 'text'),
        ('webhook_audit_log', 'signature_verified', 'boolean'), ('webhook_audit_log', 'encryption_algorithm', 'text'),
        ('webhook_audit_log', 'ip_address', 'inet'), ('webhook_audit_log', 'occurred_at', 'timestamp'),
        ('webhook_audit_log', 'user_id', 'text'), ('webhook_audit_log', 'request_id', 'uuid')
    ) AS e (table_name, column_name, type)
    LEFT JOIN pg_attribute AS a ON a.attrelid = to_regclass('pggit.' || e.table_name) AND a.attname = e.column_name
        AND NOT a.attisdropped
    WHERE to_regclass('pggit.' || e.table_name) IS NOT NULL
        AND CASE e.type
                WHEN 'timestamp' THEN a.atttypid IN ('timestamp'::regtype, 'timestamptz'::regtype)
                WHEN 'text' THEN a.atttypid IN ('text'::regtype, 'varchar'::regtype)
                ELSE format_type(a.atttypid, a.atttypmod) = e.type END IS NOT TRUE;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'these are not the tables of pgGit''s phase 8; columns are missing or of another type: %', wrong
            USING ERRCODE = 'invalid_table_definition';
    END IF;

    roots := ARRAY(SELECT to_regclass(format('pggit.%I', t.name))::oid FROM unnest(tables || views) AS t (name))
        || ARRAY(SELECT to_regprocedure('pggit.' || f.name)::oid FROM unnest(functions) AS f (name));
    CREATE TEMPORARY TABLE pggit_adoption_view ON COMMIT DROP AS
    WITH RECURSIVE dependent (oid, depth) AS (
        SELECT r.ev_class, 1
        FROM pg_depend AS d
        JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND r.ev_class <> d.refobjid
        WHERE d.refclassid IN ('pg_class'::regclass, 'pg_proc'::regclass) AND d.refobjid = ANY (roots)
        UNION
        SELECT r.ev_class, v.depth + 1
        FROM dependent AS v
        JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = v.oid
        JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND r.ev_class <> d.refobjid
    )
    SELECT c.oid, max(v.depth) AS depth, format('%I.%I', n.nspname, c.relname) AS name,
        c.relkind, c.relowner, c.relacl, c.reloptions,
        n.nspname = 'pggit' AND c.relname::text = ANY (views) AS is_legacy
    FROM dependent AS v
    JOIN pg_class AS c ON c.oid = v.oid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    GROUP BY c.oid, n.nspname;

    SELECT string_agg(b.name || ' (' || b.why || ')', ', ' ORDER BY b.name) INTO wrong
    FROM (
        SELECT v.name, CASE
            WHEN v.relkind = 'm' THEN 'a materialized view'
            WHEN v.relkind <> 'v' THEN 'it has a rule'
            WHEN EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = v.oid AND d.deptype = 'e')
                THEN 'it belongs to an extension'
            WHEN EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = v.oid) THEN 'a view with a trigger'
            WHEN EXISTS (SELECT FROM pg_rewrite AS r WHERE r.ev_class = v.oid AND r.rulename <> '_RETURN') THEN 'a view with a rule'
            WHEN EXISTS (SELECT FROM pg_attrdef AS a WHERE a.adrelid = v.oid) THEN 'a view with defaults'
            WHEN pg_get_viewdef(v.oid) ~* '\mat time zone\M|\mtimezone\(' AND NOT v.is_legacy
                THEN 'it says AT TIME ZONE, which would change its meaning' END AS why
        FROM pggit_adoption_view AS v
        UNION ALL
        SELECT i.indexrelid::regclass::text, 'an index on an expression of a time'
        FROM pg_index AS i
        JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
            AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = d.refobjsubid AND a.atttypid = 'timestamp'::regtype
        WHERE i.indrelid = ANY (roots) AND i.indexprs IS NOT NULL
        UNION ALL
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid), 'it uses a time column'
        FROM pg_depend AS d
        JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.atttypid = 'timestamp'::regtype
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY (roots)
            AND (d.classid IN ('pg_policy'::regclass, 'pg_trigger'::regclass, 'pg_proc'::regclass)
                 OR d.classid = 'pg_attrdef'::regclass AND d.deptype = 'n')
        UNION ALL
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid), 'it uses a view that is made anew'
        FROM pg_depend AS d
        WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass
            AND (d.refobjid IN (SELECT v.oid FROM pggit_adoption_view AS v)
                 OR d.refobjid = to_regclass('pggit.webhook_audit_log'))
        UNION ALL
        SELECT format('%s of %s', c.conname, c.conrelid::regclass), 'a foreign key to the audit log, which becomes partitioned'
        FROM pg_constraint AS c WHERE c.contype = 'f' AND c.confrelid = to_regclass('pggit.webhook_audit_log')
        UNION ALL
        SELECT t.tgname, 'a trigger on the audit log, which becomes partitioned'
        FROM pg_trigger AS t WHERE t.tgrelid = to_regclass('pggit.webhook_audit_log') AND NOT t.tgisinternal
    ) AS b
    WHERE b.why IS NOT NULL;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'drop these, migrate, and create them again: %', wrong USING ERRCODE = 'dependent_objects_still_exist';
    END IF;

    INSERT INTO pggit.adoption_saved (object, statements)
    SELECT 'view ' || v.name, CASE WHEN v.is_legacy THEN ARRAY[]::text[] ELSE ARRAY[
            format('CREATE VIEW %s%s AS %s', v.name, ' WITH (' || array_to_string(v.reloptions, ', ') || ')',
                   pg_get_viewdef(v.oid)),
            format('SELECT pggit.adoption_forget_defaults(%L)', v.name),
            format('ALTER VIEW %s OWNER TO %I', v.name, pg_get_userbyid(v.relowner))] END
        || pggit.adoption_grants(v.name, v.relacl, v.relowner)
        || ARRAY(SELECT g.statement FROM pg_attribute AS a
                 CROSS JOIN LATERAL unnest(pggit.adoption_grants(v.name, a.attacl, v.relowner, a.attname)) AS g (statement)
                 WHERE a.attrelid = v.oid AND a.attnum > 0)
        || ARRAY(SELECT CASE d.objsubid
                     WHEN 0 THEN format('COMMENT ON VIEW %s IS %L', v.name, d.description)
                     ELSE format('COMMENT ON COLUMN %s.%I IS %L', v.name,
                                 (SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = v.oid AND a.attnum = d.objsubid),
                                 d.description) END
                 FROM pg_description AS d
                 WHERE d.classoid = 'pg_class'::regclass AND d.objoid = v.oid AND NOT v.is_legacy)
    FROM pggit_adoption_view AS v
    ORDER BY v.depth;

    -- Whoever writes or reads these meanwhile locks them in an order of its own. So that nobody else is the victim of a
    -- deadlock, this waits for less than the server takes to look for one, lets go of everything, and begins anew.
    SELECT string_agg('pggit.' || t.name, ', ') INTO wanted
    FROM unnest(tables || ARRAY['alert_notification_queue']) AS t (name) WHERE to_regclass('pggit.' || t.name) IS NOT NULL;
    PERFORM set_config('lock_timeout', (SELECT greatest(p.setting::integer / 2, 10)::text FROM pg_settings AS p
                                        WHERE p.name = 'deadlock_timeout'), true);
    FOR tries_left IN REVERSE tries_max .. 0 LOOP
        EXIT WHEN wanted IS NULL;
        BEGIN
            FOR found IN SELECT v.name FROM pggit_adoption_view AS v ORDER BY v.depth DESC LOOP
                EXECUTE format('DROP VIEW %s', found.name);
            END LOOP;
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', wanted);
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF tries_left = 0 THEN
                RAISE EXCEPTION 'some transaction holds the tables of pgGit for minutes; end it and migrate again'
                    USING ERRCODE = 'object_in_use';
            END IF;
        END;
        PERFORM pg_sleep(random() / 10);
    END LOOP;
    PERFORM set_config('lock_timeout', lock_timeout, true);
    DROP TABLE pggit_adoption_view;

    -- Dropped, because results change their types where they hold times. Phase 7 has a get_webhook_decrypted that returns
    -- a table; it decrypts with a constant of the public source, and goes too.
    FOR found IN
        SELECT p.oid, p.oid::regprocedure AS name, p.proacl, p.proowner, p.proretset, p.proname
        FROM pg_proc AS p WHERE p.oid = ANY (roots)
    LOOP
        IF found.proacl IS NOT NULL AND NOT (found.proname = 'get_webhook_decrypted' AND found.proretset) THEN
            INSERT INTO pggit.adoption_saved (object, statements)
            SELECT 'function ' || found.name, format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', found.name)
                || pggit.adoption_grants('FUNCTION ' || found.name, found.proacl, found.proowner);
        END IF;
        EXECUTE format('DROP FUNCTION %s', found.name);
    END LOOP;

    -- The legacy indexes, by what they index, whatever they are called.
    FOR found IN
        SELECT i.indexrelid::regclass AS name
        FROM pg_index AS i
        WHERE i.indrelid = ANY (roots) AND NOT i.indisunique AND i.indexprs IS NULL
            AND (SELECT string_agg(a.attname, ' ' ORDER BY k.number)
                 FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, number)
                 JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum)
                = ANY (CASE i.indrelid
                    WHEN to_regclass('pggit.alert_delivery_queue') THEN
                        ARRAY['delivery_status', 'next_retry_at', 'webhook_id', 'created_at']
                    WHEN to_regclass('pggit.alert_delivery_log') THEN
                        ARRAY['delivery_id', 'webhook_id', 'event_type', 'created_at']
                    WHEN to_regclass('pggit.webhook_health_metrics') THEN
                        ARRAY['webhook_id', 'health_status', 'last_check_at']
                    ELSE ARRAY['operation occurred_at'] END)
    LOOP
        EXECUTE format('DROP INDEX %s', found.name);
    END LOOP;

    -- Grants below name the sequences.
    FOR found IN
        SELECT s.sequence, s.wanted
        FROM (VALUES ('alert_delivery_queue', 'delivery_id'), ('alert_delivery_log', 'log_id'),
                     ('webhook_health_metrics', 'metric_id'), ('webhook_audit_log', 'audit_id')) AS t (table_name, column_name)
        CROSS JOIN LATERAL (SELECT
            CASE WHEN to_regclass('pggit.' || t.table_name) IS NOT NULL
                 THEN pg_get_serial_sequence('pggit.' || t.table_name, t.column_name) END::regclass AS sequence,
            t.table_name || '_' || t.column_name || '_seq' AS wanted) AS s
        WHERE (SELECT c.relname FROM pg_class AS c WHERE c.oid = s.sequence) <> s.wanted
    LOOP
        EXECUTE format('ALTER SEQUENCE %s RENAME TO %I', found.sequence, found.wanted);
    END LOOP;
END $$;

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

CREATE TABLE IF NOT EXISTS pggit.alert_delivery_queue (
    delivery_id bigserial PRIMARY KEY,
    alert_id bigint NOT NULL,
    webhook_id bigint NOT NULL,
    message_body jsonb NOT NULL,
    delivery_status text NOT NULL,
    retry_count integer NOT NULL,
    max_retries integer NOT NULL,
    next_retry_at timestamptz,
    created_at timestamptz NOT NULL,
    attempted_at timestamptz,
    delivered_at timestamptz
);
DO $do$
BEGIN
    EXECUTE 'ALTER TABLE pggit.alert_delivery_queue '
    || pggit.adoption_clauses('alert_delivery_queue', ARRAY['delivery_status', 'retry_count', 'max_retries'],
                              ARRAY['next_retry_at', 'created_at', 'attempted_at', 'delivered_at'])
    || $$
    ALTER COLUMN delivery_status SET DEFAULT 'pending',
    ALTER COLUMN retry_count SET DEFAULT 0,
    ALTER COLUMN max_retries SET DEFAULT 3,
    ALTER COLUMN created_at SET DEFAULT now(),
    ADD CONSTRAINT delivery_status_check CHECK (delivery_status IN ('pending', 'retrying', 'delivered', 'failed')),
    ADD CONSTRAINT retry_count_check CHECK (retry_count >= 0),
    ADD CONSTRAINT max_retries_check CHECK (max_retries > 0),
    -- Of the version 4 UUID's last 64 bits the low 62 are random; the delivery uid uses 58 of them.
    ADD COLUMN uid_salt bigint NOT NULL
        DEFAULT ('x' || right(replace(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint,
    ADD COLUMN lease_token bigint,
    ADD COLUMN lease_expires_at timestamptz,
    ADD COLUMN leased_by text,
    ADD COLUMN held_until timestamptz,
    ADD COLUMN priority smallint NOT NULL DEFAULT 0,
    ADD COLUMN ordering_key text,
    ADD COLUMN idempotency_key text,
    ADD COLUMN event_type text,
    ADD COLUMN headers jsonb,
    ADD COLUMN traceparent text,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN last_status integer,
    ADD COLUMN last_error text,
    ADD COLUMN failed_reason text CONSTRAINT failed_reason_check CHECK (
        failed_reason IN ('permanent', 'exhausted', 'gone', 'expired', 'cancelled', 'url_refused', 'unknown_webhook',
                          'too_large', 'bad_headers', 'template', 'crash')),
    ADD COLUMN attempt_count integer NOT NULL DEFAULT 0,
    ADD COLUMN crash_count smallint NOT NULL DEFAULT 0,
    ADD COLUMN replayed_at timestamptz,
    -- Readiness follows every UPDATE by itself, also those of old workers and operators.
    -- A retrying row without a time is never ready (legacy); a lease is kept out, so that a claim is a HOT update.
    ADD COLUMN ready_at timestamptz GENERATED ALWAYS AS (
        CASE delivery_status
            WHEN 'pending' THEN greatest(created_at, next_retry_at, held_until)
            WHEN 'retrying' THEN
                CASE WHEN next_retry_at IS NULL THEN 'infinity'::timestamptz
                     ELSE greatest(created_at, next_retry_at, held_until) END
        END) STORED,
    SET (
        -- Room for a second version of every row of a page: a burst is claimed in the order in which it was inserted.
        fillfactor = 45,
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
    )
    $$;
END $do$;
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

CREATE TABLE IF NOT EXISTS pggit.alert_delivery_log (
    log_id bigserial PRIMARY KEY,
    delivery_id bigint NOT NULL REFERENCES pggit.alert_delivery_queue (delivery_id) ON DELETE CASCADE,
    webhook_id bigint NOT NULL,
    event_type text NOT NULL,
    event_details jsonb,
    created_at timestamptz NOT NULL
);
DO $do$
BEGIN
    EXECUTE 'ALTER TABLE pggit.alert_delivery_log '
    || pggit.adoption_clauses('alert_delivery_log', ARRAY['event_type'], ARRAY['created_at'])
    || $$
    ALTER COLUMN created_at SET DEFAULT now(),
    ADD CONSTRAINT event_type_check CHECK (
        event_type IN ('queued', 'attempt', 'delivered', 'retrying', 'failed', 'escalated')),
    SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05)
    $$;
END $do$;
CREATE INDEX alert_delivery_log_delivery_idx ON pggit.alert_delivery_log (delivery_id);
CREATE INDEX alert_delivery_log_webhook_idx ON pggit.alert_delivery_log (webhook_id, log_id);
CREATE INDEX alert_delivery_log_rare_idx ON pggit.alert_delivery_log (event_type, log_id)
    WHERE event_type IN ('queued', 'retrying', 'failed', 'escalated');
CREATE INDEX alert_delivery_log_created_idx ON pggit.alert_delivery_log USING brin (created_at);
COMMENT ON TABLE pggit.alert_delivery_log IS 'What happened to each delivery, one row an event.';

CREATE TABLE IF NOT EXISTS pggit.webhook_health_metrics (
    metric_id bigserial PRIMARY KEY,
    webhook_id bigint NOT NULL UNIQUE,
    total_deliveries bigint,
    successful_deliveries bigint,
    failed_deliveries bigint,
    avg_response_time_ms numeric(10, 2),
    max_response_time_ms numeric(10, 2),
    min_response_time_ms numeric(10, 2),
    health_status text NOT NULL,
    last_check_at timestamptz,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    consecutive_failures integer,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
DO $do$
BEGIN
    EXECUTE 'ALTER TABLE pggit.webhook_health_metrics '
    || pggit.adoption_clauses(
        'webhook_health_metrics',
        ARRAY['total_deliveries', 'successful_deliveries', 'failed_deliveries', 'avg_response_time_ms',
              'max_response_time_ms', 'min_response_time_ms', 'health_status'],
        ARRAY['last_check_at', 'last_success_at', 'last_failure_at', 'created_at', 'updated_at'])
    || $$
    ALTER COLUMN total_deliveries SET DEFAULT 0,
    ALTER COLUMN successful_deliveries SET DEFAULT 0,
    ALTER COLUMN failed_deliveries SET DEFAULT 0,
    ALTER COLUMN health_status SET DEFAULT 'unknown',
    ALTER COLUMN consecutive_failures SET DEFAULT 0,
    ALTER COLUMN created_at SET DEFAULT now(),
    ALTER COLUMN updated_at SET DEFAULT now(),
    ADD CONSTRAINT total_deliveries_check CHECK (total_deliveries >= 0),
    ADD CONSTRAINT successful_deliveries_check CHECK (successful_deliveries >= 0),
    ADD CONSTRAINT failed_deliveries_check CHECK (failed_deliveries >= 0),
    ADD CONSTRAINT avg_response_time_ms_check CHECK (avg_response_time_ms >= 0),
    ADD CONSTRAINT max_response_time_ms_check CHECK (max_response_time_ms >= 0),
    ADD CONSTRAINT min_response_time_ms_check CHECK (min_response_time_ms >= 0),
    ADD CONSTRAINT health_status_check CHECK (health_status IN ('healthy', 'degraded', 'unavailable', 'unknown')),
    ADD COLUMN breaker_failures integer NOT NULL DEFAULT 0,
    ADD COLUMN breaker_window_started_at timestamptz,
    ADD COLUMN breaker_window_attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN breaker_window_failures integer NOT NULL DEFAULT 0,
    ADD COLUMN breaker_opened_at timestamptz,
    ADD COLUMN breaker_opens integer NOT NULL DEFAULT 0,
    SET (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
    $$;
END $do$;
COMMENT ON TABLE pggit.webhook_health_metrics IS
    'One row a webhook that was ever attempted. The breaker columns count transient failures only; they are not yet enforced.';

-- An old audit log becomes the first partition, named as the chore below would name one that ends where it ends.
DO $$
DECLARE
    width CONSTANT bigint := 10000000;
    number bigint;
    primary_key text;
BEGIN
    IF to_regclass('pggit.webhook_audit_log') IS NULL THEN
        CREATE SEQUENCE pggit.webhook_audit_log_audit_id_seq;
        RETURN;
    END IF;
    SELECT greatest(max(a.audit_id), pg_sequence_last_value('pggit.webhook_audit_log_audit_id_seq'::regclass), 0) / width
    INTO number FROM pggit.webhook_audit_log AS a;
    SELECT c.conname INTO primary_key
    FROM pg_constraint AS c WHERE c.conrelid = 'pggit.webhook_audit_log'::regclass AND c.contype = 'p';
    EXECUTE format('ALTER TABLE pggit.webhook_audit_log RENAME CONSTRAINT %I TO webhook_audit_log_p%s_pkey', primary_key, number);
    EXECUTE format('ALTER TABLE pggit.webhook_audit_log RENAME TO webhook_audit_log_p%s', number);
END $$;

-- Partitioned by audit_id, which must stay the primary key; a chore adds partitions ahead of the sequence.
-- The default partition catches what a late chore missed, so that an attempt can always be settled.
CREATE TABLE pggit.webhook_audit_log (
    audit_id bigint PRIMARY KEY DEFAULT nextval('pggit.webhook_audit_log_audit_id_seq'),
    webhook_id bigint,
    delivery_id bigint,
    operation varchar(50) CONSTRAINT operation_check CHECK (operation::text IN (
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
CREATE INDEX webhook_audit_log_webhook_idx ON pggit.webhook_audit_log (webhook_id, occurred_at DESC);
CREATE INDEX webhook_audit_log_rare_idx ON pggit.webhook_audit_log (operation, occurred_at DESC)
    WHERE operation NOT IN ('delivered', 'failed', 'retried');
DO $$
DECLARE
    width CONSTANT bigint := 10000000;
    adopted text;
    adopted_owner oid;
    statement text;
BEGIN
    SELECT c.relname, c.relowner INTO adopted, adopted_owner
    FROM pg_class AS c
    WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^webhook_audit_log_p[0-9]+$';
    IF adopted IS NULL THEN
        CREATE TABLE pggit.webhook_audit_log_p0 PARTITION OF pggit.webhook_audit_log
            FOR VALUES FROM (MINVALUE) TO (10000000);
        RETURN;
    END IF;
    EXECUTE format('ALTER TABLE pggit.%I ', adopted)
        || pggit.adoption_clauses(adopted, ARRAY['operation'], ARRAY['occurred_at'])
        || 'ALTER COLUMN webhook_id DROP NOT NULL, ALTER COLUMN operation DROP NOT NULL,'
        || ' ALTER COLUMN occurred_at DROP NOT NULL, ALTER COLUMN occurred_at SET DEFAULT now(), ADD COLUMN details jsonb,'
        || ' ADD CONSTRAINT operation_check ' || (
            SELECT pg_get_constraintdef(c.oid) FROM pg_constraint AS c
            WHERE c.conrelid = 'pggit.webhook_audit_log'::regclass AND c.conname = 'operation_check');
    EXECUTE format('ALTER TABLE pggit.webhook_audit_log ATTACH PARTITION pggit.%I FOR VALUES FROM (MINVALUE) TO (%s)',
                   adopted, (substring(adopted, '[0-9]+$')::bigint + 1) * width);
    FOREACH statement IN ARRAY (
        SELECT pggit.adoption_grants('pggit.webhook_audit_log', c.relacl, c.relowner)
        FROM pg_class AS c WHERE c.oid = format('pggit.%I', adopted)::regclass)
    LOOP
        EXECUTE statement;
    END LOOP;
    EXECUTE format('ALTER TABLE pggit.webhook_audit_log OWNER TO %I', pg_get_userbyid(adopted_owner));
END $$;
-- Only now: a sequence and its table must have the same owner, and an old log keeps the one that it had.
ALTER SEQUENCE pggit.webhook_audit_log_audit_id_seq OWNED BY pggit.webhook_audit_log.audit_id;
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
        FOREACH elsewhere IN ARRAY ARRAY['pggit.alert_routing_rules', 'pggit.routing_default',
                                     'pggit.alert_notification_webhooks'] LOOP
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
