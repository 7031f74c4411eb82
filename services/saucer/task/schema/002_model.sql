-- Models that runs left, for tasks that evaluate them on other data. Filled from RunEnded.
CREATE TABLE model (
    model_id   uuid PRIMARY KEY,
    account_id uuid NOT NULL,
    scene      text NOT NULL,
    classes    text[] NOT NULL,
    input_size integer NOT NULL
);

-- Those of runs that ended before, as far as their tasks still name them.
INSERT INTO model (model_id, account_id, scene, classes, input_size)
SELECT model_id::uuid, account_id, config ->> 'scene',
       ARRAY(SELECT jsonb_array_elements_text(config -> 'classes')), (config ->> 'input_size')::integer
FROM task WHERE model_id <> '';
