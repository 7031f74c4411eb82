-- Since when stored_bytes has every image; null: images from before there was a count may lack.
ALTER TABLE account_store ADD COLUMN counted_at timestamptz;
CREATE INDEX account_store_uncounted ON account_store (created_at) WHERE counted_at IS NULL;
