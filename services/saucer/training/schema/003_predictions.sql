-- Of a run that trains nothing: the model that predicts.
ALTER TABLE run ADD COLUMN predicts_model_id uuid;
