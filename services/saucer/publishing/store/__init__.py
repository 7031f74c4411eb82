"""The SQL of publishing, by what it is about: functions that take a connection. No other module has any."""
