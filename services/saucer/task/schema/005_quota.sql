-- What billing says of an account: how many of its tasks may wait. Null: no limit. Locked while a task is added.
CREATE TABLE account_quota (
    account_id uuid PRIMARY KEY,
    queued     integer CHECK (queued >= 0),
    revision   bigint NOT NULL
);
CREATE INDEX task_waits ON task (account_id) WHERE state IN ('PENDING', 'WAITING', 'QUEUED');
