CREATE TABLE account (
    account_id       uuid PRIMARY KEY,
    request_id       uuid NOT NULL UNIQUE,
    display_name     text NOT NULL,
    currency         text NOT NULL,
    time_zone        text NOT NULL,
    state            text NOT NULL CHECK (state IN ('ACTIVE', 'SUSPENDED')),
    available_micros bigint NOT NULL DEFAULT 0 CHECK (available_micros >= 0),
    frozen_micros    bigint NOT NULL DEFAULT 0 CHECK (frozen_micros >= 0),
    -- Rises by one with every transfer of the account.
    version          bigint NOT NULL DEFAULT 0,
    -- Suspensions, their ends, warnings; with the version, the revision that readers compare.
    state_changes    bigint NOT NULL DEFAULT 0,
    -- The fewest hours of funds that the account was warned of since its last top-up.
    warned_hours     integer,
    created_at       timestamptz NOT NULL
);

CREATE TABLE region (
    region_id    text PRIMARY KEY,
    display_name text NOT NULL
);

CREATE TABLE spec (
    region_id    text NOT NULL REFERENCES region,
    spec_id      text NOT NULL,
    display_name text NOT NULL,
    gpus         integer NOT NULL CHECK (gpus >= 0),
    cpu_cores    integer NOT NULL CHECK (cpu_cores > 0),
    max_count    integer NOT NULL CHECK (max_count > 0),
    currency     text NOT NULL,
    PRIMARY KEY (region_id, spec_id)
);

CREATE TABLE price (
    region_id             text NOT NULL,
    spec_id               text NOT NULL,
    starts_at             timestamptz NOT NULL,
    price_per_hour_micros bigint NOT NULL CHECK (price_per_hour_micros > 0),
    PRIMARY KEY (region_id, spec_id, starts_at),
    FOREIGN KEY (region_id, spec_id) REFERENCES spec
);

CREATE TABLE hold (
    hold_id               text PRIMARY KEY,
    account_id            uuid NOT NULL REFERENCES account,
    work_kind             text NOT NULL CHECK (work_kind IN ('TASK', 'DEPLOYMENT')),
    work_id               uuid NOT NULL,
    start_number          integer NOT NULL CHECK (start_number > 0),
    region_id             text NOT NULL,
    spec_id               text NOT NULL,
    count                 integer NOT NULL CHECK (count > 0),
    currency              text NOT NULL,
    price_per_hour_micros bigint NOT NULL,
    amount_micros         bigint NOT NULL,
    missing_micros        bigint NOT NULL DEFAULT 0 CHECK (missing_micros >= 0),
    state                 text NOT NULL CHECK (state IN ('GRANTED', 'REFUSED', 'RESOLVED', 'EXPIRED', 'BURIED')),
    -- Of a refused one: why. A retry is told the same.
    refusal               text CHECK (refusal IN ('INSUFFICIENT_BALANCE', 'ACCOUNT_SUSPENDED', 'CURRENCY_MISMATCH')),
    -- Whether the event that uses it was consumed: what is not used expires.
    used                  boolean NOT NULL DEFAULT false,
    charge_status         text NOT NULL DEFAULT 'NOT_BILLING'
                          CHECK (charge_status IN ('NOT_BILLING', 'BILLING', 'STOPPED_FOR_ARREARS')),
    stop_ordered          boolean NOT NULL DEFAULT false,
    charged_ms            bigint NOT NULL DEFAULT 0 CHECK (charged_ms >= 0),
    settled_micros        bigint NOT NULL DEFAULT 0 CHECK (settled_micros >= 0),
    posted_micros         bigint NOT NULL DEFAULT 0 CHECK (posted_micros >= 0),
    released_micros       bigint NOT NULL DEFAULT 0 CHECK (released_micros >= 0),
    lost_micros           bigint NOT NULL DEFAULT 0 CHECK (lost_micros >= 0),
    created_at            timestamptz NOT NULL,
    resolved_at           timestamptz,
    revision              bigint NOT NULL DEFAULT 1,
    UNIQUE (work_id, start_number),
    CHECK (state = 'BURIED' OR amount_micros = 2 * price_per_hour_micros * count),
    CHECK ((state = 'REFUSED') = (refusal IS NOT NULL)),
    CHECK (state NOT IN ('RESOLVED', 'EXPIRED') OR posted_micros + released_micros = amount_micros),
    CHECK (state IN ('RESOLVED', 'EXPIRED') OR posted_micros + released_micros + lost_micros = 0),
    CHECK (state <> 'EXPIRED' OR posted_micros + settled_micros = 0),
    CHECK ((state IN ('RESOLVED', 'EXPIRED')) = (resolved_at IS NOT NULL))
);
CREATE INDEX hold_of_account ON hold (account_id, created_at DESC, hold_id);
-- Open holds are few: the sweep for unused ones reads them all by it.
CREATE INDEX hold_open ON hold (account_id) WHERE state = 'GRANTED';

