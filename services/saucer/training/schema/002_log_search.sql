-- Keyword search works without it, by reading the run's lines. A database owner may create this extension, since it is
-- trusted; where an administrator forbids that, or the server has no contrib modules, the index is left out.
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX log_line_words ON log_line USING gin (line gin_trgm_ops);
EXCEPTION
    WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR undefined_object THEN
        RAISE NOTICE 'no index for the log search: %', SQLERRM;
END $$;
