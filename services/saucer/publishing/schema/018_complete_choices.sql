-- Whether each runtime was measured that the machine has: what failed then is measured again at the next replay.
ALTER TABLE model_runtime ADD COLUMN complete boolean NOT NULL DEFAULT true;
-- Until now it was not told apart from what the machine lacks.
UPDATE model_runtime SET complete = false WHERE reason LIKE '%is not used: %';
