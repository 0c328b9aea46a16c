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
