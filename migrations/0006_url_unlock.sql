-- get_webhook_decrypted opens URLs in sessions that were unlocked: with the key that `pggit-reactor key url-key` prints,
-- which opens URLs and nothing else, in the setting pggit.url_key.
--
-- URLs are sealed with AES-256-GCM (pggit_reactor/security/sealing.py has the layout). pgcrypto, the only cipher that
-- PostgreSQL brings, has no GCM: here is NIST SP 800-38D over its plain AES. It is looked for when a URL is opened, so
-- that a database without it can be migrated and used in every other way.
--
-- Keys pass from function to function as PL/pgSQL variables, never as parameters of a statement: those may be logged
-- (auto_explain prints the parameters of EXECUTE ... USING).
--
-- enqueue refuses a traceparent that would not be sent.
--
-- Locks and rewrites: replaces two functions, creates four; no table is touched.

CREATE FUNCTION pggit.aes_blocks(p_key bytea, p_blocks bytea) RETURNS bytea
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    home text;
BEGIN
    -- By its membership in the extension, and not by its name alone: anybody may have a function called encrypt.
    SELECT quote_ident(n.nspname) INTO home
    FROM pg_extension AS e
    JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
        AND d.classid = 'pg_proc'::regclass
    JOIN pg_proc AS p ON p.oid = d.objid AND p.proname = 'encrypt' AND oidvectortypes(p.proargtypes) = 'bytea, bytea, text'
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE e.extname = 'pgcrypto';
    IF home IS NULL THEN
        RAISE EXCEPTION 'to open a URL in SQL the extension pgcrypto is needed, and this database lacks it; run CREATE EXTENSION pgcrypto, or use `pggit-reactor webhook show ID --reveal`'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    -- Found by the path and not by EXECUTE, so that the call is an expression of PL/pgSQL. The function's own setting
    -- of the path comes back at its end.
    PERFORM set_config('search_path', 'pg_catalog, ' || home || ', pg_temp', true);
    RETURN encrypt(p_blocks, p_key, 'aes-ecb/pad:none'::text);
END $$;
COMMENT ON FUNCTION pggit.aes_blocks(bytea, bytea) IS 'Each block of 16 octets under AES, by pgcrypto, in whatever schema that is.';
REVOKE ALL ON FUNCTION pggit.aes_blocks(bytea, bytea) FROM PUBLIC;

