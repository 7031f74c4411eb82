-- Further places that an administrator lets an account import from: an object store's URL each.
CREATE TABLE mapped_root (
    account_id uuid NOT NULL REFERENCES account_store,
    name       text NOT NULL,
    url        text NOT NULL,
    mapped_at  timestamptz NOT NULL,
    PRIMARY KEY (account_id, name)
);
ALTER TABLE import ADD COLUMN mapped_root text;
ALTER TABLE import ADD CONSTRAINT import_root CHECK (mapped_root IS NULL OR store_path IS NOT NULL);
