"""What the paper and others published, number by number with its source, and the cells of the paper's tables.

`published.csv` has the numbers of EAGLE-2 (arXiv 2406.16858v2; Tables 1-3, Figures 1, 2 and 6, abstract). It also has those that
others printed for a cell of these: the same target, method, prompts and temperature. `scripts/published.py` makes it from a
larger collection and holds the rules. Of Spec-Bench these are the three tasks with the same 80 prompts; means over other tasks
than the six are left out. `confirmed` is `yes` for a number read in a full text, a repository's file or a figure's label. It is
`secondary` for a third party's transcription, which is marked wherever it is used.

`definition` says how a tau or a speedup is averaged, and `defined_in` where that is known from. Two numbers are compared only if
they are of one definition. Where two definitions are possible, `or` stands between them, and a number is compared by each.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from harness.common.errors import UserError
from harness.common.names import SIX_TASKS
from harness.metrics.by_definition import NOT_STATED

PAPER = "EAGLE-2 (arXiv 2406.16858v2)"
MEAN = "Mean"  # of the six tasks, in the paper's tables
TASKS = dict(zip(("MT-bench", "HumanEval", "GSM8K", "Alpaca", "CNN/DM", "Natural Questions"), SIX_TASKS, strict=True))
METHODS = {
    "EAGLE-2": "eagle2", "EAGLE": "eagle1", "PLD": "pld", "SpS": "sps", "Lookahead": "lookahead", "Medusa": "medusa",
    "Hydra": "hydra", "w/o value": "eagle2-no-value", "w/o reranking": "eagle2-no-rerank", "w/o both": "eagle2-no-both",
}  # fmt: skip

# Where our method is knowingly not quite the paper's baseline, by our name.
OURS_DIFFER = {
    "sps": "the paper ran Hugging Face's assisted generation, whose draft length adapts (here `hf-assisted`); ours drafts a "
    "fixed number of tokens",
    "pld": "the original copies from the first earlier occurrence of the last n-gram, as `hf-prompt-lookup` does; ours copies "
    "from the last one, which drafts better",
}

# Others' names for the same thing, by which `scripts/published.py` knows their rows. Spec-Bench's prompts of these tasks are the
# paper's own, id by id.
SAME = {
    "EAGLE drafter + EAGLE-1 static tree (25 nodes)": "EAGLE",
    "SpS (Vicuna-68M)": "SpS",  # in the figures, with the speedups of Table 1's SpS
    "Multi-turn Conversation": "MT-bench",
    "Summarization": "CNN/DM",
    "Question Answering": "Natural Questions",
}


@dataclass(frozen=True, slots=True)
class Number:
    """One published number. `values`: the numbers in its text, several for a range."""

    paper: str
    table: str
    model: str
    method: str
    task: str
    temperature: str
    metric: str
    text: str
    source: str
    confirmed: bool
    definition: str = ""  # of a tau or speedup: as in the file
    defined_in: str = ""

    @property
    def definitions(self) -> tuple[str, ...]:
        """Those that are possible (names of `harness.metrics.by_definition`); none where it is not stated."""
        return tuple(name for name in self.definition.split(" or ") if name not in ("", NOT_STATED))

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(map(float, re.findall(r"\d+(?:\.\d+)?", self.text)))

    @property
    def value(self) -> float:
        return self.values[0]

    @property
    def key(self) -> tuple[str, ...]:
        """What it is a number of."""
        return self.model, self.method, self.task, self.temperature, self.metric

    @property
    def by(self) -> str:
        """Who printed it, short: `Gumiho`, `Spec-Bench A100`."""
        board = self.table.removeprefix("Leaderboard") if self.table.startswith("Leaderboard") else ""
        return re.sub(r" (\(.*|re-run|leaderboard)$", "", self.paper) + board


@dataclass(frozen=True, slots=True)
class PaperCell:
    """A cell of a table or a bar of a figure, in the paper's words. A number that the item lacks is from another table."""

    model: str
    method: str
    task: str
    temperature: float
    speedup: tuple[Number, ...]  # one; a stand-in's cells have those of all the item's models
    tau: tuple[Number, ...]

    @property
    def method_here(self) -> str | None:
        return METHODS.get(self.method)

    @property
    def task_here(self) -> str:
        return TASKS.get(self.task, self.task)


@dataclass(frozen=True, slots=True)
class Item:
    """A table or figure of the paper."""

    kind: str
    number: str
    table: str  # in published.csv
    title: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number}"

    @property
    def needs_trees(self) -> bool:
        """It is about the draft's nodes, not about speed."""
        return self.kind == "figure" and self.number in ("5", "6")


