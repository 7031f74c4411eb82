CREATE TABLE task (
    task_id               uuid PRIMARY KEY,
    account_id            uuid NOT NULL,
    request_id            uuid NOT NULL,
    display_name          text NOT NULL,
    form                  jsonb NOT NULL,
    config                jsonb NOT NULL,
    derived               jsonb NOT NULL,
    state                 text NOT NULL CHECK (state IN ('PENDING', 'WAITING', 'QUEUED', 'TRAINING', 'EVALUATING',
                                                         'SUCCEEDED', 'STOPPED', 'FAILED', 'REFUSED')),
    former_state          text CHECK (former_state IN ('STOPPED', 'FAILED', 'REFUSED')),
    charge_status         text NOT NULL CHECK (charge_status IN ('NOT_BILLING', 'BILLING', 'STOPPED_FOR_ARREARS')),
    start_number          integer NOT NULL CHECK (start_number > 0),
    restart_request_id    uuid,
    hold_micros           bigint NOT NULL CHECK (hold_micros >= 0),
    price_per_hour_micros bigint NOT NULL CHECK (price_per_hour_micros >= 0),
    currency              text NOT NULL,
    progress              jsonb NOT NULL,
    stop_requested        boolean NOT NULL,
    end_reason            text,
    error_message         text NOT NULL,
    missing_micros        bigint NOT NULL CHECK (missing_micros >= 0),
    model_id              text NOT NULL,
    evaluation_id         text NOT NULL,
    test_map_50           double precision,
    created_at            timestamptz NOT NULL,
    updated_at            timestamptz NOT NULL,
    ended_at              timestamptz,
    deleted_at            timestamptz,
    revision              bigint NOT NULL CHECK (revision > 0),
    UNIQUE (account_id, request_id),
    CHECK ((ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'STOPPED', 'FAILED', 'REFUSED'))),
    CHECK (deleted_at IS NULL OR ended_at IS NOT NULL)
);
-- A deleted task frees its name.
CREATE UNIQUE INDEX task_name ON task (account_id, display_name) WHERE deleted_at IS NULL;
CREATE INDEX task_list ON task (account_id, created_at DESC, task_id DESC) WHERE deleted_at IS NULL;
CREATE INDEX task_unsettled ON task (updated_at) WHERE state IN ('PENDING', 'EVALUATING');
