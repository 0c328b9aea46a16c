-- Operations for people who live in psql: pause, resume, disable and enable a webhook; replay, requeue, cancel and
-- explain a delivery. Each returns a sentence (explain: a row), is for pggit_operator, and leaves an audit row with
-- session_user and the client's address.
--
-- Locks and rewrites: creates only; nothing that exists is changed.

---------------------------------------------------------------------------------------------------------------------
-- Webhooks
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.acting_name() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN coalesce(nullif(left(current_setting('pggit.actor', true), 128), '') || ' as ', '') || session_user;
COMMENT ON FUNCTION pggit.acting_name() IS 'Who acts, for people: session_user, and before it whom the program names.';
REVOKE ALL ON FUNCTION pggit.acting_name() FROM PUBLIC;

CREATE FUNCTION pggit.paused_until(p_webhook_id bigint) RETURNS timestamptz
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT l.paused_until FROM pggit.webhook_limit AS l
    WHERE l.webhook_id = p_webhook_id AND l.paused_until > clock_timestamp();
END;
COMMENT ON FUNCTION pggit.paused_until(bigint) IS
    'Until when a webhook is paused for a time; null where it is not. Such a pause ends by itself, and its state stays active.';
REVOKE ALL ON FUNCTION pggit.paused_until(bigint) FROM PUBLIC;

CREATE FUNCTION pggit.lock_webhook(p_webhook_id bigint) RETURNS pggit.webhook
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_row pggit.webhook;
BEGIN
    IF p_webhook_id IS NULL THEN
        RAISE EXCEPTION 'p_webhook_id is null; give the id of a webhook' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    -- The limit row first: whoever needs both takes them in this order.
    PERFORM FROM pggit.webhook_limit AS l WHERE l.webhook_id = p_webhook_id FOR UPDATE;
    SELECT * INTO found_row FROM pggit.webhook AS w WHERE w.webhook_id = p_webhook_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'p_webhook_id is %, and no webhook has this id', p_webhook_id USING ERRCODE = 'no_data_found';
    END IF;
    RETURN found_row;
END $$;
COMMENT ON FUNCTION pggit.lock_webhook(bigint) IS 'The registered webhook, locked against other changes; raises where there is none.';
REVOKE ALL ON FUNCTION pggit.lock_webhook(bigint) FROM PUBLIC;

