-- What a refused restart puts back. Null: there is none that could be refused, or one from before this was kept.
ALTER TABLE task ADD COLUMN former jsonb;
