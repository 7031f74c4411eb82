-- Of the stored matching of the validation split; empty for what was scored before it was kept.
ALTER TABLE evaluation ADD COLUMN validation_sha256 text NOT NULL DEFAULT '';
