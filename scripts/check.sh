#!/usr/bin/env bash
# The check, in one place: CI, `make check`, ./run_tests.sh and the pre-commit hooks run it in the current environment.
#   scripts/check.sh               ruff, mypy, import-linter, and every test that is not marked slow
#   scripts/check.sh --no-tests    all but the tests (the hook on commit)
#   scripts/check.sh ARGS          ARGS go to pytest, e.g. -m "not slow and not network", or tests/test_tree.py
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
if [ "${1:-}" != --no-tests ]; then step python -m pytest -m "not slow" "$@"; fi
