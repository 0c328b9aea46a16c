-- Routing: which webhooks an alert is for. Rules, the defaults behind them, publish, and the door from phase 7.
--
-- Locks and rewrites: one small index on pggit.webhook; triggers on alert_routing_rules and, where pgGit's phase 7 is
-- installed, on alert_notification_queue (a moment's lock of each). No rewrite.

---------------------------------------------------------------------------------------------------------------------
-- Who changed what: for functions and triggers that change things on a person's behalf
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.audit_change(
    p_operation text, p_webhook_id bigint, p_delivery_id bigint, p_details jsonb, p_request_id uuid DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- user_id is whom PostgreSQL authenticated. What a program says about who uses it (pggit.actor, pggit.actor_host) is
-- kept beside that, in details: anybody may set it, so it proves nothing.
BEGIN
    INSERT INTO pggit.webhook_audit_log (webhook_id, delivery_id, operation, user_id, ip_address, request_id, details)
    VALUES (
        p_webhook_id, p_delivery_id, p_operation, session_user, inet_client_addr(), p_request_id,
        jsonb_strip_nulls(p_details || jsonb_build_object(
            'actor', nullif(left(current_setting('pggit.actor', true), 128), ''),
            'host', nullif(left(current_setting('pggit.actor_host', true), 255), ''))));
END $$;
COMMENT ON FUNCTION pggit.audit_change(text, bigint, bigint, jsonb, uuid) IS
    'Writes an audit row with session_user and the client''s address. For functions of this schema only.';
REVOKE ALL ON FUNCTION pggit.audit_change(text, bigint, bigint, jsonb, uuid) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Rules and defaults
---------------------------------------------------------------------------------------------------------------------

CREATE TABLE pggit.routing_default (
    default_id bigserial PRIMARY KEY,
    severity_level text CONSTRAINT routing_default_severity_check CHECK (severity_level IN ('CRITICAL', 'WARNING', 'INFO')),
    webhook_type text,
    webhook_id bigint,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT routing_default_target_check CHECK (num_nonnulls(webhook_type, webhook_id) = 1),
    CONSTRAINT routing_default_key UNIQUE NULLS NOT DISTINCT (severity_level, webhook_type, webhook_id)
);
COMMENT ON TABLE pggit.routing_default IS
    'Where an alert goes that no rule of alert_routing_rules sends to an enabled webhook. Edit, switch off or delete rows at will.';
COMMENT ON COLUMN pggit.routing_default.severity_level IS
    'Null: every severity that no other row of this table names, active or not.';
COMMENT ON COLUMN pggit.routing_default.webhook_type IS
    'All webhooks whose label "type" is this word, or whose type in phase 7''s alert_notification_webhooks is.';
COMMENT ON COLUMN pggit.routing_default.webhook_id IS 'This webhook; exactly one of webhook_type and webhook_id is set.';
COMMENT ON COLUMN pggit.routing_default.is_active IS 'False keeps the row and sends nothing.';

-- What pgGit's phase 7 had in its code.
INSERT INTO pggit.routing_default (severity_level, webhook_type) VALUES
    ('CRITICAL', 'mattermost'), ('CRITICAL', 'slack'), ('CRITICAL', 'email'),
    ('WARNING', 'mattermost'), ('WARNING', 'slack'),
    (NULL, 'slack');

CREATE INDEX webhook_type_idx ON pggit.webhook ((labels ->> 'type'));
COMMENT ON INDEX pggit.webhook_type_idx IS 'For routing defaults, which name webhooks by their label "type".';

CREATE FUNCTION pggit.rule_after_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Rules are edited by plain SQL as often as by a command: both are audited, and here.
DECLARE
    old_row jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    new_row jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
BEGIN
    IF old_row IS DISTINCT FROM new_row THEN
        PERFORM pggit.audit_change(
            CASE TG_OP WHEN 'INSERT' THEN 'rule_added' WHEN 'DELETE' THEN 'rule_removed' ELSE 'rule_changed' END,
            (coalesce(new_row, old_row) ->> 'webhook_id')::bigint, NULL,
            jsonb_build_object('table', TG_TABLE_NAME, 'from', old_row, 'to', new_row));
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.rule_after_change() IS 'Audits each change of a routing rule or default.';
REVOKE ALL ON FUNCTION pggit.rule_after_change() FROM PUBLIC;

CREATE TRIGGER routing_default_after_change AFTER INSERT OR UPDATE OR DELETE ON pggit.routing_default
    FOR EACH ROW EXECUTE FUNCTION pggit.rule_after_change();
COMMENT ON TRIGGER routing_default_after_change ON pggit.routing_default IS 'Audits changes.';

CREATE TRIGGER rule_after_change AFTER INSERT OR UPDATE OR DELETE ON pggit.alert_routing_rules
    FOR EACH ROW EXECUTE FUNCTION pggit.rule_after_change();
COMMENT ON TRIGGER rule_after_change ON pggit.alert_routing_rules IS 'Audits changes.';

---------------------------------------------------------------------------------------------------------------------
-- Who gets an alert: pggit_reactor/core/routing.py decides the same, and a test compares the two
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.phase7_webhooks() RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- The table may come and go with pgGit, so no statement may name it before it is there.
DECLARE
    found jsonb;
BEGIN
    IF to_regclass('pggit.alert_notification_webhooks') IS NULL
        OR NOT has_table_privilege('pggit.alert_notification_webhooks', 'SELECT') THEN
        RETURN '[]';
    END IF;
    EXECUTE 'SELECT jsonb_agg(jsonb_build_object(''webhook_id'', webhook_id, ''webhook_type'', webhook_type, ''enabled'', enabled))'
            ' FROM pggit.alert_notification_webhooks' INTO found;
    RETURN coalesce(found, '[]');
END $$;
COMMENT ON FUNCTION pggit.phase7_webhooks() IS 'Id, type and enabled of the webhooks of pgGit''s phase 7; empty where it is not installed.';
REVOKE ALL ON FUNCTION pggit.phase7_webhooks() FROM PUBLIC;

CREATE FUNCTION pggit.judge_rules(p_severity text, p_anomaly_type text, p_bottleneck_type text)
RETURNS TABLE (kind text, rule_id bigint, webhook_id bigint, verdict text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- A rule's type that is null means all. An alert of one kind is asked for that kind alone, as phase 7 did: a rule for a
-- bottleneck gets every anomaly of its severity unless it names an anomaly too. An alert of neither kind is for rules
-- that name no type.
-- Enabled is what the registry says (all but disabled), else what phase 7 says; an id that neither knows counts as
-- enabled, for its deliveries wait until it is registered.
#variable_conflict use_column
DECLARE
    asks_anomaly CONSTANT boolean := p_anomaly_type IS NOT NULL OR p_bottleneck_type IS NULL;
    asks_bottleneck CONSTANT boolean := p_bottleneck_type IS NOT NULL OR p_anomaly_type IS NULL;
BEGIN
    RETURN QUERY
    WITH phase7 AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(pggit.phase7_webhooks())
            AS p (webhook_id bigint, webhook_type text, enabled boolean)
    ),
    by_rule AS MATERIALIZED (
        SELECT r.rule_id, r.webhook_id, CASE
            WHEN r.is_active IS NOT TRUE THEN 'inactive'
            WHEN r.severity_level <> p_severity THEN 'severity'
            WHEN asks_anomaly AND r.anomaly_type IS NOT NULL AND r.anomaly_type IS DISTINCT FROM p_anomaly_type
                THEN 'anomaly_type'
            WHEN asks_bottleneck AND r.bottleneck_type IS NOT NULL AND r.bottleneck_type IS DISTINCT FROM p_bottleneck_type
                THEN 'bottleneck_type'
            WHEN NOT coalesce(w.state <> 'disabled', p.enabled, p.webhook_id IS NULL) THEN 'disabled'
            ELSE 'chosen' END AS verdict
        FROM pggit.alert_routing_rules AS r
        LEFT JOIN pggit.webhook AS w ON w.webhook_id = r.webhook_id
        LEFT JOIN phase7 AS p ON p.webhook_id = r.webhook_id
    ),
    by_default AS MATERIALIZED (
        SELECT d.default_id, d.webhook_id, d.webhook_type, CASE
            WHEN EXISTS (SELECT FROM by_rule AS b WHERE b.verdict = 'chosen') THEN 'not_needed'
            WHEN NOT d.is_active THEN 'inactive'
            WHEN d.severity_level <> p_severity THEN 'severity'
            WHEN d.severity_level IS NULL
                AND EXISTS (SELECT FROM pggit.routing_default AS o WHERE o.severity_level = p_severity) THEN 'severity'
            END AS verdict
        FROM pggit.routing_default AS d
    ),
    aimed AS (
        -- Where a default that applies points to; nothing where no webhook is of its type.
        SELECT d.default_id, d.webhook_id FROM by_default AS d WHERE d.verdict IS NULL AND d.webhook_id IS NOT NULL
        UNION ALL
        SELECT d.default_id, w.webhook_id
        FROM by_default AS d JOIN pggit.webhook AS w ON w.labels ->> 'type' = d.webhook_type
        WHERE d.verdict IS NULL
        UNION ALL
        SELECT d.default_id, p.webhook_id
        FROM by_default AS d
        JOIN phase7 AS p ON p.webhook_type = d.webhook_type
        LEFT JOIN pggit.webhook AS w ON w.webhook_id = p.webhook_id
        WHERE d.verdict IS NULL AND (w.labels ->> 'type') IS NULL
    )
    SELECT 'rule', b.rule_id, b.webhook_id, b.verdict FROM by_rule AS b
    UNION ALL
    SELECT 'default', d.default_id, coalesce(a.webhook_id, d.webhook_id), CASE
        WHEN d.verdict IS NOT NULL THEN d.verdict
        WHEN a.default_id IS NULL THEN 'no_webhook'
        WHEN NOT coalesce(w.state <> 'disabled', p.enabled, p.webhook_id IS NULL) THEN 'disabled'
        ELSE 'chosen' END
    FROM by_default AS d
    LEFT JOIN aimed AS a ON a.default_id = d.default_id
    LEFT JOIN pggit.webhook AS w ON w.webhook_id = a.webhook_id
    LEFT JOIN phase7 AS p ON p.webhook_id = a.webhook_id
    ORDER BY 1 DESC, 2, 3;
END $$;
COMMENT ON FUNCTION pggit.judge_rules(text, text, text) IS
    'What each routing rule, and each default behind the rules, says to an alert; the chosen ones'' webhooks get it.';
REVOKE ALL ON FUNCTION pggit.judge_rules(text, text, text) FROM PUBLIC;

CREATE FUNCTION pggit.check_severity(p_severity text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_severity IS NULL OR p_severity NOT IN ('CRITICAL', 'WARNING', 'INFO') THEN
        RAISE EXCEPTION 'p_severity is %; allowed: CRITICAL, WARNING, INFO', coalesce(quote_literal(left(p_severity, 64)), 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;
COMMENT ON FUNCTION pggit.check_severity(text) IS 'Raises, with the allowed words, where the argument is no severity.';

CREATE FUNCTION pggit.explain_route(
    p_severity text, p_anomaly_type text DEFAULT NULL, p_bottleneck_type text DEFAULT NULL
) RETURNS TABLE (kind text, rule_id bigint, webhook_id bigint, webhook_name text, verdict text, explanation text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM pggit.check_severity(p_severity);
    RETURN QUERY
    SELECT j.kind, j.rule_id, j.webhook_id, w.name, j.verdict, CASE j.verdict
        WHEN 'chosen' THEN format('sends it to webhook %s', j.webhook_id)
            || CASE WHEN w.webhook_id IS NULL THEN ', which is not registered: the delivery waits for its registration'
                    WHEN w.state = 'paused' THEN ', which is paused: the delivery waits for it'
                    ELSE '' END
        WHEN 'inactive' THEN 'is switched off (is_active)'
        WHEN 'severity' THEN CASE
            WHEN j.kind = 'default' AND d.severity_level IS NULL THEN format('is for severities without defaults of their own, and %s has some', p_severity)
            ELSE format('is for %s, the alert is %s', coalesce(r.severity_level, d.severity_level), p_severity) END
        WHEN 'anomaly_type' THEN format('is for anomalies of type %s, the alert''s is %s', r.anomaly_type, coalesce(p_anomaly_type, 'none'))
        WHEN 'bottleneck_type' THEN format('is for bottlenecks of type %s, the alert''s is %s', r.bottleneck_type, coalesce(p_bottleneck_type, 'none'))
        WHEN 'disabled' THEN format('matches, but webhook %s is disabled', j.webhook_id)
        WHEN 'not_needed' THEN 'is for alerts that no rule sends anywhere, and a rule does'
        WHEN 'no_webhook' THEN format('is for webhooks of type %s, and there is none (label "type")', d.webhook_type)
        END
    FROM pggit.judge_rules(p_severity, p_anomaly_type, p_bottleneck_type) AS j
    LEFT JOIN pggit.webhook AS w ON w.webhook_id = j.webhook_id
    LEFT JOIN pggit.alert_routing_rules AS r ON j.kind = 'rule' AND r.rule_id = j.rule_id
    LEFT JOIN pggit.routing_default AS d ON j.kind = 'default' AND d.default_id = j.rule_id
    ORDER BY j.kind DESC, j.rule_id, j.webhook_id;
END $$;
COMMENT ON FUNCTION pggit.explain_route(text, text, text) IS
    'Which rules would send such an alert where, and for each other rule why not. Sends nothing.';
REVOKE ALL ON FUNCTION pggit.explain_route(text, text, text) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- publish
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.publish(
    p_body jsonb,
    p_severity text,
    p_anomaly_type text DEFAULT NULL,
    p_bottleneck_type text DEFAULT NULL,
    p_alert_id bigint DEFAULT NULL,
    p_event_type text DEFAULT NULL,
    p_idempotency_key text DEFAULT NULL,
    p_priority integer DEFAULT 0,
    p_deliver_after timestamptz DEFAULT NULL,
    p_expires_at timestamptz DEFAULT NULL,
    p_headers jsonb DEFAULT NULL,
    p_ordering_key text DEFAULT NULL,
    p_traceparent text DEFAULT NULL
) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    webhook_ids bigint[];
    shared_alert_id bigint := p_alert_id;
    target bigint;
BEGIN
    IF p_body IS NULL THEN
        RAISE EXCEPTION 'p_body is null; give a JSON value (the JSON null is ''null''::jsonb)'
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM pggit.check_severity(p_severity);
    -- In one order everywhere, so that two publishers with idempotency keys cannot deadlock.
    webhook_ids := ARRAY(
        SELECT DISTINCT j.webhook_id FROM pggit.judge_rules(p_severity, p_anomaly_type, p_bottleneck_type) AS j
        WHERE j.verdict = 'chosen' ORDER BY j.webhook_id);
    IF webhook_ids = '{}' THEN
        RAISE WARNING 'no webhook gets this % alert; pggit.explain_route says why', p_severity;
        RETURN;
    END IF;
    IF shared_alert_id IS NULL AND p_idempotency_key IS NOT NULL THEN
        -- A publish that is repeated, perhaps to more webhooks by now, is the same alert.
        SELECT q.alert_id INTO shared_alert_id FROM pggit.alert_delivery_queue AS q
        WHERE q.webhook_id = ANY (webhook_ids) AND q.idempotency_key = p_idempotency_key
        ORDER BY q.delivery_id LIMIT 1;
    END IF;
    shared_alert_id := coalesce(shared_alert_id, nextval('pggit.alert_id_seq'));
    FOREACH target IN ARRAY webhook_ids LOOP
        RETURN NEXT pggit.enqueue(
            target, p_body, shared_alert_id, p_event_type, p_idempotency_key, p_priority, p_deliver_after, p_expires_at,
            p_headers, p_ordering_key, p_traceparent);
    END LOOP;
END $$;
COMMENT ON FUNCTION pggit.publish(
    jsonb, text, text, text, bigint, text, text, integer, timestamptz, timestamptz, jsonb, text, text) IS
    'Queues an alert for every webhook that the routing rules choose, under one alert_id; returns the delivery ids.';
REVOKE ALL ON FUNCTION pggit.publish(
    jsonb, text, text, text, bigint, text, text, integer, timestamptz, timestamptz, jsonb, text, text) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- The door from pgGit's phase 7
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.attach_alert_queue() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass('pggit.alert_notification_queue') IS NULL THEN
        RETURN false;
    END IF;
    CREATE OR REPLACE TRIGGER trigger_alert_queue AFTER INSERT ON pggit.alert_notification_queue
        FOR EACH ROW EXECUTE FUNCTION pggit.trigger_queue_alert();
    COMMENT ON TRIGGER trigger_alert_queue ON pggit.alert_notification_queue IS 'Queues phase 7''s alerts for delivery.';
    RETURN true;
END $$;
COMMENT ON FUNCTION pggit.attach_alert_queue() IS
    'Lets the alerts of pgGit''s phase 7 be delivered; call it, as the owner, where phase 7 was installed after this schema.';
REVOKE ALL ON FUNCTION pggit.attach_alert_queue() FROM PUBLIC;
SELECT pggit.attach_alert_queue();

---------------------------------------------------------------------------------------------------------------------
-- Grants
---------------------------------------------------------------------------------------------------------------------

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT g.role, g.privilege FROM (VALUES
            ('pggit_producer', 'EXECUTE ON FUNCTION pggit.publish'),
            ('pggit_operator', 'EXECUTE ON FUNCTION pggit.publish, pggit.explain_route'),
            ('pggit_operator', 'SELECT, INSERT, UPDATE, DELETE ON pggit.routing_default'),
            ('pggit_operator', 'USAGE ON SEQUENCE pggit.routing_default_default_id_seq'),
            ('pggit_reader', 'EXECUTE ON FUNCTION pggit.explain_route'),
            ('pggit_reader', 'SELECT ON pggit.routing_default')
        ) AS g (role, privilege)
        WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = g.role)
    LOOP
        EXECUTE format('GRANT %s TO %I', wanted.privilege, wanted.role);
    END LOOP;
END $$;
