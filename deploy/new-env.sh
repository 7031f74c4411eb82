#!/usr/bin/env bash
# Writes .env from .env.example with a new password wherever one is wanted. Keeps an .env that is there.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -e .env ]; then
  echo ".env is there already; remove it first if you want new passwords (PostgreSQL keeps the old ones)." >&2
  exit 1
fi
umask 077
while IFS= read -r line; do
  # Hexadecimal: passwords stand in URLs.
  case $line in *=generate) line="${line%generate}$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;; esac
  printf '%s\n' "$line"
done <.env.example >.env
echo "Wrote .env. Next: docker compose up --detach" >&2
