-- What the platform has lost is read every few seconds, for an alert that no crash of a process can swallow.
CREATE INDEX hold_lost ON hold (currency) INCLUDE (lost_micros) WHERE lost_micros > 0;
