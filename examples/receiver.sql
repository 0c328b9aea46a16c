-- Receive alerts inside PostgreSQL: verify with pgcrypto's hmac, act once on each id, in one transaction.
--
--     psql --file examples/receiver.sql < SECRET_FILE
--
-- A small HTTPS front hands each request over and answers what receive_alert() returns, as examples/receiver_sql.py
-- does. The front decides nothing: it needs USAGE on the schema and EXECUTE on the function, and cannot read the
-- secrets. The file's lines are the secrets; they travel as data, never in a statement that a log could keep. Run it
-- again with another to have both valid; DELETE the old one when nobody signs with it any more.
\set ON_ERROR_STOP on
BEGIN;

CREATE SCHEMA IF NOT EXISTS alert_inbox;
CREATE EXTENSION IF NOT EXISTS pgcrypto;
SELECT extnamespace::regnamespace::text AS pgcrypto_schema FROM pg_extension WHERE extname = 'pgcrypto' \gset

CREATE TABLE IF NOT EXISTS alert_inbox.signing_secret (secret text PRIMARY KEY CHECK (secret <> ''));

CREATE TABLE IF NOT EXISTS alert_inbox.received (
    webhook_id text PRIMARY KEY,
    body jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);

CREATE OR REPLACE FUNCTION alert_inbox.key_of(secret text) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT
RETURN CASE
    WHEN starts_with(secret, 'whsec_') THEN decode(substr(secret, 7), 'base64')
    ELSE convert_to(secret, 'UTF8')
END;

-- body: the octets as they came. headers: a JSON object, names in lower case. Returns the HTTP status to answer.
CREATE OR REPLACE FUNCTION alert_inbox.receive_alert(body bytea, headers jsonb) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, alert_inbox, :pgcrypto_schema, pg_temp
AS $$
DECLARE
    id constant text := headers ->> 'webhook-id';
    stamp constant text := headers ->> 'webhook-timestamp';
    offered constant text := headers ->> 'webhook-signature';
    -- Under a key of this moment alone, two values are compared without their time telling how much of them agrees.
    veil constant bytea := gen_random_bytes(32);
    signed bytea;
BEGIN
    IF coalesce(id, '') = '' OR offered IS NULL OR stamp IS NULL OR stamp !~ '^[0-9]{1,12}$' THEN
        RETURN 401;
    END IF;
    IF abs(extract(epoch FROM clock_timestamp()) - stamp::bigint) > 300 THEN
        RETURN 401;
    END IF;
    signed := convert_to(id || '.' || stamp || '.', 'UTF8') || body;
    PERFORM FROM signing_secret AS s, regexp_split_to_table(offered, ' ') AS word
    WHERE hmac(convert_to(word, 'UTF8'), veil, 'sha256')
        = hmac(convert_to('v1,' || encode(hmac(signed, key_of(s.secret), 'sha256'), 'base64'), 'UTF8'), veil, 'sha256');
    IF NOT FOUND THEN
        RETURN 401;
    END IF;
    -- A repeat is answered like the first. What is to be done with an alert belongs here, or in a trigger on received.
    INSERT INTO received (webhook_id, body) VALUES (id, convert_from(body, 'UTF8')::jsonb) ON CONFLICT DO NOTHING;
    RETURN 204;
END
$$;

REVOKE ALL ON FUNCTION alert_inbox.receive_alert(bytea, jsonb) FROM PUBLIC;

CREATE TEMPORARY TABLE given (secret text) ON COMMIT DROP;
\copy given from pstdin with (format csv, delimiter E'\x01', quote E'\x02')
INSERT INTO alert_inbox.signing_secret SELECT secret FROM given WHERE secret <> '' ON CONFLICT DO NOTHING;

COMMIT;
