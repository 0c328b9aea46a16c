-- Limits that all workers share: token buckets.
--
-- Locks and rewrites: a trigger on pggit.webhook (a moment's lock). No rewrite.

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
