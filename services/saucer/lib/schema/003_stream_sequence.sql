-- Where in the stream a sent event lies: one that the stream's last sequence does not reach is not there any more.
ALTER TABLE outbox ADD COLUMN sequence bigint;
-- For retention.
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;
CREATE INDEX inbox_taken ON inbox (taken_at);
