CREATE TABLE evaluation (
    evaluation_id      uuid PRIMARY KEY,
    account_id         uuid NOT NULL,
    task_id            uuid NOT NULL,
    run_id             uuid NOT NULL,
    model_id           uuid NOT NULL UNIQUE,
    dataset_version_id text NOT NULL,
    source             jsonb NOT NULL,
    state              text NOT NULL CHECK (state IN ('SCORING', 'SUCCEEDED', 'FAILED')),
    error_message      text NOT NULL DEFAULT '',
    attempts           integer NOT NULL DEFAULT 0,
    -- Whoever scores it has it until then.
    claimed_until      timestamptz,
    figures            jsonb,
    duration_ms        bigint NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL,
    ended_at           timestamptz,
    revision           bigint NOT NULL DEFAULT 1,
    CHECK ((state = 'SUCCEEDED') = (figures IS NOT NULL)),
    CHECK ((state = 'SCORING') = (ended_at IS NULL))
);
CREATE INDEX evaluation_list ON evaluation (account_id, created_at DESC, evaluation_id DESC);
CREATE INDEX evaluation_scoring ON evaluation (created_at) WHERE state = 'SCORING';

-- Reading an image costs its owner requests and traffic, so both are counted.
CREATE TABLE image_read (
    account_id uuid NOT NULL,
    day        date NOT NULL,
    reads      bigint NOT NULL,
    bytes      bigint NOT NULL,
    PRIMARY KEY (account_id, day)
);
