"""Makes harness/paper/published.csv from the collection of published numbers, by the rules below.

    python scripts/published.py COLLECTION.csv [--check]     # --check: change nothing; exit 1 where the two differ

A row is taken if it is the paper's own and in `OWN`, or if it is another's `speedup` or tau of a cell that the paper's tables
and figures have: the same model, method, task and temperature. So are EAGLE-1's acceptance rates by depth. Means count where
they are of the same six tasks. Every row taken gets the definition of its number, and where that is known from.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "harness/paper/published.csv"
sys.path.insert(0, str(ROOT))

from harness.paper.published import MEAN, PAPER, SAME  # noqa: E402

OWN = ("Table 1", "Table 2", "Table 3 (ablation)", "Figure 1", "Figure 2", "Figure 6 / Sec 3.2", "Abstract")
RATE = ("EAGLE-1 (arXiv 2401.15077v3)", "Table 4", "LLaMA2-Chat-7B", "Vanilla HF FP16", "tokens_per_s")
RATES = ("EAGLE-1 (arXiv 2401.15077v3)", "Table 2")  # of acceptance by depth, `0-alpha` and so on
REPEATED = {("EAGLE-1 (arXiv 2401.15077v3)", "Table 8")}  # the numbers of its Table 1 once more
OTHER_MEANS = {"EAGLE-3", "GTO"}  # their means are of five and of three tasks
METRICS = {"speedup": "speedup", "tau": "tau", "tau_mean_of_questions": "tau"}
COLUMNS = ("paper", "table", "model", "method", "task", "temperature", "metric", "definition", "value", "source", "confirmed",
           "defined_in")  # fmt: skip

_EAGLE_SPEED = ("mean_of_questions", "github SafeAILab/EAGLE eagle/evaluation/speed.py @cb7e084")
_EAGLE_TAU = (
    "pooled or mean_of_questions_from_0",
    "the text (tokens per drafting-verification cycle) reads as pooled; the authors' file of LLaMA2-Chat-70B, MT-bench, T = 0 "
    "(github SafeAILab/EAGLE v1 eagle/outputs) gives 3.62 pooled, 3.81 as mean of questions, index from 0; 3.81 is printed",
)
_SPEC_BENCH = ("mean_of_questions", "github hemingkx/Spec-Bench evaluation/speed.py @132ba4c")
_OPT_TREE = "github Jikai0Wang/OPT-Tree evaluation/eval_opt_eagle.py @13b8ef3"
_GUMIHO = "github AMD-AIG-AIMA/Gumiho gumiho/evaluation/gen_gumiho_answer_vicuna.py @3fc1f90 logs it so"
_UNKNOWN = ("not_stated", "")
DEFINED = {
    ("EAGLE-1", "speedup"): _EAGLE_SPEED, ("EAGLE-1", "tau"): _EAGLE_TAU,
    ("EAGLE-2", "speedup"): _EAGLE_SPEED, ("EAGLE-2", "tau"): _EAGLE_TAU,
    ("EAGLE-3", "speedup"): _EAGLE_SPEED, ("EAGLE-3", "tau"): _EAGLE_TAU,
    ("Spec-Bench", "speedup"): _SPEC_BENCH,
    ("SAM-Decoding", "speedup"): ("mean_of_questions", "github hyx1999/SAM-Decoding evaluation/speed.py @625e162"),
    ("Gumiho", "speedup"): _UNKNOWN, ("Gumiho", "tau"): ("mean_of_turns_from_0", _GUMIHO),
    ("GTO", "speedup"): _UNKNOWN, ("GTO", "tau"): _UNKNOWN,
    ("OPT-Tree", "speedup"): ("totals", _OPT_TREE), ("OPT-Tree", "tau"): ("pooled_from_0", _OPT_TREE),
    ("RADAR re-run", "speedup"): ("mean_of_questions", "its raw outputs, counted, give the same"),
    ("RADAR re-run", "tau"): ("mean_of_questions", "its raw outputs, counted, give the same to 0.01"),
    ("RADAR raw outputs", "speedup"): ("mean_of_questions", "counted from its raw outputs"),
    ("RADAR raw outputs", "tau"): ("pooled", "counted from its raw outputs"),
    ("RADAR raw outputs", "tau_mean_of_questions"): ("mean_of_questions", "counted from its raw outputs"),
}  # fmt: skip


def selected(collection: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of the collection that the paper's tables need, in its order.

    Raises:
        KeyError: a row is needed whose paper has no entry in `DEFINED`.
    """
    rows = [row for row in collection if row["value"]]
    of_cells = [row for row in rows if row["paper"] == PAPER and row["metric"] in METRICS]
    wanted = {_cell(row) for row in of_cells}
    return [_defined(row) for row in rows if _is_own(row) or _is_rate(row) or _is_of_a_depth(row) or _is_of(row, wanted)]


def _cell(row: dict[str, str]) -> tuple[str, ...]:
    """What it is a number of, in the paper's words."""
    return row["model"], SAME.get(row["method"], row["method"]), SAME.get(row["task"], row["task"]), row["temperature"]


def _is_own(row: dict[str, str]) -> bool:
    return row["paper"] == PAPER and row["table"] in OWN


def _is_rate(row: dict[str, str]) -> bool:
    return tuple(row[key] for key in ("paper", "table", "model", "method", "metric")) == RATE


def _is_of_a_depth(row: dict[str, str]) -> bool:
    return (row["paper"], row["table"]) == RATES and row["metric"].endswith("-alpha")


def _is_of(row: dict[str, str], wanted: set[tuple[str, ...]]) -> bool:
    if row["paper"] == PAPER or row["metric"] not in METRICS or (row["paper"], row["table"]) in REPEATED:
        return False
    return _cell(row) in wanted and not (row["task"] == MEAN and row["paper"].split()[0] in OTHER_MEANS)


def _defined(row: dict[str, str]) -> dict[str, str]:
    definition, known_from = "", ""
    if row["metric"] in METRICS:
        who = next((who for who, metric in DEFINED if metric == row["metric"] and row["paper"].startswith(who)), row["paper"])
        definition, known_from = DEFINED[who, row["metric"]]
    metric = METRICS.get(row["metric"], row["metric"])
    made = row | {"metric": metric, "definition": definition, "defined_in": known_from}
    return {name: made[name] for name in COLUMNS}


def text_of(collection: Path) -> str:
    with collection.open(encoding="utf-8", newline="") as file:
        rows = selected(csv.DictReader(file))
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def differences(collection: Path) -> list[str]:
    """Every row that the shipped file lacks (+) or has beyond the collection's (-)."""
    made, shipped = text_of(collection).splitlines(), SHIPPED.read_text(encoding="utf-8").splitlines()
    lacking, beyond = set(made) - set(shipped), set(shipped) - set(made)
    if made != shipped and not lacking | beyond:
        return ["the rows stand in another order, or some stand there twice"]
    return [f"+ {row}" for row in made if row in lacking] + [f"- {row}" for row in shipped if row in beyond]


def main(arguments: list[str]) -> int:
    paths = [Path(a) for a in arguments if a != "--check"]
    if len(paths) != 1 or not paths[0].is_file():
        print(f"expected the collection's CSV, got {' '.join(arguments) or 'nothing'}", file=sys.stderr)
        return 2
    if "--check" not in arguments:
        SHIPPED.write_text(text_of(paths[0]), encoding="utf-8")
        return 0
    found = differences(paths[0])
    print("\n".join(found) if found else "the same")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
