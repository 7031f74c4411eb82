"""Gateway: the API as HTTP and JSON, and an account's events as a stream.

Owns: nothing.
Serves: saucer.gateway.v1.EventService; HTTP: every method with a google.api.http rule, and /healthz.
Calls: every service, with the caller's token.
Publishes: nothing.
Consumes: every event, for the clients of EventService, and keeps no place in the stream.
"""
