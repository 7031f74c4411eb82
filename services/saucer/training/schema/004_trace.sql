-- The trace of what asked for the run: all that it does later belongs to it.
ALTER TABLE run ADD COLUMN traceparent text;
