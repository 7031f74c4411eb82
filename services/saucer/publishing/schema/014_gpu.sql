-- Whether models compute on the Triton's first GPU.
ALTER TABLE triton ADD COLUMN gpu boolean NOT NULL DEFAULT false;
