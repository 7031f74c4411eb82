-- A version that is being labelled: its images, with labels that may still change.
CREATE TABLE draft (
    draft_id           uuid PRIMARY KEY,
    account_id         uuid NOT NULL REFERENCES account_store,
    dataset_version_id uuid NOT NULL REFERENCES dataset_version,
    display_name       text NOT NULL,
    label_kind         text NOT NULL CHECK (label_kind IN ('BOXES', 'CLASSES')),
    classes            text[] NOT NULL,
    images             bigint NOT NULL CHECK (images >= 0),
    unlabelled_images  bigint NOT NULL CHECK (unlabelled_images BETWEEN 0 AND images),
    state              text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'DELETED')),
    created_at         timestamptz NOT NULL,
    revision           bigint NOT NULL DEFAULT 1
);
CREATE INDEX draft_newest ON draft (account_id, created_at DESC, draft_id DESC) WHERE state = 'OPEN';

-- The images of a version, in its manifest's order, or of a draft.
CREATE TABLE listed_image (
    -- dataset_version_id or draft_id.
    set_id      uuid NOT NULL,
    place       bigint NOT NULL CHECK (place > 0),
    sha256      text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    width       integer NOT NULL CHECK (width > 0),
    height      integer NOT NULL CHECK (height > 0),
    split       text NOT NULL CHECK (split IN ('train', 'validation', 'test')),
    source_name text NOT NULL,
    -- [class, x, y, width, height, crowd] for each box, or [class] for an image's.
    labels      json NOT NULL,
    -- It has a label, or somebody has saved it without one.
    labelled    boolean NOT NULL,
    revision    bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (set_id, place)
);
CREATE INDEX listed_image_labelled ON listed_image (set_id, labelled, place);

ALTER TABLE import ADD COLUMN draft_id uuid REFERENCES draft;
-- Of a draft's images: a new split, instead of that of its version.
ALTER TABLE import ADD COLUMN split_again boolean NOT NULL DEFAULT false;
ALTER TABLE import DROP CONSTRAINT import_check;
ALTER TABLE import ADD CONSTRAINT import_source CHECK (num_nonnulls(upload_id, store_path, draft_id) = 1);
ALTER TABLE import DROP CONSTRAINT import_source_format_check;
ALTER TABLE import ADD CONSTRAINT import_source_format_check
    CHECK (source_format IN ('AUTO', 'COCO', 'PASCAL_VOC', 'YOLO', 'CLASS_FOLDERS', 'IMAGES', 'DRAFT')
        AND (source_format = 'DRAFT') = (draft_id IS NOT NULL));
CREATE INDEX import_of_draft ON import (draft_id) WHERE state IN ('QUEUED', 'IMPORTING');

-- Reading an image costs its owner requests and traffic, so both are counted.
CREATE TABLE image_read (
    account_id uuid NOT NULL,
    day        date NOT NULL,
    reads      bigint NOT NULL,
    bytes      bigint NOT NULL,
    PRIMARY KEY (account_id, day)
);
