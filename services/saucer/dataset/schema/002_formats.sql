ALTER TABLE import ADD COLUMN source_format text NOT NULL DEFAULT 'AUTO'
    CHECK (source_format IN ('AUTO', 'COCO', 'PASCAL_VOC', 'YOLO', 'CLASS_FOLDERS', 'IMAGES'));

-- What a label says: where each object is, or what the whole image shows.
ALTER TABLE dataset_version ADD COLUMN label_kind text NOT NULL DEFAULT 'BOXES'
    CHECK (label_kind IN ('BOXES', 'CLASSES'));
