#!/usr/bin/env bash
# Run once by the image, when its data folder is empty: a role and a database of its own for each service, so that no
# service can read another's tables.
set -euo pipefail

# POSTGRES_PASSWORD_<SERVICE>=… for each; without the file they stand in the environment.
passwords=/run/secrets/postgres_passwords
# shellcheck source=/dev/null
[ ! -e "$passwords" ] || . "$passwords"

for service in billing dataset task training evaluation publishing; do
  variable="POSTGRES_PASSWORD_${service^^}"
  psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set service="$service" --set password="${!variable}" <<'SQL'
CREATE ROLE :"service" LOGIN PASSWORD :'password';
CREATE DATABASE :"service" OWNER :"service";
REVOKE ALL ON DATABASE :"service" FROM PUBLIC;
SQL
done
# The server's own are open to every role.
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
  --command "REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC"
