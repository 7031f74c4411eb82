-- What runs took, so that the next estimate on their spec is better. Filled from RunEnded.
CREATE TABLE pace (
    run_id             uuid PRIMARY KEY,
    region_id          text NOT NULL,
    spec_id            text NOT NULL,
    count              integer NOT NULL,
    starting_point     text NOT NULL,
    classification     boolean NOT NULL,
    dataset_version_id uuid NOT NULL,
    input_size         integer NOT NULL,
    ms_per_megapixel   double precision NOT NULL CHECK (ms_per_megapixel > 0),
    overhead_ms        bigint NOT NULL CHECK (overhead_ms >= 0),
    ended_at           timestamptz NOT NULL
);
CREATE INDEX pace_of_spec ON pace (region_id, spec_id, count, ended_at DESC);
