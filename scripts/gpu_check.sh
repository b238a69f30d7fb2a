#!/usr/bin/env bash
# The day a GPU is there: what this project has to know of it, in at most 8 minutes, what is worth most first (on a CPU, 20).
#
#   scripts/gpu_check.sh OUT [--device cpu] [--minutes N] [--wheels DIR]
#
# No network is needed: torch and transformers are taken as they are on the machine, missing packages of pure Python from DIR.
# OUT gets a JSON file a part and `summary.json`, each written as soon as it is known: a stop at any second loses nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?usage: scripts/gpu_check.sh OUT [--device cpu] [--minutes N] [--wheels DIR]}
shift
wheels="" rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) wheels=$2 && shift ;;
    *) rest+=("$1") ;;
  esac
  shift
done
python=${HARNESS_PYTHON:-python3}
packages=$out/packages
if [ -n "$wheels" ]; then
  mkdir -p "$packages"
  "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$packages" "$wheels"/*.whl
fi
PYTHONPATH="$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}" exec "$python" scripts/gpu_check.py "$out" ${rest[@]+"${rest[@]}"}
