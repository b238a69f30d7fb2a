#!/usr/bin/env bash
# The whole reproduction, from a fresh clone to the table.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/scripts/env.sh"

usage() {
  cat <<'HELP'
usage: ./run_all.sh [--quick | --claims | --full] [--model NAME | --models NAME,NAME...] [--source S] [--prompts DIR]
                    [--out DIR] [--include PATH] [--tune] [OPTION ...]

Makes an environment in .venv, obtains the model and the prompts, runs methods x tasks, audits losslessness (level quick),
writes records, tables, the claims ledger, the paper's tables with a verdict a cell, and plots, and prints the main table. Stop it at any time (Ctrl-C) and start it again: it goes on where it was.

  --quick        1 prompt a task, 20 tokens, temperature 0: under 10 minutes on 2 cores, downloads not counted
  (default)      5 prompts a task, 128 tokens, temperatures 0 and 1: all exact methods, each at the paper's and at its tuned
                 options: hours (said first)
  --claims       what Table 3 and the claims are about: vanilla, EAGLE-1, EAGLE-2 (also with EAGLE-1's number of nodes) and its
                 ablations, on 40 prompts a task at temperature 0 and 20 at 1: hours
  --full         --claims, and all methods and hf-generate as by default, on 10 prompts at temperature 0 and 5 at 1: may take days
  --model NAME   a model of `harness list models`, or the path of a YAML like those in models/ (default smollm2-135m)
  --models A,B   several, one after another into one folder: a row a model (vicuna-7b,llama2-chat-7b,... are the paper's, whose
                 numbers are comparable under --claims and --full only: the other tiers stop at fewer tokens)
  --source S     where the prompts of all six tasks come from: auto (default), paper, hub or bundled
  --prompts DIR  the folder of the paper's prompt files
  --out DIR      where records, tables and plots go (default results/quick, .../default, .../claims or .../full,
                 with -NAME added for another model, -NAME+NAME... for several)
  --tune         first find the options at which each method is fastest on this machine, where that was not done before (for the
                 default tier and --full, which then have each method at these, too): an hour or two more on two cores
  --include PATH your own methods, tasks or models (a file or folder; repeatable)
  OPTION ...     anything else goes to `harness matrix` and overrides the tier, e.g. --limit 3 --dtype float32
  -h, --help     this text

Variables: HARNESS_PROMPTS (as --prompts), HARNESS_CACHE (where downloads are kept), HARNESS_PYTHON (the interpreter to
make .venv with), HARNESS_VENV (use this environment and install nothing).
HELP
}

default_model=smollm2-135m
tier=default models=$default_model out="" source=() include=() options=() tune=false same=()
while [ $# -gt 0 ]; do
  case "$1" in
    --model | --models | --source | --prompts | --out | --include | --dtype | --threads | --head) [ $# -ge 2 ] || die "$1 needs a value; see ./run_all.sh --help" ;;
    --model=* | --models=* | --source=* | --prompts=* | --out=* | --include=* | --dtype=* | --threads=* | --head=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case "$1" in
    -h | --help) usage && exit ;;
    --quick | --claims | --full) tier=${1#--} ;;
    --model | --models) models=$2 && shift ;;
    --source) source=(--source "$2") && shift ;;
    --prompts) export HARNESS_PROMPTS=$2 && shift ;; # so that the step that obtains prompts sees it too
    --out) out=$2 && shift ;;
    --include) include+=(--include "$2") && shift ;;
    --tune) tune=true ;;
    --dtype | --threads | --head) same+=("$1" "$2") && shift ;; # what is tuned for others is not found
    *) options+=("$1") ;;
  esac
  shift
done

IFS=, read -r -a models <<<"$models"
[ ${#models[@]} -gt 0 ] || die "--models needs at least one name; see ./run_all.sh --help"

if [ -z "$out" ]; then
  out=$ROOT/results/$tier names=""
  for model in "${models[@]}"; do names=$names+$(basename "$model" .yaml); done
  if [ "$names" != "+$default_model" ]; then out=$out-${names#+}; fi
fi

case ",${models[*]}," in
  *vicuna*) use_env vicuna ;; # what reads its tokenizer
  *) use_env "" ;;
esac

audited=0 named=() left_out=()

# One of several models that cannot be had or measured is named at the end; an interrupt ends everything.
leave_out() {
  if [ "$1" = 130 ] || [ "$1" = 143 ] || [ ${#models[@]} = 1 ]; then exit "$1"; fi
  left_out+=("$model")
  say "$model is left out, or not whole: why stands above"
}

for model in "${models[@]}"; do
  say "obtaining $model and the prompts (downloads are kept: a second run finds them)"
  harness fetch --model "$model" ${source[@]+"${source[@]}"} ${include[@]+"${include[@]}"} || { leave_out $? && continue; }

  if $tune; then
    tuning=(harness tune --method all --model "$model" --temperature 0 --temperature 1 --max-new-tokens 128)
    tuning+=(${include[@]+"${include[@]}"} ${same[@]+"${same[@]}"})
    say "${tuning[*]}"
    "${tuning[@]}" >&2 || { leave_out $? && continue; }
  fi

  command=(harness matrix --trees --tier "$tier" --model "$model" --out "$out")
  # ${a[@]+...}: an empty array is an unbound variable to the bash 3.2 that macOS has
  command+=(${source[@]+"${source[@]}"} ${include[@]+"${include[@]}"} ${same[@]+"${same[@]}"} ${options[@]+"${options[@]}"})
  say "${command[*]}"
  named+=(--model "$model")
  "${command[@]}" || { leave_out $? && continue; }

  findings=$out/audit
  if [ ${#models[@]} -gt 1 ]; then findings=$findings/$(basename "$model" .yaml); fi
  audit=(harness verify --level quick --model "$model" --results "$out" --out "$findings" ${include[@]+"${include[@]}"})
  say "${audit[*]}"
  "${audit[@]}" >&2 || audited=$?
  if [ "$audited" = 130 ] || [ "$audited" = 143 ]; then exit "$audited"; fi
done
[ -s "$out/records.jsonl" ] || [ ${#left_out[@]} = 0 ] || die "nothing was measured: ${left_out[*]} left out, and why stands above"

say "tables, plots and the page from the records in $out"
harness reproduce --no-run --results "$out" "${named[@]}" ${include[@]+"${include[@]}"} >/dev/null ||
  say "no tables beside the paper's: why stands above"
harness report --all --results "$out"

say "done: all is in $out (tables: main, table1 to figure6; claims), to look at in $out/report.html; the main table:"
if [ ${#models[@]} -gt 1 ] && [ -e "$out/tables/models.md" ]; then cat "$out/tables/models.md"; fi
cat "$out/tables/main.md"
if [ ${#left_out[@]} -gt 0 ]; then say "left out, or not whole: ${left_out[*]}; the same command goes on from here"; fi
[ "$audited" = 0 ] || die "the audit found something, or could not judge all: see audit.md under $out/audit"
[ ${#left_out[@]} = 0 ] || exit 1
