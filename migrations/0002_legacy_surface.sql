-- Stand-in until the migration of this number is merged: the routing rules of pgGit's phase 7, where it is absent.
--
-- Locks and rewrites: creates only; nothing that exists is changed.

CREATE TABLE IF NOT EXISTS pggit.alert_routing_rules (
    rule_id bigserial PRIMARY KEY,
    severity_level text NOT NULL CHECK (severity_level IN ('CRITICAL', 'WARNING', 'INFO')),
    anomaly_type text,
    bottleneck_type text,
    webhook_id bigint NOT NULL,
    escalation_level integer DEFAULT 1,
    is_active boolean DEFAULT true,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);
COMMENT ON TABLE pggit.alert_routing_rules IS 'Which webhook gets which alert; null in a type: all types.';

CREATE OR REPLACE FUNCTION pggit.trigger_queue_alert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Whatever goes wrong here, the producer's INSERT goes on.
DECLARE
    new_id bigint;
BEGIN
    IF NEW.webhook_id IS NULL THEN
        RETURN NEW;  -- Phase 7 logs errors that way: addressed to nobody.
    END IF;
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)
    VALUES (NEW.queue_id, NEW.webhook_id, jsonb_build_object(
        'alert_id', NEW.alert_id, 'webhook_id', NEW.webhook_id, 'message_format', NEW.message_format,
        'message_body', NEW.message_body, 'original_status', NEW.status, 'queued_at', now()))
    RETURNING delivery_id INTO new_id;
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
    VALUES (new_id, NEW.webhook_id, 'queued', jsonb_build_object(
        'integration_source', 'alert_notification_queue', 'original_queue_id', NEW.queue_id));
    RETURN NEW;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'notification % was not queued for delivery: %', NEW.queue_id, SQLERRM;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION pggit.trigger_queue_alert() IS 'Queues what phase 7 notifies; never makes the notifying INSERT fail.';
REVOKE ALL ON FUNCTION pggit.trigger_queue_alert() FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'pggit_operator') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON pggit.alert_routing_rules TO pggit_operator;
        GRANT USAGE ON SEQUENCE pggit.alert_routing_rules_rule_id_seq TO pggit_operator;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'pggit_reader') THEN
        GRANT SELECT ON pggit.alert_routing_rules TO pggit_reader;
    END IF;
END $$;
