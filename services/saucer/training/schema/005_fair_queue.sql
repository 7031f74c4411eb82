-- Of an account's own runs: the higher goes first.
ALTER TABLE run ADD COLUMN priority integer NOT NULL DEFAULT 0;
-- Back-off after a lost attempt: not leased before. Null: at once.
ALTER TABLE run ADD COLUMN ready_at timestamptz;

-- What billing says of an account's share of the workers; an account without a row has weight 1 and no limit.
CREATE TABLE account_share (
    account_id    uuid PRIMARY KEY,
    weight        integer NOT NULL CHECK (weight > 0),
    -- Runs at work at once; null: no limit.
    running_limit integer CHECK (running_limit >= 0),
    -- Of the account, in billing.
    revision      bigint NOT NULL
);

-- Its one row is locked while a run is chosen, so that all replicas choose one after the other: only so are the order
-- and the limits exact.
CREATE TABLE lease_turn (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one)
);
INSERT INTO lease_turn DEFAULT VALUES;

-- Workers as they ask for runs; which one has a run stands with the run.
CREATE TABLE worker (
    worker_id     text PRIMARY KEY,
    region_id     text NOT NULL,
    spec_id       text NOT NULL,
    first_seen_at timestamptz NOT NULL,
    seen_at       timestamptz NOT NULL,
    draining      boolean NOT NULL DEFAULT false
);
CREATE INDEX run_of_worker ON run (worker_id) WHERE state IN ('LEASED', 'RUNNING');
