-- A spec that is not on offer any more; the record says since when and why. What runs on it, or was bought of it, goes on.
ALTER TABLE spec ADD COLUMN withdrawn boolean NOT NULL DEFAULT false;
