-- Master keys and signing secrets: what their rotation needs.
--
-- Locks: ACCESS EXCLUSIVE on reactor_worker, key_check, webhook_secret and webhook for a moment (new columns without a
-- rewrite, triggers made anew). Nothing is rewritten, nothing of the queue is touched.

---------------------------------------------------------------------------------------------------------------------
-- Which key sealed a value, and who knows which keys
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.sealed_key_id(sealed bytea) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    CASE WHEN octet_length(sealed) > 3 AND get_byte(sealed, 0) = 1
              AND get_byte(sealed, 1) BETWEEN 1 AND least(32, octet_length(sealed) - 2)
         THEN encode(substr(sealed, 3, get_byte(sealed, 1)), 'escape') END;
COMMENT ON FUNCTION pggit.sealed_key_id(bytea) IS
    'The id of the master key that a sealed value names in its head; null for what is not of a known form.';

ALTER TABLE pggit.reactor_worker ADD COLUMN key_ids text[];
COMMENT ON COLUMN pggit.reactor_worker.key_ids IS
    'Ids of the master keys it has, the active one first, without those that are not the key the database knows; null: too old to say.';

ALTER TABLE pggit.key_check ADD COLUMN created_by text, ADD COLUMN retired_by text;
COMMENT ON COLUMN pggit.key_check.created_by IS 'Who used it first.';
COMMENT ON COLUMN pggit.key_check.retired_by IS 'Who retired it.';

CREATE FUNCTION pggit.refuse_retired_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Of the columns that the trigger names, none may be written with a key that is retired: whoever dropped the key from
-- his key file could never open it. The lock makes retiring wait for this row, and this row for retiring. As the owner:
-- whoever writes need not be allowed to change keys, which a lock asks for.
DECLARE
    sealed_column text;
    sealed bytea;
    before bytea;
    key_id_ text;
BEGIN
    FOREACH sealed_column IN ARRAY TG_ARGV LOOP
        EXECUTE format('SELECT ($1).%I', sealed_column) INTO sealed USING NEW;
        IF TG_OP = 'UPDATE' THEN
            EXECUTE format('SELECT ($1).%I', sealed_column) INTO before USING OLD;
            CONTINUE WHEN sealed IS NOT DISTINCT FROM before;
        END IF;
        key_id_ := pggit.sealed_key_id(sealed);
        CONTINUE WHEN key_id_ IS NULL;
        PERFORM FROM pggit.key_check AS c WHERE c.key_id = key_id_ FOR SHARE;
        IF EXISTS (SELECT FROM pggit.key_check AS c WHERE c.key_id = key_id_ AND c.retired_at IS NOT NULL) THEN
            RAISE EXCEPTION 'the master key % is retired: nothing may be sealed with it', key_id_
                USING HINT = 'Put the key that is in use first in the key file.';
        END IF;
    END LOOP;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION pggit.refuse_retired_key() IS 'Keeps rows from being sealed with a retired master key. Its arguments: the columns.';
REVOKE ALL ON FUNCTION pggit.refuse_retired_key() FROM PUBLIC;
CREATE TRIGGER webhook_refuse_retired_key BEFORE INSERT OR UPDATE ON pggit.webhook
    FOR EACH ROW EXECUTE FUNCTION pggit.refuse_retired_key(
        'sealed_url', 'sealed_headers', 'sealed_ca', 'sealed_client_certificate');
COMMENT ON TRIGGER webhook_refuse_retired_key ON pggit.webhook IS 'Nothing is sealed with a retired key.';
CREATE TRIGGER webhook_secret_refuse_retired_key BEFORE INSERT OR UPDATE ON pggit.webhook_secret
    FOR EACH ROW EXECUTE FUNCTION pggit.refuse_retired_key('sealed_secret');
COMMENT ON TRIGGER webhook_secret_refuse_retired_key ON pggit.webhook_secret IS 'Nothing is sealed with a retired key.';

---------------------------------------------------------------------------------------------------------------------
-- Re-sealing is no change of a webhook: what is inside stays
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.is_resealing() RETURNS boolean
LANGUAGE sql STABLE RETURN coalesce(current_setting('pggit.resealing', true), '') = 'on';
COMMENT ON FUNCTION pggit.is_resealing() IS
    'Whether this transaction only seals anew what stays the same (SET LOCAL pggit.resealing = on).';

