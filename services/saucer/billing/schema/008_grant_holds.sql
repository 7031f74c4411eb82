-- Holds of one account: 006's function again, which told each hold's whole row. What was asked for is known; new is only
-- how it was answered. All that starts of one account waits while its row is locked, so nothing is put together there.
--
-- 1. The holds are inserted as granted before the account is locked, which is everybody's order (service/journal.py).
--    One that exists is not made again, nor is one of an account that is not there. Two calls with the same ids do not
--    wait for each other, since each gives them in ascending order.
-- 2. If all are new and the account bears all of them, one UPDATE says so, and one INSERT writes their transfers: the
--    usual case, in few expressions, since PL/pgSQL prepares each of them anew in each transaction.
-- 3. If not, the account is locked, and each is decided in its order. Those that are refused become so.
--
-- A granted hold does not store the version of its account: its transfer does.

CREATE FUNCTION grant_holds(
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
                       version = version + asked
    WHERE account_id = of_account AND new = asked AND available_micros >= sums[asked]
      AND state = 'ACTIVE' AND currency = ALL (currencies) AND NOT true = ANY (over_budgets)
    RETURNING * INTO payer;
    IF FOUND THEN
        INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, available_micros,
                              frozen_micros, created_at)
        SELECT a.transfer_id, 'HOLD', of_account, payer.version - asked + a.place, a.hold_id, a.amount,
               payer.available_micros + sums[asked] - a.sum, payer.frozen_micros - sums[asked] + a.sum, now
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
                    payer.available_micros, payer.frozen_micros, now);
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
                       version = payer.version
    WHERE account_id = of_account AND version <> payer.version;
END $$;

-- A replica of the version before still runs while this one starts.
COMMENT ON FUNCTION create_holds IS 'Of the version before; grant_holds() is its successor.';
