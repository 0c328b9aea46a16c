-- What each object and column is, where its own migration does not say: \d+ and \df+ are the manual of who lives in psql.
--
-- Locks and rewrites: comments only (a moment's lock of each table).

DO $$
BEGIN
    COMMENT ON SCHEMA pggit IS
        'pggit-reactor: rows in alert_delivery_queue become signed webhooks. Start with \dt+ pggit.* and \df+ pggit.*';
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'schema pggit is somebody else''s, and stays without a comment';
END $$;

---------------------------------------------------------------------------------------------------------------------
-- Tables
---------------------------------------------------------------------------------------------------------------------

COMMENT ON TABLE pggit.webhook_audit_log_default IS 'Audit rows that a late chore had no partition for; doctor tells of them.';

COMMENT ON COLUMN pggit.alert_delivery_queue.delivery_id IS 'Grows. Receivers see it inside the delivery uid.';
COMMENT ON COLUMN pggit.alert_delivery_queue.alert_id IS 'The producer''s own number; several deliveries may have the same.';
COMMENT ON COLUMN pggit.alert_delivery_queue.webhook_id IS 'Where to. Any number; one that is not registered waits for its registration.';
COMMENT ON COLUMN pggit.alert_delivery_queue.message_body IS 'The body that is sent, as PostgreSQL prints it.';
COMMENT ON COLUMN pggit.alert_delivery_queue.delivery_status IS 'pending, retrying, delivered or failed.';
COMMENT ON COLUMN pggit.alert_delivery_queue.retry_count IS 'Failed attempts since it was queued or re-queued, as far as they count against max_retries.';
COMMENT ON COLUMN pggit.alert_delivery_queue.max_retries IS 'Retries after the first attempt; a webhook''s max_attempts goes before it.';
COMMENT ON COLUMN pggit.alert_delivery_queue.next_retry_at IS 'Not before this time; of a pending row too.';
COMMENT ON COLUMN pggit.alert_delivery_queue.created_at IS 'When it was queued. In the future: not before that.';
COMMENT ON COLUMN pggit.alert_delivery_queue.delivered_at IS 'When the receiver''s 2xx was recorded.';
COMMENT ON COLUMN pggit.alert_delivery_queue.uid_salt IS 'Random; with delivery_id it makes the delivery uid, so that a restored database repeats none.';
COMMENT ON COLUMN pggit.alert_delivery_queue.lease_expires_at IS 'Until when leased_by alone may send it.';
COMMENT ON COLUMN pggit.alert_delivery_queue.leased_by IS 'Who is sending it: reactor_worker.instance, or an SQL client.';
COMMENT ON COLUMN pggit.alert_delivery_queue.priority IS 'Higher goes first, within a webhook.';
COMMENT ON COLUMN pggit.alert_delivery_queue.ordering_key IS 'For webhooks with ordering = key: deliveries of one key keep their order.';
COMMENT ON COLUMN pggit.alert_delivery_queue.idempotency_key IS 'Unique per webhook where set, until the row is pruned.';
COMMENT ON COLUMN pggit.alert_delivery_queue.event_type IS 'A word for receivers and filters.';
COMMENT ON COLUMN pggit.alert_delivery_queue.headers IS 'More headers to send, an object of strings.';
COMMENT ON COLUMN pggit.alert_delivery_queue.traceparent IS 'W3C trace context of the producer, passed on.';
COMMENT ON COLUMN pggit.alert_delivery_queue.expires_at IS 'Not sent after this time: failed, with the reason expired.';
COMMENT ON COLUMN pggit.alert_delivery_queue.last_status IS 'HTTP status of the last attempt; null where there was no answer.';
COMMENT ON COLUMN pggit.alert_delivery_queue.last_error IS 'What went wrong last, for people.';
COMMENT ON COLUMN pggit.alert_delivery_queue.failed_reason IS 'Why it is failed; null where an old worker or an operator failed it.';
COMMENT ON COLUMN pggit.alert_delivery_queue.replayed_at IS 'When it last came back from delivered or failed; give_up_after counts from then.';

COMMENT ON COLUMN pggit.alert_delivery_log.log_id IS 'Grows.';
COMMENT ON COLUMN pggit.alert_delivery_log.delivery_id IS 'Deleting a delivery deletes its log.';
COMMENT ON COLUMN pggit.alert_delivery_log.webhook_id IS 'As of the delivery.';
COMMENT ON COLUMN pggit.alert_delivery_log.event_type IS 'queued, attempt, delivered, retrying, failed or escalated.';
COMMENT ON COLUMN pggit.alert_delivery_log.event_details IS 'Keys by event: http_status, response_time_ms, error, retry_count, attempt, reason, worker, action.';
COMMENT ON COLUMN pggit.alert_delivery_log.created_at IS 'When it happened.';

COMMENT ON COLUMN pggit.webhook_health_metrics.metric_id IS 'Of no meaning; webhook_id is the key.';
COMMENT ON COLUMN pggit.webhook_health_metrics.webhook_id IS 'One row a webhook, registered or not.';
COMMENT ON COLUMN pggit.webhook_health_metrics.total_deliveries IS 'Attempts: successful and failed ones.';
COMMENT ON COLUMN pggit.webhook_health_metrics.successful_deliveries IS 'Attempts that were answered 2xx.';
COMMENT ON COLUMN pggit.webhook_health_metrics.failed_deliveries IS 'All other attempts.';
COMMENT ON COLUMN pggit.webhook_health_metrics.avg_response_time_ms IS 'Mean over all attempts; null before the first.';
COMMENT ON COLUMN pggit.webhook_health_metrics.max_response_time_ms IS 'The slowest attempt.';
COMMENT ON COLUMN pggit.webhook_health_metrics.min_response_time_ms IS 'The quickest attempt.';
COMMENT ON COLUMN pggit.webhook_health_metrics.health_status IS
    'By the last attempt: healthy (2xx), degraded (no answer, or 500 and above), unavailable (anything else), unknown.';
COMMENT ON COLUMN pggit.webhook_health_metrics.last_check_at IS 'The last attempt.';
COMMENT ON COLUMN pggit.webhook_health_metrics.last_success_at IS 'The last 2xx.';
COMMENT ON COLUMN pggit.webhook_health_metrics.last_failure_at IS 'The last attempt that was not 2xx.';
COMMENT ON COLUMN pggit.webhook_health_metrics.consecutive_failures IS 'Failed attempts since the last 2xx.';
COMMENT ON COLUMN pggit.webhook_health_metrics.created_at IS 'When the row was made.';
COMMENT ON COLUMN pggit.webhook_health_metrics.updated_at IS 'When it last changed.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_failures IS 'Transient failures in a row, for the circuit breaker.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_window_started_at IS 'When the breaker''s window of attempts began.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_window_attempts IS 'Attempts in that window.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_window_failures IS 'Transient failures in that window.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_opened_at IS 'Since when the breaker is open; null where it is closed.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_opens IS 'How often it opened.';

COMMENT ON COLUMN pggit.webhook_audit_log.audit_id IS 'Grows; the table is partitioned by it.';
COMMENT ON COLUMN pggit.webhook_audit_log.webhook_id IS 'What it was done to; null where no one webhook is concerned.';
COMMENT ON COLUMN pggit.webhook_audit_log.delivery_id IS 'The delivery that was attempted or changed.';
COMMENT ON COLUMN pggit.webhook_audit_log.operation IS 'What was done; the words are those of its CHECK.';
COMMENT ON COLUMN pggit.webhook_audit_log.status_code IS 'HTTP status of an attempt.';
COMMENT ON COLUMN pggit.webhook_audit_log.error_message IS 'What went wrong. Never a secret.';
COMMENT ON COLUMN pggit.webhook_audit_log.signature_verified IS 'For callers that verify signatures.';
COMMENT ON COLUMN pggit.webhook_audit_log.encryption_algorithm IS 'For callers that open sealed values, such as aes-256-gcm.';
COMMENT ON COLUMN pggit.webhook_audit_log.ip_address IS 'Where the client of the database was; null over a local socket.';
COMMENT ON COLUMN pggit.webhook_audit_log.occurred_at IS 'When.';
COMMENT ON COLUMN pggit.webhook_audit_log.user_id IS 'Who: a worker, a database user, or whom a command names.';
COMMENT ON COLUMN pggit.webhook_audit_log.request_id IS 'The delivery uid, or the id of a request.';
COMMENT ON COLUMN pggit.webhook_audit_log.details IS 'Old and new values, reasons; what a client says of who uses it (actor, host) proves nothing.';

COMMENT ON COLUMN pggit.webhook.webhook_id IS 'Any number; one that deliveries wait for adopts them.';
COMMENT ON COLUMN pggit.webhook.name IS 'Unique, for people.';
COMMENT ON COLUMN pggit.webhook.sealed_url IS 'AES-256-GCM, bound to this row; the key is not in the database.';
COMMENT ON COLUMN pggit.webhook.state IS 'active, paused (until it is resumed) or disabled. A pause for a time is webhook_limit.paused_until.';
COMMENT ON COLUMN pggit.webhook.state_reason IS 'Why it was paused or disabled.';
COMMENT ON COLUMN pggit.webhook.state_since IS 'Since when.';
COMMENT ON COLUMN pggit.webhook.state_by IS 'By whom.';
COMMENT ON COLUMN pggit.webhook.rate_per_s IS 'Attempts a second, 0 for no limit.';
COMMENT ON COLUMN pggit.webhook.burst IS 'Attempts at once above the rate.';
COMMENT ON COLUMN pggit.webhook.concurrency IS 'Attempts in flight, in each worker.';
COMMENT ON COLUMN pggit.webhook.ordering IS 'none, webhook (all in order) or key (in order within an ordering_key).';
COMMENT ON COLUMN pggit.webhook.max_attempts IS 'Attempts in all; null: the row''s own max_retries decides.';
COMMENT ON COLUMN pggit.webhook.give_up_after IS 'No attempt later than this after it was queued or replayed.';
COMMENT ON COLUMN pggit.webhook.sealed_headers IS 'More headers for each delivery, sealed.';
COMMENT ON COLUMN pggit.webhook.pins IS 'SHA-256 of public keys, one of which the receiver must show.';
COMMENT ON COLUMN pggit.webhook.sealed_ca IS 'A private CA to trust instead of the public ones, sealed.';
COMMENT ON COLUMN pggit.webhook.sealed_client_certificate IS 'What to show the receiver, sealed.';
COMMENT ON COLUMN pggit.webhook.template IS 'Makes the body from the payload; null: the payload itself.';
COMMENT ON COLUMN pggit.webhook.filter IS 'Which payloads are sent; null: all.';
COMMENT ON COLUMN pggit.webhook.status_policy IS 'HTTP statuses that mean something else here.';
COMMENT ON COLUMN pggit.webhook.max_body_bytes IS 'The largest body; null: the setting delivery.max_body_bytes.';
COMMENT ON COLUMN pggit.webhook.weight IS 'Its share where workers are short of room.';
COMMENT ON COLUMN pggit.webhook.rotate_every IS 'How often a new signing secret is made; null: never by itself.';
COMMENT ON COLUMN pggit.webhook.labels IS 'Any texts by name. The label type is what routing_default.webhook_type names.';
COMMENT ON COLUMN pggit.webhook.created_at IS 'When it was registered.';
COMMENT ON COLUMN pggit.webhook.updated_at IS 'When it last changed.';

COMMENT ON COLUMN pggit.webhook_secret.webhook_id IS 'Whose secret.';
COMMENT ON COLUMN pggit.webhook_secret.version IS 'Grows; the highest valid one signs first.';
COMMENT ON COLUMN pggit.webhook_secret.sealed_secret IS 'AES-256-GCM, bound to this row.';
COMMENT ON COLUMN pggit.webhook_secret.not_before IS 'Signs from then on.';
COMMENT ON COLUMN pggit.webhook_secret.expires_at IS 'Signs until then; null: for ever.';
COMMENT ON COLUMN pggit.webhook_secret.created_at IS 'When it was made.';
COMMENT ON COLUMN pggit.webhook_secret.created_by IS 'By whom.';

COMMENT ON COLUMN pggit.webhook_limit.webhook_id IS 'Registered, or seen in the queue.';
COMMENT ON COLUMN pggit.webhook_limit.bucket_tat IS 'The token bucket: when it will be full again.';
COMMENT ON COLUMN pggit.webhook_limit.probe_until IS 'A worker holds the leave to probe a half-open breaker until then.';
COMMENT ON COLUMN pggit.webhook_limit.breaker_until IS 'The circuit breaker is open until then.';
COMMENT ON COLUMN pggit.webhook_limit.retry_after_until IS 'The receiver asked for rest until then.';
COMMENT ON COLUMN pggit.webhook_limit.paused_until IS 'Paused until then (pggit.pause_webhook with a time); ends by itself.';
COMMENT ON COLUMN pggit.webhook_limit.blocked_until IS 'The latest of these: nothing is claimed before it. Infinite for an id that nothing has registered.';

COMMENT ON COLUMN pggit.reactor_worker.instance IS 'One run of a worker.';
COMMENT ON COLUMN pggit.reactor_worker.worker_id IS 'Its name in logs and metrics.';
COMMENT ON COLUMN pggit.reactor_worker.version IS 'Of pggit-reactor.';
COMMENT ON COLUMN pggit.reactor_worker.host IS 'Where it runs.';
COMMENT ON COLUMN pggit.reactor_worker.pid IS 'Its process there.';
COMMENT ON COLUMN pggit.reactor_worker.capacity IS 'How many attempts it makes at once.';
COMMENT ON COLUMN pggit.reactor_worker.state IS 'running, draining or stopped.';
COMMENT ON COLUMN pggit.reactor_worker.started_at IS 'When it started.';
COMMENT ON COLUMN pggit.reactor_worker.heartbeat_at IS 'When it was last heard; at least each 5 s while it lives.';
COMMENT ON COLUMN pggit.reactor_worker.in_flight IS 'Attempts at the last heartbeat.';

COMMENT ON COLUMN pggit.key_check.key_id IS 'The id of a master key.';
COMMENT ON COLUMN pggit.key_check.check_value IS 'Derived from the key; tells whether a key is this one, and nothing about it.';
COMMENT ON COLUMN pggit.key_check.created_at IS 'When the key was first used here.';
COMMENT ON COLUMN pggit.key_check.retired_at IS 'Since when nothing is sealed with it.';

COMMENT ON COLUMN pggit.schema_migration.version IS 'The number of the migration.';
COMMENT ON COLUMN pggit.schema_migration.name IS 'Its name.';
COMMENT ON COLUMN pggit.schema_migration.digest IS 'SHA-256 of its file.';
COMMENT ON COLUMN pggit.schema_migration.breaking IS 'A contract step: programs that do not know it refuse to work.';
COMMENT ON COLUMN pggit.schema_migration.applied_at IS 'When.';
COMMENT ON COLUMN pggit.schema_migration.applied_by IS 'By which user of the database.';

COMMENT ON COLUMN pggit.alert_routing_rules.rule_id IS 'Grows.';
COMMENT ON COLUMN pggit.alert_routing_rules.severity_level IS 'CRITICAL, WARNING or INFO: the alert''s must be equal.';
COMMENT ON COLUMN pggit.alert_routing_rules.anomaly_type IS 'Null: all anomalies. Not looked at for an alert of a bottleneck alone.';
COMMENT ON COLUMN pggit.alert_routing_rules.bottleneck_type IS 'Null: all bottlenecks. Not looked at for an alert of an anomaly alone.';
COMMENT ON COLUMN pggit.alert_routing_rules.webhook_id IS 'Who gets it, unless the webhook is disabled.';
COMMENT ON COLUMN pggit.alert_routing_rules.escalation_level IS '1: told first, 2: told on escalation. Routing does not look at it.';
COMMENT ON COLUMN pggit.alert_routing_rules.is_active IS 'False keeps the rule and sends nothing.';
COMMENT ON COLUMN pggit.alert_routing_rules.created_at IS 'When it was made.';
COMMENT ON COLUMN pggit.alert_routing_rules.updated_at IS 'When it last changed, as far as who changed it says so.';
COMMENT ON COLUMN pggit.alert_observers.observer_id IS 'Grows.';
COMMENT ON COLUMN pggit.alert_observers.observer_type IS 'delivery, escalation or health.';
COMMENT ON COLUMN pggit.alert_observers.is_active IS 'Kept for old schedulers.';
COMMENT ON COLUMN pggit.alert_observers.execution_count IS 'How often it ran.';
COMMENT ON COLUMN pggit.alert_observers.last_execution_at IS 'When it ran last.';
COMMENT ON COLUMN pggit.alert_observers.last_error IS 'What went wrong last.';
COMMENT ON COLUMN pggit.alert_observers.created_at IS 'When the row was made.';
COMMENT ON COLUMN pggit.alert_observers.updated_at IS 'When it last changed.';
COMMENT ON COLUMN pggit.routing_default.default_id IS 'Grows.';
COMMENT ON COLUMN pggit.routing_default.created_at IS 'When it was made.';
COMMENT ON COLUMN pggit.routing_default.updated_at IS 'When it last changed, as far as who changed it says so.';

---------------------------------------------------------------------------------------------------------------------
-- Sequences, indexes, trigger functions, triggers
---------------------------------------------------------------------------------------------------------------------

COMMENT ON SEQUENCE pggit.webhook_id_seq IS 'For next_webhook_id, which skips ids in use.';
COMMENT ON SEQUENCE pggit.webhook_revision_seq IS 'For webhook.revision: no revision comes twice, also of a webhook that was removed and added.';

COMMENT ON INDEX pggit.alert_delivery_queue_claim_idx IS 'What claims walk: a webhook''s open rows by priority and time.';
COMMENT ON INDEX pggit.alert_delivery_queue_idempotency_idx IS 'One delivery a webhook and key.';
COMMENT ON INDEX pggit.alert_delivery_log_delivery_idx IS 'The log of a delivery, and the cascade when it is deleted.';
COMMENT ON INDEX pggit.alert_delivery_log_webhook_idx IS 'The newest events of a webhook.';
COMMENT ON INDEX pggit.alert_delivery_log_rare_idx IS 'Events other than deliveries and attempts.';
COMMENT ON INDEX pggit.alert_delivery_log_created_idx IS 'Events of a time; small, for rows come in order.';
COMMENT ON INDEX pggit.webhook_audit_log_webhook_idx IS 'What was done to a webhook, newest first.';
COMMENT ON INDEX pggit.webhook_audit_log_rare_idx IS 'Operations other than attempts, newest first.';

COMMENT ON FUNCTION pggit.queue_after_insert() IS 'NOTIFYs workers of new rows, unless one answers for the silence (reactor_gate) or pggit.notify is off.';
COMMENT ON FUNCTION pggit.queue_void_lease() IS 'Takes the lease from a row that somebody else than its holder settled or moved.';
COMMENT ON FUNCTION pggit.queue_revive() IS 'Prepares a row that comes back from delivered or failed.';
COMMENT ON FUNCTION pggit.queue_after_update() IS 'NOTIFYs workers of a row that became due, or due sooner.';
COMMENT ON FUNCTION pggit.webhook_before_change() IS 'Gives a changed webhook a new revision.';
COMMENT ON FUNCTION pggit.webhook_after_change() IS 'Frees what waited for the registration, and NOTIFYs workers.';
COMMENT ON FUNCTION pggit.webhook_after_remove() IS 'Makes what is still queued wait for a registration.';

COMMENT ON TRIGGER queue_after_insert ON pggit.alert_delivery_queue IS 'Wakes workers, once a statement.';
COMMENT ON TRIGGER queue_a_void_lease ON pggit.alert_delivery_queue IS 'For outsiders'' UPDATEs; a worker''s own settle does not match.';
COMMENT ON TRIGGER queue_b_revive ON pggit.alert_delivery_queue IS 'For replays and re-queues.';
COMMENT ON TRIGGER queue_after_update ON pggit.alert_delivery_queue IS 'Wakes workers; a worker''s own settle does not match.';
COMMENT ON TRIGGER webhook_before_change ON pggit.webhook IS 'New revision.';
COMMENT ON TRIGGER webhook_after_change ON pggit.webhook IS 'Wakes workers.';
COMMENT ON TRIGGER webhook_after_remove ON pggit.webhook IS 'Its deliveries wait as unknown.';
COMMENT ON TRIGGER health_after_reset ON pggit.webhook_health_metrics IS 'For people who reset a webhook by UPDATE.';
COMMENT ON TRIGGER webhook_secret_after_change ON pggit.webhook_secret IS 'A change of a secret is a change of its webhook.';
