-- An account's prefix in the object store: known since the account exists, proven once it was written, read, removed.
CREATE TABLE account_store (
    account_id uuid PRIMARY KEY,
    prefix     text NOT NULL,
    created_at timestamptz NOT NULL,
    proven_at  timestamptz,
    revision   bigint NOT NULL DEFAULT 0,
    CHECK ((proven_at IS NOT NULL) = (revision > 0))
);
CREATE INDEX account_store_unproven ON account_store (created_at) WHERE proven_at IS NULL;

CREATE TABLE upload (
    upload_id       uuid PRIMARY KEY,
    account_id      uuid NOT NULL REFERENCES account_store,
    size_bytes      bigint NOT NULL CHECK (size_bytes > 0),
    committed_bytes bigint NOT NULL DEFAULT 0 CHECK (committed_bytes BETWEEN 0 AND size_bytes),
    -- EXPIRED: its objects are being removed; REMOVED: they are gone.
    state           text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'EXPIRED', 'REMOVED')),
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL
);
CREATE INDEX upload_unfinished ON upload (account_id) WHERE state = 'OPEN' AND committed_bytes < size_bytes;
CREATE INDEX upload_to_sweep ON upload (expires_at) WHERE state <> 'REMOVED';

-- Those of an upload follow each other without a gap from 0 to its committed_bytes.
CREATE TABLE upload_chunk (
    upload_id    uuid NOT NULL REFERENCES upload,
    offset_bytes bigint NOT NULL CHECK (offset_bytes >= 0),
    size_bytes   bigint NOT NULL CHECK (size_bytes > 0),
    sha256       text NOT NULL,
    PRIMARY KEY (upload_id, offset_bytes)
);

CREATE TABLE dataset_version (
    dataset_version_id uuid PRIMARY KEY,
    account_id         uuid NOT NULL REFERENCES account_store,
    display_name       text NOT NULL,
    content_hash       text NOT NULL,
    manifest_key       text NOT NULL,
    manifest_sha256    text NOT NULL,
    image_prefix       text NOT NULL,
    classes            text[] NOT NULL,
    -- json, not jsonb, here and below: the order of its keys is shown, and jsonb does not keep it.
    statistics         json NOT NULL,
    created_at         timestamptz NOT NULL,
    revision           bigint NOT NULL DEFAULT 1,
    -- The same content is the same version.
    UNIQUE (account_id, content_hash)
);
CREATE INDEX dataset_version_newest ON dataset_version (account_id, created_at DESC, dataset_version_id DESC);

CREATE TABLE import (
    import_id          uuid PRIMARY KEY,
    account_id         uuid NOT NULL REFERENCES account_store,
    display_name       text NOT NULL,
    upload_id          uuid REFERENCES upload,
    store_path         text,
    split_seed         bigint NOT NULL,
    state              text NOT NULL CHECK (state IN ('QUEUED', 'IMPORTING', 'SUCCEEDED', 'FAILED')),
    images_done        bigint NOT NULL DEFAULT 0 CHECK (images_done >= 0),
    images_total       bigint NOT NULL DEFAULT 0 CHECK (images_total >= 0),
    error_reason       text NOT NULL DEFAULT '',
    error_message      text NOT NULL DEFAULT '',
    report             json,
    dataset_version_id uuid REFERENCES dataset_version,
    created_at         timestamptz NOT NULL,
    ended_at           timestamptz,
    -- Claims that were not given back, and child processes that died.
    attempts           integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    crashes            integer NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    -- Not claimed before this.
    retry_at           timestamptz NOT NULL,
    claim_token        uuid,
    claim_expires_at   timestamptz,
    revision           bigint NOT NULL DEFAULT 1,
    CHECK ((upload_id IS NULL) <> (store_path IS NULL)),
    CHECK ((state = 'IMPORTING') = (claim_token IS NOT NULL)),
    CHECK ((claim_token IS NULL) = (claim_expires_at IS NULL)),
    CHECK ((state = 'SUCCEEDED') = (dataset_version_id IS NOT NULL)),
    CHECK ((state = 'FAILED') = (error_reason <> '')),
    CHECK ((state IN ('SUCCEEDED', 'FAILED')) = (ended_at IS NOT NULL))
);
CREATE INDEX import_open ON import (account_id, created_at) WHERE state IN ('QUEUED', 'IMPORTING');
CREATE INDEX import_of_upload ON import (upload_id) WHERE state IN ('QUEUED', 'IMPORTING');
