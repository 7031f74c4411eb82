-- The bucket of log_limit.py.
ALTER TABLE run ADD COLUMN log_room double precision NOT NULL DEFAULT 1000;
ALTER TABLE run ADD COLUMN log_dropped bigint NOT NULL DEFAULT 0;
-- Of the last line. A log's times never go back, whatever workers' clocks say, so a time window is a range of lines.
ALTER TABLE run ADD COLUMN logged_at timestamptz;

UPDATE log_line AS l SET logged_at = so_far
FROM (SELECT run_id, sequence, max(logged_at) OVER (PARTITION BY run_id ORDER BY sequence) AS so_far FROM log_line) AS m
WHERE m.run_id = l.run_id AND m.sequence = l.sequence AND m.so_far > l.logged_at;
UPDATE run SET logged_at = (SELECT max(logged_at) FROM log_line WHERE log_line.run_id = run.run_id);

CREATE INDEX log_line_time ON log_line (run_id, logged_at, sequence);
-- By level and above: info and debug lines are most of a log and need none.
CREATE INDEX log_line_warnings ON log_line (run_id, sequence) WHERE level >= 3;
CREATE INDEX log_line_errors ON log_line (run_id, sequence) WHERE level >= 4;

-- By run and words together, so that one run's search does not read another's lines. As in 002, search works without.
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS btree_gin;
    CREATE INDEX log_line_run_words ON log_line USING gin (run_id, line gin_trgm_ops);
    DROP INDEX IF EXISTS log_line_words;
EXCEPTION
    WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR undefined_object THEN
        RAISE NOTICE 'no index for the log search by run: %', SQLERRM;
END $$;
