-- One row for each start that anything was ordered of. The run and the order to stop it may come in either sequence;
-- both handlers write this row first, so that the second waits for the first and sees what it did.
CREATE TABLE stop_order (
    hold_id            text PRIMARY KEY,
    -- Null: none was ordered yet.
    reason             text,
    -- Of the run's counter; 0: at once.
    stop_at_charged_ms bigint NOT NULL DEFAULT 0
);

CREATE TABLE run (
    run_id             uuid PRIMARY KEY,
    account_id         uuid NOT NULL,
    task_id            uuid NOT NULL,
    task_name          text NOT NULL,
    start_number       integer NOT NULL CHECK (start_number > 0),
    hold_id            text NOT NULL UNIQUE,
    region_id          text NOT NULL,
    spec_id            text NOT NULL,
    count              integer NOT NULL CHECK (count > 0),
    dataset_version_id uuid NOT NULL,
    -- saucer.training.v1.TrainingConfig in protobuf's JSON mapping.
    config             text NOT NULL,
    max_duration_ms    bigint NOT NULL CHECK (max_duration_ms > 0),
    output_prefix      text NOT NULL,
    created_at         timestamptz NOT NULL,

    state              text NOT NULL CHECK (state IN ('QUEUED', 'LEASED', 'RUNNING', 'ENDED')),
    queued_at          timestamptz NOT NULL,
    started_at         timestamptz,
    ended_at           timestamptz,
    attempt            integer NOT NULL CHECK (attempt >= 0),
    lost_attempts      integer NOT NULL CHECK (lost_attempts >= 0),
    stop_reason        text,
    stop_at_charged_ms bigint NOT NULL,
    end_reason         text,
    error_message      text NOT NULL,
    model_id           uuid,
    finish_request_id  uuid,
    metric_count       bigint NOT NULL,
    log_count          bigint NOT NULL,
    told_at            timestamptz,
    told_epoch         integer NOT NULL,
    revision           bigint NOT NULL,

    -- Of the present attempt; kept after its end, so that a repeated call can be answered.
    worker_id          text,
    token_sha256       text,
    request_sha256     text,
    salt               bytea,
    lease_expires_at   timestamptz,
    sequence           bigint NOT NULL,
    finish_by          timestamptz,

    stage              text NOT NULL,
    iteration          integer NOT NULL,
    iterations         integer NOT NULL,
    epoch              double precision NOT NULL,
    elapsed_ms         bigint NOT NULL,
    time_left_ms       bigint,
    best_map_50        double precision,
    stage_progress     double precision NOT NULL,

    charged_ms         bigint NOT NULL CHECK (charged_ms >= 0),
    finishing_ms       bigint NOT NULL CHECK (finishing_ms BETWEEN 0 AND charged_ms),
    beat_at            timestamptz,
    progressed_at      timestamptz,
    reached_stage      integer NOT NULL,
    reached_done       double precision NOT NULL,
    counted_stage      integer NOT NULL,
    counted_done       double precision NOT NULL,
    caught_up          boolean NOT NULL,

    checkpoint_key        text,
    checkpoint_sha256     text,
    checkpoint_iteration  integer,
    checkpoint_elapsed_ms bigint,

    UNIQUE (task_id, start_number),
    CHECK ((state IN ('LEASED', 'RUNNING')) = (lease_expires_at IS NOT NULL)),
    CHECK ((state = 'ENDED') = (end_reason IS NOT NULL)),
    CHECK ((state = 'ENDED') = (ended_at IS NOT NULL)),
    CHECK (state <> 'RUNNING' OR started_at IS NOT NULL),
    CHECK (started_at IS NOT NULL OR charged_ms = 0),
    CHECK ((checkpoint_key IS NULL) = (checkpoint_sha256 IS NULL))
);
CREATE INDEX run_queued ON run (region_id, spec_id, queued_at) WHERE state = 'QUEUED';
CREATE INDEX run_leased ON run (lease_expires_at) WHERE state IN ('LEASED', 'RUNNING');
CREATE INDEX run_busy ON run (account_id) WHERE state IN ('LEASED', 'RUNNING');
CREATE UNIQUE INDEX run_lease_request ON run (request_sha256) WHERE state IN ('LEASED', 'RUNNING');
CREATE INDEX run_of_account ON run (account_id, created_at DESC, run_id DESC);

CREATE TABLE metric_point (
    run_id      uuid NOT NULL REFERENCES run,
    sequence    bigint NOT NULL,
    iteration   integer NOT NULL,
    epoch       double precision NOT NULL,
    -- An object of numbers.
    metrics     text NOT NULL,
    measured_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, sequence)
);

CREATE TABLE log_line (
    run_id    uuid NOT NULL REFERENCES run,
    sequence  bigint NOT NULL,
    attempt   integer NOT NULL,
    -- As saucer.training.v1.LogLevel numbers them.
    level     integer NOT NULL CHECK (level BETWEEN 1 AND 4),
    logged_at timestamptz NOT NULL,
    line      text NOT NULL,
    PRIMARY KEY (run_id, sequence)
);

CREATE TABLE model (
    model_id    uuid PRIMARY KEY,
    run_id      uuid NOT NULL UNIQUE REFERENCES run,
    account_id  uuid NOT NULL,
    task_id     uuid NOT NULL,
    task_name   text NOT NULL,
    dataset_version_id uuid NOT NULL,
    config      text NOT NULL,
    best_map_50 double precision,
    -- An array of objects name, key, size_bytes, sha256.
    files       text NOT NULL,
    created_at  timestamptz NOT NULL,
    revision    bigint NOT NULL DEFAULT 1
);
CREATE INDEX model_of_account ON model (account_id, created_at DESC, model_id DESC);
