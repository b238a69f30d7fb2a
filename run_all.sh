#!/usr/bin/env bash
# The whole reproduction, from a fresh clone to the table.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/scripts/env.sh"

usage() {
  cat <<'HELP'
usage: ./run_all.sh [--quick | --full] [--model NAME] [--source S] [--prompts DIR]
                    [--out DIR] [--include PATH] [OPTION ...]

Makes an environment in .venv, obtains the model and the prompts, runs methods x tasks, writes records, tables and
plots, audits losslessness (level quick), and prints the main table. Stop it at any time (Ctrl-C) and start it again: it goes on where it was.

  --quick        1 prompt a task, 32 tokens, temperature 0: under 10 minutes on 2 cores, downloads not counted
  (default)      10 prompts a task, 128 tokens: all exact methods at temperature 0, and vanilla, eagle1 and eagle2 at 1
  --full         40 prompts a task at temperature 0 and 20 at 1, all exact methods and hf-generate: may take days
  --model NAME   a model of `harness list models`, or the path of a YAML like those in models/ (default smollm2-135m)
  --source S     where the prompts of all six tasks come from: auto (default), paper, hub or bundled
  --prompts DIR  the folder of the paper's prompt files
  --out DIR      where records, tables and plots go (default results/quick, results/default or results/full,
                 with -NAME added for another model)
  --include PATH your own methods, tasks or models (a file or folder; repeatable)
  OPTION ...     anything else goes to `harness matrix` and overrides the tier, e.g. --limit 3 --dtype float32;
                 --trees keeps every drafted tree: calibration, positions, and the page's viewer
  -h, --help     this text

Variables: HARNESS_PROMPTS (as --prompts), HARNESS_CACHE (where downloads are kept), HARNESS_PYTHON (the interpreter to
make .venv with), HARNESS_VENV (use this environment and install nothing).
HELP
}

default_model=smollm2-135m
tier=default model=$default_model out="" source=() include=() options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --model | --source | --prompts | --out | --include) [ $# -ge 2 ] || die "$1 needs a value; see ./run_all.sh --help" ;;
    --model=* | --source=* | --prompts=* | --out=* | --include=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case "$1" in
    -h | --help) usage && exit ;;
    --quick | --full) tier=${1#--} ;;
    --model) model=$2 && shift ;;
    --source) source=(--source "$2") && shift ;;
    --prompts) export HARNESS_PROMPTS=$2 && shift ;; # so that the step that obtains prompts sees it too
    --out) out=$2 && shift ;;
    --include) include+=(--include "$2") && shift ;;
    *) options+=("$1") ;;
  esac
  shift
done

if [ -z "$out" ]; then
  out=$ROOT/results/$tier
  name=$(basename "$model" .yaml)
  if [ "$name" != "$default_model" ]; then out=$out-$name; fi
fi

use_env ""

say "obtaining $model and the prompts (downloads are kept: a second run finds them)"
harness fetch --model "$model" ${source[@]+"${source[@]}"} ${include[@]+"${include[@]}"}

command=(harness matrix --tier "$tier" --model "$model" --out "$out")
# ${a[@]+...}: an empty array is an unbound variable to the bash 3.2 that macOS has
command+=(${source[@]+"${source[@]}"} ${include[@]+"${include[@]}"} ${options[@]+"${options[@]}"})
say "${command[*]}"
"${command[@]}"

audit=(harness verify --level quick --model "$model" --results "$out" --out "$out/audit" ${include[@]+"${include[@]}"})
say "${audit[*]}"
audited=0
"${audit[@]}" >&2 || audited=$?

say "tables, plots and the page from the records in $out"
harness table --results "$out"
harness plot --results "$out"
harness report --results "$out"

say "done: records, tables and plots are in $out, and all of it to look at in $out/report.html; the main table:"
cat "$out/tables/main.md"
[ "$audited" = 0 ] || die "the audit found something: see $out/audit/audit.md"
