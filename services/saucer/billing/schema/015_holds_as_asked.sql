-- What a hold was asked for, and its price and amount, never change: by rights since the first file, and by trigger.
CREATE FUNCTION refuse_other_terms() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'hold % stays what it was asked for', OLD.hold_id;
END $$;
CREATE TRIGGER as_asked BEFORE UPDATE ON hold FOR EACH ROW
    WHEN ((NEW.hold_id, NEW.account_id, NEW.work_kind, NEW.work_id, NEW.start_number, NEW.region_id, NEW.spec_id,
           NEW.count, NEW.currency, NEW.group_id, NEW.price_per_hour_micros, NEW.amount_micros, NEW.created_at)
          IS DISTINCT FROM
          (OLD.hold_id, OLD.account_id, OLD.work_kind, OLD.work_id, OLD.start_number, OLD.region_id, OLD.spec_id,
           OLD.count, OLD.currency, OLD.group_id, OLD.price_per_hour_micros, OLD.amount_micros, OLD.created_at))
    EXECUTE FUNCTION refuse_other_terms();
