-- A transfer's kind says from which book to which it moves its amount, so its two entries follow from its row: they are a
-- view, sum to zero by how they are made, and cost no booking anything. The same moves stand in ledger.py.

DO $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM transfer t
        LEFT JOIN entry e USING (transfer_id)
        GROUP BY t.transfer_id, t.amount_micros
        HAVING count(e.book) <> 2 OR max(e.amount_micros) <> t.amount_micros OR min(e.amount_micros) <> -t.amount_micros
    ) THEN
        RAISE EXCEPTION 'entries differ from their transfers: run saucer billing audit with the former version';
    END IF;
END $$;

DROP VIEW audit_transfer_sums_to_zero, audit_transfer_has_its_entries, audit_balance_is_the_sum_of_entries,
          audit_entry_is_of_its_transfers_account, audit_entries_sum_to_zero, audit_balance_is_the_replay_of_transfers,
          audit_what_is_pointed_to_is_there;
DROP TABLE entry;

CREATE VIEW entry AS
SELECT t.transfer_id, side.book, t.account_id, side.sign * t.amount_micros AS amount_micros
FROM transfer t
JOIN (VALUES
    ('TOP_UP', 'CASH', 'AVAILABLE'),
    ('HOLD', 'AVAILABLE', 'FROZEN'),
    ('SETTLEMENT', 'AVAILABLE', 'REVENUE'),
    ('POSTING', 'FROZEN', 'REVENUE'),
    ('RELEASE', 'FROZEN', 'AVAILABLE'),
    ('EXPIRY', 'FROZEN', 'AVAILABLE'),
    ('LOSS', 'LOSS', 'REVENUE'),
    ('CREDIT', 'ADJUSTMENT', 'AVAILABLE'),
    ('DEBIT', 'AVAILABLE', 'ADJUSTMENT'),
    ('REFUND', 'REVENUE', 'AVAILABLE')
) AS move (kind, source, target) USING (kind)
CROSS JOIN LATERAL (VALUES (move.source, -1), (move.target, 1)) AS side (book, sign);

-- A replica of the version before, which still runs while this one starts, writes entries: they are there already.
CREATE FUNCTION ignore_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END $$;
CREATE TRIGGER written_by_the_version_before INSTEAD OF INSERT ON entry FOR EACH ROW EXECUTE FUNCTION ignore_entry();

CREATE VIEW audit_transfer_has_its_entries AS
SELECT t.transfer_id, t.kind, t.amount_micros FROM transfer t
WHERE (SELECT coalesce(max(e.amount_micros), 0) FROM entry e WHERE e.transfer_id = t.transfer_id) <> t.amount_micros;

CREATE VIEW audit_entries_sum_to_zero AS
SELECT a.currency, sum(e.amount_micros) AS sum_micros FROM entry e JOIN account a USING (account_id)
GROUP BY a.currency HAVING sum(e.amount_micros) <> 0;

CREATE VIEW audit_balance_is_the_sum_of_entries AS
SELECT a.account_id, a.available_micros, a.frozen_micros, e.available AS entries_available, e.frozen AS entries_frozen
FROM account a
LEFT JOIN (
    SELECT account_id, coalesce(sum(amount_micros) FILTER (WHERE book = 'AVAILABLE'), 0) AS available,
           coalesce(sum(amount_micros) FILTER (WHERE book = 'FROZEN'), 0) AS frozen
    FROM entry GROUP BY account_id
) e USING (account_id)
WHERE a.available_micros <> coalesce(e.available, 0) OR a.frozen_micros <> coalesce(e.frozen, 0);

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

CREATE VIEW audit_what_is_pointed_to_is_there AS
SELECT 'transfer' AS row_of, t.transfer_id, t.account_id, t.hold_id FROM transfer t
LEFT JOIN account a USING (account_id) LEFT JOIN hold h ON h.hold_id = t.hold_id
WHERE a.account_id IS NULL OR (t.hold_id IS NOT NULL AND h.account_id IS DISTINCT FROM t.account_id)
UNION ALL
SELECT 'hold', NULL, h.account_id, h.hold_id FROM hold h LEFT JOIN account a USING (account_id)
WHERE a.account_id IS NULL;
