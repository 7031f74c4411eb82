-- The trace of the run whose model is scored.
ALTER TABLE evaluation ADD COLUMN traceparent text;
