-- Softly: a deployment at rest that its owner wants to see no more. What refers to it, here and in billing, stays.
ALTER TABLE deployment
    ADD COLUMN deleted_at timestamptz,
    ADD CONSTRAINT deployment_deleted_at_rest
        CHECK (deleted_at IS NULL OR state IN ('STOPPED', 'FAILED', 'REFUSED'));
