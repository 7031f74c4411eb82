-- Capacity of a spec that an account has bought beforehand, for a time.
CREATE TABLE resource_group (
    group_id     uuid PRIMARY KEY,
    account_id   uuid NOT NULL REFERENCES account,
    display_name text NOT NULL,
    region_id    text NOT NULL,
    spec_id      text NOT NULL,
    capacity     integer NOT NULL CHECK (capacity > 0),
    starts_at    timestamptz NOT NULL,
    ends_at      timestamptz NOT NULL,
    -- The fewest hours before its end that were warned of.
    warned_hours integer,
    -- Its end was seen, and what ran was ordered to stop.
    ended        boolean NOT NULL DEFAULT false,
    created_at   timestamptz NOT NULL,
    revision     bigint NOT NULL DEFAULT 1,
    CHECK (starts_at < ends_at),
    FOREIGN KEY (region_id, spec_id) REFERENCES spec
);
CREATE INDEX group_of_account ON resource_group (account_id, created_at DESC, group_id DESC);
CREATE INDEX group_to_end ON resource_group (ends_at) WHERE NOT ended;

ALTER TABLE hold
    -- Whose capacity it takes; NULL: money is frozen.
    ADD COLUMN group_id uuid REFERENCES resource_group,
    ADD COLUMN granted_at timestamptz,
    -- Of the account, when money was asked for: the replies of one account have one order.
    ADD COLUMN account_version bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT hold_state_check,
    DROP CONSTRAINT hold_refusal_check,
    ADD CONSTRAINT hold_state_check
        CHECK (state IN ('WAITING', 'GRANTED', 'REFUSED', 'RESOLVED', 'EXPIRED', 'BURIED')),
    ADD CONSTRAINT hold_refusal_check
        CHECK (refusal IN ('INSUFFICIENT_BALANCE', 'ACCOUNT_SUSPENDED', 'CURRENCY_MISMATCH', 'BUDGET_REACHED',
                           'GROUP_NOT_STARTED', 'GROUP_ENDED')),
    ADD CONSTRAINT hold_of_group_costs_nothing CHECK (group_id IS NULL OR amount_micros = 0),
    ADD CONSTRAINT hold_waits_for_capacity CHECK (state <> 'WAITING' OR group_id IS NOT NULL);
CREATE INDEX hold_of_group ON hold (group_id, created_at, hold_id)
    WHERE group_id IS NOT NULL AND state IN ('GRANTED', 'WAITING');
GRANT UPDATE (granted_at) ON hold TO CURRENT_USER;
UPDATE hold SET granted_at = created_at WHERE state = 'GRANTED';
ALTER TABLE hold ADD CONSTRAINT hold_granted_at CHECK (state <> 'GRANTED' OR granted_at IS NOT NULL);
DROP INDEX hold_open;
CREATE INDEX hold_open ON hold (account_id) WHERE state IN ('GRANTED', 'WAITING');
DROP TRIGGER closed_once ON hold;
CREATE TRIGGER closed_once BEFORE UPDATE ON hold FOR EACH ROW WHEN (OLD.state NOT IN ('GRANTED', 'WAITING'))
    EXECUTE FUNCTION refuse_reopening();

-- What a task or deployment, or an account in each calendar month, may cost at most.
CREATE TABLE budget (
    budget_id     uuid PRIMARY KEY,
    account_id    uuid NOT NULL REFERENCES account,
    -- NULL: of the account, by the month.
    work_id       uuid,
    amount_micros bigint NOT NULL CHECK (amount_micros > 0),
    updated_at    timestamptz NOT NULL,
    UNIQUE NULLS NOT DISTINCT (account_id, work_id)
);

-- Settled and posted, less refunds, by the calendar month of the account's time zone: what a month's budget reads.
CREATE TABLE month_charge (
    account_id     uuid NOT NULL REFERENCES account,
    month          text NOT NULL,
    charged_micros bigint NOT NULL,
    PRIMARY KEY (account_id, month)
);
INSERT INTO month_charge (account_id, month, charged_micros)
SELECT t.account_id, to_char(t.created_at AT TIME ZONE a.time_zone, 'YYYY-MM'),
       sum(CASE t.kind WHEN 'REFUND' THEN -t.amount_micros ELSE t.amount_micros END)
FROM transfer t JOIN account a USING (account_id)
WHERE t.kind IN ('SETTLEMENT', 'POSTING', 'REFUND') GROUP BY 1, 2;

CREATE VIEW audit_month_is_the_sum_of_its_transfers AS
SELECT coalesce(m.account_id, t.account_id) AS account_id, coalesce(m.month, t.month) AS month, m.charged_micros,
       t.charged_micros AS charged_by_transfers
FROM month_charge m
FULL JOIN (
    SELECT t.account_id, to_char(t.created_at AT TIME ZONE a.time_zone, 'YYYY-MM') AS month,
           sum(CASE t.kind WHEN 'REFUND' THEN -t.amount_micros ELSE t.amount_micros END) AS charged_micros
    FROM transfer t JOIN account a USING (account_id)
    WHERE t.kind IN ('SETTLEMENT', 'POSTING', 'REFUND') GROUP BY 1, 2
) t ON t.account_id = m.account_id AND t.month = m.month
WHERE coalesce(m.charged_micros, 0) <> coalesce(t.charged_micros, 0);

CREATE VIEW audit_group_gives_no_more_than_its_capacity AS
SELECT g.group_id, g.capacity, sum(h.count) AS taken
FROM resource_group g JOIN hold h USING (group_id) WHERE h.state = 'GRANTED'
GROUP BY g.group_id HAVING sum(h.count) > g.capacity;

CREATE VIEW audit_hold_of_group_moved_nothing AS
SELECT h.hold_id, h.group_id, t.transfer_id FROM hold h JOIN transfer t USING (hold_id) WHERE h.group_id IS NOT NULL;

CREATE VIEW audit_hold_is_of_its_groups_account_and_spec AS
SELECT h.hold_id, h.group_id, h.account_id, h.region_id, h.spec_id FROM hold h JOIN resource_group g USING (group_id)
WHERE (h.account_id, h.region_id, h.spec_id) <> (g.account_id, g.region_id, g.spec_id);

CREATE VIEW audit_ended_start_has_no_open_hold AS
SELECT h.hold_id, h.state, later.hold_id AS later_hold_id
FROM hold h JOIN hold later ON later.work_id = h.work_id AND later.start_number > h.start_number
WHERE h.state IN ('GRANTED', 'WAITING') AND later.used;

CREATE VIEW audit_balance_is_never_negative AS
SELECT account_id, available_micros, frozen_micros FROM account WHERE available_micros < 0 OR frozen_micros < 0
UNION ALL
SELECT account_id, available_micros, frozen_micros FROM transfer WHERE available_micros < 0 OR frozen_micros < 0;
