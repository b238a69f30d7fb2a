# shellcheck shell=bash
# Sourced. `use_env [EXTRA]` makes the environment .venv once (with the optional dependencies EXTRA) and puts it first
# on PATH; a second call is instant. The mark inside .venv says what it was made from and is written last, so that one
# whose making was interrupted is never taken for whole.
#   HARNESS_VENV=DIR     use this environment as it is instead, and install nothing
#   HARNESS_PYTHON=EXE   the interpreter to make .venv with (3.11 or later)
# pip is used as it is configured: PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS and the like may choose a CPU-only torch.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '==> %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

use_env() {
  local venv="$ROOT/.venv"
  if [ -n "${HARNESS_VENV:-}" ]; then
    venv=$(cd "$HARNESS_VENV" && pwd)
    [ -x "$venv/bin/harness" ] || die "HARNESS_VENV=$HARNESS_VENV has no bin/harness; in it: pip install -e '.[dev]'"
  else
    make_env "${1:-}"
  fi
  export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
}

# The base interpreter, not the one of an environment that happens to be active: that may be the .venv to be remade.
find_python() {
  local candidate
  for candidate in "${HARNESS_PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, ensurepip, venv; assert sys.version_info >= (3, 11); print(sys._base_executable)' \
      2>/dev/null; then return; fi
    [ -z "${HARNESS_PYTHON:-}" ] || break # the one that was asked for, or none
  done
  die "no Python >= 3.11 that can make environments (tried ${HARNESS_PYTHON:-python3, python3.14 ... python3.11});" \
    "install one (Debian: python3 and python3-venv), or name it in HARNESS_PYTHON"
}

make_env() ( # a subshell: it holds the lock, and lets go of it when it ends
  extra=$1
  cd "$ROOT" || exit
  mark=.venv/.draft-tree-harness
  python=$(find_python)
  # An environment belongs to one checkout (its scripts and its editable install name it) and to one interpreter.
  want=$("$python" -c 'import hashlib, pathlib, sys
made_from = [sys.argv[1], sys.version, pathlib.Path("pyproject.toml").read_text()]
print(hashlib.sha256("\0".join(made_from).encode()).hexdigest())' "$ROOT")

  if command -v flock >/dev/null; then # two runs may be started at once; where there is no flock they should not be
    exec 9>.venv.lock
    flock -n 9 || {
      say "waiting for another run that is making .venv"
      flock 9
    }
  fi

  have=$(cat "$mark" 2>/dev/null || true)
  if [ "$have" = "$want dev" ] || [ "$have" = "$want $extra" ]; then exit 0; fi

  pip=(.venv/bin/python -m pip --disable-pip-version-check install --no-input)
  [ -t 2 ] || pip+=(--quiet)

  if [ "${have% *}" = "$want" ]; then
    echo unfinished >"$mark"
  else
    if [ -e .venv ]; then
      [ -e "$mark" ] || die ".venv was not made by this script: move it away, or use it with HARNESS_VENV=.venv"
      say "making .venv anew: it is unfinished, or from another pyproject.toml, Python or folder"
      rm -rf .venv.old && mv .venv .venv.old && rm -rf .venv.old # in one step: never a .venv without its mark
    fi
    say "making a Python environment in .venv"
    mkdir .venv
    echo unfinished >"$mark"
    "$python" -m venv .venv
    # By itself and first: any build of the exact version serves, and nothing below then asks for another.
    torch=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
    say "installing $torch (the largest download, 200 MB for a CPU build; once)"
    "${pip[@]}" "$torch"
  fi
  say "installing the project and its other dependencies${extra:+, with what $extra needs} (some minutes; once)"
  "${pip[@]}" --editable ".${extra:+[$extra]}"
  echo "$want $extra" >"$mark.new"
  mv "$mark.new" "$mark"
)
