-- The form as it was asked for: a start with another billing mode changes `form`, and not what a retry of the creation
-- says. NULL: made by former code, and still as `form` is.
ALTER TABLE deployment ADD COLUMN created_form jsonb;
UPDATE deployment SET created_form = form;
