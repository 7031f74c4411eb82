-- What runs took that only predict; beside the others', which code from before this table knows how to read.
CREATE TABLE prediction_pace (LIKE pace INCLUDING ALL);
