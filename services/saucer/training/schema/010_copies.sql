-- What a user is still to have below their own prefix of a run that has ended; gone once it lies there.
CREATE TABLE copy_out (
    -- The prefix. Of two runs that predict with one model for one task, the later one's files are to lie there.
    target text PRIMARY KEY,
    run_id uuid NOT NULL REFERENCES run,
    -- An array of objects name, key, size_bytes, sha256.
    files  text NOT NULL,
    -- Whoever is at it has until then.
    due_at timestamptz NOT NULL
);
CREATE INDEX copy_out_due ON copy_out (due_at);
