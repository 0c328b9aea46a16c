-- The 28 integration tests of pgGit's phase 8, as assertions. On a migrated scratch database, with no worker running:
--
--     psql --set ON_ERROR_STOP=1 --file integration.sql DATABASE
--
-- Every test is one DO block that raises where the database does not keep its promise; everything is rolled back.
-- Numbers are those of the original's list. 27 and 28 play the worker here; the test suite runs them with a real one.

BEGIN;
SET LOCAL plpgsql.check_asserts = on;
SET LOCAL search_path = pg_catalog, pg_temp;

-- Suite 1: queue

-- 1: an insert is stored pending
DO $$
DECLARE
    id bigint;
    stored pggit.alert_delivery_queue;
BEGIN
    INSERT INTO pggit.alert_delivery_queue (
        alert_id, webhook_id, message_body, delivery_status, retry_count, max_retries, created_at)
    VALUES (1001, 501, '{"alert_id": 1001, "type": "anomaly", "z_score": 3.5}', 'pending', 0, 3, CURRENT_TIMESTAMP)
    RETURNING delivery_id INTO id;
    SELECT * INTO STRICT stored FROM pggit.alert_delivery_queue WHERE delivery_id = id;
    ASSERT stored.delivery_status = 'pending', stored.delivery_status;
    ASSERT (stored.alert_id, stored.webhook_id, stored.retry_count, stored.max_retries) = (1001, 501, 0, 3);
    ASSERT stored.message_body = '{"alert_id": 1001, "type": "anomaly", "z_score": 3.5}';
    ASSERT stored.next_retry_at IS NULL AND stored.attempted_at IS NULL AND stored.delivered_at IS NULL;
END $$;

-- 2: order is first in, first out
DO $$
DECLARE
    ids bigint[];
    got bigint[];
BEGIN
    WITH inserted AS (
        INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at)
        SELECT 1100 + n, 510 + n % 3, '{}', now() - make_interval(secs => n) FROM generate_series(1, 20) AS n
        RETURNING delivery_id, created_at
    )
    SELECT array_agg(delivery_id ORDER BY created_at) INTO ids FROM inserted;
    SELECT array_agg(r.delivery_id ORDER BY r.place) INTO got
    FROM pggit.get_ready_deliveries(1000) WITH ORDINALITY AS r (
        delivery_id, alert_id, webhook_id, message_body, retry_count, max_retries, place)
    WHERE r.webhook_id BETWEEN 510 AND 512;
    ASSERT got = ids, format('%s is not %s', got, ids);
END $$;

-- 3: get_ready_deliveries(10) returns it
DO $$
DECLARE
    id bigint;
    row record;
BEGIN
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at)
    VALUES (1201, 520, '["as", {"inserted": 1.50}, null]', now() - interval '100 years')
    RETURNING delivery_id INTO id;
    SELECT * INTO STRICT row FROM pggit.get_ready_deliveries(10) AS r WHERE r.delivery_id = id;
    ASSERT (row.alert_id, row.webhook_id, row.retry_count, row.max_retries) = (1201, 520, 0, 3);
    ASSERT row.message_body::text = '["as", {"inserted": 1.50}, null]';
END $$;

-- 4: polling leaves the status alone
DO $$
DECLARE
    id bigint;
    stored record;
BEGIN
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1301, 530, '{}')
    RETURNING delivery_id INTO id;
    PERFORM pggit.get_ready_deliveries(1000);
    SELECT q.delivery_status, q.retry_count, q.attempted_at INTO stored
    FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = id;
    ASSERT stored.delivery_status = 'pending' AND stored.retry_count = 0 AND stored.attempted_at IS NULL;
END $$;

-- 5: the limit bounds a batch
DO $$
BEGIN
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)
    SELECT n, 540, '{}' FROM generate_series(1, 25) AS n;
    ASSERT (SELECT count(*) FROM pggit.get_ready_deliveries(7)) = 7;
    ASSERT (SELECT count(*) FROM pggit.get_ready_deliveries(p_limit => 3)) = 3;
    ASSERT (SELECT count(*) FROM pggit.get_ready_deliveries()) = 10;
    ASSERT (SELECT count(*) FROM pggit.get_ready_deliveries(0)) = 0;
    ASSERT (SELECT count(*) FROM pggit.get_ready_deliveries(2147483647)) >= 5;
END $$;

-- Suite 2: health

-- 6: a success creates a healthy row
DO $$
DECLARE
    h pggit.webhook_health_metrics;
