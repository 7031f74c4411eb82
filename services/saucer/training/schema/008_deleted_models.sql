-- Null: the model is there.
ALTER TABLE model
    ADD COLUMN deleted_at       timestamptz,
    -- When its files were removed from the object store; null: not yet.
    ADD COLUMN files_removed_at timestamptz,
    ADD CHECK (files_removed_at IS NULL OR deleted_at IS NOT NULL);
CREATE INDEX model_unremoved ON model (deleted_at) WHERE deleted_at IS NOT NULL AND files_removed_at IS NULL;

-- What publishing told last of each deployment: a model that one serves is not deleted.
CREATE TABLE deployment (
    deployment_id uuid PRIMARY KEY,
    -- Of the version that serves, and of the one beside it.
    model_ids     uuid[] NOT NULL,
    at_rest       boolean NOT NULL,
    -- Of the deployment, in publishing.
    revision      bigint NOT NULL
);
CREATE INDEX deployment_serves ON deployment USING gin (model_ids) WHERE NOT at_rest;
