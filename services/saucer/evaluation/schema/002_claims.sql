-- Claims with a token, crashes apart from attempts, and results whose objects are checked against their sums.
DROP INDEX evaluation_scoring;
ALTER TABLE evaluation
    DROP CONSTRAINT evaluation_check,
    DROP COLUMN figures,
    DROP COLUMN claimed_until,
    -- Child processes that died; attempts counts the claims that were not given back.
    ADD COLUMN crashes integer NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    -- Not claimed before this.
    ADD COLUMN retry_at timestamptz,
    -- Whoever scores it has it until then.
    ADD COLUMN claim_token uuid UNIQUE,
    ADD COLUMN claim_expires_at timestamptz,
    ADD COLUMN summary jsonb,
    ADD COLUMN scored_sha256 text NOT NULL DEFAULT '',
    ADD COLUMN truth_sha256 text NOT NULL DEFAULT '';

-- What was scored before is scored again, since its objects have another form; its id and its figures stay the same.
UPDATE evaluation SET state = 'SCORING', ended_at = NULL, attempts = 0 WHERE state = 'SUCCEEDED';
UPDATE evaluation SET retry_at = created_at;

ALTER TABLE evaluation
    ALTER COLUMN retry_at SET NOT NULL,
    ADD CHECK (attempts >= 0),
    ADD CHECK ((claim_token IS NULL) = (claim_expires_at IS NULL)),
    ADD CHECK (state = 'SCORING' OR claim_token IS NULL),
    ADD CHECK ((state = 'SUCCEEDED') = (summary IS NOT NULL)),
    ADD CHECK ((state = 'SUCCEEDED') = (scored_sha256 <> '' AND truth_sha256 <> '')),
    ADD CHECK ((state = 'FAILED') = (error_message <> ''));
CREATE INDEX evaluation_scoring ON evaluation (retry_at) WHERE state = 'SCORING';