BEGIN
    ASSERT pggit.update_webhook_health(601, 200, 45, NULL);
    SELECT * INTO STRICT h FROM pggit.webhook_health_metrics WHERE webhook_id = 601;
    ASSERT (h.health_status, h.total_deliveries, h.successful_deliveries, h.failed_deliveries, h.consecutive_failures)
        = ('healthy', 1, 1, 0, 0);
    ASSERT h.last_success_at = now() AND h.last_check_at = now() AND h.last_failure_at IS NULL;
END $$;

-- 7: four successes aggregate
DO $$
DECLARE
    h pggit.webhook_health_metrics;
    ms integer;
BEGIN
    FOREACH ms IN ARRAY ARRAY[45, 50, 60, 40] LOOP
        PERFORM pggit.update_webhook_health(602, 200, ms);
    END LOOP;
    SELECT * INTO STRICT h FROM pggit.webhook_health_metrics WHERE webhook_id = 602;
    ASSERT (h.total_deliveries, h.avg_response_time_ms, h.max_response_time_ms, h.min_response_time_ms) = (4, 48.75, 60, 40),
        h.avg_response_time_ms;
END $$;

-- 8: a 500 degrades and counts
DO $$
DECLARE
    h pggit.webhook_health_metrics;
BEGIN
    PERFORM pggit.update_webhook_health(603, 200, 50, NULL);
    PERFORM pggit.update_webhook_health(603, 500, 100, 'Internal Server Error');
    SELECT * INTO STRICT h FROM pggit.webhook_health_metrics WHERE webhook_id = 603;
    ASSERT (h.health_status, h.total_deliveries, h.successful_deliveries, h.failed_deliveries, h.consecutive_failures)
        = ('degraded', 2, 1, 1, 1);
    ASSERT h.last_failure_at = now() AND h.last_success_at IS NOT NULL;
END $$;

-- 9: five failures make five in a row
DO $$
DECLARE
    h pggit.webhook_health_metrics;
BEGIN
    PERFORM pggit.update_webhook_health(604, 503, 10, 'Service Unavailable') FROM generate_series(1, 5);
    SELECT * INTO STRICT h FROM pggit.webhook_health_metrics WHERE webhook_id = 604;
    ASSERT (h.consecutive_failures, h.failed_deliveries, h.total_deliveries) = (5, 5, 5);
    ASSERT h.last_success_at IS NULL;
END $$;

-- 10: a success resets the run and keeps totals
DO $$
DECLARE
    h pggit.webhook_health_metrics;
BEGIN
    PERFORM pggit.update_webhook_health(605, 500, 10, 'no') FROM generate_series(1, 5);
    PERFORM pggit.update_webhook_health(605, 204, 20);
    SELECT * INTO STRICT h FROM pggit.webhook_health_metrics WHERE webhook_id = 605;
    ASSERT (h.health_status, h.consecutive_failures, h.total_deliveries, h.successful_deliveries, h.failed_deliveries)
        = ('healthy', 0, 6, 1, 5);
END $$;

-- Suite 3: views

-- 11: the dashboard has a row a status
DO $$
DECLARE
    statuses text[];
    row record;
BEGIN
    DELETE FROM pggit.webhook_health_metrics;
    PERFORM pggit.update_webhook_health(701, 200, 10);
    PERFORM pggit.update_webhook_health(702, 200, 25);
    PERFORM pggit.update_webhook_health(703, 500, 30);
    PERFORM pggit.update_webhook_health(704, 404, 40);
    INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (705);
    UPDATE pggit.webhook_health_metrics SET last_failure_at = now() - interval '3 hours' WHERE webhook_id = 703;
    statuses := ARRAY(SELECT d.health_status FROM pggit.v_webhook_health_dashboard AS d);
    ASSERT statuses = ARRAY['degraded', 'healthy', 'unavailable', 'unknown'], statuses;
    SELECT * INTO row FROM pggit.v_webhook_health_dashboard WHERE health_status = 'healthy';
    ASSERT (row.webhook_count, row.avg_response_ms, row.max_response_ms, row.min_response_ms) = (2, 17.50, 25, 10);
    SELECT * INTO row FROM pggit.v_webhook_health_dashboard WHERE health_status = 'degraded';
    ASSERT (row.failures_1h, row.failures_24h) = (0, 1);
END $$;

-- 12: performance rates and freshness
DO $$
DECLARE
    row record;
