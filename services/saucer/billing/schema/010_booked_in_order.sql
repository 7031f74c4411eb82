-- An account's transfers follow each other in time as they do in version. A transaction reads the clock before it waits for
-- the account, so that of two at a month's end the later in version could be the earlier in time: a line of the month
-- before, and after its closing balance. The account keeps when it was booked on last; nothing is booked before that.
ALTER TABLE account ADD COLUMN booked_at timestamptz NOT NULL DEFAULT 'epoch';
UPDATE account SET booked_at = last.created_at
FROM (SELECT account_id, max(created_at) AS created_at FROM transfer GROUP BY account_id) AS last
WHERE last.account_id = account.account_id;

CREATE VIEW audit_transfers_follow_in_time AS
SELECT transfer_id, account_id, account_version, created_at, former_at
FROM (
    SELECT transfer_id, account_id, account_version, created_at,
           lag(created_at) OVER (PARTITION BY account_id ORDER BY account_version) AS former_at
    FROM transfer
) timed
WHERE created_at < former_at;

-- 008's function, which keeps to it; the holds' own times are still those of the call.
CREATE OR REPLACE FUNCTION grant_holds(
    of_account uuid, now timestamptz, hold_ids text[], work_kinds text[], work_ids uuid[], start_numbers integer[],
    region_ids text[], spec_ids text[], counts integer[], currencies text[], prices bigint[], amounts bigint[],
    transfer_ids uuid[], over_budgets boolean[]
) RETURNS TABLE (new_id text, refused_for text, missing bigint, of_version bigint) LANGUAGE plpgsql AS $$
DECLARE
    asked CONSTANT integer := cardinality(hold_ids);
    new integer;
    -- Of each that is asked for: its amount and all before it.
    sums bigint[] := amounts;
    payer account;
BEGIN
    INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency,
                      price_per_hour_micros, amount_micros, state, created_at, granted_at)
    SELECT a.hold_id, of_account, a.work_kind, a.work_id, a.start_number, a.region_id, a.spec_id, a.count, a.currency,
           a.price, a.amount, 'GRANTED', now, now
    FROM account, unnest(hold_ids, work_kinds, work_ids, start_numbers, region_ids, spec_ids, counts, currencies, prices,
                         amounts)
                  AS a (hold_id, work_kind, work_id, start_number, region_id, spec_id, count, currency, price, amount)
    WHERE account_id = of_account
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS new = ROW_COUNT;
    IF new = 0 THEN
        RETURN;
    END IF;
    FOR i IN 2 .. asked LOOP
        sums[i] := sums[i - 1] + amounts[i];
    END LOOP;

    UPDATE account SET available_micros = available_micros - sums[asked], frozen_micros = frozen_micros + sums[asked],
                       version = version + asked, booked_at = greatest(booked_at, now)
    WHERE account_id = of_account AND new = asked AND available_micros >= sums[asked]
      AND state = 'ACTIVE' AND currency = ALL (currencies) AND NOT true = ANY (over_budgets)
    RETURNING * INTO payer;
    IF FOUND THEN
        INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, available_micros,
                              frozen_micros, created_at)
        SELECT a.transfer_id, 'HOLD', of_account, payer.version - asked + a.place, a.hold_id, a.amount,
               payer.available_micros + sums[asked] - a.sum, payer.frozen_micros - sums[asked] + a.sum,
               payer.booked_at
        FROM unnest(transfer_ids, hold_ids, amounts, sums)
             WITH ORDINALITY AS a (transfer_id, hold_id, amount, sum, place);
        FOR i IN 1 .. asked LOOP
            new_id := hold_ids[i];
            of_version := payer.version - asked + i;
            RETURN NEXT;
        END LOOP;
        RETURN;
    END IF;

    SELECT * INTO payer FROM account WHERE account_id = of_account FOR UPDATE;
    payer.booked_at := greatest(payer.booked_at, now);
    FOR i IN 1 .. asked LOOP
        -- Made by this call, not before it.
        CONTINUE WHEN NOT EXISTS (
            SELECT FROM hold WHERE hold_id = hold_ids[i] AND xmin = pg_current_xact_id()::xid
        );
        new_id := hold_ids[i];
        missing := 0;
        refused_for := CASE
            WHEN payer.state <> 'ACTIVE' THEN 'ACCOUNT_SUSPENDED'
            WHEN payer.currency <> currencies[i] THEN 'CURRENCY_MISMATCH'
            WHEN over_budgets[i] THEN 'BUDGET_REACHED'
            WHEN payer.available_micros < amounts[i] THEN 'INSUFFICIENT_BALANCE'
        END;
        IF refused_for IS NULL THEN
            payer.available_micros := payer.available_micros - amounts[i];
            payer.frozen_micros := payer.frozen_micros + amounts[i];
            payer.version := payer.version + 1;
            INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros,
                                  available_micros, frozen_micros, created_at)
            VALUES (transfer_ids[i], 'HOLD', of_account, payer.version, hold_ids[i], amounts[i],
                    payer.available_micros, payer.frozen_micros, payer.booked_at);
        ELSE
            IF refused_for = 'INSUFFICIENT_BALANCE' THEN
                missing := amounts[i] - payer.available_micros;
            END IF;
            UPDATE hold SET state = 'REFUSED', refusal = refused_for, missing_micros = missing, granted_at = NULL,
                            account_version = payer.version
            WHERE hold_id = hold_ids[i];
        END IF;
        of_version := payer.version;
        RETURN NEXT;
    END LOOP;
    UPDATE account SET available_micros = payer.available_micros, frozen_micros = payer.frozen_micros,
                       version = payer.version, booked_at = payer.booked_at
    WHERE account_id = of_account AND version <> payer.version;
END $$;


-- A budget that was removed stays, so that a restart, which asks for it as its task was created with, does not set it anew.
ALTER TABLE budget ADD COLUMN removed boolean NOT NULL DEFAULT false;