CREATE FUNCTION pggit.xor_octets(p_one bytea, p_other bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
-- bytea has no operator for it; bigint has.
DECLARE
    result bytea := '';
BEGIN
    FOR at IN 1 .. octet_length(p_one) BY 8 LOOP
        result := result || int8send(
            ('x' || encode(substr(p_one, at, 8), 'hex'))::bit(64)::bigint
            # ('x' || encode(substr(p_other, at, 8), 'hex'))::bit(64)::bigint);
    END LOOP;
    RETURN substr(result, 1, octet_length(p_one));
END $$;
COMMENT ON FUNCTION pggit.xor_octets(bytea, bytea) IS 'The exclusive or of two values; the other is as long as the one, or longer.';
REVOKE ALL ON FUNCTION pggit.xor_octets(bytea, bytea) FROM PUBLIC;

CREATE FUNCTION pggit.ghash(p_subkey bytea, p_blocks bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
-- SP 800-38D, 6.3 and 6.4: its leftmost bit is the coefficient of 1, and so is that of bit(128). A multiplication by the
-- subkey adds up the subkey's products with the powers of x, which are made once. That takes a time which depends on
-- the subkey: whoever could measure it calls this in a session that holds the key.
DECLARE
    reduction constant bit(128) := ('x' || rpad('e1', 32, '0'))::bit(128);
    products bit(128)[];
    product bit(128) := ('x' || encode(p_subkey, 'hex'))::bit(128);
    state bit(128) := repeat('0', 128)::bit(128);
    factor bit(128);
BEGIN
    FOR power IN 0 .. 127 LOOP
        products[power] := product;
        product := CASE get_bit(product, 127) WHEN 1 THEN (product >> 1) # reduction ELSE product >> 1 END;
    END LOOP;
    FOR block IN 0 .. octet_length(p_blocks) / 16 - 1 LOOP
        factor := state # ('x' || encode(substr(p_blocks, block * 16 + 1, 16), 'hex'))::bit(128);
        state := repeat('0', 128)::bit(128);
        FOR power IN 0 .. 127 LOOP
            IF get_bit(factor, power) = 1 THEN
                state := state # products[power];
            END IF;
        END LOOP;
    END LOOP;
    RETURN int8send(substring(state FROM 1 FOR 64)::bit(64)::bigint) || int8send(substring(state FROM 65)::bit(64)::bigint);
END $$;
COMMENT ON FUNCTION pggit.ghash(bytea, bytea) IS 'GHASH of NIST SP 800-38D over whole blocks of 16 octets.';
REVOKE ALL ON FUNCTION pggit.ghash(bytea, bytea) FROM PUBLIC;

CREATE FUNCTION pggit.open_gcm(p_key bytea, p_nonce bytea, p_sealed bytea, p_associated bytea) RETURNS bytea
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- SP 800-38D, 7.2, for a nonce of 12 octets and a tag of 16 at the end of p_sealed.
DECLARE
    zeros constant bytea := decode(repeat('00', 16), 'hex');
    hidden constant bytea := substr(p_sealed, 1, octet_length(p_sealed) - 16);
    tag constant bytea := substr(p_sealed, octet_length(p_sealed) - 15);
    blocks bytea := zeros;
    stream bytea;
    hashed bytea;
BEGIN
    -- One call: a block of zeros makes the subkey, counter 1 hides the tag, and from 2 on they hide the text.
    FOR counter IN 1 .. 1 + (octet_length(hidden) + 15) / 16 LOOP
        blocks := blocks || p_nonce || int4send(counter);
    END LOOP;
    stream := pggit.aes_blocks(p_key, blocks);
    hashed := p_associated || substr(zeros, 1, -octet_length(p_associated) & 15)
        || hidden || substr(zeros, 1, -octet_length(hidden) & 15)
        || int8send(octet_length(p_associated) * 8::bigint) || int8send(octet_length(hidden) * 8::bigint);
    IF pggit.xor_octets(pggit.ghash(substr(stream, 1, 16), hashed), substr(stream, 17, 16)) <> tag THEN
        RETURN NULL;
    END IF;
    RETURN pggit.xor_octets(hidden, substr(stream, 33));
END $$;
COMMENT ON FUNCTION pggit.open_gcm(bytea, bytea, bytea, bytea) IS
    'What AES-GCM sealed; null where its tag is wrong: another key, or an altered text, nonce or associated data.';
REVOKE ALL ON FUNCTION pggit.open_gcm(bytea, bytea, bytea, bytea) FROM PUBLIC;

CREATE OR REPLACE FUNCTION pggit.get_webhook_decrypted(p_webhook_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- As the owner: old workers may call it, and may not read the registry. No message holds the key or the URL.
DECLARE
    octets_max constant integer := 8192;
    unlocked constant text := btrim(current_setting('pggit.url_key', true), E' \t\r\n');
    sealed bytea;
    key_id_octets integer;
    key_id text;
    head bytea;
    associated bytea;
    entry text;
    covered boolean := false;
    url bytea;
BEGIN
    SELECT w.sealed_url INTO sealed FROM pggit.webhook AS w WHERE w.webhook_id = p_webhook_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF coalesce(unlocked, '') = '' THEN
        RAISE EXCEPTION 'the URL of webhook % is sealed with a key that is not in this database; unlock this session with SELECT set_config(''pggit.url_key'', KEY, false) and the KEY that `pggit-reactor key url-key` prints, or use `pggit-reactor webhook show % --reveal`',
            p_webhook_id, p_webhook_id USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF unlocked !~ '^[a-z0-9][a-z0-9_.-]{0,31}:[A-Za-z0-9+/]{43}=(,[a-z0-9][a-z0-9_.-]{0,31}:[A-Za-z0-9+/]{43}=)*$' THEN
        RAISE EXCEPTION 'the setting pggit.url_key is not what `pggit-reactor key url-key` prints: ID:KEY, or several with commas between'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- format 1 | length of key id | key id | length of salt (0 or 16) | salt | nonce (12) | text and tag (16)
    key_id_octets := CASE WHEN octet_length(sealed) BETWEEN 4 AND octets_max AND get_byte(sealed, 0) = 1
                          THEN least(get_byte(sealed, 1), octet_length(sealed) - 3) END;
    head := substr(sealed, 1, 3 + key_id_octets + get_byte(sealed, 2 + key_id_octets));
    IF (octet_length(sealed) >= octet_length(head) + 28) IS NOT TRUE THEN
        RAISE EXCEPTION 'the URL of webhook % is sealed in a form that get_webhook_decrypted does not know; `pggit-reactor webhook show % --reveal` may',
            p_webhook_id, p_webhook_id USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    key_id := encode(substr(head, 3, key_id_octets), 'escape');
    SELECT head || string_agg(int4send(octet_length(p.part)) || convert_to(p.part, 'UTF8'), '' ORDER BY p.number) INTO associated
    FROM unnest(ARRAY['pggit', 'webhook', 'sealed_url', p_webhook_id::text]) WITH ORDINALITY AS p (part, number);
    -- The same id may stand there more than once: a passphrase makes another key with each salt.
    FOREACH entry IN ARRAY string_to_array(unlocked, ',') LOOP
        IF split_part(entry, ':', 1) = key_id THEN
            covered := true;
            url := pggit.open_gcm(
                decode(split_part(entry, ':', 2), 'base64'), substr(sealed, octet_length(head) + 1, 12),
                substr(sealed, octet_length(head) + 13), associated);
            EXIT WHEN url IS NOT NULL;
        END IF;
    END LOOP;
    IF url IS NULL THEN
        RAISE EXCEPTION 'the URL of webhook % does not open: %', p_webhook_id, CASE WHEN covered
            THEN 'pggit.url_key is of another master key, or what is sealed was altered or moved from another row'
            ELSE 'pggit.url_key lacks the key of its master key; `pggit-reactor key url-key` prints all that are in use' END
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM pggit.audit_change('url_decrypted', p_webhook_id, NULL, '{"by": "get_webhook_decrypted"}');
    -- A transaction that is rolled back takes its audit row with it. The server's log remembers.
    RAISE LOG 'pggit: the URL of webhook % was opened by %', p_webhook_id, session_user;
    RETURN convert_from(url, 'UTF8');
END $$;
COMMENT ON FUNCTION pggit.get_webhook_decrypted(bigint) IS
    'The URL, in a session unlocked with set_config(''pggit.url_key'', KEY, ...); `pggit-reactor key url-key` prints KEY. Null for an id that nothing registered. Needs pgcrypto; each opening is audited.';

---------------------------------------------------------------------------------------------------------------------
-- enqueue: as it was, but for the traceparent
---------------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION pggit.enqueue(
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
    -- What the sender sends, and no more: it leaves out every other, and a trace would end without a word.
    IF p_traceparent !~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RAISE EXCEPTION 'p_traceparent is not a W3C traceparent such as 00-<32 hex>-<16 hex>-01: version 00, lower case, and neither id all zeros'
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
