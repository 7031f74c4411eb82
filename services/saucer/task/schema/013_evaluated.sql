-- An evaluation's end that was heard before that of its run, kept until then. Null: there is none.
ALTER TABLE task ADD COLUMN evaluated jsonb;
