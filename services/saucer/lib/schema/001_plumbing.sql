-- What every service's database has besides its own tables.

-- Events on their way out. Written in the transaction of the change that they tell of.
CREATE TABLE outbox (
    position   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id   uuid NOT NULL UNIQUE,
    type       text NOT NULL,
    subject    text NOT NULL,
    account_id text NOT NULL,
    resource   text NOT NULL,
    data       text NOT NULL,
    created_at timestamptz NOT NULL,
    sent_at    timestamptz
);
CREATE INDEX outbox_unsent ON outbox (position) WHERE sent_at IS NULL;

-- Which replica's relay sends.
CREATE TABLE relay_lease (
    only_one   boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL
);

-- Events whose effect is not idempotent by itself, once taken.
CREATE TABLE inbox (
    event_id uuid PRIMARY KEY,
    taken_at timestamptz NOT NULL
);

-- Events that could not be taken.
CREATE TABLE dead_event (
    event_id   uuid PRIMARY KEY,
    consumer   text NOT NULL,
    type       text NOT NULL,
    subject    text NOT NULL,
    headers    jsonb NOT NULL,
    body       text NOT NULL,
    error      text NOT NULL,
    attempts   integer NOT NULL,
    dead_at    timestamptz NOT NULL,
    retried_at timestamptz
);