BEGIN
    INSERT INTO pggit.webhook_health_metrics (webhook_id, total_deliveries, successful_deliveries, failed_deliveries, last_success_at)
    VALUES (711, 3, 2, 1, now()), (712, 1, 1, 0, now() - interval '40 minutes'), (713, 4, 1, 3, now() - interval '3 hours'),
           (714, 2, 1, 1, now() - interval '2 days'), (715, 0, 0, 0, NULL);
    FOR row IN
        SELECT p.webhook_id, p.success_rate_percent AS rate, p.success_freshness AS freshness, w.rate AS wanted_rate,
               w.freshness AS wanted_freshness
        FROM (VALUES (711, 66.7, 'healthy_recent'), (712, 100.0, 'healthy_hour'), (713, 25.0, 'healthy_day'),
                     (714, 50.0, 'no_recent_success'), (715, NULL, 'no_recent_success')) AS w (webhook_id, rate, freshness)
        LEFT JOIN pggit.v_webhook_performance AS p USING (webhook_id)
    LOOP
        ASSERT row.rate IS NOT DISTINCT FROM row.wanted_rate, format('%s: %s', row.webhook_id, row.rate);
        ASSERT row.freshness = row.wanted_freshness, format('%s: %s', row.webhook_id, row.freshness);
    END LOOP;
END $$;

-- 13: degraded shows only problems, worst first
DO $$
DECLARE
    ids bigint[];
BEGIN
    DELETE FROM pggit.webhook_health_metrics;
    PERFORM pggit.update_webhook_health(721, 200, 10);
    PERFORM pggit.update_webhook_health(722, 500, 10);
    PERFORM pggit.update_webhook_health(723, 400, 10) FROM generate_series(1, 3);
    PERFORM pggit.update_webhook_health(724, 0, 10) FROM generate_series(1, 2);
    ids := ARRAY(SELECT d.webhook_id FROM pggit.v_degraded_webhooks AS d);
    ASSERT ids = ARRAY[723, 724, 722]::bigint[], ids;
    ASSERT (SELECT d.success_rate_percent = 0.0 AND d.hours_since_success IS NULL AND d.minutes_since_check = 0
            FROM pggit.v_degraded_webhooks AS d WHERE d.webhook_id = 723);
END $$;

-- 14: count_pending_by_status adds up
DO $$
DECLARE
    before record;
    after record;
BEGIN
    SELECT * INTO STRICT before FROM pggit.count_pending_by_status();
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, delivery_status)
    SELECT n, 731, '{}', (ARRAY['pending', 'retrying', 'delivered', 'failed'])[1 + n % 4] FROM generate_series(1, 10) AS n;
    SELECT * INTO STRICT after FROM pggit.count_pending_by_status();
    ASSERT (after.pending_count - before.pending_count, after.retrying_count - before.retrying_count,
            after.delivered_count - before.delivered_count, after.failed_count - before.failed_count) = (2, 3, 3, 2);
    ASSERT after.total_count = after.pending_count + after.retrying_count + after.delivered_count + after.failed_count;
END $$;

-- Suite 4: edges

-- 15: status 0 degrades
DO $$
BEGIN
    PERFORM pggit.update_webhook_health(801, 0, 5000, 'timeout');
    ASSERT (SELECT health_status FROM pggit.webhook_health_metrics WHERE webhook_id = 801) = 'degraded';
END $$;

-- 16: a 400 makes unavailable
DO $$
BEGIN
    PERFORM pggit.update_webhook_health(802, 400, 20, 'Bad Request');
    ASSERT (SELECT health_status FROM pggit.webhook_health_metrics WHERE webhook_id = 802) = 'unavailable';
END $$;

-- 17: an emptied queue yields nothing
DO $$
BEGIN
    DELETE FROM pggit.alert_delivery_queue;
    ASSERT NOT EXISTS (SELECT FROM pggit.get_ready_deliveries(10));
    ASSERT (SELECT total_count FROM pggit.count_pending_by_status()) = 0;
END $$;

-- 18: get_webhook_decrypted knows nothing of an unknown id
DO $$
BEGIN
    ASSERT pggit.get_webhook_decrypted(-9223372036854775808) IS NULL;
    ASSERT pggit.get_webhook_decrypted(p_webhook_id => NULL) IS NULL;
END $$;

-- Suite 5: concurrency, as far as one session shows it; with two of them: tests/integration/legacy

-- 19: rows taken by one caller are skipped, the rest stay available
DO $$
DECLARE
    first bigint[];
    second bigint[];
