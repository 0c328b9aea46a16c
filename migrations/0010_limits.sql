-- Limits that all workers share: token buckets, circuit breakers, Retry-After.
--
-- Locks and rewrites: columns and triggers on webhook, webhook_limit and webhook_health_metrics (a moment's lock of each,
-- no rewrite). The audit log's check of its operations is made anew, which reads the log once.

---------------------------------------------------------------------------------------------------------------------
-- Token buckets: claims take from them; see core/token_bucket.py
---------------------------------------------------------------------------------------------------------------------

COMMENT ON TABLE pggit.webhook_limit IS
    'Shared limits, one row a webhook id that was registered or seen. Claims write the bucket, settles the rest.';
COMMENT ON COLUMN pggit.webhook_limit.bucket_tat IS
    'When the webhook''s token bucket will be full; null or past: it is. What it lacks is rate_per_s times what is left until then.';

CREATE FUNCTION pggit.webhook_after_rate_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- What the bucket lacks is kept as a time, so it would be another number of tokens at another rate: as many as before shall
-- be missing, so that a change of the rate gives no burst away.
BEGIN
    UPDATE pggit.webhook_limit AS l
    SET bucket_tat = now() + least(
        extract(epoch FROM least(l.bucket_tat, now() + interval '7000 days') - now())::float8 * least(greatest(OLD.rate_per_s, 0.000001), 1000000000)::float8
            / least(greatest(NEW.rate_per_s, 0.000001), 1000000000)::float8,
        extract(epoch FROM interval '7000 days')) * interval '1 s'
    WHERE l.webhook_id = NEW.webhook_id AND l.bucket_tat > now();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION pggit.webhook_after_rate_change() IS 'Keeps the tokens that a bucket lacks when its rate is changed.';
CREATE TRIGGER webhook_after_rate_change AFTER UPDATE OF rate_per_s ON pggit.webhook FOR EACH ROW
    WHEN (OLD.rate_per_s > 0 AND NEW.rate_per_s > 0 AND OLD.rate_per_s <> NEW.rate_per_s)
    EXECUTE FUNCTION pggit.webhook_after_rate_change();
COMMENT ON TRIGGER webhook_after_rate_change ON pggit.webhook IS 'A change of the rate gives no burst away.';

CREATE TABLE pggit.fleet_limit (
    is_only boolean PRIMARY KEY DEFAULT true CONSTRAINT fleet_limit_is_only_check CHECK (is_only),
    bucket_tat timestamptz
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
INSERT INTO pggit.fleet_limit DEFAULT VALUES;
COMMENT ON TABLE pggit.fleet_limit IS
    'One row: the token bucket of all webhooks together, for workers whose setting delivery.fleet_rate_per_s is not 0.';
COMMENT ON COLUMN pggit.fleet_limit.is_only IS 'True: there is one row.';
COMMENT ON COLUMN pggit.fleet_limit.bucket_tat IS 'When it will be full; null or past: it is.';

---------------------------------------------------------------------------------------------------------------------
-- Circuit breakers: core/breaker.py says what they do
---------------------------------------------------------------------------------------------------------------------

DO $$
DECLARE
    words text[];
BEGIN
    -- Whatever words it has by now: those of an adopted table and of other migrations too.
    SELECT array_agg(DISTINCT m.word[1]) INTO words
    FROM pg_constraint AS c
    CROSS JOIN LATERAL regexp_matches(pg_get_constraintdef(c.oid), $re$'([^']+)'$re$, 'g') AS m (word)
    WHERE c.conrelid = 'pggit.webhook_audit_log'::regclass AND c.conname = 'operation_check';
    words := words || ARRAY(
        SELECT w FROM unnest(ARRAY['breaker_opened', 'breaker_half_open', 'breaker_closed', 'webhook_reset']) AS w
        WHERE w <> ALL (words));
    ALTER TABLE pggit.webhook_audit_log DROP CONSTRAINT operation_check;
    EXECUTE format('ALTER TABLE pggit.webhook_audit_log ADD CONSTRAINT operation_check CHECK (operation::text IN (%s))',
                   (SELECT string_agg(quote_literal(w), ', ' ORDER BY w) FROM unnest(words) AS w));
