-- With which runtime a model is served on a spec: measured once, kept when its replay agreed.
CREATE TABLE model_runtime (
    model_id    uuid NOT NULL,
    region_id   text NOT NULL,
    spec_id     text NOT NULL,
    runtime     text NOT NULL,
    -- Pairs of runtime and milliseconds for one image, the fastest first.
    measured_ms jsonb NOT NULL,
    reason      text NOT NULL,
    chosen_at   timestamptz NOT NULL,
    PRIMARY KEY (model_id, region_id, spec_id)
);

-- The last replay of each version, with the images that differed most; of those that were rejected, too.
CREATE TABLE gate (
    deployment_id  uuid NOT NULL REFERENCES deployment,
    version_number integer NOT NULL,
    triton_id      text NOT NULL,
    result         jsonb NOT NULL,
    replayed_at    timestamptz NOT NULL,
    PRIMARY KEY (deployment_id, version_number)
);