CREATE FUNCTION pggit.change_webhook_state(
    p_webhook_id bigint, p_state text, p_until timestamptz, p_reason text, p_operation text
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- The webhook's own trigger NOTIFYs at commit: workers claim anew, and each claim looks at state and limit.
BEGIN
    INSERT INTO pggit.webhook_limit AS l (webhook_id, paused_until) VALUES (p_webhook_id, p_until)
    ON CONFLICT (webhook_id) DO UPDATE SET paused_until = p_until;
    UPDATE pggit.webhook AS w
    SET state = p_state, state_reason = left(p_reason, 500), state_by = pggit.acting_name(), state_since = now()
    WHERE w.webhook_id = p_webhook_id;
    PERFORM pggit.audit_change(
        p_operation, p_webhook_id, NULL, jsonb_build_object('until', p_until, 'reason', left(p_reason, 500)));
END $$;
COMMENT ON FUNCTION pggit.change_webhook_state(bigint, text, timestamptz, text, text) IS
    'Writes a webhook''s state, wakes or stops the workers, and audits it.';
REVOKE ALL ON FUNCTION pggit.change_webhook_state(bigint, text, timestamptz, text, text) FROM PUBLIC;

CREATE FUNCTION pggit.pause_webhook(p_webhook_id bigint, p_until timestamptz DEFAULT NULL, p_reason text DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    webhook pggit.webhook;
BEGIN
    IF p_until <= clock_timestamp() THEN
        RAISE EXCEPTION 'p_until is %, which is past; give a later time, or null for until it is resumed', p_until
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    webhook := pggit.lock_webhook(p_webhook_id);
    IF webhook.state = 'disabled' THEN
        RAISE EXCEPTION 'webhook % (%) is disabled; pggit.enable_webhook puts it back to work', p_webhook_id, webhook.name
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF p_until < 'infinity' THEN
        -- A pause that ends by itself is a limit, so that nobody has to end it.
        PERFORM pggit.change_webhook_state(p_webhook_id, 'active', p_until, p_reason, 'webhook_paused');
        RETURN format('webhook %s (%s) is paused until %s; its deliveries wait', p_webhook_id, webhook.name, p_until);
    END IF;
    PERFORM pggit.change_webhook_state(p_webhook_id, 'paused', NULL, p_reason, 'webhook_paused');
    RETURN format('webhook %s (%s) is paused until it is resumed; its deliveries wait', p_webhook_id, webhook.name);
END $$;
COMMENT ON FUNCTION pggit.pause_webhook(bigint, timestamptz, text) IS
    'Stops deliveries to a webhook at once, until a time or until resume_webhook. They wait; attempts under way are finished.';
REVOKE ALL ON FUNCTION pggit.pause_webhook(bigint, timestamptz, text) FROM PUBLIC;

CREATE FUNCTION pggit.resume_webhook(p_webhook_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    webhook pggit.webhook;
BEGIN
    webhook := pggit.lock_webhook(p_webhook_id);
    IF webhook.state = 'disabled' THEN
        RAISE EXCEPTION 'webhook % (%) is disabled; pggit.enable_webhook puts it back to work', p_webhook_id, webhook.name
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF webhook.state = 'active' AND pggit.paused_until(p_webhook_id) IS NULL THEN
        RETURN format('webhook %s (%s) was not paused', p_webhook_id, webhook.name);
    END IF;
    PERFORM pggit.change_webhook_state(p_webhook_id, 'active', NULL, NULL, 'webhook_resumed');
    RETURN format('webhook %s (%s) is active', p_webhook_id, webhook.name);
END $$;
COMMENT ON FUNCTION pggit.resume_webhook(bigint) IS 'Ends a pause; what waited is delivered at once.';
REVOKE ALL ON FUNCTION pggit.resume_webhook(bigint) FROM PUBLIC;

CREATE FUNCTION pggit.disable_webhook(p_webhook_id bigint, p_reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    webhook pggit.webhook;
BEGIN
    webhook := pggit.lock_webhook(p_webhook_id);
    IF webhook.state = 'disabled' THEN
        RETURN format('webhook %s (%s) was disabled already', p_webhook_id, webhook.name);
    END IF;
    PERFORM pggit.change_webhook_state(p_webhook_id, 'disabled', NULL, p_reason, 'webhook_disabled');
    RETURN format('webhook %s (%s) is disabled; its deliveries wait, and routing passes it over', p_webhook_id, webhook.name);
END $$;
COMMENT ON FUNCTION pggit.disable_webhook(bigint, text) IS
    'Takes a webhook out of service until enable_webhook: its deliveries wait, and published alerts pass it over.';
REVOKE ALL ON FUNCTION pggit.disable_webhook(bigint, text) FROM PUBLIC;

CREATE FUNCTION pggit.enable_webhook(p_webhook_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    webhook pggit.webhook;
BEGIN
    webhook := pggit.lock_webhook(p_webhook_id);
    IF webhook.state = 'paused' THEN
        RAISE EXCEPTION 'webhook % (%) is not disabled but paused; pggit.resume_webhook ends that', p_webhook_id, webhook.name
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF webhook.state = 'active' THEN
        RETURN format('webhook %s (%s) was not disabled', p_webhook_id, webhook.name);
    END IF;
    PERFORM pggit.change_webhook_state(p_webhook_id, 'active', NULL, NULL, 'webhook_enabled');
    RETURN format('webhook %s (%s) is active', p_webhook_id, webhook.name);
END $$;
COMMENT ON FUNCTION pggit.enable_webhook(bigint) IS 'Puts a disabled webhook back to work; what waited is delivered at once.';
REVOKE ALL ON FUNCTION pggit.enable_webhook(bigint) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Deliveries: each by delivery_id, or by the uid that the receiver saw
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.find_delivery(p_uid text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- The salt must be the row's too: in a restored database an id may come again, a uid never.
DECLARE
    found_id bigint;
BEGIN
    IF p_uid ~ '^-?[0-9]{1,18}$' THEN
        RETURN p_uid::bigint;
    END IF;
    IF p_uid IS NULL OR p_uid !~* '^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' THEN
        RAISE EXCEPTION 'p_uid is no delivery uid; give one as the header webhook-id holds it, or a delivery_id'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT q.delivery_id INTO found_id
    FROM pggit.split_delivery_uid(p_uid::uuid) AS u
    JOIN pggit.alert_delivery_queue AS q
        ON q.delivery_id = u.delivery_id AND (q.uid_salt & 288230376151711743) = u.uid_salt_bits;
    IF found_id IS NULL THEN
        RAISE EXCEPTION 'no delivery has the uid %; it may have been pruned, or be of another database', lower(p_uid)
            USING ERRCODE = 'no_data_found';
    END IF;
    RETURN found_id;
END $$;
COMMENT ON FUNCTION pggit.find_delivery(text) IS 'The delivery_id of a uid, or of a delivery_id that is written as text.';
REVOKE ALL ON FUNCTION pggit.find_delivery(text) FROM PUBLIC;

CREATE FUNCTION pggit.lock_delivery(p_delivery_id bigint) RETURNS pggit.alert_delivery_queue
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_row pggit.alert_delivery_queue;
BEGIN
    SELECT * INTO found_row FROM pggit.alert_delivery_queue AS q WHERE q.delivery_id = p_delivery_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'p_delivery_id is %, and there is no such delivery; it may have been pruned',
            coalesce(p_delivery_id::text, 'null') USING ERRCODE = 'no_data_found';
    END IF;
    RETURN found_row;
END $$;
COMMENT ON FUNCTION pggit.lock_delivery(bigint) IS 'The delivery, locked against other changes; raises where there is none.';
REVOKE ALL ON FUNCTION pggit.lock_delivery(bigint) FROM PUBLIC;

CREATE FUNCTION pggit.put_back_delivery(delivery pggit.alert_delivery_queue, p_action text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
-- The queue's own triggers do the rest: replayed_at, and a NOTIFY, since the row is due.
BEGIN
    UPDATE pggit.alert_delivery_queue AS q
    SET delivery_status = 'pending', retry_count = 0, next_retry_at = NULL, delivered_at = NULL, held_until = NULL,
        created_at = least(q.created_at, now())
    WHERE q.delivery_id = delivery.delivery_id;
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
    VALUES (delivery.delivery_id, delivery.webhook_id, 'queued', jsonb_build_object(
        'action', p_action, 'from', delivery.delivery_status, 'by', pggit.acting_name()));
    PERFORM pggit.audit_change(
        'delivery_replayed', delivery.webhook_id, delivery.delivery_id,
        jsonb_build_object('action', p_action, 'from', delivery.delivery_status, 'failed_reason', delivery.failed_reason),
        pggit.delivery_uid(delivery.delivery_id, delivery.uid_salt));
END $$;
COMMENT ON FUNCTION pggit.put_back_delivery(pggit.alert_delivery_queue, text) IS
    'Makes a locked delivery pending and due at once, logs it and audits it.';
REVOKE ALL ON FUNCTION pggit.put_back_delivery(pggit.alert_delivery_queue, text) FROM PUBLIC;

CREATE FUNCTION pggit.replay_delivery(p_delivery_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    delivery pggit.alert_delivery_queue;
BEGIN
    delivery := pggit.lock_delivery(p_delivery_id);
    IF delivery.delivery_status IN ('pending', 'retrying') THEN
        RAISE EXCEPTION 'delivery % is still %; pggit.requeue_delivery makes it due now', p_delivery_id, delivery.delivery_status
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM pggit.put_back_delivery(delivery, 'replay');
    RETURN format('delivery %s was %s and is sent again, under the same uid', p_delivery_id, delivery.delivery_status);
END $$;
COMMENT ON FUNCTION pggit.replay_delivery(bigint) IS
    'Sends a delivered or failed delivery again, with the same body and uid, all retries before it.';
REVOKE ALL ON FUNCTION pggit.replay_delivery(bigint) FROM PUBLIC;

CREATE FUNCTION pggit.requeue_delivery(p_delivery_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    delivery pggit.alert_delivery_queue;
BEGIN
    delivery := pggit.lock_delivery(p_delivery_id);
    IF delivery.delivery_status = 'delivered' THEN
        RAISE EXCEPTION 'delivery % is delivered; pggit.replay_delivery sends it once more', p_delivery_id
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF delivery.lease_expires_at > clock_timestamp() THEN
        -- Put back now it would be sent twice.
        RAISE EXCEPTION 'delivery % is being sent by %; try again after %', p_delivery_id, delivery.leased_by, delivery.lease_expires_at
            USING ERRCODE = 'object_in_use';
    END IF;
    PERFORM pggit.put_back_delivery(delivery, 'requeue');
    RETURN format('delivery %s was %s and is due now', p_delivery_id, delivery.delivery_status);
END $$;
COMMENT ON FUNCTION pggit.requeue_delivery(bigint) IS
    'Makes a pending, retrying or failed delivery due at once, all retries before it. Refused while it is being sent.';
REVOKE ALL ON FUNCTION pggit.requeue_delivery(bigint) FROM PUBLIC;

CREATE FUNCTION pggit.cancel_delivery(p_delivery_id bigint, p_reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    delivery pggit.alert_delivery_queue;
    words text := concat_ws(': ', 'cancelled by ' || pggit.acting_name(), left(p_reason, 300));
BEGIN
    delivery := pggit.lock_delivery(p_delivery_id);
    IF delivery.delivery_status IN ('delivered', 'failed') THEN
        RAISE EXCEPTION 'delivery % is % already', p_delivery_id, delivery.delivery_status
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- Where a worker holds it, the queue's own trigger voids the lease: what the worker learns is written nowhere.
    UPDATE pggit.alert_delivery_queue AS q
    SET delivery_status = 'failed', failed_reason = 'cancelled', last_error = words
    WHERE q.delivery_id = p_delivery_id;
    INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)
    VALUES (p_delivery_id, delivery.webhook_id, 'failed', jsonb_build_object('reason', 'cancelled', 'error', words));
    PERFORM pggit.audit_change(
        'delivery_cancelled', delivery.webhook_id, p_delivery_id,
        jsonb_build_object('from', delivery.delivery_status, 'reason', left(p_reason, 300)),
        pggit.delivery_uid(p_delivery_id, delivery.uid_salt));
    RETURN format('delivery %s is cancelled', p_delivery_id) || CASE
        WHEN delivery.lease_expires_at > clock_timestamp()
            THEN format('; %s was just sending it, so it may arrive all the same', delivery.leased_by)
        ELSE '' END;
END $$;
COMMENT ON FUNCTION pggit.cancel_delivery(bigint, text) IS
    'Ends a delivery that is not yet settled: failed, with failed_reason cancelled. replay_delivery takes it back.';
REVOKE ALL ON FUNCTION pggit.cancel_delivery(bigint, text) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Why has it not been sent, and when will it be?
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.explain_delivery(p_delivery_id bigint)
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
            || coalesce(format(', since %s, and is given up after the workers'' hold (delivery.unknown_webhook_hold_seconds)', l.unknown_since), '');
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
            WHEN 'breaker' THEN format('the receiver has failed so often that it is left alone until %s', due)
            WHEN 'holder' THEN format('get_ready_deliveries gave it to %s until %s', coalesce(q.leased_by, 'an SQL client'), due)
            WHEN 'retry' THEN format('%s attempt(s) failed', q.attempt_count) || coalesce(', the last with: ' || q.last_error, '')
                || format('; the next is at %s', due)
            ELSE format('it was put off to %s', due) END;
    ELSIF NOT EXISTS (
        SELECT FROM pggit.reactor_worker AS r WHERE r.state = 'running' AND r.heartbeat_at > now_ - interval '30 s') THEN
        code := 'worker';
        words := 'it is due, but no worker has been heard for 30 s; start `pggit-reactor worker`';
        due := NULL;
    ELSE
        SELECT count(*) INTO ahead FROM (
            SELECT FROM pggit.alert_delivery_queue AS o
            WHERE o.webhook_id = q.webhook_id AND o.ready_at <= now_
                AND (o.priority > q.priority OR o.priority = q.priority AND o.ready_at < q.ready_at)
            LIMIT ahead_max) AS before;
        code := 'turn';
        words := format('it is due; %s%s deliveries of its webhook go before it, %s at a time',
            ahead, CASE WHEN ahead = ahead_max THEN ' or more' ELSE '' END, w.concurrency);
        due := now_;
    END IF;
    IF q.expires_at <= greatest(due, now_) AND q.ready_at IS NOT NULL THEN
        words := words || format('; it expires at %s and is then not sent any more', q.expires_at);
    END IF;
    RETURN QUERY SELECT
        q.delivery_id, pggit.delivery_uid(q.delivery_id, q.uid_salt), q.webhook_id, w.name, q.delivery_status, code, due, words;
END $$;
COMMENT ON FUNCTION pggit.explain_delivery(bigint) IS
    'Why a delivery has not been sent (waits_for: a word, explanation: a sentence), and when it will be at the earliest (due_at).';
REVOKE ALL ON FUNCTION pggit.explain_delivery(bigint) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- The same by uid: a quoted argument, uid or number, comes here
---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pggit.replay_delivery(p_uid text) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT pggit.replay_delivery(pggit.find_delivery(p_uid)); END;
COMMENT ON FUNCTION pggit.replay_delivery(text) IS 'As replay_delivery(bigint), by the uid that the receiver saw.';
REVOKE ALL ON FUNCTION pggit.replay_delivery(text) FROM PUBLIC;

CREATE FUNCTION pggit.requeue_delivery(p_uid text) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT pggit.requeue_delivery(pggit.find_delivery(p_uid)); END;
COMMENT ON FUNCTION pggit.requeue_delivery(text) IS 'As requeue_delivery(bigint), by the uid that the receiver saw.';
REVOKE ALL ON FUNCTION pggit.requeue_delivery(text) FROM PUBLIC;

CREATE FUNCTION pggit.cancel_delivery(p_uid text, p_reason text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT pggit.cancel_delivery(pggit.find_delivery(p_uid), p_reason); END;
COMMENT ON FUNCTION pggit.cancel_delivery(text, text) IS 'As cancel_delivery(bigint, text), by the uid that the receiver saw.';
REVOKE ALL ON FUNCTION pggit.cancel_delivery(text, text) FROM PUBLIC;

CREATE FUNCTION pggit.explain_delivery(p_uid text)
RETURNS TABLE (
    delivery_id bigint, uid uuid, webhook_id bigint, webhook_name text, delivery_status text, waits_for text,
    due_at timestamptz, explanation text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT * FROM pggit.explain_delivery(pggit.find_delivery(p_uid)); END;
COMMENT ON FUNCTION pggit.explain_delivery(text) IS 'As explain_delivery(bigint), by the uid that the receiver saw.';
REVOKE ALL ON FUNCTION pggit.explain_delivery(text) FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Grants
---------------------------------------------------------------------------------------------------------------------

DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT g.role, g.privilege FROM (VALUES
            ('pggit_operator', 'EXECUTE ON FUNCTION pggit.pause_webhook, pggit.resume_webhook, pggit.disable_webhook,'
                               ' pggit.enable_webhook, pggit.replay_delivery(bigint), pggit.replay_delivery(text),'
                               ' pggit.requeue_delivery(bigint), pggit.requeue_delivery(text),'
                               ' pggit.cancel_delivery(bigint, text), pggit.cancel_delivery(text, text)'),
            ('pggit_operator', 'EXECUTE ON FUNCTION pggit.explain_delivery(bigint), pggit.explain_delivery(text)'),
            ('pggit_reader', 'EXECUTE ON FUNCTION pggit.explain_delivery(bigint), pggit.explain_delivery(text)')
        ) AS g (role, privilege)
        WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = g.role)
    LOOP
        EXECUTE format('GRANT %s TO %I', wanted.privilege, wanted.role);
    END LOOP;
END $$;
