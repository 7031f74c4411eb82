-- What an account may have at once, and its share where it competes. Null: no limit. Their owners enforce them.
CREATE TABLE account_quotas (
    account_id    uuid PRIMARY KEY REFERENCES account,
    weight        integer NOT NULL CHECK (weight > 0),
    running       integer CHECK (running >= 0),
    queued        integer CHECK (queued >= 0),
    storage_bytes bigint CHECK (storage_bytes >= 0),
    revision      bigint NOT NULL
);