ITEMS = (
    Item("table", "1", "Table 1", "speedup and τ of Vicuna and LLaMA2-Chat on six tasks"),
    Item("table", "2", "Table 2", "speedup and τ of LLaMA2-Chat 70B and LLaMA3-Instruct on MT-bench, T = 0"),
    Item("table", "3", "Table 3 (ablation)", "EAGLE-2 without value, without reranking, without both"),
    Item("figure", "1", "Figure 1", "speedup on MT-bench, T = 1"),
    Item("figure", "2", "Figure 2", "speedup on MT-bench, T = 0"),
    Item("figure", "5", "Figure 5", "acceptance rate by position in the draft tree"),
    Item("figure", "6", "Figure 6 / Sec 3.2", "acceptance rate by the draft's confidence"),
)
NO_NUMBERS = ("3", "4", "7")  # figures of the paper that are drawings


def item(kind: str, number: str) -> Item:
    """
    Raises:
        UserError: the paper has no such table or figure, or it is a drawing; names those that can be reproduced.
    """
    found = [i for i in ITEMS if (i.kind, i.number) == (kind, number)]
    if found:
        return found[0]
    what = "is a drawing without numbers" if kind == "figure" and number in NO_NUMBERS else "is not in the paper"
    known = ", ".join(i.number for i in ITEMS if i.kind == kind)
    raise UserError(f"{kind} {number!r} {what}; {kind}s of arXiv 2406.16858 that can be reproduced: {known}")


@cache
def numbers() -> tuple[Number, ...]:
    text = resources.files("harness.paper").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(
        Number(row["paper"], row["table"], row["model"], SAME.get(row["method"], row["method"]),
               SAME.get(row["task"], row["task"]), row["temperature"], row["metric"], row["value"], row["source"],
               row["confirmed"] == "yes", row["definition"], row["defined_in"])
        for row in csv.DictReader(text.splitlines())
    )  # fmt: skip


def the_paper(metric: str, table: str = "") -> list[Number]:
    """The paper's own numbers of a metric, from one table or from all; the confirmed ones come before the transcribed."""
    own = [n for n in numbers() if n.paper == PAPER and n.metric == metric and (not table or n.table == table)]
    return sorted(own, key=lambda n: not n.confirmed)


DRAFTS = ("Vicuna-7B", "EAGLE", "Alpaca", "0")  # what Figures 5 and 6 are of; the temperature is not stated


def cells(wanted: Item) -> list[PaperCell]:
    """Every cell of the item that has a number, in the paper's order. Figures 5 and 6 have the one cell they look into."""
    by_cell: dict[tuple[str, str, str, str], dict[str, Number]] = {DRAFTS: {}} if wanted.needs_trees else {}
    for n in numbers():
        if n.paper == PAPER and n.table == wanted.table and n.metric in ("speedup", "tau") and n.temperature in ("0", "1"):
            by_cell.setdefault((n.model, n.method, n.task, n.temperature), {})[n.metric] = n
    return [
        PaperCell(model, method, task, float(temperature), *(
            (own,) if (own := found.get(metric)) else _elsewhere(model, method, task, temperature, metric)
            for metric in ("speedup", "tau")
        ))
        for (model, method, task, temperature), found in by_cell.items()
    ]  # fmt: skip


def _elsewhere(*key: str) -> tuple[Number, ...]:
    return tuple(n for n in the_paper(key[-1]) if n.key == key)[:1]


def stand_in(of: Iterable[PaperCell], model: str) -> list[PaperCell]:
    """The cells for a model that is not in the paper. Each has the numbers of all the item's models."""
    merged: dict[tuple[str, str, float], PaperCell] = {}
    for c in of:
        if c.method_here is None:
            continue
        before = merged.get((c.method, c.task, c.temperature))
        merged[c.method, c.task, c.temperature] = PaperCell(
            model, c.method, c.task, c.temperature,
            (before.speedup if before else ()) + c.speedup, (before.tau if before else ()) + c.tau,
        )  # fmt: skip
    return list(merged.values())


def third_parties(cell: PaperCell, metric: str) -> list[Number]:
    """What others printed for the same model, method, prompts and temperature, whatever the definition of their number."""
    key = (cell.model, cell.method, cell.task, f"{cell.temperature:g}", metric)
    return [n for n in numbers() if n.paper != PAPER and n.key == key]


def plain_rate() -> Number:
    """Tokens a second of plain decoding that the authors state for one of their targets (EAGLE-1, Table 4)."""
    (rate,) = (n for n in numbers() if n.metric == "tokens_per_s")
    return rate
