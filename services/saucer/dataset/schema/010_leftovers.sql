ALTER TABLE import
    -- Of the account's room, for images that the claimed import is about to store: taken first, so that imports side by
    -- side do not exceed the limit together.
    ADD COLUMN reserved_bytes bigint NOT NULL DEFAULT 0 CHECK (reserved_bytes >= 0),
    -- It has stored images, in whichever attempt, or was about to.
    ADD COLUMN stores boolean NOT NULL DEFAULT false;

ALTER TABLE account_store
    -- An import that failed may have stored images that no version names.
    ADD COLUMN leftovers boolean NOT NULL DEFAULT false,
    -- Not null: a process removes them, and no import of the account is claimed.
    ADD COLUMN removal_token uuid,
    -- Then another process may take the removal over.
    ADD COLUMN removal_expires_at timestamptz,
    ADD CHECK ((removal_token IS NULL) = (removal_expires_at IS NULL));
CREATE INDEX account_store_leftovers ON account_store (created_at) WHERE leftovers;

-- Whether any version has an image. Smaller and quicker to write than a B-tree, and nothing is read in its order.
CREATE INDEX listed_image_sha256 ON listed_image USING hash (sha256);