END $$;

ALTER TABLE pggit.webhook_health_metrics
    ADD COLUMN breaker_closed_at timestamptz,
    ADD COLUMN breaker_votes bigint NOT NULL DEFAULT 0;
COMMENT ON TABLE pggit.webhook_health_metrics IS
    'One row a webhook that was ever attempted. The breaker columns count transient failures only; core/breaker.py says how.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_opened_at IS 'When the breaker opened; null: it is closed.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_opens IS 'How often it opened without a whole recovery between; 60 s, then twice as long each time, to 10 min.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_closed_at IS 'When a probe closed it last; its slow start and the doubling go by this.';
COMMENT ON COLUMN pggit.webhook_health_metrics.breaker_votes IS
    'Attempts counted by workers. An UPDATE that leaves it alone is a person''s, and may be a reset.';

ALTER TABLE pggit.webhook_limit
    ADD COLUMN probe_token bigint,
    ADD COLUMN recovering_since timestamptz;
COMMENT ON COLUMN pggit.webhook_limit.breaker_until IS
    'Until when the breaker is open; past: half-open, one probe at a time; null: closed.';
COMMENT ON COLUMN pggit.webhook_limit.probe_until IS 'No probe is let through before: one is under way, or told nothing a moment ago.';
COMMENT ON COLUMN pggit.webhook_limit.probe_token IS 'The lease token of the probe that is under way; its outcome alone counts.';
COMMENT ON COLUMN pggit.webhook_limit.recovering_since IS 'When a probe closed the breaker: for 30 s concurrency and rate grow from a tenth.';
COMMENT ON COLUMN pggit.webhook_limit.retry_after_until IS 'The receiver asked that nothing be sent before.';

CREATE FUNCTION pggit.breaker_open_interval(opens integer) RETURNS interval
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN least(interval '600 s', interval '60 s' * (1 << least(greatest(opens, 1) - 1, 16)));
COMMENT ON FUNCTION pggit.breaker_open_interval(integer) IS
    'For how long a breaker stays open that opened so many times in a row: 60 s, doubling to 10 min.';

