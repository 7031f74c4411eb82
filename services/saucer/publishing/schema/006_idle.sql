-- When a request last came; since when it serves, if that is later.
ALTER TABLE deployment ADD COLUMN used_at timestamptz;
UPDATE deployment SET used_at = active_at;
