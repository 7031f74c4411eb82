-- Pages of a rare split: read by the primary key they took the whole set.
CREATE INDEX listed_image_split ON listed_image (set_id, split, place);

-- Pages of a rare class. The set and the class are one key here: as two columns of a GIN index the set's own list of all
-- its images was read too. It needs no extension.
CREATE FUNCTION set_classes(set_id uuid, classes integer[]) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    'SELECT array_agg(set_id::text || ''/'' || class::text) FROM unnest(classes) AS class';
CREATE INDEX listed_image_set_classes ON listed_image USING gin (set_classes(set_id, classes));
DROP INDEX IF EXISTS listed_image_classes;