CREATE FUNCTION pggit.breaker_after(
    INOUT failures integer, INOUT window_started_at timestamptz, INOUT window_attempts integer, INOUT window_failures integer,
    INOUT opened_at timestamptz, INOUT opens integer, INOUT closed_at timestamptz, votes text, probe_vote text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- Breaker.after of core/breaker.py: votes is a word of f (failure) and a (answer), in the order of the outcomes.
DECLARE
    failures_in_a_row CONSTANT integer := 5;
    attempts_min CONSTANT integer := 20;
    wide CONSTANT interval := '30 s';
    recovery CONSTANT interval := '30 s';
    count_max CONSTANT integer := 1000000;
    last_run CONSTANT integer := length(votes) - length(rtrim(votes, 'f'));
    longest integer;
BEGIN
    IF opened_at IS NOT NULL THEN
        IF probe_vote = 'a' THEN
            failures := 0;
            window_started_at := NULL;
            window_attempts := 0;
            window_failures := 0;
            opened_at := NULL;
            closed_at := now();
        ELSIF probe_vote = 'f' THEN
            opened_at := now();
            opens := least(opens, count_max) + 1;
        END IF;
        RETURN;
    END IF;
    IF window_started_at IS NULL OR now() < window_started_at OR now() >= window_started_at + wide THEN
        window_started_at := now();
        window_attempts := 0;
        window_failures := 0;
    END IF;
    window_attempts := least(window_attempts, count_max) + length(votes);
    window_failures := least(window_failures, count_max) + length(votes) - length(replace(votes, 'f', ''));
    SELECT max(length(r.run)) INTO longest FROM regexp_split_to_table(votes, 'a+') AS r (run);
    -- What was carried in belongs to a run that the batch begins with.
    IF votes LIKE 'f%' THEN
        longest := greatest(longest, least(failures, count_max) + length(votes) - length(ltrim(votes, 'f')));
    END IF;
    failures := CASE WHEN last_run = length(votes) THEN least(failures, count_max) + last_run ELSE last_run END;
    IF strpos(votes, 'f') > 0
        AND (longest >= failures_in_a_row OR window_attempts >= attempts_min AND window_failures * 2 > window_attempts) THEN
        opens := CASE WHEN closed_at IS NULL OR now() >= closed_at + recovery THEN 1 ELSE least(opens, count_max) + 1 END;
        opened_at := now();
    END IF;
END $$;
COMMENT ON FUNCTION pggit.breaker_after(integer, timestamptz, integer, integer, timestamptz, integer, timestamptz, text, text) IS
    'The state of a circuit breaker after a batch of outcomes.';

CREATE FUNCTION pggit.change_limit(
    p_webhook_id bigint, p_actor text, p_opened_at timestamptz DEFAULT NULL, p_opens integer DEFAULT NULL,
    p_closed boolean DEFAULT false, p_closed_at timestamptz DEFAULT NULL, p_probe_over boolean DEFAULT false,
    p_hold_seconds double precision DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- What follows from outcomes for the claims: rare, so one function for all of it, called in order of webhook_id by settlers
-- that hold the health rows. Workers hear of a breaker that closed; that one opened they learn at their next claim.
DECLARE
    probe_again CONSTANT interval := '5 s';
    before pggit.webhook_limit;
    hold_until CONSTANT timestamptz := now() + make_interval(secs => p_hold_seconds);
BEGIN
    SELECT * INTO before FROM pggit.webhook_limit AS l WHERE l.webhook_id = p_webhook_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE pggit.webhook_limit AS l
    SET breaker_until = CASE
            WHEN p_opened_at IS NOT NULL THEN p_opened_at + pggit.breaker_open_interval(p_opens)
            WHEN NOT p_closed THEN l.breaker_until END,
        recovering_since = CASE
            WHEN p_closed THEN p_closed_at
            WHEN p_opened_at IS NULL THEN l.recovering_since END,
        probe_token = CASE WHEN NOT (p_opened_at IS NOT NULL OR p_closed OR p_probe_over) THEN l.probe_token END,
        probe_until = CASE
            WHEN p_opened_at IS NOT NULL OR p_closed THEN NULL
            WHEN p_probe_over THEN now() + probe_again
            ELSE l.probe_until END,
        retry_after_until = greatest(l.retry_after_until, hold_until)
    WHERE l.webhook_id = p_webhook_id;
    INSERT INTO pggit.webhook_audit_log (webhook_id, operation, user_id, details)
    SELECT p_webhook_id, a.operation, p_actor, jsonb_strip_nulls(a.details)
    FROM (VALUES
        ('breaker_opened', p_opened_at IS NOT NULL,
         jsonb_build_object('until', p_opened_at + pggit.breaker_open_interval(p_opens), 'opens', p_opens)),
        ('breaker_closed', p_closed, jsonb_build_object('recovering_since', p_closed_at)),
        -- Of those that follow one another while it holds, only the first.
        ('rate_limited', hold_until IS NOT NULL AND coalesce(before.retry_after_until <= now(), true),
         jsonb_build_object('until', hold_until))
    ) AS a (operation, is_due, details)
    WHERE a.is_due;
    IF p_closed THEN
        PERFORM pg_notify('pggit_delivery', p_webhook_id::text);
    END IF;
END $$;
COMMENT ON FUNCTION pggit.change_limit(bigint, text, timestamptz, integer, boolean, timestamptz, boolean, double precision) IS
    'Writes to webhook_limit, and audits, that a breaker opened or closed, that a probe told nothing, or that a receiver asked to wait.';
REVOKE ALL ON FUNCTION pggit.change_limit(bigint, text, timestamptz, integer, boolean, timestamptz, boolean, double precision)
    FROM PUBLIC;

CREATE FUNCTION pggit.note_probe(p_webhook_id bigint, p_actor text, p_until timestamptz) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO pggit.webhook_audit_log (webhook_id, operation, user_id, details)
    VALUES (p_webhook_id, 'breaker_half_open', p_actor, jsonb_build_object('probe_until', p_until));
END;
COMMENT ON FUNCTION pggit.note_probe(bigint, text, timestamptz) IS 'Audits that a claim let a probe through.';
REVOKE ALL ON FUNCTION pggit.note_probe(bigint, text, timestamptz) FROM PUBLIC;

CREATE FUNCTION pggit.follow_breaker(p_webhook_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- As the owner, and for everybody: whoever may write health rows, as old workers and operators do, holds no rights on the
-- limits. It does nothing that the health row does not say, however often it is called.
DECLARE
    h pggit.webhook_health_metrics;
    l pggit.webhook_limit;
BEGIN
    SELECT * INTO h FROM pggit.webhook_health_metrics AS r WHERE r.webhook_id = p_webhook_id FOR NO KEY UPDATE;
    SELECT * INTO l FROM pggit.webhook_limit AS r WHERE r.webhook_id = p_webhook_id FOR NO KEY UPDATE;
    IF h.breaker_opened_at IS NOT NULL THEN
        IF l.breaker_until IS DISTINCT FROM h.breaker_opened_at + pggit.breaker_open_interval(h.breaker_opens) THEN
            PERFORM pggit.change_limit(p_webhook_id, session_user, p_opened_at => h.breaker_opened_at, p_opens => h.breaker_opens);
        END IF;
    ELSIF l.breaker_until IS NOT NULL THEN
        PERFORM pggit.change_limit(p_webhook_id, session_user, p_closed => true, p_closed_at => h.breaker_closed_at);
    ELSIF l.recovering_since IS DISTINCT FROM h.breaker_closed_at THEN
        UPDATE pggit.webhook_limit AS r SET recovering_since = h.breaker_closed_at WHERE r.webhook_id = p_webhook_id;
        PERFORM pg_notify('pggit_delivery', p_webhook_id::text);
    END IF;
END $$;
COMMENT ON FUNCTION pggit.follow_breaker(bigint) IS 'Makes webhook_limit say of a breaker what webhook_health_metrics says.';

CREATE OR REPLACE FUNCTION pggit.webhook_after_change() RETURNS trigger LANGUAGE plpgsql AS $$
-- Registered (or resumed): deliveries that waited for it may go. Its limit row is locked only where it must be written: who
-- needs both takes that one first.
BEGIN
    UPDATE pggit.webhook_limit AS l SET unknown_since = NULL WHERE l.webhook_id = NEW.webhook_id AND l.unknown_since IS NOT NULL;
    IF NOT EXISTS (SELECT FROM pggit.webhook_limit AS l WHERE l.webhook_id = NEW.webhook_id) THEN
        INSERT INTO pggit.webhook_limit (webhook_id) VALUES (NEW.webhook_id) ON CONFLICT (webhook_id) DO NOTHING;
    END IF;
    PERFORM pg_notify('pggit_delivery', NEW.webhook_id::text);
    RETURN NULL;
END $$;

CREATE FUNCTION pggit.webhook_limit_before_insert() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Half-open: how long it was to be open is over or nearly so, and a probe puts both right.
    NEW.breaker_until := (SELECT now() FROM pggit.webhook_health_metrics AS h
                          WHERE h.webhook_id = NEW.webhook_id AND h.breaker_opened_at IS NOT NULL);
    RETURN NEW;
END $$;
COMMENT ON FUNCTION pggit.webhook_limit_before_insert() IS 'A limit row that was lost comes back with its breaker.';
CREATE TRIGGER webhook_limit_before_insert BEFORE INSERT ON pggit.webhook_limit FOR EACH ROW
    WHEN (NEW.bucket_tat IS NULL AND NEW.breaker_until IS NULL)
    EXECUTE FUNCTION pggit.webhook_limit_before_insert();
COMMENT ON TRIGGER webhook_limit_before_insert ON pggit.webhook_limit IS 'Not for claims, which write the bucket of a row that is there.';

CREATE OR REPLACE FUNCTION pggit.update_webhook_health(
    p_webhook_id bigint, p_http_status integer, p_response_time_ms integer, p_error_message text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    status CONSTANT integer := coalesce(p_http_status, 0);
    succeeded CONSTANT boolean := status BETWEEN 200 AND 299;
    is_transient CONSTANT boolean := status = 0 OR status >= 500;
    vote CONSTANT text := CASE WHEN is_transient THEN 'f' WHEN status IN (408, 425, 429) THEN '' ELSE 'a' END;
    -- What the column holds; an old worker that measured for a month is still counted.
    took CONSTANT numeric := CASE WHEN p_response_time_ms > 99999999 THEN 99999999 ELSE p_response_time_ms END;
    h pggit.webhook_health_metrics;
    b record;
BEGIN
    INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (p_webhook_id) ON CONFLICT (webhook_id) DO NOTHING;
    SELECT * INTO h FROM pggit.webhook_health_metrics AS r WHERE r.webhook_id = p_webhook_id FOR NO KEY UPDATE;
    -- Old workers know of no probe: that one of them got an answer is as good.
    b := pggit.breaker_after(
        h.breaker_failures, h.breaker_window_started_at, h.breaker_window_attempts, h.breaker_window_failures,
        h.breaker_opened_at, h.breaker_opens, h.breaker_closed_at, vote, CASE WHEN vote = 'a' THEN vote END);
    UPDATE pggit.webhook_health_metrics AS r
    SET total_deliveries = coalesce(h.total_deliveries, 0) + 1,
        successful_deliveries = coalesce(h.successful_deliveries, 0) + succeeded::integer,
        failed_deliveries = coalesce(h.failed_deliveries, 0) + 1 - succeeded::integer,
        avg_response_time_ms = CASE
            WHEN h.avg_response_time_ms IS NULL OR took IS NULL THEN coalesce(h.avg_response_time_ms, took)
            ELSE (h.avg_response_time_ms * coalesce(h.total_deliveries, 0) + took)
                 / (coalesce(h.total_deliveries, 0)::numeric + 1) END,
        max_response_time_ms = greatest(h.max_response_time_ms, took),
        min_response_time_ms = least(h.min_response_time_ms, took),
        health_status = CASE
            WHEN succeeded AND b.opened_at IS NULL THEN 'healthy'
            WHEN succeeded OR is_transient THEN 'degraded'
            ELSE 'unavailable' END,
        last_check_at = now(),
        last_success_at = CASE WHEN succeeded THEN now() ELSE h.last_success_at END,
        last_failure_at = CASE WHEN succeeded THEN h.last_failure_at ELSE now() END,
        consecutive_failures = CASE WHEN succeeded THEN 0 ELSE least(coalesce(h.consecutive_failures, 0), 2147483646) + 1 END,
        updated_at = now(),
        breaker_failures = b.failures,
        breaker_window_started_at = b.window_started_at,
        breaker_window_attempts = b.window_attempts,
        breaker_window_failures = b.window_failures,
        breaker_opened_at = b.opened_at,
        breaker_opens = b.opens,
        breaker_closed_at = b.closed_at,
        breaker_votes = least(h.breaker_votes, 9223372036854775806) + 1
    WHERE r.webhook_id = p_webhook_id;
    IF b.opened_at IS DISTINCT FROM h.breaker_opened_at THEN
        PERFORM pggit.follow_breaker(p_webhook_id);
    END IF;
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION pggit.health_after_reset() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- Closes the breaker. As the owner: who resets a webhook by the legacy UPDATE holds no rights on the limits.
BEGIN
    UPDATE pggit.webhook_health_metrics AS h
    SET breaker_failures = 0, breaker_window_started_at = NULL, breaker_window_attempts = 0, breaker_window_failures = 0,
        breaker_opened_at = NULL, breaker_opens = 0, breaker_closed_at = NULL
    WHERE h.webhook_id = NEW.webhook_id
        AND (h.breaker_failures <> 0 OR h.breaker_window_started_at IS NOT NULL OR h.breaker_opened_at IS NOT NULL
             OR h.breaker_opens <> 0 OR h.breaker_closed_at IS NOT NULL);
    PERFORM pggit.follow_breaker(NEW.webhook_id);
    RETURN NULL;
END $$;
DROP TRIGGER health_after_reset ON pggit.webhook_health_metrics;
CREATE TRIGGER health_after_reset AFTER UPDATE ON pggit.webhook_health_metrics FOR EACH ROW
    WHEN (NEW.consecutive_failures = 0
          AND (OLD.consecutive_failures IS DISTINCT FROM 0 OR OLD.health_status <> NEW.health_status
               OR OLD.breaker_failures <> 0 OR OLD.breaker_opened_at IS NOT NULL)
          -- A worker counts what it writes, and so is never taken for a person; nor is this trigger's own UPDATE.
          AND NEW.breaker_votes = OLD.breaker_votes
          AND (NEW.breaker_failures, NEW.breaker_window_attempts, NEW.breaker_window_failures, NEW.breaker_opens)
              = (OLD.breaker_failures, OLD.breaker_window_attempts, OLD.breaker_window_failures, OLD.breaker_opens)
          AND NEW.breaker_opened_at IS NOT DISTINCT FROM OLD.breaker_opened_at
          AND NEW.breaker_closed_at IS NOT DISTINCT FROM OLD.breaker_closed_at
          AND NEW.breaker_window_started_at IS NOT DISTINCT FROM OLD.breaker_window_started_at)
    EXECUTE FUNCTION pggit.health_after_reset();
COMMENT ON TRIGGER health_after_reset ON pggit.webhook_health_metrics IS 'For people who reset a webhook by UPDATE.';

---------------------------------------------------------------------------------------------------------------------
-- For people
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.reset_webhook(p_webhook_id bigint, p_reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    webhook pggit.webhook;
    l pggit.webhook_limit;
    held text;
BEGIN
    PERFORM FROM pggit.webhook_health_metrics AS h WHERE h.webhook_id = p_webhook_id FOR UPDATE;
    webhook := pggit.lock_webhook(p_webhook_id);
    SELECT * INTO l FROM pggit.webhook_limit AS r WHERE r.webhook_id = p_webhook_id;
    held := concat_ws(', ',
        CASE WHEN l.breaker_until > clock_timestamp() THEN format('its breaker was open until %s', l.breaker_until)
             WHEN l.breaker_until IS NOT NULL THEN 'its breaker was half-open' END,
        CASE WHEN l.retry_after_until > clock_timestamp() THEN format('its receiver had asked to wait until %s', l.retry_after_until) END,
        CASE WHEN l.recovering_since > clock_timestamp() - interval '30 s' THEN 'it was in its slow start' END);
    UPDATE pggit.webhook_health_metrics AS h
    SET consecutive_failures = 0, health_status = 'healthy', last_check_at = now(), updated_at = now(),
        breaker_failures = 0, breaker_window_started_at = NULL, breaker_window_attempts = 0, breaker_window_failures = 0,
        breaker_opened_at = NULL, breaker_opens = 0, breaker_closed_at = NULL
    WHERE h.webhook_id = p_webhook_id;
    IF l.breaker_until IS NOT NULL THEN
        PERFORM pggit.change_limit(p_webhook_id, pggit.acting_name(), p_closed => true);
    END IF;
    UPDATE pggit.webhook_limit AS r
    SET retry_after_until = NULL, recovering_since = NULL, probe_until = NULL, probe_token = NULL
    WHERE r.webhook_id = p_webhook_id;
    PERFORM pggit.audit_change('webhook_reset', p_webhook_id, NULL, jsonb_build_object('reason', left(p_reason, 500), 'held', nullif(held, '')));
    PERFORM pg_notify('pggit_delivery', p_webhook_id::text);
    RETURN format('webhook %s (%s) is reset: ', p_webhook_id, webhook.name) || coalesce(nullif(held, ''), 'nothing had held it back')
        || '; it is sent to at once, at its full pace';
END $$;
COMMENT ON FUNCTION pggit.reset_webhook(bigint, text) IS
    'Closes a webhook''s breaker, forgets its failures, and ends what its receiver''s Retry-After or a slow start held back.';
REVOKE ALL ON FUNCTION pggit.reset_webhook(bigint, text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION pggit.explain_delivery(p_delivery_id bigint)
RETURNS TABLE (
    delivery_id bigint, uid uuid, webhook_id bigint, webhook_name text, delivery_status text, waits_for text,
    due_at timestamptz, explanation text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
-- The first that holds it back is named. due_at is when it will be attempted at the earliest: null where nobody knows,
-- or where it will not be.
#variable_conflict use_column
DECLARE
    q pggit.alert_delivery_queue;
    w pggit.webhook;
    l pggit.webhook_limit;
    now_ constant timestamptz := clock_timestamp();
    due timestamptz;
    ahead bigint;
    ahead_max constant integer := 10000;
    share double precision := 1;
    token_at timestamptz;
    code text;
    words text;
BEGIN
    SELECT * INTO q FROM pggit.alert_delivery_queue AS r WHERE r.delivery_id = p_delivery_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'p_delivery_id is %, and there is no such delivery; it may have been pruned',
            coalesce(p_delivery_id::text, 'null') USING ERRCODE = 'no_data_found';
    END IF;
    SELECT * INTO w FROM pggit.webhook AS r WHERE r.webhook_id = q.webhook_id;
    SELECT * INTO l FROM pggit.webhook_limit AS r WHERE r.webhook_id = q.webhook_id;
    due := greatest(q.ready_at, l.breaker_until, l.retry_after_until, l.paused_until);
    IF q.delivery_status = 'delivered' THEN
        code := 'nothing';
        words := concat_ws(' ', 'it was delivered at', q.delivered_at, format('after %s attempt(s)', q.attempt_count));
        due := NULL;
    ELSIF q.delivery_status = 'failed' THEN
        code := 'replay';
        words := CASE q.failed_reason
            WHEN 'permanent' THEN 'the receiver refused it for good'
            WHEN 'exhausted' THEN 'every attempt failed'
            WHEN 'gone' THEN 'the receiver said that it is gone, and its webhook was disabled'
            WHEN 'expired' THEN 'it expired before it could be delivered'
            WHEN 'cancelled' THEN 'somebody cancelled it'
            WHEN 'url_refused' THEN 'the URL policy refuses its webhook''s address'
            WHEN 'unknown_webhook' THEN 'nobody registered its webhook in time'
            WHEN 'too_large' THEN 'its body is larger than its webhook takes'
            WHEN 'bad_headers' THEN 'its headers may not be sent'
            WHEN 'template' THEN 'its webhook''s template failed'
            WHEN 'crash' THEN 'workers crashed over it'
            ELSE 'somebody other than our workers gave it up' END
            || format(', after %s attempt(s)', q.attempt_count) || coalesce('; the last said: ' || q.last_error, '')
            || '; pggit.replay_delivery sends it again';
        due := NULL;
    ELSIF q.lease_expires_at > now_ THEN
        code := 'answer';
        words := format('%s is sending it; should that worker be lost, another takes over after %s', q.leased_by, q.lease_expires_at);
        due := now_;
    ELSIF w.webhook_id IS NULL THEN
        code := 'registration';
        words := format('no webhook has the id %s: it waits for its registration', q.webhook_id)
            || coalesce(', since ' || l.unknown_since, '')
            || ', and is given up after the workers'' hold (delivery.unknown_webhook_hold_seconds)';
        due := NULL;
    ELSIF w.state <> 'active' THEN
        code := w.state;
        words := format('its webhook is %s since %s', w.state, w.state_since) || coalesce(' by ' || w.state_by, '')
            || coalesce(': ' || w.state_reason, '')
            || format('; pggit.%s_webhook(%s) ends that', CASE w.state WHEN 'paused' THEN 'resume' ELSE 'enable' END, w.webhook_id);
        due := NULL;
    ELSIF q.ready_at = 'infinity' THEN
        code := 'requeue';
        words := CASE WHEN q.delivery_status = 'retrying' AND q.next_retry_at IS NULL
            THEN 'it is retrying without a next_retry_at, so it is never due'
            ELSE 'it is put off to infinity' END || '; pggit.requeue_delivery makes it due now';
        due := NULL;
    ELSIF due > now_ THEN
        code := CASE due
            WHEN l.paused_until THEN 'pause'
            WHEN l.retry_after_until THEN 'retry_after'
            WHEN l.breaker_until THEN 'breaker'
            WHEN q.held_until THEN 'holder'
            ELSE CASE q.delivery_status WHEN 'retrying' THEN 'retry' ELSE 'time' END END;
        words := CASE code
            WHEN 'pause' THEN format('its webhook is paused until %s', due) || coalesce(' by ' || w.state_by, '')
                || coalesce(': ' || w.state_reason, '')
            WHEN 'retry_after' THEN format('the receiver asked that nothing be sent before %s', due)
            WHEN 'breaker' THEN format('the receiver has failed so often that it is left alone until %s; then one delivery'
                ' tries it; pggit.reset_webhook(%s) sends at once', due, w.webhook_id)
            WHEN 'holder' THEN format('get_ready_deliveries gave it to %s until %s', coalesce(q.leased_by, 'an SQL client'), due)
            WHEN 'retry' THEN format('%s attempt(s) failed', q.attempt_count) || coalesce(', the last with: ' || q.last_error, '')
                || format('; the next is at %s', due)
            ELSE format('it was put off to %s', due) END;
    ELSIF NOT EXISTS (
        SELECT FROM pggit.reactor_worker AS r WHERE r.state = 'running' AND r.heartbeat_at > now_ - interval '30 s') THEN
        code := 'worker';
        words := 'it is due, but no worker has been heard for 30 s; start `pggit-reactor worker`';
        due := NULL;
    ELSIF l.breaker_until IS NOT NULL AND l.probe_until > now_ THEN
        code := 'probe';
        words := format('the receiver had failed, and one delivery tries it at this moment; should that tell nothing, another does at %s',
            l.probe_until);
        due := l.probe_until;
    ELSIF l.breaker_until IS NOT NULL THEN
        code := 'probe';
        words := 'the receiver had failed, and is tried with one delivery now: this one, or another of its webhook';
        due := now_;
    ELSE
        IF abs(extract(epoch FROM now_ - l.recovering_since)) < 30 THEN
            share := 0.1 + 0.9 * greatest(0, extract(epoch FROM now_ - l.recovering_since)::float8) / 30;
        END IF;
        SELECT count(*) INTO ahead FROM (
            SELECT FROM pggit.alert_delivery_queue AS o
            WHERE o.webhook_id = q.webhook_id AND o.ready_at <= now_
                AND (o.priority > q.priority OR o.priority = q.priority AND o.ready_at < q.ready_at)
            LIMIT ahead_max) AS before;
        IF w.rate_per_s > 0 THEN
            -- When its token comes, with those before it served. Bounded as a claim bounds rates and times.
            token_at := greatest(least(coalesce(l.bucket_tat, now_), now_ + interval '7000 days'), now_) + least(
                (ahead + 1 - greatest(1, floor(w.burst * share))) / (least(greatest(w.rate_per_s, 0.000001), 1000000000)::float8 * share),
                6e8) * interval '1 s';
        END IF;
        code := CASE WHEN token_at > now_ THEN 'rate' ELSE 'turn' END;
        due := greatest(token_at, now_);
        words := format('it is due; %s%s deliveries of its webhook go before it', ahead, CASE WHEN ahead = ahead_max THEN ' or more' ELSE '' END)
            || CASE code
                WHEN 'rate' THEN format('; its webhook gets %s a second, so it has its turn at %s at the earliest', w.rate_per_s, due)
                ELSE format(', %s at a time', w.concurrency) END
            || CASE WHEN share < 1 THEN format('; its receiver has just recovered, and gets %s %% of that and growing', round((share * 100)::numeric))
                ELSE '' END;
    END IF;
    IF q.expires_at <= greatest(due, now_) AND q.ready_at IS NOT NULL THEN
        words := words || format('; it expires at %s and is then not sent any more', q.expires_at);
    END IF;
    RETURN QUERY SELECT
        q.delivery_id, pggit.delivery_uid(q.delivery_id, q.uid_salt), q.webhook_id, w.name, q.delivery_status, code, due, words;
END $$;

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT g.role, g.privilege FROM (VALUES
            ('pggit_operator', 'EXECUTE ON FUNCTION pggit.reset_webhook'),
            ('pggit_worker', 'EXECUTE ON FUNCTION pggit.change_limit, pggit.note_probe'),
            ('pggit_worker', 'SELECT, INSERT, UPDATE ON pggit.fleet_limit'),
            ('pggit_operator', 'SELECT, UPDATE ON pggit.fleet_limit'),
            ('pggit_reader', 'SELECT ON pggit.fleet_limit')
        ) AS g (role, privilege)
        WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = g.role)
    LOOP
        EXECUTE format('GRANT %s TO %I', wanted.privilege, wanted.role);
    END LOOP;
END $$;
