"""The SQL of training, by what it is about."""
