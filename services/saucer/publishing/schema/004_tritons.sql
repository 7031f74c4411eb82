-- Registered Triton servers.
CREATE TABLE triton (
    triton_id  text PRIMARY KEY,
    address    text NOT NULL,
    repository text NOT NULL,
    region_id  text NOT NULL,
    spec_id    text NOT NULL,
    room       integer NOT NULL CHECK (room > 0),
    threads    integer NOT NULL CHECK (threads > 0),
    draining   boolean NOT NULL DEFAULT false,
    live       boolean NOT NULL DEFAULT true
);

-- Until now there was one, which registers itself under this id.
ALTER TABLE deployment ADD COLUMN triton_id text NOT NULL DEFAULT '';
UPDATE deployment SET triton_id = 'local' WHERE state IN ('DEPLOYING', 'ACTIVE', 'DEGRADED', 'STOPPING');
UPDATE deployment SET candidate = candidate || '{"triton_id": "local"}' WHERE candidate IS NOT NULL;
ALTER TABLE deployment
    ALTER COLUMN triton_id DROP DEFAULT,
    ADD CONSTRAINT deployment_placed
        CHECK ((triton_id <> '') = (state IN ('DEPLOYING', 'ACTIVE', 'DEGRADED', 'STOPPING')));
CREATE INDEX deployment_of_triton ON deployment (triton_id) WHERE triton_id <> '';
