-- Holds of one account: 004's function again, with as little as can be while the account's row is locked, since all that
-- starts of one account waits there.
--
-- 1. The holds are inserted as granted before the account is locked, which is everybody's order (service/journal.py).
--    One that exists is not made again. Two calls with the same ids do not wait for each other, since each gives them in
--    ascending order.
-- 2. If all are new and the account bears all of them, one UPDATE says so, and one INSERT writes their transfers: the
--    usual case, in few expressions, since PL/pgSQL prepares each of them anew in each transaction.
-- 3. If not, the account is locked, and each is decided in its order. Those that are refused become so.
--
-- A granted hold does not store the version of its account: its transfer does.

CREATE OR REPLACE FUNCTION create_holds(
    of_account uuid, now timestamptz, hold_ids text[], work_kinds text[], work_ids uuid[], start_numbers integer[],
    region_ids text[], spec_ids text[], counts integer[], currencies text[], prices bigint[], amounts bigint[],
    transfer_ids uuid[], over_budgets boolean[]
) RETURNS SETOF hold LANGUAGE plpgsql AS $$
DECLARE
    asked CONSTANT integer := cardinality(hold_ids);
    made hold[];
    one hold;
    -- Of each that is asked for: its amount and all before it.
    sums bigint[] := amounts;
    payer account;
    place integer;
BEGIN
    IF NOT EXISTS (SELECT FROM account WHERE account_id = of_account) THEN
        RETURN;
    END IF;
    WITH new AS (
        INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency,
                          price_per_hour_micros, amount_micros, state, created_at, granted_at)
        SELECT a.hold_id, of_account, a.work_kind, a.work_id, a.start_number, a.region_id, a.spec_id, a.count,
               a.currency, a.price, a.amount, 'GRANTED', now, now
        FROM unnest(hold_ids, work_kinds, work_ids, start_numbers, region_ids, spec_ids, counts, currencies, prices,
                    amounts)
             AS a (hold_id, work_kind, work_id, start_number, region_id, spec_id, count, currency, price, amount)
        ON CONFLICT DO NOTHING RETURNING *
    )
    SELECT coalesce(array_agg(new::hold), '{}') INTO made FROM new;
    FOR i IN 2 .. asked LOOP
        sums[i] := sums[i - 1] + amounts[i];
    END LOOP;

    UPDATE account SET available_micros = available_micros - sums[asked], frozen_micros = frozen_micros + sums[asked],
                       version = version + asked
    WHERE account_id = of_account AND cardinality(made) = asked AND available_micros >= sums[asked]
      AND state = 'ACTIVE' AND currency = ALL (currencies) AND NOT true = ANY (over_budgets)
    RETURNING * INTO payer;
    IF FOUND THEN
        INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, available_micros,
                              frozen_micros, created_at)
        SELECT a.transfer_id, 'HOLD', of_account, payer.version - asked + a.place, a.hold_id, a.amount,
               payer.available_micros + sums[asked] - a.sum, payer.frozen_micros - sums[asked] + a.sum, now
        FROM unnest(transfer_ids, hold_ids, amounts, sums)
             WITH ORDINALITY AS a (transfer_id, hold_id, amount, sum, place);
        FOREACH one IN ARRAY made LOOP
            one.account_version := payer.version - asked + array_position(hold_ids, one.hold_id);
            RETURN NEXT one;
        END LOOP;
        RETURN;
    END IF;

    SELECT * INTO payer FROM account WHERE account_id = of_account FOR UPDATE;
    FOREACH one IN ARRAY made LOOP
        place := array_position(hold_ids, one.hold_id);
        one.refusal := CASE
            WHEN payer.state <> 'ACTIVE' THEN 'ACCOUNT_SUSPENDED'
            WHEN payer.currency <> one.currency THEN 'CURRENCY_MISMATCH'
            WHEN over_budgets[place] THEN 'BUDGET_REACHED'
            WHEN payer.available_micros < one.amount_micros THEN 'INSUFFICIENT_BALANCE'
        END;
        IF one.refusal IS NULL THEN
            payer.available_micros := payer.available_micros - one.amount_micros;
            payer.frozen_micros := payer.frozen_micros + one.amount_micros;
            payer.version := payer.version + 1;
            INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros,
                                  available_micros, frozen_micros, created_at)
            VALUES (transfer_ids[place], 'HOLD', of_account, payer.version, one.hold_id, one.amount_micros,
                    payer.available_micros, payer.frozen_micros, now);
        ELSE
            one.state := 'REFUSED';
            one.granted_at := NULL;
            IF one.refusal = 'INSUFFICIENT_BALANCE' THEN
                one.missing_micros := one.amount_micros - payer.available_micros;
            END IF;
            UPDATE hold SET state = one.state, refusal = one.refusal, missing_micros = one.missing_micros,
                            granted_at = one.granted_at, account_version = payer.version
            WHERE hold_id = one.hold_id;
        END IF;
        one.account_version := payer.version;
        RETURN NEXT one;
    END LOOP;
    UPDATE account SET available_micros = payer.available_micros, frozen_micros = payer.frozen_micros,
                       version = payer.version
    WHERE account_id = of_account AND version <> payer.version;
END $$;

-- A hold is refused in the transaction that made it, or not at all.
CREATE FUNCTION refuse_late_refusal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_current_xact_id_if_assigned()::xid IS DISTINCT FROM OLD.xmin THEN
        RAISE EXCEPTION 'hold % is %', OLD.hold_id, OLD.state;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refused_when_made BEFORE UPDATE ON hold FOR EACH ROW
    WHEN (NEW.refusal IS DISTINCT FROM OLD.refusal OR NEW.account_version <> OLD.account_version)
    EXECUTE FUNCTION refuse_late_refusal();
GRANT UPDATE (refusal, missing_micros, account_version) ON hold TO CURRENT_USER;
