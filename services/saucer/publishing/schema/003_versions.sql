-- Versions of a deployment: the one that serves lies in its row, a candidate beside it.
ALTER TABLE deployment
    ADD COLUMN version_number integer NOT NULL DEFAULT 1 CHECK (version_number > 0),
    ADD COLUMN model_id uuid,
    ADD COLUMN candidate jsonb CHECK (candidate IS NULL OR state IN ('ACTIVE', 'DEGRADED'));
UPDATE deployment SET model_id = (form ->> 'model_id')::uuid;
ALTER TABLE deployment
    ALTER COLUMN version_number DROP DEFAULT,
    ALTER COLUMN model_id SET NOT NULL;

-- Every version that was ever asked for; a rollback names one.
CREATE TABLE deployment_version (
    deployment_id uuid NOT NULL REFERENCES deployment,
    number        integer NOT NULL CHECK (number > 0),
    model_id      uuid NOT NULL,
    evaluation_id uuid NOT NULL,
    classes       jsonb NOT NULL,
    thresholds    jsonb NOT NULL,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (deployment_id, number)
);
INSERT INTO deployment_version
SELECT deployment_id, 1, model_id, evaluation_id, classes, thresholds, created_at FROM deployment;

-- Who changed what, when. What publishing did by itself has no request id.
CREATE TABLE update_record (
    deployment_id uuid NOT NULL REFERENCES deployment,
    number        integer NOT NULL CHECK (number > 0),
    request_id    uuid,
    author        text NOT NULL,
    action        text NOT NULL,
    from_version  integer NOT NULL,
    to_version    integer NOT NULL,
    percent       integer NOT NULL CHECK (percent BETWEEN 0 AND 100),
    detail        text NOT NULL,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (deployment_id, number),
    UNIQUE (deployment_id, request_id)
);
