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
            ('pggit_operator', 'SELECT ON pggit.rotation_history'),
            ('pggit_reader', 'SELECT ON pggit.rotation_history')
        ) AS g (role, privilege)
        WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = g.role)
    LOOP
        EXECUTE format('GRANT %s TO %I', wanted.privilege, wanted.role);
    END LOOP;
END $$;
