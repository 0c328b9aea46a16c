-- The audit log: sealed in a chain of segments, kept for a time, its texts erasable; reports of receivers; pruning of
-- the queue; rights.
--
-- Locks and rewrites: ACCESS EXCLUSIVE on the audit log, which is rewritten once (each row gets a random salt; 2 s per
-- 1,000,000 rows), and, for a moment, on the queue (one column without a default, triggers).

---------------------------------------------------------------------------------------------------------------------
-- The audit log: what may be erased of a row, and more words
---------------------------------------------------------------------------------------------------------------------

ALTER TABLE pggit.webhook_audit_log
    ADD COLUMN salt uuid DEFAULT gen_random_uuid(),
    ADD COLUMN erased_digest bytea;
COMMENT ON COLUMN pggit.webhook_audit_log.salt IS
    'Random; hashed with error_message and details, so that nobody can guess them from their digest once they are erased.';
COMMENT ON COLUMN pggit.webhook_audit_log.erased_digest IS
    'Where error_message and details were erased: their salted digest, with which the row''s hash stays what was sealed.';

-- A session of the old log could keep ids for later transactions.
ALTER SEQUENCE pggit.webhook_audit_log_audit_id_seq CACHE 1;

DO $$
-- Keeps the words that are there, whoever added them.
DECLARE
    words text[];
BEGIN
    SELECT array_agg(DISTINCT m.word[1]) INTO words
    FROM pg_constraint AS c
    CROSS JOIN LATERAL regexp_matches(pg_get_constraintdef(c.oid), '''([a-z_0-9]+)''', 'g') AS m (word)
    WHERE c.conrelid = 'pggit.webhook_audit_log'::regclass AND c.conname = 'operation_check';
    words := words || ARRAY(
        SELECT w FROM unnest(ARRAY['audit_pruned', 'deliveries_deleted']) AS w WHERE w <> ALL (words));
    ALTER TABLE pggit.webhook_audit_log DROP CONSTRAINT operation_check;
    EXECUTE format('ALTER TABLE pggit.webhook_audit_log ADD CONSTRAINT operation_check CHECK (operation::text IN (%s))',
                   (SELECT string_agg(quote_literal(w), ', ' ORDER BY w) FROM unnest(words) AS w));
END $$;

---------------------------------------------------------------------------------------------------------------------
-- The chain: docs/decisions/0020-audit-chain.md; pggit_reactor/core/audit_chain.py makes the same hashes
---------------------------------------------------------------------------------------------------------------------

CREATE TABLE pggit.audit_segment (
    number bigint PRIMARY KEY CONSTRAINT audit_segment_number_check CHECK (number >= 1),
    from_id bigint NOT NULL,
    to_id bigint NOT NULL,
    row_count integer NOT NULL CONSTRAINT audit_segment_row_count_check CHECK (row_count >= 0),
    late_ids bigint[] NOT NULL DEFAULT '{}',
    open_ids int8multirange NOT NULL DEFAULT '{}',
    rows_hash bytea NOT NULL,
    previous_hash bytea NOT NULL,
    previous_proven boolean NOT NULL,
    sealed_at timestamptz NOT NULL,
    key_id text NOT NULL,
    hash bytea NOT NULL,
    seal bytea NOT NULL,
    is_checkpoint boolean NOT NULL DEFAULT false
);
CREATE INDEX audit_segment_late_idx ON pggit.audit_segment (number) WHERE late_ids <> '{}';
COMMENT ON TABLE pggit.audit_segment IS 'The chain over webhook_audit_log: each segment seals rows, and the segment before it.';
COMMENT ON COLUMN pggit.audit_segment.number IS 'From 1, without a gap.';
COMMENT ON COLUMN pggit.audit_segment.from_id IS 'The first audit_id of its range; the range before ends just below.';
COMMENT ON COLUMN pggit.audit_segment.to_id IS 'The last one; just below from_id where it has no range.';
COMMENT ON COLUMN pggit.audit_segment.row_count IS 'How many rows it seals, late ones too.';
COMMENT ON COLUMN pggit.audit_segment.late_ids IS 'Rows of earlier ranges that became visible after these were sealed.';
COMMENT ON COLUMN pggit.audit_segment.open_ids IS 'Ids of its range that open transactions might still bring when it was sealed.';
COMMENT ON COLUMN pggit.audit_segment.rows_hash IS 'SHA-256 over the hashes of its rows, by audit_id.';
COMMENT ON COLUMN pggit.audit_segment.previous_hash IS 'The hash of the segment before; zeros in the first.';
COMMENT ON COLUMN pggit.audit_segment.previous_proven IS 'Whether whoever sealed it had checked the seal of the segment before.';
COMMENT ON COLUMN pggit.audit_segment.sealed_at IS 'When.';
COMMENT ON COLUMN pggit.audit_segment.key_id IS 'The master key from which the key of its seal is derived.';
COMMENT ON COLUMN pggit.audit_segment.hash IS 'SHA-256 over all of the above.';
COMMENT ON COLUMN pggit.audit_segment.seal IS 'HMAC-SHA256 over the same; the key is not in the database.';
COMMENT ON COLUMN pggit.audit_segment.is_checkpoint IS 'Its rows, and all segments before it, were dropped because they were old.';
COMMENT ON INDEX pggit.audit_segment_late_idx IS 'Segments that name late rows; few.';

