-- A trigger on a table of yours that queues an alert, in the transaction of whoever writes the table.
--
--   pggit-reactor psql -- -v webhook_id=1 -f examples/trigger_on_table.sql
--
-- Run it as a role that is a member of pggit_producer, or owns the schema. Whoever writes disk_usage needs no right
-- on the queue: the function runs as its owner.
\set ON_ERROR_STOP on
BEGIN;

CREATE TABLE IF NOT EXISTS disk_usage (
    host text,
    mount text,
    used_percent integer NOT NULL,
    PRIMARY KEY (host, mount)
);

CREATE OR REPLACE FUNCTION alert_on_disk_usage() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pggit.enqueue(
        p_webhook_id => TG_ARGV[0]::bigint,
        p_body => jsonb_build_object('alert', 'disk nearly full') || to_jsonb(NEW),
        p_event_type => 'disk.nearly_full',
        -- One alert a disk and day, however often the row is written.
        p_idempotency_key => format('disk:%s:%s:%s', NEW.host, NEW.mount, current_date));
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER alert_on_disk_usage
AFTER INSERT OR UPDATE OF used_percent ON disk_usage
FOR EACH ROW WHEN (NEW.used_percent >= 90)
EXECUTE FUNCTION alert_on_disk_usage(:'webhook_id');

COMMIT;

-- Three writes, two of them above the limit, and one alert.
INSERT INTO disk_usage (host, mount, used_percent) VALUES ('db1', '/var/lib/postgresql', 71)
ON CONFLICT (host, mount) DO UPDATE SET used_percent = excluded.used_percent;
UPDATE disk_usage SET used_percent = 93 WHERE host = 'db1' AND mount = '/var/lib/postgresql';
UPDATE disk_usage SET used_percent = 96 WHERE host = 'db1' AND mount = '/var/lib/postgresql';
