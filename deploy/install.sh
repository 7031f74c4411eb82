#!/usr/bin/env bash
# Makes a virtual environment with Saucer and everything it needs. Usage: PYTHON=python3.11 deploy/install.sh FOLDER
set -euo pipefail
folder=$1
python=${PYTHON:-python3.11}

if ! command -v "$python" >/dev/null; then
  echo "Saucer needs Python 3.11, and there is no $python on the PATH; install it, or name it: make PYTHON=/path/to/python3.11" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  echo "Saucer needs Python 3.11, and $python is $("$python" --version); name another: make PYTHON=/path/to/python3.11" >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "$python cannot make virtual environments; install them (Debian: apt install python3.11-venv)." >&2
  exit 1
fi
# Triton's Python backend embeds it. Asked here, before anything large is downloaded.
if ! "$python" deploy/find_libpython.py; then
  echo "$python has no shared library, which Triton's Python backend needs; install it (Debian: apt install libpython3.11)." >&2
  exit 1
fi

echo "Installing Saucer into $folder (a few minutes the first time)…" >&2
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)
"${pip[@]}" --editable '.[worker,local,dev]'
# Their own lists bring opencv-python, which needs libGL, and imaug, which nothing here uses.
"${pip[@]}" --no-deps onedl-mmcv onedl-mmdetection