CREATE FUNCTION pggit.webhook_before_reseal() RETURNS trigger LANGUAGE plpgsql AS $$
-- Runs after webhook_before_change, by its name, and takes back the new revision: the copies of the workers are still
-- right, and need not be read again.
BEGIN
    NEW.revision := OLD.revision;
    NEW.updated_at := OLD.updated_at;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION pggit.webhook_before_reseal() IS 'Leaves the revision of a webhook that is only sealed anew.';
CREATE TRIGGER webhook_before_reseal BEFORE UPDATE ON pggit.webhook
    FOR EACH ROW WHEN (pggit.is_resealing())
    EXECUTE FUNCTION pggit.webhook_before_reseal();
COMMENT ON TRIGGER webhook_before_reseal ON pggit.webhook IS 'The old revision, where the same was sealed anew.';

DROP TRIGGER webhook_after_change ON pggit.webhook;
CREATE TRIGGER webhook_after_insert AFTER INSERT ON pggit.webhook
    FOR EACH ROW EXECUTE FUNCTION pggit.webhook_after_change();
COMMENT ON TRIGGER webhook_after_insert ON pggit.webhook IS 'Wakes the workers.';
CREATE TRIGGER webhook_after_change AFTER UPDATE ON pggit.webhook
    FOR EACH ROW WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pggit.webhook_after_change();
COMMENT ON TRIGGER webhook_after_change ON pggit.webhook IS 'Wakes the workers.';

DROP TRIGGER webhook_secret_after_change ON pggit.webhook_secret;
CREATE TRIGGER webhook_secret_after_add_or_remove AFTER INSERT OR DELETE ON pggit.webhook_secret
    FOR EACH ROW EXECUTE FUNCTION pggit.webhook_secret_after_change();
COMMENT ON TRIGGER webhook_secret_after_add_or_remove ON pggit.webhook_secret IS 'A change of a secret is a change of its webhook.';
CREATE TRIGGER webhook_secret_after_change AFTER UPDATE ON pggit.webhook_secret
    FOR EACH ROW WHEN (NOT pggit.is_resealing())
    EXECUTE FUNCTION pggit.webhook_secret_after_change();
COMMENT ON TRIGGER webhook_secret_after_change ON pggit.webhook_secret IS 'A change of a secret is a change of its webhook.';

---------------------------------------------------------------------------------------------------------------------
-- Signing secrets: of two kinds, and rotated by schedule
---------------------------------------------------------------------------------------------------------------------

ALTER TABLE pggit.webhook_secret
    ADD COLUMN algorithm text NOT NULL DEFAULT 'hmac-sha256'
        CONSTRAINT webhook_secret_algorithm_check CHECK (algorithm IN ('hmac-sha256', 'ed25519')),
    ADD COLUMN public_key text CONSTRAINT webhook_secret_public_key_check CHECK (public_key ~ '^whpk_[A-Za-z0-9+/]{43}=$'),
    ADD CONSTRAINT webhook_secret_kind_check CHECK ((algorithm = 'ed25519') = (public_key IS NOT NULL));
COMMENT ON COLUMN pggit.webhook_secret.algorithm IS 'What it signs with.';
COMMENT ON COLUMN pggit.webhook_secret.public_key IS 'Of an Ed25519 key: what receivers verify with, whpk_ and base64. No secret.';
ALTER TABLE pggit.webhook ADD CONSTRAINT webhook_rotate_every_check CHECK (rotate_every > interval '0');

CREATE FUNCTION pggit.rotate_due_secret(
    p_webhook_id bigint, p_version integer, p_sealed_secret bytea, p_algorithm text, p_public_key text, p_grace interval,
    p_by text
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- The only way in which a worker's role adds a secret: where the schedule of the webhook says that one is due, and
-- nobody else was quicker. The ones before sign on for p_grace.
DECLARE
    every interval;
    newest record;
    ends timestamptz := now() + p_grace;
BEGIN
    SELECT w.rotate_every INTO every FROM pggit.webhook AS w
    WHERE w.webhook_id = p_webhook_id AND w.state <> 'disabled' FOR UPDATE;
    SELECT s.version, s.not_before INTO newest FROM pggit.webhook_secret AS s
    WHERE s.webhook_id = p_webhook_id ORDER BY s.version DESC LIMIT 1;
    IF every IS NULL OR newest.version IS DISTINCT FROM p_version - 1 OR newest.not_before + every > now() THEN
        RETURN false;
    END IF;
    UPDATE pggit.webhook_secret AS s SET expires_at = ends
    WHERE s.webhook_id = p_webhook_id AND (s.expires_at IS NULL OR s.expires_at > ends);
    INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret, algorithm, public_key, created_by)
    VALUES (p_webhook_id, p_version, p_sealed_secret, p_algorithm, p_public_key, p_by);
    INSERT INTO pggit.webhook_audit_log (webhook_id, operation, user_id, details)
    VALUES (p_webhook_id, 'secret_rotated', p_by, jsonb_build_object(
        'version', p_version, 'algorithm', p_algorithm, 'scheduled', true, 'older_until', ends));
    RETURN true;