BEGIN
    DELETE FROM pggit.alert_delivery_queue;
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) SELECT n, 901, '{}' FROM generate_series(1, 6) AS n;
    first := ARRAY(SELECT r.delivery_id FROM pggit.get_ready_deliveries(4) AS r);
    second := ARRAY(SELECT r.delivery_id FROM pggit.get_ready_deliveries(10) AS r);
    ASSERT cardinality(first) = 4 AND cardinality(second) = 2 AND NOT first && second, format('%s and %s', first, second);
END $$;

-- 20: two calls do not block each other: the rows of a claim that lapsed come back
DO $$
DECLARE
    first bigint[];
    second bigint[];
BEGIN
    DELETE FROM pggit.alert_delivery_queue;
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) SELECT n, 902, '{}' FROM generate_series(1, 3) AS n;
    PERFORM set_config('pggit.lease', '1 microsecond', true);
    first := ARRAY(SELECT r.delivery_id FROM pggit.get_ready_deliveries(10) AS r);
    second := ARRAY(SELECT r.delivery_id FROM pggit.get_ready_deliveries(10) AS r);
    PERFORM set_config('pggit.lease', '', true);
    ASSERT cardinality(first) = 3 AND first = second;
END $$;

-- Suite 6: performance, as a multiple of what SELECT 1 takes in this session

CREATE TEMPORARY TABLE pace (what text, ms numeric) ON COMMIT DROP;
DO $$
DECLARE
    began timestamptz;
BEGIN
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, created_at)
    SELECT n, 10000 + n % 100, jsonb_build_object('alert_id', n), now() - make_interval(secs => n * 0.05)
    FROM generate_series(1, 3000) AS n;
    PERFORM pggit.update_webhook_health(10000 + n % 100, 200, n % 90) FROM generate_series(1, 500) AS n;
    FOR turn IN 1 .. 21 LOOP
        began := clock_timestamp();
        EXECUTE 'SELECT 1';
        INSERT INTO pg_temp.pace VALUES ('SELECT 1', extract(epoch FROM clock_timestamp() - began) * 1000);
        began := clock_timestamp();
        EXECUTE 'SELECT * FROM pggit.get_ready_deliveries(100)';
        INSERT INTO pg_temp.pace VALUES ('get_ready_deliveries(100)', extract(epoch FROM clock_timestamp() - began) * 1000);
        began := clock_timestamp();
        EXECUTE 'SELECT pggit.update_webhook_health(10001, 200, 45, NULL)';
        INSERT INTO pg_temp.pace VALUES ('update_webhook_health', extract(epoch FROM clock_timestamp() - began) * 1000);
        began := clock_timestamp();
        EXECUTE 'SELECT * FROM pggit.v_webhook_performance';
        INSERT INTO pg_temp.pace VALUES ('v_webhook_performance', extract(epoch FROM clock_timestamp() - began) * 1000);
    END LOOP;
END $$;

-- 21: get_ready_deliveries(100)
DO $$
DECLARE
    took numeric := (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM pg_temp.pace WHERE what = 'get_ready_deliveries(100)');
    one numeric := (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM pg_temp.pace WHERE what = 'SELECT 1');
BEGIN
    RAISE NOTICE 'get_ready_deliveries(100): % ms, % x SELECT 1', round(took, 3), round(took / one);
    ASSERT took / one < 1500, took / one;
END $$;

-- 22: update_webhook_health
DO $$
DECLARE
    took numeric := (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM pg_temp.pace WHERE what = 'update_webhook_health');
    one numeric := (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM pg_temp.pace WHERE what = 'SELECT 1');
BEGIN
    RAISE NOTICE 'update_webhook_health: % ms, % x SELECT 1', round(took, 3), round(took / one);
    ASSERT took / one < 200, took / one;
END $$;

-- 23: v_webhook_performance
DO $$
DECLARE
    took numeric := (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM pg_temp.pace WHERE what = 'v_webhook_performance');
    one numeric := (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM pg_temp.pace WHERE what = 'SELECT 1');
BEGIN
    RAISE NOTICE 'v_webhook_performance: % ms, % x SELECT 1', round(took, 3), round(took / one);
    ASSERT took / one < 300, took / one;
END $$;

-- Suite 7: integrity

-- 24: total = successful + failed
DO $$
BEGIN
    PERFORM pggit.update_webhook_health(1101, (ARRAY[200, 500, 404, 0, 204])[1 + n % 5], n) FROM generate_series(1, 23) AS n;
    ASSERT (SELECT total_deliveries = successful_deliveries + failed_deliveries AND total_deliveries = 23
            FROM pggit.webhook_health_metrics WHERE webhook_id = 1101);
END $$;

