-- What users of pgGit's phase 8 call and read: functions, views, routing rules, observers.
--
-- Locks and rewrites: creates only. At its end it puts back what 0001 had to set aside.

---------------------------------------------------------------------------------------------------------------------
-- Tables of which old schemas may hold one already; such a one is left as it is
---------------------------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS pggit.alert_routing_rules (
    rule_id bigserial PRIMARY KEY,
    severity_level text NOT NULL
        CONSTRAINT severity_level_check CHECK (severity_level IN ('CRITICAL', 'WARNING', 'INFO')),
    anomaly_type text,
    bottleneck_type text,
    webhook_id bigint NOT NULL,
    escalation_level integer DEFAULT 1,
    is_active boolean DEFAULT true,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);
COMMENT ON TABLE pggit.alert_routing_rules IS 'Which webhooks an alert of a severity and type goes to; a null type means all.';

CREATE TABLE IF NOT EXISTS pggit.alert_observers (
    observer_id bigserial PRIMARY KEY,
    observer_type text NOT NULL UNIQUE
        CONSTRAINT observer_type_check CHECK (observer_type IN ('delivery', 'escalation', 'health')),
    is_active boolean NOT NULL DEFAULT true,
    execution_count integer NOT NULL DEFAULT 0,
    last_execution_at timestamptz,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE pggit.alert_observers IS 'When process_failed_deliveries ran last. Workers need no row here.';
INSERT INTO pggit.alert_observers (observer_type) VALUES ('delivery'), ('escalation'), ('health')
ON CONFLICT (observer_type) DO NOTHING;

---------------------------------------------------------------------------------------------------------------------
-- Claims of SQL callers
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.sql_lease() RETURNS interval
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    written CONSTANT text := coalesce(nullif(current_setting('pggit.lease', true), ''), '30 s');
    lease interval;
BEGIN
    BEGIN
        lease := written::interval;
    EXCEPTION WHEN data_exception THEN
        lease := NULL;
    END;
    IF lease IS NULL OR lease NOT BETWEEN interval '0' AND interval '1 day' THEN
        RAISE EXCEPTION 'setting pggit.lease is %; allowed: 0 (only look) to 1 day, such as ''30 s''', quote_literal(written)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN lease;
END $$;
COMMENT ON FUNCTION pggit.sql_lease() IS
    'How long get_ready_deliveries claims for its caller: setting pggit.lease, 30 s by default; 0 only looks.';

CREATE FUNCTION pggit.webhooks_on_hold() RETURNS bigint[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN ARRAY(
    SELECT w.webhook_id FROM pggit.webhook AS w WHERE w.state <> 'active'
    UNION
    SELECT l.webhook_id FROM pggit.webhook_limit AS l WHERE l.paused_until > clock_timestamp()
);
COMMENT ON FUNCTION pggit.webhooks_on_hold() IS
    'Ids of webhooks that are paused or disabled. As the owner: callers of get_ready_deliveries may not read the registry.';

CREATE FUNCTION pggit.get_ready_deliveries(p_limit integer DEFAULT 10)
RETURNS TABLE (
    delivery_id bigint, alert_id bigint, webhook_id bigint, message_body jsonb, retry_count integer, max_retries integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Nested loops over indexes, whatever the statistics say: a queue is never what it was when they were taken.
SET plan_cache_mode = force_generic_plan SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
-- A stream is what one webhook has ready of one priority: a run of the claim index, by ready_at. The head of each is
-- probed; the streams with the earliest heads are read to a depth, and what is due no later than where the first of
-- them was cut off is a complete merge. At least 1,000 rows are merged, and of them the oldest by created_at are
-- taken: a retry counts as old as its row, and below 1,000 ready rows the choice is exact. Where other sessions hold
-- them locked, the next window is read, four times as wide.
-- Costs 7 us a stream, so 2 ms at 10 webhooks with ready rows and 75 ms at 10,000; 2.3 ms behind 300,000 rows of one.
#variable_conflict use_column
DECLARE
    lease CONSTANT interval := pggit.sql_lease();
    token CONSTANT bigint := ('x' || right(replace(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint;
    wanted CONSTANT bigint := coalesce(p_limit, 2147483647);
    moment CONSTANT timestamptz := clock_timestamp();
    ends CONSTANT timestamptz := moment + lease;
    on_hold CONSTANT bigint[] := pggit.webhooks_on_hold();
    merged_min bigint := greatest(wanted, 1000);
    depth bigint;
    candidates bigint[];
    is_complete boolean;
    got bigint[];
    taken bigint[] := '{}';
BEGIN
    IF p_limit < 0 THEN
        RAISE EXCEPTION 'p_limit is %; allowed: 0 and more, or null for all', p_limit
            USING ERRCODE = 'invalid_row_count_in_limit_clause';
    END IF;
    LOOP
        EXIT WHEN cardinality(taken) >= wanted;
        depth := NULL;
        LOOP
            WITH RECURSIVE stream (webhook_id, priority) AS (
                (SELECT q.webhook_id, q.priority FROM pggit.alert_delivery_queue AS q
                 WHERE q.ready_at IS NOT NULL ORDER BY q.webhook_id, q.priority DESC LIMIT 1)
                UNION ALL
                SELECT n.webhook_id, n.priority
                FROM stream AS s
                CROSS JOIN LATERAL (
                    SELECT b.webhook_id, b.priority FROM (
                        (SELECT q.webhook_id, q.priority FROM pggit.alert_delivery_queue AS q
                         WHERE q.ready_at IS NOT NULL AND q.webhook_id = s.webhook_id AND q.priority < s.priority
                         ORDER BY q.priority DESC LIMIT 1)
                        UNION ALL
                        (SELECT q.webhook_id, q.priority FROM pggit.alert_delivery_queue AS q
                         WHERE q.ready_at IS NOT NULL AND q.webhook_id > s.webhook_id
                         ORDER BY q.webhook_id, q.priority DESC LIMIT 1)
                    ) AS b LIMIT 1
                ) AS n
            ),
            head AS MATERIALIZED (
                SELECT s.webhook_id, s.priority
                FROM stream AS s
                CROSS JOIN LATERAL (
                    SELECT q.ready_at FROM pggit.alert_delivery_queue AS q
                    WHERE q.webhook_id = s.webhook_id AND q.priority = s.priority AND q.ready_at <= moment
                        AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= moment)
                    ORDER BY q.ready_at LIMIT 1
                ) AS first
                WHERE s.webhook_id <> ALL (on_hold)
                ORDER BY first.ready_at
                LIMIT merged_min
            ),
            plan AS MATERIALIZED (
                SELECT coalesce(depth, 2 * merged_min / greatest(count(*), 1) + 8) AS depth FROM head
            ),
            row_of AS MATERIALIZED (
                SELECT h.webhook_id, h.priority, r.delivery_id, r.created_at, r.ready_at
                FROM plan
                CROSS JOIN head AS h
                CROSS JOIN LATERAL (
                    SELECT q.delivery_id, q.created_at, q.ready_at FROM pggit.alert_delivery_queue AS q
                    WHERE q.webhook_id = h.webhook_id AND q.priority = h.priority AND q.ready_at <= moment
                        AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= moment)
                    ORDER BY q.ready_at LIMIT plan.depth
                ) AS r
            ),
            cut AS (
                SELECT max(r.ready_at) AS ready_at FROM row_of AS r
                GROUP BY r.webhook_id, r.priority HAVING count(*) = (SELECT plan.depth FROM plan)
            ),
            bound AS (SELECT min(cut.ready_at) AS ready_at FROM cut)
            SELECT
                array_agg(r.delivery_id ORDER BY r.created_at, r.delivery_id)
                    FILTER (WHERE bound.ready_at IS NULL OR r.ready_at <= bound.ready_at),
                bool_and(bound.ready_at IS NULL) AND (SELECT count(*) FROM head) < merged_min,
                (SELECT plan.depth FROM plan)
            INTO candidates, is_complete, depth
            FROM row_of AS r CROSS JOIN bound;
            EXIT WHEN coalesce(is_complete, true) OR cardinality(candidates) >= merged_min;
            depth := depth * 4;
        END LOOP;
        EXIT WHEN candidates IS NULL;
        IF lease = interval '0' THEN
            RETURN QUERY
            SELECT q.delivery_id, q.alert_id, q.webhook_id, q.message_body, q.retry_count, q.max_retries
            FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = ANY (candidates)
            ORDER BY q.created_at, q.delivery_id LIMIT wanted;
            RETURN;
        END IF;
        got := ARRAY(
            SELECT q.delivery_id
            FROM unnest(candidates) WITH ORDINALITY AS c (delivery_id, place)
            JOIN pggit.alert_delivery_queue AS q ON q.delivery_id = c.delivery_id
            WHERE q.ready_at <= moment AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= moment)
            ORDER BY c.place
            LIMIT wanted - cardinality(taken)
            FOR NO KEY UPDATE OF q SKIP LOCKED
        );
        UPDATE pggit.alert_delivery_queue AS q
        SET lease_token = token,
            lease_expires_at = ends,
            leased_by = format('sql %s %s', session_user, pg_backend_pid()),
            -- So many rows would be in every prober's way: they leave the claim index until the lease is over.
            held_until = CASE WHEN wanted > 1000 THEN ends ELSE q.held_until END
        WHERE q.delivery_id = ANY (got);
        taken := taken || got;
        EXIT WHEN coalesce(is_complete, true);
        merged_min := merged_min * 4;
    END LOOP;
    RETURN QUERY
    SELECT q.delivery_id, q.alert_id, q.webhook_id, q.message_body, q.retry_count, q.max_retries
    FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = ANY (taken)
    ORDER BY q.created_at, q.delivery_id;
END $$;
COMMENT ON FUNCTION pggit.get_ready_deliveries(integer) IS
    'Claims up to p_limit ready rows, oldest first, for pggit.lease (30 s; SET pggit.lease = 0 only looks). Writing a status or next_retry_at ends the claim.';

---------------------------------------------------------------------------------------------------------------------
-- What old workers call
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.update_webhook_health(
    p_webhook_id bigint, p_http_status integer, p_response_time_ms integer, p_error_message text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    status CONSTANT integer := coalesce(p_http_status, 0);
    succeeded CONSTANT boolean := status BETWEEN 200 AND 299;
    is_transient CONSTANT boolean := status = 0 OR status >= 500;
    -- What the column holds; an old worker that measured for a month is still counted.
    took CONSTANT numeric := CASE WHEN p_response_time_ms > 99999999 THEN 99999999 ELSE p_response_time_ms END;
BEGIN
    INSERT INTO pggit.webhook_health_metrics AS h (
        webhook_id, total_deliveries, successful_deliveries, failed_deliveries, avg_response_time_ms, max_response_time_ms,
        min_response_time_ms, health_status, last_check_at, last_success_at, last_failure_at, consecutive_failures, updated_at,
        breaker_failures)
    VALUES (
        p_webhook_id, 1, succeeded::integer, 1 - succeeded::integer, took, took, took,
        CASE WHEN succeeded THEN 'healthy' WHEN is_transient THEN 'degraded' ELSE 'unavailable' END,
        now(), CASE WHEN succeeded THEN now() END, CASE WHEN NOT succeeded THEN now() END, 1 - succeeded::integer, now(),
        is_transient::integer)
    ON CONFLICT (webhook_id) DO UPDATE SET
        total_deliveries = coalesce(h.total_deliveries, 0) + 1,
        successful_deliveries = coalesce(h.successful_deliveries, 0) + excluded.successful_deliveries,
        failed_deliveries = coalesce(h.failed_deliveries, 0) + excluded.failed_deliveries,
        avg_response_time_ms = CASE
            WHEN h.avg_response_time_ms IS NULL OR took IS NULL THEN coalesce(h.avg_response_time_ms, took)
            ELSE (h.avg_response_time_ms * coalesce(h.total_deliveries, 0) + took)
                 / (coalesce(h.total_deliveries, 0)::numeric + 1) END,
        max_response_time_ms = greatest(h.max_response_time_ms, took),
        min_response_time_ms = least(h.min_response_time_ms, took),
        health_status = excluded.health_status,
        last_check_at = excluded.last_check_at,
        last_success_at = coalesce(excluded.last_success_at, h.last_success_at),
        last_failure_at = coalesce(excluded.last_failure_at, h.last_failure_at),
        consecutive_failures = CASE WHEN succeeded THEN 0 ELSE least(coalesce(h.consecutive_failures, 0), 2147483646) + 1 END,
        updated_at = excluded.updated_at,
        -- Permanent failures say nothing about the receiver's health to the breaker. A success closes it: see the trigger.
        breaker_failures = least(h.breaker_failures, 2147483646) + excluded.breaker_failures;
    RETURN true;
END $$;
COMMENT ON FUNCTION pggit.update_webhook_health(bigint, integer, integer, text) IS
    'Counts one attempt: 2xx healthy, 0 or 500 and above degraded, anything else unavailable. The error text is stored nowhere.';

CREATE FUNCTION pggit.health_after_reset() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Closes the breaker. As the owner: who resets a webhook by the legacy UPDATE holds no rights on the limits.
BEGIN
    IF NEW.breaker_failures <> 0 OR NEW.breaker_opened_at IS NOT NULL OR NEW.breaker_window_started_at IS NOT NULL
        OR NEW.breaker_opens <> 0 THEN
        UPDATE pggit.webhook_health_metrics
        SET breaker_failures = 0, breaker_window_started_at = NULL, breaker_window_attempts = 0, breaker_window_failures = 0,
            breaker_opened_at = NULL, breaker_opens = 0
        WHERE webhook_id = NEW.webhook_id;
    END IF;
    UPDATE pggit.webhook_limit SET breaker_until = NULL WHERE webhook_id = NEW.webhook_id AND breaker_until IS NOT NULL;
    IF FOUND THEN
        PERFORM pg_notify('pggit_delivery', NEW.webhook_id::text);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.health_after_reset() IS 'Closes the breaker of a webhook whose failures in a row were set to 0.';
REVOKE ALL ON FUNCTION pggit.health_after_reset() FROM PUBLIC;
CREATE TRIGGER health_after_reset AFTER UPDATE ON pggit.webhook_health_metrics FOR EACH ROW
    WHEN (NEW.consecutive_failures = 0
          AND (OLD.consecutive_failures IS DISTINCT FROM 0 OR OLD.health_status <> NEW.health_status
               OR OLD.breaker_failures <> 0 OR OLD.breaker_opened_at IS NOT NULL)
          AND (NEW.breaker_failures, NEW.breaker_window_attempts, NEW.breaker_window_failures, NEW.breaker_opens)
              = (OLD.breaker_failures, OLD.breaker_window_attempts, OLD.breaker_window_failures, OLD.breaker_opens)
          AND NEW.breaker_opened_at IS NOT DISTINCT FROM OLD.breaker_opened_at
          AND NEW.breaker_window_started_at IS NOT DISTINCT FROM OLD.breaker_window_started_at)
    EXECUTE FUNCTION pggit.health_after_reset();

CREATE FUNCTION pggit.count_pending_by_status()
RETURNS TABLE (pending_count bigint, retrying_count bigint, delivered_count bigint, failed_count bigint, total_count bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        count(*) FILTER (WHERE q.delivery_status = 'pending'),
        count(*) FILTER (WHERE q.delivery_status = 'retrying'),
        count(*) FILTER (WHERE q.delivery_status = 'delivered'),
        count(*) FILTER (WHERE q.delivery_status = 'failed'),
        count(*)
    FROM pggit.alert_delivery_queue AS q;
END;
COMMENT ON FUNCTION pggit.count_pending_by_status() IS 'Counts the whole queue, which it reads: 0.3 s per 1,000,000 rows.';

CREATE FUNCTION pggit.get_webhook_decrypted(p_webhook_id bigint) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- As the owner: old workers may call it, and may not read the registry.
BEGIN
    IF EXISTS (SELECT FROM pggit.webhook AS w WHERE w.webhook_id = p_webhook_id) THEN
        RAISE EXCEPTION 'the URL of webhook % is sealed with a key that is not in this database; pggit-reactor workers deliver to it, and `pggit-reactor webhook show % --reveal` shows it',
            p_webhook_id, p_webhook_id USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.get_webhook_decrypted(bigint) IS 'Null for an id that nothing registered; URLs of registered webhooks are sealed.';

CREATE FUNCTION pggit.log_webhook_delivery(
    p_webhook_id bigint, p_delivery_id bigint, p_status_code integer, p_signature_verified boolean DEFAULT false)
RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO pggit.webhook_audit_log (webhook_id, delivery_id, operation, status_code, signature_verified)
    VALUES (p_webhook_id, p_delivery_id, CASE WHEN p_status_code BETWEEN 200 AND 299 THEN 'delivered' ELSE 'failed' END,
            p_status_code, p_signature_verified)
    RETURNING audit_id;
END;
COMMENT ON FUNCTION pggit.log_webhook_delivery(bigint, bigint, integer, boolean) IS
    'Writes an audit row and returns its audit_id: 2xx is delivered, anything else failed. Workers of ours write their own.';

---------------------------------------------------------------------------------------------------------------------
-- Week 1
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.observer_queue_alert(p_alert_id bigint, p_webhook_id bigint, p_message_body jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_id bigint;
BEGIN
    INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body)
    VALUES (p_alert_id, p_webhook_id, p_message_body)
    RETURNING delivery_id INTO new_id;
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type) VALUES (new_id, p_webhook_id, 'queued');
    RETURN new_id;
END $$;
COMMENT ON FUNCTION pggit.observer_queue_alert(bigint, bigint, jsonb) IS
    'Queues one delivery, logs that, and returns its delivery_id. New code: pggit.enqueue.';

CREATE FUNCTION pggit.delivery_report(p_delivery_id bigint, p_remark text)
RETURNS TABLE (delivery_id bigint, status text, http_status integer, error_message text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT q.delivery_id, q.delivery_status, q.last_status, coalesce(p_remark, q.last_error)
    FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = p_delivery_id;
END;
COMMENT ON FUNCTION pggit.delivery_report(bigint, text) IS
    'What observer_deliver_alert and retry_delivery answer: the row''s status and the last answer that a receiver gave.';

CREATE FUNCTION pggit.observer_deliver_alert(p_delivery_id bigint)
RETURNS TABLE (delivery_id bigint, status text, http_status integer, error_message text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- Delivering is the workers' work: this puts the row in front of them.
#variable_conflict use_column
DECLARE
    remark text;
BEGIN
    SELECT CASE
        WHEN q.delivery_status IN ('delivered', 'failed') THEN NULL
        WHEN q.lease_expires_at > clock_timestamp() THEN 'being delivered at this moment'
        ELSE 'due now; a worker delivers it' END
    INTO remark FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = p_delivery_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'p_delivery_id is %; no delivery has this id', coalesce(p_delivery_id::text, 'null')
            USING ERRCODE = 'no_data_found';
    END IF;
    UPDATE pggit.alert_delivery_queue AS q
    SET next_retry_at = CASE q.delivery_status WHEN 'retrying' THEN least(q.next_retry_at, now()) END, held_until = NULL
    WHERE q.delivery_id = p_delivery_id AND remark LIKE 'due now%'
        AND (q.ready_at > now() OR q.held_until IS NOT NULL);
    RETURN QUERY SELECT r.delivery_id, r.status, r.http_status, r.error_message FROM pggit.delivery_report(p_delivery_id, remark) AS r;
END $$;
COMMENT ON FUNCTION pggit.observer_deliver_alert(bigint) IS
    'Makes a pending or retrying delivery due now. Reports the row as it is: delivered only after an HTTP answer.';

CREATE FUNCTION pggit.retry_delivery(p_delivery_id bigint)
RETURNS TABLE (delivery_id bigint, status text, http_status integer, error_message text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    was text;
    remark text := 'due now; a worker delivers it';
BEGIN
    SELECT q.delivery_status INTO was FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = p_delivery_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'p_delivery_id is %; no delivery has this id', coalesce(p_delivery_id::text, 'null')
            USING ERRCODE = 'no_data_found';
    END IF;
    IF was IN ('retrying', 'failed') THEN
        UPDATE pggit.alert_delivery_queue AS q
        SET delivery_status = 'pending', next_retry_at = NULL, attempted_at = NULL, held_until = NULL
        WHERE q.delivery_id = p_delivery_id;
    ELSE
        remark := format('a %s delivery is left as it is; retried are: retrying, failed', was);
    END IF;
    RETURN QUERY SELECT r.delivery_id, r.status, r.http_status, r.error_message FROM pggit.delivery_report(p_delivery_id, remark) AS r;
END $$;
COMMENT ON FUNCTION pggit.retry_delivery(bigint) IS 'Takes a retrying or failed delivery back to pending, due at once.';

CREATE FUNCTION pggit.observer_escalate_failed_alerts()
RETURNS TABLE (
    delivery_id bigint, webhook_id bigint, delivery_status text, retry_count integer, hours_pending numeric,
    created_at timestamptz)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT q.delivery_id, q.webhook_id, q.delivery_status, q.retry_count,
        round((extract(epoch FROM now()) - extract(epoch FROM q.created_at)) / 3600, 2), q.created_at
    FROM pggit.alert_delivery_queue AS q
    WHERE q.ready_at IS NOT NULL AND q.delivery_status IN ('pending', 'retrying')
        AND q.created_at < now() - interval '30 minutes'
    ORDER BY q.created_at, q.delivery_id;
END;
COMMENT ON FUNCTION pggit.observer_escalate_failed_alerts() IS
    'Reports deliveries that were queued over 30 minutes ago and are not done; changes nothing.';

CREATE FUNCTION pggit.get_delivery_status(p_delivery_id bigint)
RETURNS TABLE (
    delivery_id bigint, delivery_status text, retry_count integer, max_retries integer, next_retry_at timestamptz,
    created_at timestamptz, delivered_at timestamptz)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT q.delivery_id, q.delivery_status, q.retry_count, q.max_retries, q.next_retry_at, q.created_at, q.delivered_at
    FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = p_delivery_id;
END;
COMMENT ON FUNCTION pggit.get_delivery_status(bigint) IS 'Where one delivery stands; no row for an unknown id.';

CREATE FUNCTION pggit.get_delivery_log(p_delivery_id bigint)
RETURNS TABLE (log_id bigint, delivery_id bigint, event_type text, event_details jsonb, created_at timestamptz)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT g.log_id, g.delivery_id, g.event_type, g.event_details, g.created_at
    FROM pggit.alert_delivery_log AS g WHERE g.delivery_id = p_delivery_id
    ORDER BY g.created_at, g.log_id;
END;
COMMENT ON FUNCTION pggit.get_delivery_log(bigint) IS 'What happened to one delivery, oldest first.';

CREATE FUNCTION pggit.count_pending_deliveries()
RETURNS TABLE (pending_count bigint, retrying_count bigint, failed_count bigint, total_count bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT c.pending_count, c.retrying_count, c.failed_count, c.total_count FROM pggit.count_pending_by_status() AS c;
END;
COMMENT ON FUNCTION pggit.count_pending_deliveries() IS 'Counts the queue by status; the total is of all rows, delivered ones too.';

CREATE FUNCTION pggit.process_failed_deliveries()
RETURNS TABLE (
    processed_count integer, succeeded_count integer, failed_count integer, escalated_count integer,
    execution_timestamp timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- Meant for a schedule of once a minute. Workers send retries when they are due, with or without it; it wakes them for
-- up to 50 that are, and reports what became of retries since its last run. It fails nothing and reports no success
-- that no receiver answered.
#variable_conflict use_column
DECLARE
    since timestamptz;
BEGIN
    execution_timestamp := clock_timestamp();
    UPDATE pggit.alert_observers AS o
    SET execution_count = least(o.execution_count, 2147483646) + 1, last_execution_at = now(), last_error = NULL, updated_at = now()
    FROM (SELECT b.observer_id, b.last_execution_at FROM pggit.alert_observers AS b
          WHERE b.observer_type = 'delivery' FOR UPDATE) AS before
    WHERE o.observer_id = before.observer_id
    RETURNING before.last_execution_at INTO since;
    since := coalesce(since, now() - interval '1 minute');

    SELECT count(*), count(pg_notify('pggit_delivery', d.webhook_id::text)) INTO processed_count
    FROM (SELECT q.webhook_id FROM pggit.alert_delivery_queue AS q
          WHERE q.delivery_status = 'retrying' AND q.ready_at <= now()
              AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())
          LIMIT 50) AS d;
    SELECT count(*) FILTER (WHERE g.event_type = 'delivered'), count(*) FILTER (WHERE g.event_type = 'failed')
    INTO succeeded_count, failed_count
    FROM pggit.alert_delivery_log AS g
    WHERE g.created_at > since AND g.event_type IN ('delivered', 'failed') AND g.event_details ->> 'retry_count' <> '0';
    SELECT count(*) INTO escalated_count FROM pggit.observer_escalate_failed_alerts();
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION pggit.process_failed_deliveries() IS
    'Wakes the workers for up to 50 due retries; counts retries that succeeded or failed since its last run, and rows waiting over 30 minutes.';

CREATE FUNCTION pggit.reset_stuck_deliveries()
RETURNS TABLE (reset_count integer, execution_timestamp timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- Leaves out what is not stuck: a row that is being delivered, and one that its producer put off.
#variable_conflict use_column
BEGIN
    execution_timestamp := clock_timestamp();
    WITH stuck AS MATERIALIZED (
        SELECT q.delivery_id, q.delivery_status AS was
        FROM pggit.alert_delivery_queue AS q
        WHERE q.ready_at IS NOT NULL AND q.delivery_status IN ('pending', 'retrying')
            AND q.created_at < now() - interval '60 minutes'
            AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())
            AND NOT (q.delivery_status = 'pending' AND q.attempt_count = 0 AND coalesce(q.next_retry_at > now(), false))
        FOR NO KEY UPDATE SKIP LOCKED
    ),
    put_back AS (
        UPDATE pggit.alert_delivery_queue AS q
        SET delivery_status = 'pending', retry_count = 0, next_retry_at = NULL, attempted_at = NULL, held_until = NULL
        FROM stuck AS s WHERE q.delivery_id = s.delivery_id
        RETURNING q.delivery_id, q.webhook_id, s.was
    ),
    logged AS (
        INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
        SELECT p.delivery_id, p.webhook_id, 'escalated', jsonb_build_object(
            'action', 'reset_to_pending', 'reason', 'not done 60 minutes after it was queued', 'was', p.was)
        FROM put_back AS p
    )
    SELECT count(*) INTO reset_count FROM put_back;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION pggit.reset_stuck_deliveries() IS
    'Takes rows that are not done after 60 minutes back to pending with no retries counted; logs each as escalated.';

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
    IF to_regclass('pggit.alert_notification_queue') IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_trigger AS t
        WHERE t.tgrelid = to_regclass('pggit.alert_notification_queue')
            AND t.tgfoid = 'pggit.trigger_queue_alert'::regproc) THEN
        CREATE TRIGGER trigger_alert_queue AFTER INSERT ON pggit.alert_notification_queue
            FOR EACH ROW EXECUTE FUNCTION pggit.trigger_queue_alert();
    END IF;
END $$;

---------------------------------------------------------------------------------------------------------------------
-- Views
---------------------------------------------------------------------------------------------------------------------

CREATE VIEW pggit.v_webhook_health_dashboard AS
SELECT
    h.health_status,
    count(*) AS webhook_count,
    round(avg(h.avg_response_time_ms), 2) AS avg_response_ms,
    round(max(h.max_response_time_ms), 2) AS max_response_ms,
    round(min(h.min_response_time_ms), 2) AS min_response_ms,
    count(*) FILTER (WHERE h.last_failure_at > now() - interval '1 hour') AS failures_1h,
    count(*) FILTER (WHERE h.last_failure_at > now() - interval '24 hours') AS failures_24h,
    now() AS calculated_at
FROM pggit.webhook_health_metrics AS h
GROUP BY h.health_status
ORDER BY h.health_status;
COMMENT ON VIEW pggit.v_webhook_health_dashboard IS 'A row a health status; failures count webhooks whose last failure lies within.';

CREATE VIEW pggit.v_degraded_webhooks AS
SELECT
    h.webhook_id,
    h.health_status,
    h.total_deliveries,
    h.successful_deliveries,
    h.failed_deliveries,
    round(100.0 * h.successful_deliveries / nullif(h.total_deliveries, 0), 1) AS success_rate_percent,
    h.consecutive_failures,
    round(h.avg_response_time_ms, 2) AS avg_response_ms,
    h.last_check_at,
    h.last_success_at,
    h.last_failure_at,
    (extract(epoch FROM now()) - extract(epoch FROM h.last_check_at)) / 60 AS minutes_since_check,
    (extract(epoch FROM now()) - extract(epoch FROM h.last_success_at)) / 3600 AS hours_since_success
FROM pggit.webhook_health_metrics AS h
WHERE h.health_status IN ('degraded', 'unavailable')
ORDER BY h.consecutive_failures DESC, h.last_failure_at DESC;
COMMENT ON VIEW pggit.v_degraded_webhooks IS 'Webhooks in trouble, worst first.';

CREATE VIEW pggit.v_webhook_performance AS
SELECT
    h.webhook_id,
    h.total_deliveries,
    h.successful_deliveries,
    h.failed_deliveries,
    round(100.0 * h.successful_deliveries / nullif(h.total_deliveries, 0), 1) AS success_rate_percent,
    round(h.avg_response_time_ms, 2) AS avg_response_ms,
    round(h.max_response_time_ms, 2) AS max_response_ms,
    round(h.min_response_time_ms, 2) AS min_response_ms,
    h.health_status,
    h.last_check_at,
    CASE
        WHEN h.last_success_at > now() - interval '15 minutes' THEN 'healthy_recent'
        WHEN h.last_success_at > now() - interval '1 hour' THEN 'healthy_hour'
        WHEN h.last_success_at > now() - interval '24 hours' THEN 'healthy_day'
        ELSE 'no_recent_success'
    END AS success_freshness,
    now() AS calculated_at
FROM pggit.webhook_health_metrics AS h
ORDER BY success_rate_percent DESC, h.total_deliveries DESC;
COMMENT ON VIEW pggit.v_webhook_performance IS 'Every webhook that was ever attempted: rates, times, and how fresh its last success is.';

CREATE VIEW pggit.v_delivery_queue_status AS
SELECT
    s.status,
    count(q.delivery_id) AS count,
    min(CASE s.status WHEN 'delivered' THEN q.delivered_at ELSE q.created_at END) AS oldest,
    max(CASE s.status WHEN 'delivered' THEN q.delivered_at ELSE q.created_at END) AS newest
FROM (VALUES ('pending', 1), ('retrying', 2), ('delivered', 3), ('failed', 4)) AS s (status, place)
LEFT JOIN pggit.alert_delivery_queue AS q ON q.delivery_status = s.status
GROUP BY s.status, s.place
ORDER BY s.place;
COMMENT ON VIEW pggit.v_delivery_queue_status IS 'Always four rows; of delivered ones the times are those of their delivery.';

CREATE VIEW pggit.v_delivery_performance AS
SELECT
    count(*) AS total_deliveries,
    count(*) FILTER (WHERE q.delivery_status = 'delivered') AS successful,
    count(*) FILTER (WHERE q.delivery_status = 'failed') AS failed,
    count(*) FILTER (WHERE q.delivery_status IN ('pending', 'retrying')) AS in_progress,
    round(100.0 * count(*) FILTER (WHERE q.delivery_status = 'delivered') / nullif(count(*), 0), 1) AS success_rate_percent,
    round(avg(extract(epoch FROM q.delivered_at) - extract(epoch FROM q.created_at))
          FILTER (WHERE q.delivery_status = 'delivered'), 2) AS avg_delivery_time_seconds,
    max(q.retry_count) AS max_retries_used,
    now() AS calculated_at
FROM pggit.alert_delivery_queue AS q;
COMMENT ON VIEW pggit.v_delivery_performance IS 'The whole queue in one row, which it reads.';

CREATE VIEW pggit.v_failed_deliveries AS
SELECT
    q.delivery_id,
    q.webhook_id,
    q.alert_id,
    q.retry_count,
    q.max_retries,
    q.created_at,
    q.attempted_at,
    round((extract(epoch FROM now()) - extract(epoch FROM q.created_at)) / 3600, 1) AS hours_stuck,
    g.event_details,
    g.created_at AS last_error_at,
    q.failed_reason
FROM pggit.alert_delivery_queue AS q
LEFT JOIN LATERAL (
    SELECT l.event_details, l.created_at
    FROM pggit.alert_delivery_log AS l
    WHERE l.delivery_id = q.delivery_id AND l.event_type = 'failed'
    ORDER BY l.created_at DESC, l.log_id DESC
    LIMIT 1
) AS g ON true
WHERE q.delivery_status = 'failed'
ORDER BY q.created_at, q.delivery_id;
COMMENT ON VIEW pggit.v_failed_deliveries IS 'Dead deliveries, oldest first, each with its newest failure in the log.';

---------------------------------------------------------------------------------------------------------------------
-- Grants
---------------------------------------------------------------------------------------------------------------------

-- It writes as its owner: only who could have written these rows may call it. Who had the right before, keeps it.
REVOKE ALL ON FUNCTION pggit.observer_queue_alert(bigint, bigint, jsonb) FROM PUBLIC;
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role,
            'EXECUTE ON FUNCTION pggit.observer_queue_alert' AS privilege
        FROM pg_class AS c
        CROSS JOIN LATERAL aclexplode(c.relacl) AS a
        WHERE c.oid = 'pggit.alert_delivery_queue'::regclass AND a.privilege_type = 'INSERT'
        UNION ALL
        SELECT quote_ident(g.role), g.privilege
        FROM (VALUES
            ('pggit_producer', 'EXECUTE ON FUNCTION pggit.observer_queue_alert'),
            ('pggit_operator', 'EXECUTE ON FUNCTION pggit.observer_queue_alert'),
            ('pggit_operator', 'SELECT, INSERT, UPDATE, DELETE ON pggit.alert_routing_rules'),
            ('pggit_operator', 'SELECT, UPDATE ON pggit.alert_observers'),
            ('pggit_operator', 'SELECT ON pggit.v_webhook_health_dashboard, pggit.v_degraded_webhooks, pggit.v_webhook_performance,'
                               ' pggit.v_delivery_queue_status, pggit.v_delivery_performance, pggit.v_failed_deliveries'),
            ('pggit_operator', 'USAGE ON SEQUENCE pggit.alert_routing_rules_rule_id_seq'),
            ('pggit_reader', 'SELECT ON pggit.alert_routing_rules, pggit.alert_observers'),
            ('pggit_reader', 'SELECT ON pggit.v_webhook_health_dashboard, pggit.v_degraded_webhooks, pggit.v_webhook_performance,'
                             ' pggit.v_delivery_queue_status, pggit.v_delivery_performance, pggit.v_failed_deliveries')
        ) AS g (role, privilege)
        WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = g.role)
    LOOP
        EXECUTE format('GRANT %s TO %s', wanted.privilege, wanted.role);
    END LOOP;
END $$;

---------------------------------------------------------------------------------------------------------------------
-- The end of adoption
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.adoption_forget_defaults(view_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- What ALTER DEFAULT PRIVILEGES just gave away was not in the old view's grants.
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
        FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
        WHERE c.oid = view_name::regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', view_name, grantee);
    END LOOP;
END $$;

DO $$
DECLARE
    saved record;
    statement text;
BEGIN
    FOR saved IN SELECT s.object, s.statements FROM pggit.adoption_saved AS s ORDER BY s.place LOOP
        FOREACH statement IN ARRAY saved.statements LOOP
            BEGIN
                EXECUTE statement;
            EXCEPTION WHEN OTHERS THEN
                RAISE EXCEPTION '% cannot be put back after its tables changed; drop it, migrate, and create it again: %',
                    saved.object, SQLERRM USING ERRCODE = 'dependent_objects_still_exist';
            END;
        END LOOP;
    END LOOP;
END $$;

DROP TABLE pggit.adoption_saved;
DROP FUNCTION pggit.adoption_forget_defaults(text);
DROP FUNCTION pggit.adoption_clauses(text, text[], text[]);
DROP FUNCTION pggit.adoption_zone();
DROP FUNCTION pggit.adoption_grants(text, aclitem[], oid, text);
