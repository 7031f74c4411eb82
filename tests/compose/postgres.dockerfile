# Stands in for postgres:18, by Debian's server: the wheel's has no TLS.
FROM python:3.11-slim-bookworm
RUN install -d -o postgres /var/lib/postgresql /docker-entrypoint-initdb.d
ENV PATH=/usr/lib/postgresql/15/bin:$PATH POSTGRES_USER=postgres
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
USER postgres
ENTRYPOINT ["docker-entrypoint.sh"]
