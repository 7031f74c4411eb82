-- A version of a deployment on one Triton; a deployment at rest has none.
CREATE TABLE instance (
    deployment_id  uuid NOT NULL REFERENCES deployment,
    version_number integer NOT NULL CHECK (version_number > 0),
    triton_id      text NOT NULL CHECK (triton_id <> ''),
    state          text NOT NULL CHECK (state IN ('LOADING', 'SERVING', 'LOST')),
    since          timestamptz NOT NULL,
    probed_at      timestamptz,
    attempts       integer NOT NULL CHECK (attempts >= 0),
    retry_at       timestamptz,
    message        text NOT NULL,
    PRIMARY KEY (deployment_id, version_number, triton_id),
    CHECK ((state = 'SERVING') = (probed_at IS NOT NULL))
);
CREATE INDEX instance_of_triton ON instance (triton_id);

-- What makes no whole millisecond of charged_ms yet, in microseconds of one instance.
ALTER TABLE deployment
    ADD COLUMN charged_rest_us bigint NOT NULL DEFAULT 0 CHECK (charged_rest_us >= 0),
    ALTER COLUMN attempts SET DEFAULT 0;

-- Former code knows one Triton of a deployment. What it writes of that becomes an instance. Today's code has written its
-- instances when it writes the deployment, with the Triton that was probed last, so nothing is to be done for it.
CREATE FUNCTION former_instances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM instance WHERE deployment_id = NEW.deployment_id AND (
        NEW.triton_id = ''
        OR version_number NOT IN (NEW.version_number, coalesce((NEW.candidate #>> '{version,number}')::integer, 0))
    );
    IF NEW.triton_id = '' THEN
        RETURN NULL;
    END IF;
    IF NOT EXISTS (
        SELECT FROM instance
        WHERE (deployment_id, version_number, triton_id) = (NEW.deployment_id, NEW.version_number, NEW.triton_id)
          AND (NEW.state = 'STOPPING' OR probed_at IS NOT DISTINCT FROM NEW.probed_at)
    ) THEN
        DELETE FROM instance WHERE deployment_id = NEW.deployment_id AND version_number = NEW.version_number;
        INSERT INTO instance VALUES (
            NEW.deployment_id, NEW.version_number, NEW.triton_id,
            CASE NEW.state WHEN 'ACTIVE' THEN 'SERVING' WHEN 'DEPLOYING' THEN 'LOADING' ELSE 'LOST' END,
            NEW.moved_at, NEW.probed_at, NEW.attempts, NEW.retry_at, NEW.error_message
        );
    END IF;
    IF NEW.candidate IS NOT NULL THEN
        INSERT INTO instance VALUES (
            NEW.deployment_id, (NEW.candidate #>> '{version,number}')::integer, NEW.candidate ->> 'triton_id',
            'LOADING', NEW.moved_at, NULL, 0, NULL, ''
        ) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER has_its_instances AFTER INSERT OR UPDATE ON deployment
    FOR EACH ROW EXECUTE FUNCTION former_instances();

-- Those that there are by now.
UPDATE deployment SET triton_id = triton_id WHERE triton_id <> '';
