-- Of images that imports have stored. Imports before this column are not counted.
ALTER TABLE account_store ADD COLUMN stored_bytes bigint NOT NULL DEFAULT 0 CHECK (stored_bytes >= 0);
-- As billing tells it; null: no limit.
ALTER TABLE account_store ADD COLUMN storage_limit bigint CHECK (storage_limit >= 0);
ALTER TABLE account_store ADD COLUMN quota_revision bigint NOT NULL DEFAULT 0;
