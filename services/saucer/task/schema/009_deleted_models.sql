-- Apart from model: of two events, that of a model's run may be the one that comes later.
CREATE TABLE deleted_model (
    model_id uuid PRIMARY KEY
);
