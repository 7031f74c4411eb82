#!/usr/bin/env bash
# `make compose-check`: docker-compose.yml on a real Docker Engine, without any registry of images. As root, on Debian.
#
# 1. Stand-ins under the names that our files use: Debian by debootstrap with its PostgreSQL, NATS and Triton from wheels.
# 2. Our images, built from our Dockerfiles on top of them; the whole up; the path of deploy/path.sh.
# 3. A table of memory and image sizes.
# 4. The same with mutual TLS, on the data that are there; each container is killed once while the path runs again.
#    KILL= leaves it out.
# 5. Everything down.
#
# It leaves nothing of its own but images. WORK keeps what is downloaded, DATA the engine's own.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${WORK:-$PWD/.saucer/compose-check}
mkdir -p "$work"
say() { printf '\n== %s\n' "$*" >&2; }
# Debian's docker-compose 1.29 knows no top-level name, and an API of its own age.
export DOCKER_API_VERSION=1.41 COMPOSE_PROJECT_NAME=saucer
# The ports lie among those that connections of this machine take for themselves, mostly on 127.0.0.1.
export HOST_ADDRESS=${HOST_ADDRESS:-127.0.0.2}
sed '/^name:/d' docker-compose.yml >"$work/docker-compose.yml"
files=(--file "$work/docker-compose.yml")
compose() { docker-compose "${files[@]}" --project-directory "$PWD" "$@"; }

if ! docker info >/dev/null 2>&1; then
  say "Starting dockerd"
  dockerd --data-root "${DATA:-$work/docker}" >"$work/dockerd.log" 2>&1 &
  daemon=$!
  trap 'kill "$daemon"; wait "$daemon"' EXIT
  for _ in $(seq 30); do docker info >/dev/null 2>&1 && break; sleep 1; done
fi

stand_ins() {
  say "Debian"
  if [ ! -e "$work/root/usr/bin/python3" ]; then
    debootstrap --variant=minbase \
      --include=python3,python3-pip,libpython3.11,ca-certificates,curl,libnuma1,postgresql-15 bookworm "$work/root" >"$work/debootstrap.log"
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
  for name in python:3.11-slim-bookworm nats:2.12 postgres:18 triton; do
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
[ -e secrets ] || deploy/new-secrets.sh

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
  [ -e certificates ] || mkdir -m 700 certificates
  docker run --rm --user "$(id -u)" --volume "$PWD/certificates:/made" saucer-service python certificates.py /made
  files+=(--file deploy/compose.tls.yml)
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
    sleep 2
    docker start "$container" >/dev/null
  done
  over=; kill -0 "$walking" 2>/dev/null || over=yes
  wait "$walking" || { tail -50 "$work/path.log" >&2; exit 1; }
  if [ -n "$over" ]; then say "The path was over before every container had been killed: raise EPOCHS"; exit 1; fi
  tail -1 "$work/path.log"
fi

say "Down"
compose down --volumes
