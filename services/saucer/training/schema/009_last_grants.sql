-- When each account got a run of this region and spec last: what it has waiting there is no older than that.
CREATE TABLE last_grant (
    region_id  text NOT NULL,
    spec_id    text NOT NULL,
    account_id uuid NOT NULL,
    granted_at timestamptz NOT NULL,
    PRIMARY KEY (region_id, spec_id, account_id)
);
