#!/usr/bin/env bash
# The check, in one place: CI, `make check`, ./run_tests.sh and the pre-commit hooks run it in the current environment.
#   scripts/check.sh               ruff, mypy, import-linter, and every test that is not marked slow
#   scripts/check.sh --no-tests    all but the tests (the hook on commit)
#   scripts/check.sh ARGS          ARGS go to pytest, e.g. -m "not slow and not network", or tests/ledger
#   TEST_WORKERS=1 scripts/check.sh   one test at a time (otherwise a worker a core)
set -euo pipefail
cd "$(dirname "$0")/.."
# Called by hand or by git with no environment active: the project's own, if it is there.
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/ruff ]; then PATH="$PWD/.venv/bin:$PATH"; fi

step() {
  printf '==> %s\n' "$*" >&2
  "$@"
}

step python -m ruff check .
step python -m ruff format --check .
step python -m mypy
step python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-logo --no-cache
if [ "${1:-}" != --no-tests ]; then
  # a worker a core, each with whole files, as tests of a file share models and ledgers; conftest.py puts the longest first
  export OMP_NUM_THREADS=1 # workers that each use all cores wait for each other
  step python -m pytest -m "not slow" -n "${TEST_WORKERS:-auto}" --dist loadfile --no-loadscope-reorder "$@"
fi