-- What an administrator did, why and in whose name.
CREATE TABLE record (
    record_id  uuid PRIMARY KEY,
    -- Of the call: the same id twice does it once.
    request_id text NOT NULL UNIQUE,
    action     text NOT NULL,
    -- What it was done to: an account, a hold, a region/spec.
    subject    text NOT NULL,
    account_id uuid REFERENCES account,
    author     text NOT NULL,
    reason     text NOT NULL,
    -- The call's figures, as JSON.
    detail     jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX record_in_order ON record (created_at DESC, record_id DESC);
CREATE INDEX record_of_account ON record (account_id, created_at DESC, record_id DESC);

CREATE TABLE transfer (
    transfer_id     uuid PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('TOP_UP', 'HOLD', 'SETTLEMENT', 'POSTING', 'RELEASE', 'EXPIRY', 'LOSS',
                                                  'CREDIT', 'DEBIT', 'REFUND')),
    account_id      uuid NOT NULL REFERENCES account,
    account_version bigint NOT NULL,
    hold_id         text REFERENCES hold,
    amount_micros   bigint NOT NULL CHECK (amount_micros > 0),
    -- The counter of the hold when it was booked.
    charged_ms      bigint NOT NULL DEFAULT 0,
    -- Of the account, after it.
    available_micros bigint NOT NULL,
    frozen_micros    bigint NOT NULL,
    -- Of a top-up: the payment system's.
    reference       text,
    -- Of a correction: who and why.
    record_id       uuid REFERENCES record,
    created_at      timestamptz NOT NULL,
    UNIQUE (account_id, account_version),
    CHECK ((kind IN ('TOP_UP', 'CREDIT', 'DEBIT')) = (hold_id IS NULL)),
    CHECK ((kind = 'TOP_UP') = (reference IS NOT NULL)),
    CHECK ((kind IN ('CREDIT', 'DEBIT', 'REFUND')) = (record_id IS NOT NULL))
);
CREATE UNIQUE INDEX transfer_top_up ON transfer (reference) WHERE kind = 'TOP_UP';
CREATE INDEX transfer_of_hold ON transfer (hold_id, account_version);

CREATE TABLE entry (
    transfer_id   uuid NOT NULL REFERENCES transfer,
    book          text NOT NULL CHECK (book IN ('AVAILABLE', 'FROZEN', 'CASH', 'REVENUE', 'LOSS', 'ADJUSTMENT')),
    -- Its transfer's, which the audit compares; a second foreign key and an index would only slow each booking.
    account_id    uuid NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros <> 0),
    PRIMARY KEY (transfer_id, book)
);

-- Append-only twice over: a trigger for everybody, and rights for the service's own role.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entry EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON price EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON record EXECUTE FUNCTION refuse_change();
REVOKE UPDATE, DELETE, TRUNCATE ON transfer, entry, price, record FROM CURRENT_USER;
-- A foreign key locks the row that it points to, which asks for the right on one column; the trigger refuses its use.
GRANT UPDATE (transfer_id) ON transfer TO CURRENT_USER;
GRANT UPDATE (record_id) ON record TO CURRENT_USER;

-- A hold: what it was granted for never changes; its meter moves until it is closed, and then nothing does.
CREATE TRIGGER never_removed BEFORE DELETE OR TRUNCATE ON hold EXECUTE FUNCTION refuse_change();
CREATE FUNCTION refuse_reopening() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'hold % is %', OLD.hold_id, OLD.state;
END $$;
CREATE TRIGGER closed_once BEFORE UPDATE ON hold FOR EACH ROW WHEN (OLD.state <> 'GRANTED')
    EXECUTE FUNCTION refuse_reopening();
REVOKE UPDATE, DELETE, TRUNCATE ON hold FROM CURRENT_USER;
GRANT UPDATE (state, used, charge_status, stop_ordered, charged_ms, settled_micros, posted_micros, released_micros,
              lost_micros, resolved_at, revision) ON hold TO CURRENT_USER;
