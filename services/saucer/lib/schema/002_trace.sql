-- The trace that an event belongs to, as W3C's traceparent.
ALTER TABLE outbox ADD COLUMN traceparent text;
