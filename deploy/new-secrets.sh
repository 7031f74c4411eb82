#!/usr/bin/env bash
# Makes secrets/ with new passwords, as docker-compose.yml hands them out: a file each, below /run/secrets of the containers
# that need it, and in no environment. Keeps what is there.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -e secrets ]; then
  echo "secrets/ is there already; remove it first if you want new passwords (PostgreSQL keeps the old ones)." >&2
  exit 1
fi
# The folder keeps the host's other users out; the files are read by containers, under users of their own.
mkdir -m 700 secrets secrets.new
trap 'rm -rf secrets.new' EXIT
# Hexadecimal: passwords stand in URLs.
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
put() { printf '%s\n' "$2" >>"secrets.new/$1"; }

put postgres_password "$(password)"
put nats_passwords "NATS_PASSWORD: \"$(password)\""
for service in billing dataset task training evaluation publishing gateway; do
  nats=$(password)
  put nats_passwords "NATS_PASSWORD_${service^^}: \"$nats\""
  put "${service}_nats_url" "nats://$service:$nats@nats:4222"
  [ "$service" = gateway ] && continue
  postgres=$(password)
  put postgres_passwords "POSTGRES_PASSWORD_${service^^}=$postgres"
  put "${service}_database_url" "postgresql://$service:$postgres@postgres/$service"
done
put triton_control_key "$(password)"
put grafana_password "$(password)"
chmod 644 secrets.new/*
mv secrets.new/* secrets/
echo "Wrote secrets/. Next: docker compose up --detach" >&2
