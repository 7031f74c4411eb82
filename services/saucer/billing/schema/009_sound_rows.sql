-- The rules of holds and transfers again, the same ones in one function a table. PostgreSQL reads the text of each CHECK
-- anew in every statement that writes a row, and there were 26: a fifth of what it computed to freeze one hold. What a
-- function says, a session reads once.

CREATE FUNCTION is_sound(of hold) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN of.work_kind IN ('TASK', 'DEPLOYMENT') AND of.start_number > 0 AND of.count > 0
        AND (of.amount_micros = 2 * of.price_per_hour_micros * of.count OR of.state = 'BURIED')
        -- Capacity of a group costs nothing.
        AND (of.group_id IS NULL OR of.amount_micros = 0)
        AND of.charge_status IN ('NOT_BILLING', 'BILLING', 'STOPPED_FOR_ARREARS')
        AND least(of.missing_micros, of.charged_ms, of.settled_micros, of.posted_micros, of.released_micros,
                  of.lost_micros) >= 0
        AND (of.state = 'REFUSED') = (of.refusal IS NOT NULL)
        AND (of.state IN ('RESOLVED', 'EXPIRED')) = (of.resolved_at IS NOT NULL)
        AND CASE of.state
            WHEN 'RESOLVED' THEN of.posted_micros + of.released_micros = of.amount_micros
            WHEN 'EXPIRED' THEN of.released_micros = of.amount_micros AND of.posted_micros + of.settled_micros = 0
            -- Open, or never granted: nothing has come out of it.
            ELSE of.posted_micros + of.released_micros + of.lost_micros = 0 AND CASE of.state
                WHEN 'GRANTED' THEN of.granted_at IS NOT NULL
                WHEN 'WAITING' THEN of.group_id IS NOT NULL
                WHEN 'BURIED' THEN true
                WHEN 'REFUSED' THEN of.refusal IN ('INSUFFICIENT_BALANCE', 'ACCOUNT_SUSPENDED', 'CURRENCY_MISMATCH',
                                                   'BUDGET_REACHED', 'GROUP_NOT_STARTED', 'GROUP_ENDED')
                ELSE false
            END
        END;
END $$;

CREATE FUNCTION is_sound(of transfer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    -- Of a hold, or of none; a correction has its record, a top-up its reference.
    RETURN of.amount_micros > 0 AND (of.kind = 'TOP_UP') = (of.reference IS NOT NULL) AND CASE
        WHEN of.hold_id IS NULL AND of.record_id IS NULL THEN of.kind = 'TOP_UP'
        WHEN of.hold_id IS NULL THEN of.kind IN ('CREDIT', 'DEBIT')
        WHEN of.record_id IS NULL THEN of.kind IN ('HOLD', 'SETTLEMENT', 'POSTING', 'RELEASE', 'EXPIRY', 'LOSS')
        ELSE of.kind = 'REFUND'
    END;
END $$;

DO $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT conrelid::regclass AS of_table, conname FROM pg_constraint
        WHERE conrelid IN ('hold'::regclass, 'transfer'::regclass) AND contype = 'c'
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.of_table, one.conname);
    END LOOP;
END $$;
ALTER TABLE hold ADD CONSTRAINT hold_is_sound CHECK (is_sound(hold));
ALTER TABLE transfer ADD CONSTRAINT transfer_is_sound CHECK (is_sound(transfer));
