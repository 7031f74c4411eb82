-- One view an invariant; each must be empty. `billing audit` reads every view whose name begins with audit_.

CREATE VIEW audit_transfer_sums_to_zero AS
SELECT transfer_id, sum(amount_micros) AS sum_micros, count(*) AS entries FROM entry
GROUP BY transfer_id HAVING sum(amount_micros) <> 0 OR count(*) <> 2;

CREATE VIEW audit_transfer_has_its_entries AS
SELECT t.transfer_id, t.kind, t.amount_micros FROM transfer t
WHERE (SELECT coalesce(max(e.amount_micros), 0) FROM entry e WHERE e.transfer_id = t.transfer_id) <> t.amount_micros;

CREATE VIEW audit_balance_is_the_sum_of_entries AS
SELECT a.account_id, a.available_micros, a.frozen_micros, e.available AS entries_available, e.frozen AS entries_frozen
FROM account a
LEFT JOIN (
    SELECT account_id, coalesce(sum(amount_micros) FILTER (WHERE book = 'AVAILABLE'), 0) AS available,
           coalesce(sum(amount_micros) FILTER (WHERE book = 'FROZEN'), 0) AS frozen
    FROM entry GROUP BY account_id
) e USING (account_id)
WHERE a.available_micros <> coalesce(e.available, 0) OR a.frozen_micros <> coalesce(e.frozen, 0);

CREATE VIEW audit_entry_is_of_its_transfers_account AS
SELECT e.transfer_id, e.book, e.account_id, t.account_id AS account_of_transfer
FROM entry e JOIN transfer t USING (transfer_id) WHERE e.account_id <> t.account_id;

CREATE VIEW audit_frozen_is_the_sum_of_open_holds AS
SELECT a.account_id, a.frozen_micros, coalesce(sum(h.amount_micros), 0) AS open_micros
FROM account a LEFT JOIN hold h ON h.account_id = a.account_id AND h.state = 'GRANTED'
GROUP BY a.account_id HAVING a.frozen_micros <> coalesce(sum(h.amount_micros), 0);

CREATE VIEW audit_versions_have_no_gap AS
SELECT a.account_id, a.version, count(t.transfer_id) AS transfers, max(t.account_version) AS greatest
FROM account a LEFT JOIN transfer t USING (account_id)
GROUP BY a.account_id HAVING a.version <> count(t.transfer_id) OR a.version <> coalesce(max(t.account_version), 0);

CREATE VIEW audit_resolved_hold_pays_its_charge AS
SELECT hold_id, charged_ms, settled_micros, posted_micros, lost_micros FROM hold
WHERE state IN ('RESOLVED', 'EXPIRED')
  AND settled_micros + posted_micros + lost_micros
      <> div(price_per_hour_micros::numeric * count * (charged_ms / 1000), 3600);

CREATE VIEW audit_unpaid_is_covered_by_the_hold AS
SELECT hold_id, charged_ms, settled_micros, amount_micros FROM hold
WHERE state = 'GRANTED' AND NOT stop_ordered
  AND div(price_per_hour_micros::numeric * count * (charged_ms / 1000), 3600) - settled_micros > amount_micros;

CREATE VIEW audit_hold_is_the_sum_of_its_transfers AS
SELECT h.hold_id, h.state, h.amount_micros, h.settled_micros, h.posted_micros, h.released_micros, h.lost_micros
FROM hold h
CROSS JOIN LATERAL (
    SELECT coalesce(sum(amount_micros) FILTER (WHERE kind = 'HOLD'), 0) AS held,
           coalesce(sum(amount_micros) FILTER (WHERE kind = 'SETTLEMENT'), 0) AS settled,
           coalesce(sum(amount_micros) FILTER (WHERE kind = 'POSTING'), 0) AS posted,
           coalesce(sum(amount_micros) FILTER (WHERE kind IN ('RELEASE', 'EXPIRY')), 0) AS released,
           coalesce(sum(amount_micros) FILTER (WHERE kind = 'LOSS'), 0) AS lost
    FROM transfer WHERE transfer.hold_id = h.hold_id
) t
WHERE (h.settled_micros, h.posted_micros, h.released_micros, h.lost_micros)
      <> (t.settled, t.posted, t.released, t.lost)
   OR t.held <> CASE WHEN h.state IN ('GRANTED', 'RESOLVED', 'EXPIRED') THEN h.amount_micros ELSE 0 END;

CREATE VIEW audit_entries_sum_to_zero AS
SELECT a.currency, sum(e.amount_micros) AS sum_micros FROM entry e JOIN account a USING (account_id)
GROUP BY a.currency HAVING sum(e.amount_micros) <> 0;

-- Each transfer, replayed in the order of its account's versions, leaves the balance that was written beside it.
CREATE VIEW audit_balance_is_the_replay_of_transfers AS
SELECT transfer_id, account_id, account_version, available_micros, frozen_micros, replayed_available, replayed_frozen
FROM (
    SELECT t.transfer_id, t.account_id, t.account_version, t.available_micros, t.frozen_micros,
           sum(e.available) OVER replay AS replayed_available, sum(e.frozen) OVER replay AS replayed_frozen
    FROM transfer t
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(amount_micros) FILTER (WHERE book = 'AVAILABLE'), 0) AS available,
               coalesce(sum(amount_micros) FILTER (WHERE book = 'FROZEN'), 0) AS frozen
        FROM entry WHERE entry.transfer_id = t.transfer_id
    ) e
    WINDOW replay AS (PARTITION BY t.account_id ORDER BY t.account_version)
) replayed
WHERE (available_micros, frozen_micros) <> (replayed_available, replayed_frozen);

CREATE VIEW audit_hold_is_two_hours_of_its_price AS
SELECT hold_id, amount_micros, price_per_hour_micros, count FROM hold
WHERE state <> 'BURIED' AND amount_micros <> 2 * price_per_hour_micros * count;

CREATE VIEW audit_posted_is_at_most_the_hold AS
SELECT hold_id, amount_micros, posted_micros FROM hold WHERE posted_micros > amount_micros;

CREATE VIEW audit_refused_hold_moved_nothing AS
SELECT h.hold_id, h.state, t.transfer_id FROM hold h JOIN transfer t USING (hold_id)
WHERE h.state IN ('REFUSED', 'BURIED');

CREATE VIEW audit_refund_is_at_most_what_was_paid AS
SELECT h.hold_id, h.settled_micros, h.posted_micros, sum(t.amount_micros) AS refunded_micros
FROM hold h JOIN transfer t USING (hold_id) WHERE t.kind = 'REFUND'
GROUP BY h.hold_id HAVING sum(t.amount_micros) > h.settled_micros + h.posted_micros;
