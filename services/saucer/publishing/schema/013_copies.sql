-- Processes that carry one model on a Triton, each with its threads.
ALTER TABLE triton ADD COLUMN copies integer NOT NULL DEFAULT 1 CHECK (copies > 0);