END $$;
COMMENT ON FUNCTION pggit.rotate_due_secret(bigint, integer, bytea, text, text, interval, text) IS
    'A chore of the workers: adds a new signing secret where rotate_every says that one is due; false where it does not.';
REVOKE ALL ON FUNCTION pggit.rotate_due_secret(bigint, integer, bytea, text, text, interval, text) FROM PUBLIC;

CREATE FUNCTION pggit.retire_expired_secrets(p_by text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Removes secrets whose time is over, never the newest of a webhook; returns how many. Webhooks in the order of their
-- ids, and those that somebody holds another time: nobody waits, nobody deadlocks.
DECLARE
    webhooks_max CONSTANT integer := 100;
    found_id bigint;
    number integer;
    total integer := 0;
BEGIN
    FOR found_id IN
        SELECT w.webhook_id FROM pggit.webhook AS w
        WHERE EXISTS (
            SELECT FROM pggit.webhook_secret AS s JOIN pggit.webhook_secret AS newer USING (webhook_id)
            WHERE s.webhook_id = w.webhook_id AND s.expires_at <= now() AND newer.version > s.version)
        ORDER BY w.webhook_id LIMIT webhooks_max FOR UPDATE SKIP LOCKED
    LOOP
        WITH gone AS (
            DELETE FROM pggit.webhook_secret AS s
            WHERE s.webhook_id = found_id AND s.expires_at <= now() AND EXISTS (
                SELECT FROM pggit.webhook_secret AS newer WHERE newer.webhook_id = found_id AND newer.version > s.version)
            RETURNING s.version, s.expires_at
        )
        INSERT INTO pggit.webhook_audit_log (webhook_id, operation, user_id, details)
        SELECT found_id, 'secret_retired', p_by,
               jsonb_build_object('version', g.version, 'why', 'expired', 'expired_at', g.expires_at)
        FROM gone AS g;
        GET DIAGNOSTICS number = ROW_COUNT;
        total := total + number;
    END LOOP;
    RETURN total;
END $$;
COMMENT ON FUNCTION pggit.retire_expired_secrets(text) IS
    'A chore of the workers: removes signing secrets whose time is over, and audits it.';
REVOKE ALL ON FUNCTION pggit.retire_expired_secrets(text) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Who rotated what, and when
---------------------------------------------------------------------------------------------------------------------

CREATE VIEW pggit.rotation_history AS
SELECT a.audit_id, a.occurred_at, a.operation::text AS operation, a.webhook_id, a.details ->> 'key_id' AS key_id,
       a.details ->> 'version' AS version, a.user_id AS done_by, a.details
FROM pggit.webhook_audit_log AS a
WHERE a.operation::text IN ('key_added', 'key_rotated', 'key_retired', 'secret_added', 'secret_rotated', 'secret_retired',
                            'secret_revealed');
COMMENT ON VIEW pggit.rotation_history IS
    'What became of master keys and signing secrets: when, and by whom. Ids and versions, never a key or a secret.';

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT g.role, g.privilege FROM (VALUES
            ('pggit_worker', 'EXECUTE ON FUNCTION pggit.rotate_due_secret'),
            ('pggit_worker', 'EXECUTE ON FUNCTION pggit.retire_expired_secrets'),
            ('pggit_operator', 'SELECT ON pggit.rotation_history'),
            ('pggit_reader', 'SELECT ON pggit.rotation_history')
        ) AS g (role, privilege)
        WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = g.role)
    LOOP
        EXECUTE format('GRANT %s TO %I', wanted.privilege, wanted.role);
    END LOOP;
END $$;
