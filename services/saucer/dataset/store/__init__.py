"""The SQL of dataset, by what it is about: functions that take a connection. No other module has any."""
