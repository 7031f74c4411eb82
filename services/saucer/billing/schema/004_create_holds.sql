-- Holds of one account, decided one after the other with what is left of the balance, so that a refused one takes nothing
-- from those behind it. The account is locked first: what is read is what the last transfer left. A function, because its
-- statements are planned once for a session, and the loop between them costs nothing: as one statement with a recursive
-- query it held the hot account's lock a quarter longer.
CREATE FUNCTION create_holds(
    of_account uuid, now timestamptz, hold_ids text[], work_kinds text[], work_ids uuid[], start_numbers integer[],
    region_ids text[], spec_ids text[], counts integer[], currencies text[], prices bigint[], amounts bigint[],
    transfer_ids uuid[], over_budgets boolean[]
) RETURNS SETOF hold LANGUAGE plpgsql AS $$
DECLARE
    payer account;
    existing text[];
    -- Of each hold: why it is refused, NULL if it is not; and the account after it.
    refusals text[];
    versions bigint[];
    availables bigint[];
    frozens bigint[];
BEGIN
    SELECT * INTO payer FROM account WHERE account_id = of_account FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    existing := ARRAY(SELECT hold_id FROM hold WHERE hold_id = ANY (hold_ids));
    FOR i IN 1 .. cardinality(hold_ids) LOOP
        refusals[i] := CASE
            WHEN hold_ids[i] = ANY (existing) THEN 'EXISTS'
            WHEN payer.state <> 'ACTIVE' THEN 'ACCOUNT_SUSPENDED'
            WHEN payer.currency <> currencies[i] THEN 'CURRENCY_MISMATCH'
            WHEN over_budgets[i] THEN 'BUDGET_REACHED'
            WHEN payer.available_micros < amounts[i] THEN 'INSUFFICIENT_BALANCE'
        END;
        IF refusals[i] IS NULL THEN
            payer.available_micros := payer.available_micros - amounts[i];
            payer.frozen_micros := payer.frozen_micros + amounts[i];
            payer.version := payer.version + 1;
        END IF;
        versions[i] := payer.version;
        availables[i] := payer.available_micros;
        frozens[i] := payer.frozen_micros;
    END LOOP;
    UPDATE account SET available_micros = payer.available_micros, frozen_micros = payer.frozen_micros,
                       version = payer.version
    WHERE account_id = of_account AND version <> payer.version;
    RETURN QUERY
    INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency,
                      price_per_hour_micros, amount_micros, missing_micros, state, refusal, created_at, granted_at,
                      account_version)
    SELECT a.hold_id, of_account, a.work_kind, a.work_id, a.start_number, a.region_id, a.spec_id, a.count, a.currency,
           a.price, a.amount, CASE a.refusal WHEN 'INSUFFICIENT_BALANCE' THEN a.amount - a.available ELSE 0 END,
           CASE WHEN a.refusal IS NULL THEN 'GRANTED' ELSE 'REFUSED' END, a.refusal, now,
           CASE WHEN a.refusal IS NULL THEN now END, a.version
    FROM unnest(hold_ids, work_kinds, work_ids, start_numbers, region_ids, spec_ids, counts, currencies, prices, amounts,
                refusals, versions, availables)
         AS a (hold_id, work_kind, work_id, start_number, region_id, spec_id, count, currency, price, amount, refusal,
               version, available)
    WHERE a.refusal IS DISTINCT FROM 'EXISTS'
    RETURNING *;
    INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, available_micros,
                          frozen_micros, created_at)
    SELECT a.transfer_id, 'HOLD', of_account, a.version, a.hold_id, a.amount, a.available, a.frozen, now
    FROM unnest(transfer_ids, versions, hold_ids, amounts, availables, frozens, refusals)
         AS a (transfer_id, version, hold_id, amount, available, frozen, refusal)
    WHERE a.refusal IS NULL;
    INSERT INTO entry (transfer_id, book, account_id, amount_micros)
    SELECT a.transfer_id, side.book, of_account, side.sign * a.amount
    FROM unnest(transfer_ids, amounts, refusals) AS a (transfer_id, amount, refusal),
         (VALUES ('AVAILABLE', -1), ('FROZEN', 1)) AS side (book, sign)
    WHERE a.refusal IS NULL;
END $$;

-- Of the rows that every booking writes, foreign keys cost a lookup and a lock each while the account is locked. What they
-- point to is never removed, and is written or locked by the very statement that points to it; the audit looks instead.
ALTER TABLE hold DROP CONSTRAINT hold_account_id_fkey;
ALTER TABLE transfer DROP CONSTRAINT transfer_account_id_fkey, DROP CONSTRAINT transfer_hold_id_fkey;
ALTER TABLE entry DROP CONSTRAINT entry_transfer_id_fkey;
CREATE VIEW audit_what_is_pointed_to_is_there AS
SELECT 'transfer' AS row_of, t.transfer_id, t.account_id, t.hold_id FROM transfer t
LEFT JOIN account a USING (account_id) LEFT JOIN hold h ON h.hold_id = t.hold_id
WHERE a.account_id IS NULL OR (t.hold_id IS NOT NULL AND h.account_id IS DISTINCT FROM t.account_id)
UNION ALL
SELECT 'hold', NULL, h.account_id, h.hold_id FROM hold h LEFT JOIN account a USING (account_id)
WHERE a.account_id IS NULL
UNION ALL
SELECT 'entry', e.transfer_id, e.account_id, NULL FROM entry e LEFT JOIN transfer t USING (transfer_id)
WHERE t.transfer_id IS NULL;