-- 25: one health row a webhook
DO $$
BEGIN
    PERFORM pggit.update_webhook_health(1102, 200, 1) FROM generate_series(1, 3);
    INSERT INTO pggit.webhook_health_metrics (webhook_id, health_status) VALUES (1102, 'healthy') ON CONFLICT (webhook_id) DO NOTHING;
    ASSERT (SELECT count(*) FROM pggit.webhook_health_metrics WHERE webhook_id = 1102) = 1;
    BEGIN
        INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (1102);
        RAISE EXCEPTION 'a second row was taken';
    EXCEPTION WHEN unique_violation THEN
        NULL;
    END;
END $$;

-- 26: only known health words
DO $$
DECLARE
    word text;
BEGIN
    FOREACH word IN ARRAY ARRAY['healthy', 'degraded', 'unavailable', 'unknown'] LOOP
        INSERT INTO pggit.webhook_health_metrics (webhook_id, health_status) VALUES (1103, word)
        ON CONFLICT (webhook_id) DO UPDATE SET health_status = excluded.health_status;
    END LOOP;
    BEGIN
        UPDATE pggit.webhook_health_metrics SET health_status = 'fine' WHERE webhook_id = 1103;
        RAISE EXCEPTION 'an unknown word was taken';
    EXCEPTION WHEN check_violation THEN
        NULL;
    END;
END $$;

-- Suite 8: end to end

-- 27: insert, claim, success: health agrees and the row is delivered
DO $$
DECLARE
    id bigint;
BEGIN
    DELETE FROM pggit.alert_delivery_queue;
    id := pggit.observer_queue_alert(p_alert_id => 1201, p_webhook_id => 1201, p_message_body => '{"severity": "CRITICAL"}');
    ASSERT (SELECT r.delivery_id FROM pggit.get_ready_deliveries(10) AS r) = id;
    UPDATE pggit.alert_delivery_queue
    SET delivery_status = 'delivered', delivered_at = CURRENT_TIMESTAMP, attempted_at = CURRENT_TIMESTAMP WHERE delivery_id = id;
    PERFORM pggit.update_webhook_health(1201, 200, 45, NULL);
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
    VALUES (id, 1201, 'delivered', '{"http_status": 200, "response_time_ms": 45}');
    ASSERT (SELECT s.delivery_status FROM pggit.get_delivery_status(id) AS s) = 'delivered';
    ASSERT (SELECT array_agg(g.event_type) FROM pggit.get_delivery_log(id) AS g) = ARRAY['queued', 'delivered'];
    ASSERT (SELECT (h.health_status, h.successful_deliveries) = ('healthy', 1)
            FROM pggit.webhook_health_metrics AS h WHERE h.webhook_id = 1201);
    ASSERT NOT EXISTS (SELECT FROM pggit.get_ready_deliveries(10));
END $$;

-- 28: insert, failures, retries, failed
DO $$
DECLARE
    id bigint;
    row record;
BEGIN
    DELETE FROM pggit.alert_delivery_queue;
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (1202, 1202, '{}') RETURNING delivery_id INTO id;
    FOR turn IN 0 .. 3 LOOP
        SELECT * INTO STRICT row FROM pggit.get_ready_deliveries(10);
        ASSERT (row.delivery_id, row.retry_count) = (id, turn);
        IF row.retry_count < row.max_retries THEN
            UPDATE pggit.alert_delivery_queue
            SET delivery_status = 'retrying', retry_count = retry_count + 1, next_retry_at = clock_timestamp(),
                attempted_at = CURRENT_TIMESTAMP
            WHERE delivery_id = id;
            INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type) VALUES (id, 1202, 'retrying');
        ELSE
            UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed', attempted_at = CURRENT_TIMESTAMP WHERE delivery_id = id;
            INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
            VALUES (id, 1202, 'failed', '{"http_status": 503, "error": "Service Unavailable"}');
        END IF;
        PERFORM pggit.update_webhook_health(1202, 503, 30, 'Service Unavailable');
    END LOOP;
    ASSERT NOT EXISTS (SELECT FROM pggit.get_ready_deliveries(10));
    ASSERT (SELECT (q.delivery_status, q.retry_count) = ('failed', 3) FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = id);
    ASSERT (SELECT (f.retry_count, f.event_details ->> 'error') = (3, 'Service Unavailable')
            FROM pggit.v_failed_deliveries AS f WHERE f.delivery_id = id);
    ASSERT (SELECT h.consecutive_failures FROM pggit.webhook_health_metrics AS h WHERE h.webhook_id = 1202) = 4;
END $$;

ROLLBACK;
