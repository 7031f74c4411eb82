-- Who did what: a call of a person's or an administrator's that changes something, before it is done; then its outcome.
CREATE TABLE recorded_call (
    -- Ascending in time.
    call_id    uuid PRIMARY KEY,
    method     text NOT NULL,
    author     text NOT NULL,
    role       text NOT NULL,
    token_id   text NOT NULL,
    account_id text,
    request_id text,
    ids        jsonb NOT NULL,
    -- gRPC's status code by name; NULL until it is answered.
    outcome    text,
    asked_at   timestamptz NOT NULL
);
CREATE INDEX recorded_call_of_account ON recorded_call (account_id, call_id);
-- For retention.
CREATE INDEX recorded_call_asked ON recorded_call (asked_at);
