-- name: take
-- Takes up to a number of tokens from the one bucket of all webhooks (core/token_bucket.py is the same arithmetic): how many
-- it got, and where that is fewer, in how many seconds there will be more. Waits for whoever is taking: it is one row, and
-- each holds it for a moment.
WITH locked AS MATERIALIZED (
    SELECT f.bucket_tat FROM pggit.fleet_limit AS f FOR NO KEY UPDATE
),
bucket AS MATERIALIZED (
    SELECT b.*, CASE WHEN b.debt > b.size / b.rate + %(disorder_seconds)s THEN b.size / b.rate ELSE b.debt END AS missing
    FROM (
        SELECT
            r.rate,
            greatest(1, floor(least(%(burst)s::float8, r.rate * %(fill_seconds)s))) AS size,
            extract(epoch FROM greatest(least(coalesce(k.bucket_tat, now()), now() + interval '7000 days'), now())
                               - now())::float8 AS debt
        FROM (SELECT least(greatest(%(rate)s::float8, %(rate_min)s), %(rate_max)s) AS rate) AS r
        LEFT JOIN locked AS k ON true
    ) AS b
),
taken AS MATERIALIZED (
    SELECT b.*, least(%(wanted)s::integer, greatest(floor(b.size - b.missing * b.rate + %(tolerance)s), 0)) AS tokens
    FROM bucket AS b
),
spent AS (
    INSERT INTO pggit.fleet_limit (is_only, bucket_tat)
    SELECT true, now() + make_interval(secs => t.missing) + ceil(t.tokens * 1000000 / t.rate) * interval '1 us'
    FROM taken AS t
    ON CONFLICT (is_only) DO UPDATE SET bucket_tat = excluded.bucket_tat
)
SELECT
    t.tokens::integer,
    CASE WHEN t.tokens < %(wanted)s::integer
         THEN greatest(t.missing + (t.tokens + 1 - t.size) / t.rate, least(%(wake_seconds)s, t.size / t.rate / 2)) END
FROM taken AS t;

-- name: give_back
-- Puts back what was taken and not used.
UPDATE pggit.fleet_limit AS f
SET bucket_tat = f.bucket_tat - floor(%(tokens)s::integer * 1000000 / least(greatest(%(rate)s::float8, %(rate_min)s), %(rate_max)s))
                                * interval '1 us';
