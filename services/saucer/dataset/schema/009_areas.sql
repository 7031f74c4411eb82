-- Of the labels whose area is not their box's: [class, x, y, width, height, crowd, area]. It goes by the label, not by its
-- place, so a label that has changed since has its box's area again, whatever release saved it.
ALTER TABLE listed_image ADD COLUMN areas json NOT NULL DEFAULT '[]';
