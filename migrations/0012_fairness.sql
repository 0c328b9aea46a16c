-- What workers learn of how much a receiver can bear, so that it survives restarts.
--
-- Locks and rewrites: pggit.webhook_limit is locked for a moment and not rewritten; it is a small table.

ALTER TABLE pggit.webhook_limit
    ADD COLUMN learned_concurrency smallint
        CONSTRAINT webhook_limit_learned_concurrency_check CHECK (learned_concurrency BETWEEN 1 AND 256),
    ADD COLUMN learned_at timestamptz;
COMMENT ON COLUMN pggit.webhook_limit.learned_concurrency IS
    'Attempts at once that a worker found the receiver able to bear, where that is below its limit; workers start from it.';
COMMENT ON COLUMN pggit.webhook_limit.learned_at IS 'When; after an hour it counts no more.';
COMMENT ON COLUMN pggit.webhook.status_policy IS
    'HTTP statuses that mean something else here: {"404": "transient", "5xx": "permanent"}. What cannot be read counts as none.';
COMMENT ON COLUMN pggit.webhook.weight IS 'What its turn is worth where workers are short of room.';
