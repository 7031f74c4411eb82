-- A closed hold stays as it is, except for what a greater counter adds that comes after its closing (POLICY.md, 8).
CREATE OR REPLACE FUNCTION refuse_reopening() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state IN ('RESOLVED', 'EXPIRED') AND NEW.charged_ms > OLD.charged_ms
        AND NEW.settled_micros >= OLD.settled_micros AND NEW.lost_micros >= OLD.lost_micros
        AND (NEW.state, NEW.used, NEW.charge_status, NEW.stop_ordered, NEW.posted_micros, NEW.released_micros,
             NEW.granted_at, NEW.resolved_at)
            IS NOT DISTINCT FROM
            (OLD.state, OLD.used, OLD.charge_status, OLD.stop_ordered, OLD.posted_micros, OLD.released_micros,
             OLD.granted_at, OLD.resolved_at)
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'hold % is %', OLD.hold_id, OLD.state;
END $$;
