-- Whether an earlier start has learnt something that the present one, until a worker begins it, does not replace.
ALTER TABLE task ADD COLUMN learnt_before boolean NOT NULL DEFAULT false;
