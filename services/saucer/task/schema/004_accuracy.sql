-- Of a detector map_50, of a classifier top-1.
ALTER TABLE task RENAME COLUMN test_map_50 TO test_accuracy;
