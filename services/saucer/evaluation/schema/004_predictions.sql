-- A model may be evaluated on other data too, by a run that only predicts.
ALTER TABLE evaluation
    DROP CONSTRAINT evaluation_model_id_key,
    ADD UNIQUE (run_id),
    ADD COLUMN by_prediction boolean NOT NULL DEFAULT false;
CREATE INDEX evaluation_of_model ON evaluation (model_id);
