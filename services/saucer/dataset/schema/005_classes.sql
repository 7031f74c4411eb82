-- The classes that an image's labels name, for lists of one class.
CREATE FUNCTION classes_of(labels json) RETURNS integer[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS
    'SELECT array_agg(DISTINCT (label ->> 0)::integer) FROM json_array_elements(labels) AS label';
ALTER TABLE listed_image ADD COLUMN classes integer[] GENERATED ALWAYS AS (classes_of(labels)) STORED;

-- Without the extension lists of one class work too, by reading the set's images.
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS btree_gin;
    CREATE INDEX listed_image_classes ON listed_image USING gin (set_id, classes);
EXCEPTION
    WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR undefined_object THEN
        RAISE NOTICE 'no index for lists of one class: %', SQLERRM;
END $$;
