-- Code from before 003 inserts deployments without a version, while it serves on the new schema.
CREATE FUNCTION first_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version_number := coalesce(NEW.version_number, 1);
    NEW.model_id := coalesce(NEW.model_id, (NEW.form ->> 'model_id')::uuid);
    RETURN NEW;
END $$;
CREATE TRIGGER deployment_first_version BEFORE INSERT ON deployment FOR EACH ROW EXECUTE FUNCTION first_version();
