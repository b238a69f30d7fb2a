#!/usr/bin/env bash
# Sets up .venv with the development tools, then runs the check (ruff, mypy, pytest). Arguments go to pytest.
# The embedded target (93 MB) is downloaded once; without a network: ./run_tests.sh -m "not slow and not network and not embedded"
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/scripts/env.sh"

use_env dev
exec "$ROOT/scripts/check.sh" "$@"
