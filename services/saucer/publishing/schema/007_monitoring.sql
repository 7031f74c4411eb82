-- What the requests to a version were in 15 seconds, as one replica of publishing counted them.
CREATE TABLE traffic (
    deployment_id  uuid NOT NULL,
    version_number integer NOT NULL,
    began_at       timestamptz NOT NULL,
    replica        text NOT NULL,
    requests       bigint NOT NULL CHECK (requests >= 0),
    errors         bigint NOT NULL CHECK (errors BETWEEN 0 AND requests),
    busy_ms        bigint NOT NULL CHECK (busy_ms >= 0),
    -- Answers by duration, at traffic.BOUNDS_MS; the last are those above all bounds.
    histogram      bigint[] NOT NULL,
    PRIMARY KEY (deployment_id, began_at, version_number, replica)
);
CREATE INDEX traffic_age ON traffic (began_at);

-- What happened to a deployment; the same again in one start is counted, and not repeated.
CREATE TABLE deployment_event (
    deployment_id uuid NOT NULL REFERENCES deployment,
    start_number  integer NOT NULL,
    kind          text NOT NULL,
    message       text NOT NULL,
    count         bigint NOT NULL CHECK (count > 0),
    first_at      timestamptz NOT NULL,
    last_at       timestamptz NOT NULL,
    PRIMARY KEY (deployment_id, start_number, kind, message)
);
CREATE INDEX deployment_event_age ON deployment_event (last_at);