CREATE TABLE pggit.audit_gap (
    from_id bigint PRIMARY KEY,
    to_id bigint NOT NULL,
    holders text[] NOT NULL
);
COMMENT ON TABLE pggit.audit_gap IS
    'Ids of sealed ranges that open transactions may still bring; forgotten once these have ended. Usually empty.';
COMMENT ON COLUMN pggit.audit_gap.from_id IS 'The first id.';
COMMENT ON COLUMN pggit.audit_gap.to_id IS 'The last id.';
COMMENT ON COLUMN pggit.audit_gap.holders IS 'The transactions, as pg_locks names them (virtualtransaction).';

CREATE FUNCTION pggit.next_audit_segment(
    p_to_id bigint, p_holders text[], p_running text[], p_rows_max integer,
    OUT number bigint, OUT from_id bigint, OUT to_id bigint, OUT row_count integer, OUT late_ids bigint[],
    OUT open_ids int8multirange, OUT rows_hash bytea, OUT sealed_us bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- What the next segment would seal, changing nothing but audit_gap. Of ids up to p_to_id only p_holders may still bring
-- rows; p_running are all who hold the log now. Both were asked before this statement's snapshot was taken, so a
-- transaction that is in neither has ended and its rows are seen here. row_count 0: there is nothing to seal.
#variable_conflict use_column
DECLARE
    gap record;
    may_end boolean;
    found_ids bigint[];
    ids bigint[];
BEGIN
    SELECT s.number + 1, s.to_id + 1 INTO number, from_id
    FROM pggit.audit_segment AS s ORDER BY s.number DESC LIMIT 1;
    number := coalesce(number, 1);
    from_id := coalesce(from_id, (-9223372036854775807)::bigint);
    late_ids := '{}';
    FOR gap IN SELECT * FROM pggit.audit_gap AS g ORDER BY g.from_id LOOP
        found_ids := ARRAY(
            SELECT a.audit_id FROM pggit.webhook_audit_log AS a
            WHERE a.audit_id BETWEEN gap.from_id AND gap.to_id
                AND NOT EXISTS (SELECT FROM pggit.audit_segment AS s WHERE s.late_ids <> '{}' AND a.audit_id = ANY (s.late_ids))
            ORDER BY a.audit_id LIMIT p_rows_max - cardinality(late_ids));
        late_ids := late_ids || found_ids;
        -- A prepared transaction has another name than before; none is taken for ended while any is there.
        may_end := NOT (gap.holders && p_running)
            AND NOT EXISTS (SELECT FROM unnest(p_running) AS r (name) WHERE r.name LIKE '-1/%');
        EXIT WHEN cardinality(late_ids) >= p_rows_max;
        IF may_end THEN
            DELETE FROM pggit.audit_gap AS g WHERE g.from_id = gap.from_id;
        END IF;
    END LOOP;
    -- Ids and hashes by one statement: each has a snapshot of its own, and between two a row of a gap may appear.
    SELECT coalesce(array_agg(d.audit_id ORDER BY d.audit_id), '{}'),
        sha256(coalesce(string_agg(d.digest, ''::bytea ORDER BY d.audit_id), ''::bytea))
    INTO ids, rows_hash
    FROM (
        SELECT a.audit_id, sha256(convert_to(concat(
            'pggit-audit-row-1,', a.audit_id, ',', a.webhook_id, ',', a.delivery_id, ',', a.status_code, ',',
            a.signature_verified::text, ',', trunc(extract(epoch FROM a.occurred_at) * 1000000)::text, ',',
            host(a.ip_address) || '/' || masklen(a.ip_address), ',', a.request_id, ',',
            coalesce(octet_length(a.operation) || ':' || a.operation, '-'), ',',
            coalesce(octet_length(a.encryption_algorithm) || ':' || a.encryption_algorithm, '-'), ',',
            coalesce(octet_length(a.user_id) || ':' || a.user_id, '-'), ',',
            CASE WHEN a.error_message IS NULL AND a.details IS NULL THEN encode(a.erased_digest, 'hex')
                 ELSE encode(sha256(convert_to(concat(
                    a.salt, ',', coalesce(octet_length(a.error_message) || ':' || a.error_message, '-'), ',',
                    coalesce(octet_length(a.details::text) || ':' || a.details::text, '-'), ','), 'UTF8')), 'hex') END
        ), 'UTF8')) AS digest
        FROM (
            SELECT l.* FROM pggit.webhook_audit_log AS l WHERE l.audit_id = ANY (late_ids)
            UNION ALL
            (SELECT r.* FROM pggit.webhook_audit_log AS r
             WHERE r.audit_id >= from_id AND r.audit_id <= p_to_id
             ORDER BY r.audit_id LIMIT p_rows_max - cardinality(late_ids))
        ) AS a
    ) AS d;
    row_count := cardinality(ids);
    ids := ids[cardinality(late_ids) + 1 :];
    to_id := coalesce(ids[cardinality(ids)], from_id - 1);
    open_ids := '{}';
    IF cardinality(p_holders) > 0 AND cardinality(ids) > 0 THEN
        -- The sequence gives no id below 1.
        SELECT coalesce(range_agg(int8range(h.after + 1, h.id)), '{}') INTO open_ids
        FROM (SELECT u.id, greatest(lag(u.id, 1, from_id - 1) OVER (ORDER BY u.id), 0) AS after
              FROM unnest(ids) AS u (id)) AS h
        WHERE h.id > h.after + 1;
        INSERT INTO pggit.audit_gap (from_id, to_id, holders)
        SELECT lower(r.span), upper(r.span) - 1, p_holders FROM unnest(open_ids) AS r (span);
    END IF;
    sealed_us := trunc(extract(epoch FROM clock_timestamp()) * 1000000);
END $$;
COMMENT ON FUNCTION pggit.next_audit_segment(bigint, text[], text[], integer) IS
    'A chore of the workers: what the next segment of the audit chain would seal.';
REVOKE ALL ON FUNCTION pggit.next_audit_segment(bigint, text[], text[], integer) FROM PUBLIC;

CREATE FUNCTION pggit.add_audit_segment(
    p_number bigint, p_from_id bigint, p_to_id bigint, p_row_count integer, p_late_ids bigint[], p_open_ids int8multirange,
    p_rows_hash bytea, p_previous_hash bytea, p_previous_proven boolean, p_sealed_us bigint, p_key_id text, p_hash bytea,
    p_seal bytea
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Whether hash and seal are right, only who holds the master key can tell. What a broken program could do is refused.
DECLARE
    last pggit.audit_segment;
BEGIN
    SELECT * INTO last FROM pggit.audit_segment AS s ORDER BY s.number DESC LIMIT 1;
    IF p_number IS DISTINCT FROM coalesce(last.number, 0) + 1
        OR p_from_id IS DISTINCT FROM coalesce(last.to_id + 1, -9223372036854775807)
        OR p_to_id < p_from_id - 1
        OR p_previous_hash IS DISTINCT FROM coalesce(last.hash, decode(repeat('00', 32), 'hex')) THEN
        RAISE EXCEPTION 'segment % does not follow segment % of the audit chain', p_number, coalesce(last.number, 0)
            USING ERRCODE = 'serialization_failure';
    END IF;
    IF octet_length(p_rows_hash) <> 32 OR octet_length(p_hash) <> 32 OR octet_length(p_seal) NOT BETWEEN 33 AND 255
        OR length(p_key_id) > 32 THEN
        RAISE EXCEPTION 'segment % of the audit chain is malformed', p_number USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO pggit.audit_segment (
        number, from_id, to_id, row_count, late_ids, open_ids, rows_hash, previous_hash, previous_proven, sealed_at, key_id,
        hash, seal)
    VALUES (
        p_number, p_from_id, p_to_id, p_row_count, p_late_ids, p_open_ids, p_rows_hash, p_previous_hash, p_previous_proven,
        timestamptz 'epoch' + p_sealed_us * interval '1 microsecond', p_key_id, p_hash, p_seal);
END $$;
COMMENT ON FUNCTION pggit.add_audit_segment(
    bigint, bigint, bigint, integer, bigint[], int8multirange, bytea, bytea, boolean, bigint, text, bytea, bytea) IS
    'A chore of the workers: puts a segment on the audit chain.';
REVOKE ALL ON FUNCTION pggit.add_audit_segment(
    bigint, bigint, bigint, integer, bigint[], int8multirange, bytea, bytea, boolean, bigint, text, bytea, bytea) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Retention: the oldest segments lose their rows; the newest of these stays as a checkpoint
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.prune_audit(p_days integer, p_rows_max integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Returns how many rows were dropped: of as many old segments as p_rows_max allows, one at least, or of a whole
-- partition. Rows that younger segments name as late stay for these, and rows of open gaps for the next one.
DECLARE
    days_min CONSTANT integer := 90;
    oldest pggit.audit_segment;
    old_number bigint;
    upto_number bigint;
    upto_id bigint;
    part record;
    dropped bigint;
BEGIN
    IF p_days IS NULL OR p_days < days_min THEN
        RAISE EXCEPTION 'p_days is %; audit rows are kept for % days or more', coalesce(p_days::text, 'null'), days_min
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO oldest FROM pggit.audit_segment AS s WHERE NOT s.is_checkpoint ORDER BY s.number LIMIT 1;
    IF oldest.number IS NULL OR oldest.sealed_at >= clock_timestamp() - make_interval(days => p_days) THEN
        RETURN 0;
    END IF;
    SELECT coalesce(min(s.number) - 1, (SELECT max(n.number) FROM pggit.audit_segment AS n)) INTO old_number
    FROM pggit.audit_segment AS s WHERE s.sealed_at >= clock_timestamp() - make_interval(days => p_days);

    -- Where the whole partition of the oldest rows is old, it is emptied at once: no INSERT needs that lock.
    SELECT c.oid::regclass AS name, b.upper, (
        SELECT w.number FROM pggit.audit_segment AS w
        WHERE w.to_id >= b.upper - 1 AND w.number <= old_number ORDER BY w.number LIMIT 1) AS number
    INTO part
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL (SELECT (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''?([0-9]+)'))[1]::bigint AS upper) AS b
    WHERE i.inhparent = 'pggit.webhook_audit_log'::regclass AND b.upper > oldest.from_id
    ORDER BY b.upper LIMIT 1;
    IF part.number IS NOT NULL
        AND NOT EXISTS (SELECT FROM pggit.audit_gap AS g WHERE g.from_id < part.upper)
        AND NOT EXISTS (
            SELECT FROM pggit.audit_segment AS s CROSS JOIN LATERAL unnest(s.late_ids) AS u (id)
            WHERE s.late_ids <> '{}' AND s.number > part.number AND u.id < part.upper) THEN
        BEGIN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', part.name);
            EXECUTE format('TRUNCATE %s', part.name);
            upto_number := part.number;
        EXCEPTION WHEN lock_not_available THEN
            NULL;  -- Somebody reads it: by rows then.
        END;
    END IF;
    IF upto_number IS NULL THEN
        SELECT t.number INTO upto_number FROM (
            SELECT s.number, sum(s.row_count) OVER (ORDER BY s.number) - s.row_count AS before
            FROM pggit.audit_segment AS s WHERE s.number BETWEEN oldest.number AND old_number
            ORDER BY s.number LIMIT p_rows_max
        ) AS t WHERE t.before < p_rows_max ORDER BY t.number DESC LIMIT 1;
    END IF;

    SELECT s.to_id INTO upto_id FROM pggit.audit_segment AS s WHERE s.number = upto_number;
    SELECT sum(s.row_count) INTO dropped FROM pggit.audit_segment AS s WHERE s.number BETWEEN oldest.number AND upto_number;
    DELETE FROM pggit.webhook_audit_log AS a
    WHERE a.audit_id <= upto_id
        AND NOT EXISTS (SELECT FROM pggit.audit_gap AS g WHERE a.audit_id BETWEEN g.from_id AND g.to_id)
        AND a.audit_id <> ALL (ARRAY(
            SELECT u.audit_id FROM pggit.audit_segment AS s CROSS JOIN LATERAL unnest(s.late_ids) AS u (audit_id)
            WHERE s.late_ids <> '{}' AND s.number > upto_number));
    UPDATE pggit.audit_segment AS s SET is_checkpoint = true WHERE s.number = upto_number;
    DELETE FROM pggit.audit_segment AS s WHERE s.number < upto_number;
    PERFORM pggit.audit_change(
        'audit_pruned', NULL, NULL,
        jsonb_build_object('rows', dropped, 'up_to_id', upto_id, 'up_to_segment', upto_number, 'days', p_days));
    RETURN dropped;
END $$;
COMMENT ON FUNCTION pggit.prune_audit(integer, integer) IS
    'A chore of the workers: drops audit rows that were sealed more than so many days ago, 90 at least; how many.';
REVOKE ALL ON FUNCTION pggit.prune_audit(integer, integer) FROM PUBLIC;

CREATE FUNCTION pggit.drop_audit_partitions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- For a transaction of its own: from here to its end the log is locked, and the lock is only taken where it is free.
DECLARE
    upto bigint := (SELECT s.to_id FROM pggit.audit_segment AS s WHERE s.is_checkpoint ORDER BY s.number LIMIT 1);
    part record;
    is_empty boolean;
    dropped integer := 0;
BEGIN
    FOR part IN
        SELECT c.oid::regclass AS name
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid
        CROSS JOIN LATERAL (SELECT (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''?([0-9]+)'))[1]::bigint AS upper) AS b
        WHERE i.inhparent = 'pggit.webhook_audit_log'::regclass AND b.upper <= upto + 1
    LOOP
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %s)', part.name) INTO is_empty;
        IF is_empty THEN
            BEGIN
                LOCK TABLE ONLY pggit.webhook_audit_log IN ACCESS EXCLUSIVE MODE NOWAIT;
                EXECUTE format('DROP TABLE %s', part.name);
                dropped := dropped + 1;
            EXCEPTION WHEN lock_not_available THEN
                EXIT;
            END;
        END IF;
    END LOOP;
    RETURN dropped;
END $$;
COMMENT ON FUNCTION pggit.drop_audit_partitions() IS
    'A chore of the workers: drops partitions of the audit log that retention has emptied, when nobody is using the log.';
REVOKE ALL ON FUNCTION pggit.drop_audit_partitions() FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Changes by plain SQL are audited too
---------------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION pggit.audit_change(
    p_operation text, p_webhook_id bigint, p_delivery_id bigint, p_details jsonb, p_request_id uuid DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- user_id is whom PostgreSQL authenticated. What a program says about who uses it (pggit.actor, pggit.actor_host) is
-- kept beside that, in details: anybody may set it, so it proves nothing. The request id of a program
-- (pggit.request_id) joins the rows of one call; where there is a delivery, its uid is the request id.
DECLARE
    asked text := current_setting('pggit.request_id', true);
BEGIN
    INSERT INTO pggit.webhook_audit_log (webhook_id, delivery_id, operation, user_id, ip_address, request_id, details)
    VALUES (
        p_webhook_id, p_delivery_id, p_operation, session_user, inet_client_addr(),
        coalesce(p_request_id, CASE WHEN asked ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN asked::uuid END),
        jsonb_strip_nulls(p_details || jsonb_build_object(
            'actor', nullif(left(current_setting('pggit.actor', true), 128), ''),
            'host', nullif(left(current_setting('pggit.actor_host', true), 255), ''))));
END $$;

CREATE FUNCTION pggit.queue_audit_removal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- As the owner: who may delete deliveries need not be one who may write the audit log.
DECLARE
    found record;
BEGIN
    SELECT count(*) AS deliveries, min(d.delivery_id) AS first, max(d.delivery_id) AS last,
        count(*) FILTER (WHERE d.delivery_status IN ('pending', 'retrying')) AS undelivered
    INTO found FROM deleted AS d;
    IF found.deliveries > 0 THEN
        PERFORM pggit.audit_change('deliveries_deleted', NULL, NULL, to_jsonb(found));
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.queue_audit_removal() IS 'Audits how many deliveries were removed, and how many of them had not been delivered.';
REVOKE ALL ON FUNCTION pggit.queue_audit_removal() FROM PUBLIC;
CREATE TRIGGER queue_audit_removal AFTER DELETE ON pggit.alert_delivery_queue
    REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION pggit.queue_audit_removal();
COMMENT ON TRIGGER queue_audit_removal ON pggit.alert_delivery_queue IS 'Audits removals, once a statement.';

CREATE FUNCTION pggit.queue_after_revive() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pggit.audit_change(
        'delivery_replayed', NEW.webhook_id, NEW.delivery_id,
        jsonb_build_object(
            'action', coalesce(nullif(left(current_setting('pggit.action', true), 32), ''), 'update'),
            'from', OLD.delivery_status, 'failed_reason', OLD.failed_reason),
        pggit.delivery_uid(NEW.delivery_id, NEW.uid_salt));
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.queue_after_revive() IS 'Audits that somebody put a delivery back.';
REVOKE ALL ON FUNCTION pggit.queue_after_revive() FROM PUBLIC;
-- A worker never takes a row back to pending, nor one that is over back to retrying.
CREATE TRIGGER queue_after_revive AFTER UPDATE ON pggit.alert_delivery_queue FOR EACH ROW
    WHEN (OLD.delivery_status <> NEW.delivery_status
          AND (NEW.delivery_status = 'pending'
               OR (NEW.delivery_status = 'retrying' AND OLD.delivery_status IN ('delivered', 'failed'))))
    EXECUTE FUNCTION pggit.queue_after_revive();
COMMENT ON TRIGGER queue_after_revive ON pggit.alert_delivery_queue IS 'Audits replays and re-queues, by whatever way.';

CREATE OR REPLACE FUNCTION pggit.put_back_delivery(delivery pggit.alert_delivery_queue, p_action text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- The queue's own triggers do the rest: replayed_at, the audit row of one that was over or retrying, and a NOTIFY.
BEGIN
    IF delivery.erased_at IS NOT NULL THEN
        RAISE EXCEPTION 'delivery % was erased at %, and there is nothing left to send', delivery.delivery_id, delivery.erased_at
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM set_config('pggit.action', p_action, true);
    UPDATE pggit.alert_delivery_queue AS q
    SET delivery_status = 'pending', retry_count = 0, next_retry_at = NULL, delivered_at = NULL, held_until = NULL,
        created_at = least(q.created_at, now())
    WHERE q.delivery_id = delivery.delivery_id;
    PERFORM set_config('pggit.action', '', true);
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
    VALUES (delivery.delivery_id, delivery.webhook_id, 'queued', jsonb_build_object(
        'action', p_action, 'from', delivery.delivery_status, 'by', pggit.acting_name()));
    IF delivery.delivery_status = 'pending' THEN
        PERFORM pggit.audit_change(
            'delivery_replayed', delivery.webhook_id, delivery.delivery_id,
            jsonb_build_object('action', p_action, 'from', delivery.delivery_status, 'failed_reason', delivery.failed_reason),
            pggit.delivery_uid(delivery.delivery_id, delivery.uid_salt));
    END IF;
END $$;

CREATE FUNCTION pggit.registry_after_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- At the end of the transaction: whoever changed the registry and left no audit row about it did so by plain SQL. (To
-- add to it takes a sealed URL, which plain SQL cannot make.) A new sealing of the same value is no change.
DECLARE
    unseen CONSTANT text[] := ARRAY['revision', 'updated_at', 'sealed_url', 'sealed_headers', 'sealed_ca',
                                    'sealed_client_certificate', 'sealed_secret'];
    old_row CONSTANT jsonb := to_jsonb(OLD) - unseen;
    new_row CONSTANT jsonb := CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(NEW) - unseen END;
BEGIN
    IF old_row = new_row OR EXISTS (
        SELECT FROM pggit.webhook_audit_log AS a WHERE a.webhook_id = OLD.webhook_id AND a.occurred_at = now()) THEN
        RETURN NULL;
    END IF;
    PERFORM pggit.audit_change(
        CASE WHEN TG_OP = 'UPDATE' THEN 'webhook_changed' WHEN TG_TABLE_NAME = 'webhook' THEN 'webhook_removed'
             ELSE 'secret_retired' END,
        OLD.webhook_id, NULL, jsonb_build_object('table', TG_TABLE_NAME, 'way', 'plain SQL', 'columns', (
            SELECT jsonb_agg(n.key ORDER BY n.key) FROM jsonb_each(new_row) AS n WHERE old_row -> n.key IS DISTINCT FROM n.value)));
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.registry_after_change() IS 'Audits changes of the registry of which nothing else left an audit row.';
REVOKE ALL ON FUNCTION pggit.registry_after_change() FROM PUBLIC;
CREATE CONSTRAINT TRIGGER webhook_audited AFTER UPDATE OR DELETE ON pggit.webhook
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pggit.registry_after_change();
COMMENT ON TRIGGER webhook_audited ON pggit.webhook IS 'Audits changes by plain SQL.';
CREATE CONSTRAINT TRIGGER webhook_secret_audited AFTER UPDATE OR DELETE ON pggit.webhook_secret
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pggit.registry_after_change();
COMMENT ON TRIGGER webhook_secret_audited ON pggit.webhook_secret IS 'Audits changes by plain SQL.';

---------------------------------------------------------------------------------------------------------------------
-- Erasure
---------------------------------------------------------------------------------------------------------------------

ALTER TABLE pggit.alert_delivery_queue ADD COLUMN erased_at timestamptz;
COMMENT ON COLUMN pggit.alert_delivery_queue.erased_at IS 'When body, headers, keys and errors were erased; such a row is never sent again.';

CREATE FUNCTION pggit.queue_stay_erased() RETURNS trigger LANGUAGE plpgsql AS $$
-- Not refused: a late old worker, or one UPDATE over many rows, must not fail for it.
BEGIN
    NEW.delivery_status := OLD.delivery_status;
    NEW.failed_reason := OLD.failed_reason;
    NEW.replayed_at := OLD.replayed_at;
    NEW.crash_count := OLD.crash_count;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION pggit.queue_stay_erased() IS 'Keeps a delivery whose body was erased from being sent.';
CREATE TRIGGER queue_c_stay_erased BEFORE UPDATE ON pggit.alert_delivery_queue FOR EACH ROW
    WHEN (OLD.erased_at IS NOT NULL AND NEW.delivery_status IN ('pending', 'retrying'))
    EXECUTE FUNCTION pggit.queue_stay_erased();
COMMENT ON TRIGGER queue_c_stay_erased ON pggit.alert_delivery_queue IS 'Erased deliveries stay over.';

CREATE FUNCTION pggit.audit_texts_digest(p_salt uuid, p_error_message text, p_details jsonb) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN sha256(convert_to(
    coalesce(p_salt::text, '') || ',' || coalesce(octet_length(p_error_message) || ':' || p_error_message, '-') || ','
    || coalesce(octet_length(p_details::text) || ':' || p_details::text, '-') || ',', 'UTF8'));
COMMENT ON FUNCTION pggit.audit_texts_digest(uuid, text, jsonb) IS
    'What stands for the texts of an audit row in its hash; next_audit_segment makes the same.';
REVOKE ALL ON FUNCTION pggit.audit_texts_digest(uuid, text, jsonb) FROM PUBLIC;

CREATE FUNCTION pggit.erase_audit_texts(p_ids bigint[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    erased bigint;
BEGIN
    UPDATE pggit.webhook_audit_log AS a
    SET erased_digest = pggit.audit_texts_digest(a.salt, a.error_message, a.details),
        error_message = NULL, details = NULL, salt = NULL
    WHERE a.audit_id = ANY (p_ids);
    GET DIAGNOSTICS erased = ROW_COUNT;
    RETURN erased;
END $$;
COMMENT ON FUNCTION pggit.erase_audit_texts(bigint[]) IS 'Erases texts of audit rows and keeps their digest. For functions of this schema only.';
REVOKE ALL ON FUNCTION pggit.erase_audit_texts(bigint[]) FROM PUBLIC;

CREATE FUNCTION pggit.erase_deliveries(
    p_webhook_id bigint, p_alert_id bigint, p_after_id bigint, p_to_id bigint, p_rows_max integer,
    OUT deliveries bigint, OUT cancelled bigint, OUT log_rows bigint, OUT audit_rows bigint, OUT in_flight bigint,
    OUT next_id bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- One batch of deliveries of a webhook or of an alert: body, headers, keys and errors go, numbers stay. What was not
-- delivered yet never will be. Rows that a worker is sending are left alone and counted. next_id: where the next batch
-- begins, null at the end.
DECLARE
    numbers CONSTANT text[] := ARRAY['http_status', 'response_time_ms', 'retry_count', 'attempt'];
    ids bigint[];
    webhook_ids bigint[];
BEGIN
    IF num_nonnulls(p_webhook_id, p_alert_id) <> 1 THEN
        RAISE EXCEPTION 'give p_webhook_id or p_alert_id' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH batch AS MATERIALIZED (
        SELECT q.delivery_id, q.webhook_id, q.delivery_status, q.lease_expires_at > clock_timestamp() AS is_sent
        FROM pggit.alert_delivery_queue AS q
        WHERE q.delivery_id > p_after_id AND q.delivery_id <= p_to_id AND q.erased_at IS NULL
            AND (q.webhook_id = p_webhook_id OR q.alert_id = p_alert_id)
        ORDER BY q.delivery_id LIMIT p_rows_max FOR UPDATE
    )
    SELECT coalesce(array_agg(b.delivery_id) FILTER (WHERE b.is_sent IS NOT TRUE), '{}'),
        coalesce(array_agg(DISTINCT b.webhook_id), '{}'),
        count(*) FILTER (WHERE b.is_sent),
        count(*) FILTER (WHERE b.is_sent IS NOT TRUE AND b.delivery_status IN ('pending', 'retrying')),
        CASE WHEN count(*) = p_rows_max THEN max(b.delivery_id) END
    INTO ids, webhook_ids, in_flight, cancelled, next_id FROM batch AS b;
    UPDATE pggit.alert_delivery_queue AS q
    SET message_body = 'null', headers = NULL, idempotency_key = NULL, ordering_key = NULL, traceparent = NULL,
        last_error = NULL, erased_at = now(),
        failed_reason = CASE WHEN q.delivery_status IN ('pending', 'retrying') THEN 'cancelled' ELSE q.failed_reason END,
        delivery_status = CASE WHEN q.delivery_status IN ('pending', 'retrying') THEN 'failed' ELSE q.delivery_status END
    WHERE q.delivery_id = ANY (ids);
    GET DIAGNOSTICS deliveries = ROW_COUNT;
    UPDATE pggit.alert_delivery_log AS g
    SET event_details = (SELECT jsonb_object_agg(d.key, d.value) FROM jsonb_each(g.event_details) AS d WHERE d.key = ANY (numbers))
    WHERE g.delivery_id = ANY (ids) AND jsonb_typeof(g.event_details) = 'object';
    GET DIAGNOSTICS log_rows = ROW_COUNT;
    UPDATE pggit.alert_delivery_log AS g SET event_details = NULL
    WHERE g.delivery_id = ANY (ids) AND jsonb_typeof(g.event_details) <> 'object';
    audit_rows := 0;
    IF cardinality(ids) > 0 THEN
        audit_rows := pggit.erase_audit_texts(ARRAY(
            SELECT a.audit_id FROM pggit.webhook_audit_log AS a
            WHERE a.webhook_id = ANY (webhook_ids) AND a.delivery_id = ANY (ids) AND a.operation IS DISTINCT FROM 'erased'
                AND (a.error_message IS NOT NULL OR a.details IS NOT NULL)));
        PERFORM pggit.audit_change(
            'erased', p_webhook_id, NULL,
            jsonb_build_object('alert_id', p_alert_id, 'deliveries', deliveries, 'cancelled', cancelled, 'log_rows', log_rows,
                               'audit_rows', audit_rows));
    END IF;
END $$;
COMMENT ON FUNCTION pggit.erase_deliveries(bigint, bigint, bigint, bigint, integer) IS
    'Erases payloads and texts of a batch of deliveries, of one webhook or of one alert. `pggit-reactor erase` calls it.';
REVOKE ALL ON FUNCTION pggit.erase_deliveries(bigint, bigint, bigint, bigint, integer) FROM PUBLIC;

CREATE FUNCTION pggit.erase_audit(
    p_webhook_id bigint, p_after_id bigint, p_to_id bigint, p_rows_max integer, OUT audit_rows bigint, OUT next_id bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids bigint[];
BEGIN
    ids := ARRAY(
        SELECT a.audit_id FROM pggit.webhook_audit_log AS a
        WHERE a.webhook_id = p_webhook_id AND a.audit_id > p_after_id AND a.audit_id <= p_to_id
            AND a.operation IS DISTINCT FROM 'erased' AND (a.error_message IS NOT NULL OR a.details IS NOT NULL)
        ORDER BY a.audit_id LIMIT p_rows_max);
    audit_rows := pggit.erase_audit_texts(ids);
    next_id := CASE WHEN cardinality(ids) = p_rows_max THEN ids[cardinality(ids)] END;
    IF audit_rows > 0 THEN
        PERFORM pggit.audit_change('erased', p_webhook_id, NULL, jsonb_build_object('audit_rows', audit_rows));
    END IF;
END $$;
COMMENT ON FUNCTION pggit.erase_audit(bigint, bigint, bigint, integer) IS
    'Erases texts of a batch of audit rows of a webhook; the chain stays verifiable. `pggit-reactor erase` calls it.';
REVOKE ALL ON FUNCTION pggit.erase_audit(bigint, bigint, bigint, integer) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Pruning of the queue, and what receivers report
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.prune_deliveries(
    p_delivered_before timestamptz, p_failed_before timestamptz, p_after_id bigint, p_rows_max integer,
    OUT deliveries bigint, OUT log_rows bigint, OUT next_id bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Looks at p_rows_max rows by id, and removes those that were delivered, or failed, before a time (null: keep them);
-- the log first, which is half the cost of the cascade. next_id: where to go on, null at the end.
DECLARE
    ids bigint[];
BEGIN
    WITH looked_at AS MATERIALIZED (
        SELECT q.delivery_id,
            CASE q.delivery_status
                WHEN 'delivered' THEN greatest(q.delivered_at, q.created_at) < p_delivered_before
                WHEN 'failed' THEN greatest(q.attempted_at, q.created_at, q.replayed_at) < p_failed_before END AS is_old
        FROM pggit.alert_delivery_queue AS q
        WHERE q.delivery_id > p_after_id
        ORDER BY q.delivery_id LIMIT p_rows_max
    )
    SELECT coalesce(array_agg(l.delivery_id) FILTER (WHERE l.is_old), '{}'),
        CASE WHEN count(*) = p_rows_max THEN max(l.delivery_id) END
    INTO ids, next_id FROM looked_at AS l;
    -- Locked ones are somebody's; and what was put back meanwhile is not over any more.
    ids := ARRAY(
        SELECT q.delivery_id FROM pggit.alert_delivery_queue AS q
        WHERE q.delivery_id = ANY (ids) AND q.delivery_status IN ('delivered', 'failed')
        FOR UPDATE SKIP LOCKED);
    DELETE FROM pggit.alert_delivery_log AS g WHERE g.delivery_id = ANY (ids);
    GET DIAGNOSTICS log_rows = ROW_COUNT;
    DELETE FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = ANY (ids);
    GET DIAGNOSTICS deliveries = ROW_COUNT;
END $$;
COMMENT ON FUNCTION pggit.prune_deliveries(timestamptz, timestamptz, bigint, integer) IS
    'Removes a batch of old delivered and failed deliveries with their log. `pggit-reactor queue prune` and workers call it.';
REVOKE ALL ON FUNCTION pggit.prune_deliveries(timestamptz, timestamptz, bigint, integer) FROM PUBLIC;

CREATE FUNCTION pggit.report_verification(p_uid text, p_verified boolean, p_detail text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- A receiver tells whether a request's signature was right. It is a claim: the row says who brought it.
DECLARE
    reports_per_hour_max CONSTANT integer := 1000;
    delivery pggit.alert_delivery_queue;
    new_id bigint;
BEGIN
    IF p_verified IS NULL THEN
        RAISE EXCEPTION 'p_verified is null; right is true or false' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    SELECT * INTO delivery FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = pggit.find_delivery(p_uid);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no delivery has the id %; it may have been pruned', p_uid USING ERRCODE = 'no_data_found';
    END IF;
    IF delivery.attempt_count = 0 AND delivery.attempted_at IS NULL THEN
        RAISE EXCEPTION 'delivery % was never sent, so nobody can have verified it', delivery.delivery_id
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF (SELECT count(*) FROM (
            SELECT FROM pggit.webhook_audit_log AS a
            WHERE a.operation = 'signature_verified' AND a.occurred_at > now() - interval '1 hour'
                AND a.webhook_id = delivery.webhook_id
            LIMIT reports_per_hour_max) AS r) >= reports_per_hour_max THEN
        RAISE EXCEPTION 'webhook % had % verification reports within an hour; report samples, not all', delivery.webhook_id,
            reports_per_hour_max USING ERRCODE = 'program_limit_exceeded';
    END IF;
    INSERT INTO pggit.webhook_audit_log (
        webhook_id, delivery_id, operation, signature_verified, error_message, user_id, ip_address, request_id)
    VALUES (
        delivery.webhook_id, delivery.delivery_id, 'signature_verified', p_verified, nullif(left(p_detail, 300), ''),
        session_user, inet_client_addr(), pggit.delivery_uid(delivery.delivery_id, delivery.uid_salt))
    RETURNING audit_id INTO new_id;
    RETURN new_id;
END $$;
COMMENT ON FUNCTION pggit.report_verification(text, boolean, text) IS
    'Records in the audit log whether a receiver found a delivery''s signature right, by its uid or id; 1000 an hour and webhook.';
REVOKE ALL ON FUNCTION pggit.report_verification(text, boolean, text) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Grants
---------------------------------------------------------------------------------------------------------------------

REVOKE ALL ON pggit.audit_segment, pggit.audit_gap FROM PUBLIC;

DO $$
DECLARE
    granted CONSTANT text[] := ARRAY[
        -- Who inserts does not choose the id of a row. A worker may leave out the salt, where there is no text to erase.
        'pggit_worker|REVOKE INSERT ON pggit.webhook_audit_log FROM',
        'pggit_operator|REVOKE INSERT ON pggit.webhook_audit_log FROM',
        'pggit_worker|GRANT INSERT (webhook_id, delivery_id, operation, status_code, error_message, signature_verified,'
            ' encryption_algorithm, ip_address, occurred_at, user_id, request_id, details, salt) ON pggit.webhook_audit_log TO',
        'pggit_operator|GRANT INSERT (webhook_id, delivery_id, operation, status_code, error_message, signature_verified,'
            ' encryption_algorithm, ip_address, occurred_at, user_id, request_id, details) ON pggit.webhook_audit_log TO',
        'pggit_worker|GRANT SELECT ON pggit.audit_segment, pggit.audit_gap TO',
        'pggit_worker|GRANT EXECUTE ON FUNCTION pggit.next_audit_segment, pggit.add_audit_segment, pggit.prune_audit,'
            ' pggit.drop_audit_partitions, pggit.prune_deliveries TO',
        'pggit_operator|GRANT SELECT ON pggit.audit_segment, pggit.audit_gap TO',
        'pggit_operator|GRANT EXECUTE ON FUNCTION pggit.erase_deliveries, pggit.erase_audit, pggit.prune_deliveries,'
            ' pggit.report_verification TO'
    ];
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY granted LOOP
        IF EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = split_part(wanted, '|', 1)) THEN
            EXECUTE format('%s %I', split_part(wanted, '|', 2), split_part(wanted, '|', 1));
        END IF;
    END LOOP;
END $$;
