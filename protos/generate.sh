#!/usr/bin/env bash
# Generates everything that comes from the protos into a folder: protos/generate.sh FOLDER (run with the venv's bin first
# on the PATH). `make protos` gives it services/; the drift test gives it a temporary one.
set -euo pipefail
cd "$(dirname "$0")"
target=$1
all=$(find saucer buf -name '*.proto' | LC_ALL=C sort)
services=$(grep -rl '^service ' saucer | LC_ALL=C sort)

# shellcheck disable=SC2086 # one word a file
{
  python -m grpc_tools.protoc -I . --python_out="$target" --mypy_out="quiet:$target" $all
  python -m grpc_tools.protoc -I . --grpc_python_out="$target" --mypy_grpc_out="quiet:$target" $services
  descriptors=$(mktemp)
  python -m grpc_tools.protoc -I . --include_imports --include_source_info --descriptor_set_out="$descriptors" $all
}
for folder in $(find saucer buf -name '*.proto' -exec dirname {} + | sort -u) buf; do
  echo '"""Generated from the protos; `make protos` writes it anew."""' >"$target/$folder/__init__.py"
done
python generate_asyncapi.py "$descriptors" >"$target/asyncapi.yaml"
rm "$descriptors"
