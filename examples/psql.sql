-- Queue alerts from psql, or from any other client that can INSERT.
--
--   pggit-reactor psql -- -v webhook_id=1 -f examples/psql.sql
\set ON_ERROR_STOP on

-- Three columns are enough. When this returns, the alert is committed and on its way.
INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)
VALUES (1001, :webhook_id, '{"alert": "replica lag", "seconds": 42}')
RETURNING delivery_id;

-- A transaction's alerts leave when it commits ...
BEGIN;
INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)
VALUES (1002, :webhook_id, '{"alert": "checkpoint too frequent"}');
COMMIT;

-- ... and never when it does not.
BEGIN;
INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)
VALUES (1003, :webhook_id, '{"alert": "nobody will hear of this one"}');
ROLLBACK;

-- Many at once, from a query: one statement wakes the workers once.
INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)
SELECT 2000 + n, :webhook_id, jsonb_build_object('alert', 'table bloat', 'table', format('orders_%s', n))
FROM generate_series(1, 3) AS n;

-- pggit.enqueue checks its arguments, and with an idempotency key queues only once: both lines print the same id.
SELECT pggit.enqueue(:webhook_id, '{"alert": "disk full"}', p_event_type => 'disk.full', p_idempotency_key => 'disk:db1');
SELECT pggit.enqueue(:webhook_id, '{"alert": "disk full"}', p_event_type => 'disk.full', p_idempotency_key => 'disk:db1');
