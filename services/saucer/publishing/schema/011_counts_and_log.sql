-- What a Triton had counted of a version by the end of a piece of time, since it loaded it.
CREATE TABLE triton_count (
    deployment_id  uuid NOT NULL,
    version_number integer NOT NULL,
    began_at       timestamptz NOT NULL,
    triton_id      text NOT NULL,
    images         bigint NOT NULL CHECK (images >= 0),
    batches        bigint NOT NULL CHECK (batches >= 0),
    requests       bigint NOT NULL CHECK (requests >= 0),
    -- By all requests together, in Triton's queue.
    waited_us      bigint NOT NULL CHECK (waited_us >= 0),
    PRIMARY KEY (deployment_id, began_at, version_number, triton_id)
);
CREATE INDEX triton_count_age ON triton_count (began_at);

-- What models say; a process numbers its lines.
CREATE TABLE deployment_log (
    position       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    deployment_id  uuid NOT NULL,
    version_number integer NOT NULL,
    triton_id      text NOT NULL,
    process        text NOT NULL,
    number         integer NOT NULL CHECK (number > 0),
    level          text NOT NULL CHECK (level IN ('INFO', 'WARNING', 'ERROR')),
    message        text NOT NULL,
    logged_at      timestamptz NOT NULL,
    UNIQUE (deployment_id, process, number)
);
CREATE INDEX deployment_log_list ON deployment_log (deployment_id, position DESC);
CREATE INDEX deployment_log_age ON deployment_log (logged_at);
