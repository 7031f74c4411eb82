-- Code from before 003 and 004, while it serves on the new schema, knows neither versions nor that there can be several
-- Tritons: what it leaves out is the first version, and the one Triton that there was.
CREATE OR REPLACE FUNCTION former_deployment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version_number := coalesce(NEW.version_number, 1);
    NEW.model_id := coalesce(NEW.model_id, (NEW.form ->> 'model_id')::uuid);
    NEW.triton_id := CASE
        WHEN NEW.state NOT IN ('DEPLOYING', 'ACTIVE', 'DEGRADED', 'STOPPING') THEN ''
        WHEN coalesce(NEW.triton_id, '') = '' THEN 'local'
        ELSE NEW.triton_id
    END;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER written_by_the_version_before BEFORE INSERT OR UPDATE ON deployment
    FOR EACH ROW EXECUTE FUNCTION former_deployment();

-- At the commit, when today's code has written it itself.
CREATE OR REPLACE FUNCTION former_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deployment_version (deployment_id, number, model_id, evaluation_id, classes, thresholds, created_at)
    VALUES (NEW.deployment_id, NEW.version_number, NEW.model_id, NEW.evaluation_id, NEW.classes, NEW.thresholds,
            NEW.created_at)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER has_its_version AFTER INSERT ON deployment DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION former_version();
