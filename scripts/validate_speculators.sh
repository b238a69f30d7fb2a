#!/usr/bin/env bash
# What `harness export-head --format speculators` writes, validated by speculators' own models, in an environment of its own: its pins
# on transformers and datasets exclude ours. Result: tests/data/speculators.json, which tests/exchange/test_speculators.py compares
# with what is written now.
#   scripts/validate_speculators.sh [FOLDER]      FOLDER: for the environment (1.3 GB) and the heads; default: a temporary one
set -euo pipefail
cd "$(dirname "$0")/.."
where="${1:-$(mktemp -d)}"
python="${HARNESS_VENV:-.venv}/bin/python"
theirs="$where/venv/bin/python"
if [ ! -x "$theirs" ]; then
    "$python" -m venv "$where/venv"
    # torch's CPU wheel is there at this version alone; speculators asks for torchvision and torchaudio, which nothing here needs
    "$theirs" -m pip install --quiet torch==2.13.0 'transformers>=5.0,<=5.19.0' 'datasets>=4.0,<=5.1.0' 'numpy<=2.5.4' pydantic \
        pydantic-settings loguru openai httpx rich tqdm typer psutil aiohttp click safetensors protobuf
    "$theirs" -m pip install --quiet --no-deps speculators==0.9.0 hs-connectors==0.9.0
fi
rm -rf "$where/heads"
PYTHONPATH=.:tests "$python" scripts/validate_speculators.py write "$where/heads"
PYTHONPATH=tests "$theirs" scripts/validate_speculators.py check "$where/heads" tests/data/speculators.json
