-- name: list
-- Rules, then the defaults behind them.
SELECT
    'rule' AS kind, r.rule_id, r.severity_level AS severity, r.anomaly_type, r.bottleneck_type, NULL AS webhook_type,
    r.webhook_id, w.name AS webhook_name, r.escalation_level, coalesce(r.is_active, false) AS is_active
FROM pggit.alert_routing_rules AS r
LEFT JOIN pggit.webhook AS w ON w.webhook_id = r.webhook_id
UNION ALL
SELECT
    'default', d.default_id, d.severity_level, NULL, NULL, d.webhook_type, d.webhook_id, w.name, NULL, d.is_active
FROM pggit.routing_default AS d
LEFT JOIN pggit.webhook AS w ON w.webhook_id = d.webhook_id
ORDER BY kind DESC, rule_id;

-- name: add_rule
INSERT INTO pggit.alert_routing_rules (severity_level, anomaly_type, bottleneck_type, webhook_id, escalation_level)
VALUES (%(severity)s, %(anomaly_type)s, %(bottleneck_type)s, %(webhook_id)s, %(escalation_level)s)
RETURNING rule_id;

-- name: add_default
INSERT INTO pggit.routing_default (severity_level, webhook_type, webhook_id)
VALUES (%(severity)s, %(webhook_type)s, %(webhook_id)s)
RETURNING default_id;

-- name: remove_rule
DELETE FROM pggit.alert_routing_rules AS r WHERE r.rule_id = %(rule_id)s;

-- name: remove_default
DELETE FROM pggit.routing_default AS d WHERE d.default_id = %(rule_id)s;

-- name: explain
SELECT e.kind, e.rule_id, e.webhook_id, e.webhook_name, e.verdict, e.explanation
FROM pggit.explain_route(%(severity)s, %(anomaly_type)s, %(bottleneck_type)s) AS e;
