-- What a training may begin with: the network that a model has, and its weights. Empty: left before this was known.
ALTER TABLE model
    ADD COLUMN starting_point text NOT NULL DEFAULT '',
    ADD COLUMN weights_key    text NOT NULL DEFAULT '',
    ADD COLUMN weights_sha256 text NOT NULL DEFAULT '',
    ADD COLUMN classification boolean NOT NULL DEFAULT false;
