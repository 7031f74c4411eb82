#!/usr/bin/env bash
# The demonstration's path by the command line, inside the container `saucer`: region and spec on offer, an account with
# money, images, a training, a deployment, boxes, the bill. `make compose-demo` runs it; IMAGES and EPOCHS make it small.
set -euo pipefail
cd /tmp
field() { python -c 'import json, sys; answer = json.load(sys.stdin); answer = answer[0] if isinstance(answer, list) else answer; print(answer[sys.argv[1]])' "$1"; }
# A service that restarts in the middle is waited for.
persist() { for _ in $(seq 60); do "$@" && return; sleep 2; done; return 1; }

persist saucer region create local --reason "the first region"
persist saucer spec create local cpu-2 --cpu-cores 2 --price 3.60 --reason "the first offer" || true
account=$(persist saucer account create --name "path-$RANDOM" --reason "the path" --json | field accountId)
export SAUCER_ACCOUNT=$account
persist saucer account topup "$account" 40
python -c "
from pathlib import Path
from saucer.local.scenes import generate
generate(Path('scenes'), images=${IMAGES:-480}, seed=2026)
generate(Path('new'), images=10, seed=7)"
persist saucer dataset import scenes
version=$(persist saucer dataset list --json | field datasetVersionId)
form=(--name path --scene cup-and-plate --dataset "$version" --max-duration 270s
  --region local --spec cpu-2 ${EPOCHS:+--epochs "$EPOCHS"})
persist saucer task quote "${form[@]}"
saucer task create "${form[@]}" || true
task=$(persist saucer task list --json | field taskId)
persist saucer task watch "$task"
persist saucer evaluation show "$task"
saucer deploy "$task" --name path --max-duration 30m --region local --spec cpu-2 --wait || true
deployment=$(persist saucer deployment list --json | field deploymentId)
# A replay without boxes proves nothing.
compared=$(persist saucer deployment show "$deployment" --json | python -c 'import json, sys; print(json.load(sys.stdin)["parity"].get("paired", 0))')
if [ "$compared" = 0 ]; then echo "path: the model found nothing that could be compared; train longer (EPOCHS)" >&2; exit 1; fi
first=$(find new -name '*.jpg' -print -quit)
persist saucer predict "$deployment" "$first" --output boxes
persist saucer deployment stop "$deployment" --wait
persist saucer account statement "$account"
persist saucer billing audit
echo "path: complete"
