#!/usr/bin/env bash
# As much of the image's entrypoint as docker-compose.yml relies on: the data folder, the superuser's password, the scripts
# of /docker-entrypoint-initdb.d once, and then what the command says.
set -euo pipefail
data=/var/lib/postgresql/18/docker
if [ ! -e "$data/PG_VERSION" ]; then
  # PostgreSQL 15 has no provider `builtin` of locales.
  # shellcheck disable=SC2086 # several arguments
  initdb --pgdata="$data" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust \
    --auth-host=scram-sha-256 ${POSTGRES_INITDB_ARGS%% --locale-provider*}
  echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
  pg_ctl --pgdata="$data" --wait --options="-c listen_addresses=''" start
  for script in /docker-entrypoint-initdb.d/*.sh; do bash "$script"; done
  pg_ctl --pgdata="$data" --wait stop
fi
program=$1
shift
exec "$program" -D "$data" -c listen_addresses='*' "$@"
