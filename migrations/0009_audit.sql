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
        SELECT w FROM unnest(ARRAY['audit_pruned', 'deliveries_deleted', 'queue_pruned']) AS w WHERE w <> ALL (words));
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
        SELECT coalesce(range_agg(int8range(h.after + 1, h.id)), '{}') INTO open_ids
        FROM (SELECT u.id, lag(u.id, 1, from_id - 1) OVER (ORDER BY u.id) AS after FROM unnest(ids) AS u (id)) AS h
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
-- Grants
---------------------------------------------------------------------------------------------------------------------

REVOKE ALL ON pggit.audit_segment, pggit.audit_gap FROM PUBLIC;

DO $$
DECLARE
    granted CONSTANT text[] := ARRAY[
        -- Who inserts chooses neither the id of a row nor its salt.
        'pggit_worker|REVOKE INSERT ON pggit.webhook_audit_log FROM',
        'pggit_operator|REVOKE INSERT ON pggit.webhook_audit_log FROM',
        'pggit_worker|GRANT INSERT (webhook_id, delivery_id, operation, status_code, error_message, signature_verified,'
            ' encryption_algorithm, ip_address, occurred_at, user_id, request_id, details) ON pggit.webhook_audit_log TO',
        'pggit_operator|GRANT INSERT (webhook_id, delivery_id, operation, status_code, error_message, signature_verified,'
            ' encryption_algorithm, ip_address, occurred_at, user_id, request_id, details) ON pggit.webhook_audit_log TO',
        'pggit_worker|GRANT SELECT ON pggit.audit_segment, pggit.audit_gap TO',
        'pggit_worker|GRANT EXECUTE ON FUNCTION pggit.next_audit_segment, pggit.add_audit_segment TO',
        'pggit_operator|GRANT SELECT ON pggit.audit_segment, pggit.audit_gap TO'
    ];
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY granted LOOP
        IF EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = split_part(wanted, '|', 1)) THEN
            EXECUTE format('%s %I', split_part(wanted, '|', 2), split_part(wanted, '|', 1));
        END IF;
    END LOOP;
END $$;
