-- When what nothing names was removed from the object store; null: not yet.
ALTER TABLE run ADD COLUMN files_swept_at timestamptz;
CREATE INDEX run_unswept ON run (ended_at) WHERE state = 'ENDED' AND files_swept_at IS NULL;
