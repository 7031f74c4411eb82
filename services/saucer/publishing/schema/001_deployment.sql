-- Models, as the events of training told them.
CREATE TABLE model (
    model_id        uuid PRIMARY KEY,
    account_id      uuid NOT NULL,
    classes         jsonb NOT NULL,
    files           jsonb NOT NULL,
    manifest_key    text NOT NULL,
    manifest_sha256 text NOT NULL,
    image_prefix    text NOT NULL
);

-- The newest evaluation of a model that succeeded. No reference: the events of two services may come in any order.
CREATE TABLE evaluation (
    model_id            uuid PRIMARY KEY,
    evaluation_id       uuid NOT NULL,
    recommended         jsonb NOT NULL,
    recommended_overall double precision,
    ended_at            timestamptz NOT NULL
);

CREATE TABLE deployment (
    deployment_id         uuid PRIMARY KEY,
    account_id            uuid NOT NULL,
    request_id            uuid NOT NULL,
    display_name          text NOT NULL,
    form                  jsonb NOT NULL,
    evaluation_id         uuid NOT NULL,
    classes               jsonb NOT NULL,
    thresholds            jsonb NOT NULL,
    state                 text NOT NULL CHECK (state IN ('PENDING', 'WAITING', 'QUEUED', 'DEPLOYING', 'ACTIVE', 'DEGRADED',
                                                         'STOPPING', 'STOPPED', 'FAILED', 'REFUSED')),
    former_state          text CHECK (former_state IN ('STOPPED', 'FAILED', 'REFUSED')),
    charge_status         text NOT NULL CHECK (charge_status IN ('NOT_BILLING', 'BILLING', 'STOPPED_FOR_ARREARS')),
    start_number          integer NOT NULL CHECK (start_number > 0),
    start_request_id      uuid,
    hold_micros           bigint NOT NULL CHECK (hold_micros >= 0),
    price_per_hour_micros bigint NOT NULL CHECK (price_per_hour_micros >= 0),
    currency              text NOT NULL,
    missing_micros        bigint NOT NULL CHECK (missing_micros >= 0),
    charged_ms            bigint NOT NULL CHECK (charged_ms >= 0),
    probed_at             timestamptz,
    progressed_at         timestamptz,
    active_at             timestamptz,
    parity                jsonb,
    probe_key             text NOT NULL,
    attempts              integer NOT NULL CHECK (attempts >= 0),
    retry_at              timestamptz,
    stop_requested        boolean NOT NULL,
    end_reason            text,
    error_message         text NOT NULL,
    created_at            timestamptz NOT NULL,
    moved_at              timestamptz NOT NULL,
    ended_at              timestamptz,
    revision              bigint NOT NULL CHECK (revision > 0),
    UNIQUE (account_id, request_id),
    CHECK ((ended_at IS NOT NULL) = (state IN ('STOPPED', 'FAILED', 'REFUSED'))),
    CHECK ((state = 'ACTIVE') = (charge_status = 'BILLING')),
    CHECK ((state = 'ACTIVE') = (probed_at IS NOT NULL)),
    CHECK (state NOT IN ('ACTIVE', 'DEGRADED') OR (active_at IS NOT NULL AND parity IS NOT NULL AND probe_key <> ''))
);
-- A deployment at rest frees its name.
CREATE UNIQUE INDEX deployment_name ON deployment (account_id, display_name)
    WHERE state NOT IN ('STOPPED', 'FAILED', 'REFUSED');
CREATE INDEX deployment_list ON deployment (account_id, created_at DESC, deployment_id DESC);
CREATE INDEX deployment_moving ON deployment (state, moved_at) WHERE state NOT IN ('STOPPED', 'FAILED', 'REFUSED');

-- Which replica acts on Triton.
CREATE TABLE reconcile_lease (
    only_one   boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL
);
