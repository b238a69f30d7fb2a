"""The paper's tables and figures cell by cell: our number beside the paper's and others', and a verdict by fixed rules.

tau is reproduced where it is within 0.10 of the paper's, or the paper's within 0.10 of our interval; speed where our interval
covers the paper's. Where only tau is, decode speedup = tau / (c_verify + c_draft + c_other) says which part took the speed.
A pure function of records and published numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

import tasks
from harness import tables
from harness.acceptance import with_interval
from harness.data import PAPER_FILES
from harness.metrics import (
    Arm,
    CellSummary,
    Estimate,
    StepCosts,
    arm,
    mean_estimates,
    one_environment,
    one_source,
    six_task_mean,
    summarise,
)
from harness.published import DRAFTS, MEAN, METHODS, OURS_DIFFER, TASKS, Cell, Item, Number, the_paper, third_parties
from harness.records import Record
from harness.style import SIX_TASKS, VANILLA
from harness.tables import APART, NOTHING, Section, Table, bracketed, number

TOLERANCE = 0.10  # in tau
PRESET = "paper"  # the only trees the paper's numbers are of


@dataclass(frozen=True, slots=True)
class Target:
    """The model a report is on: our name, the paper's (None for a stand-in), the budget its numbers are made with."""

    name: str
    paper: str | None
    max_new_tokens: int
    facts: tuple[str, ...] = ()  # what its records were measured on
    departures: tuple[str, ...] = ()  # what in them is not as in the paper, in all cells alike
    altered: frozenset[str] = frozenset()  # tasks whose `paper` prompts are from files that are not the authors'


@dataclass(frozen=True, slots=True)
class Ours:
    """What was measured for a cell."""

    speedup: Estimate
    tau: Estimate
    tau_no_loop: float | None
    decode_speedup: float | None
    costs: StepCosts | None
    source: str
    max_new_tokens: int
    is_apart: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """A cell with what was measured for it, if anything, and the verdict."""

    cell: Cell
    target: Target
    ours: Ours | None
    verdict: str


# ---- what was measured ----------------------------------------------------------------------------------------------


def of_the_paper(records: Iterable[Record], model: str, where: object) -> list[Record]:
    """The measured records of a model that the paper's cells are made of.

    Raises:
        UserError: they were measured in several environments; names the key.
    """
    known = {VANILLA, *METHODS.values()}
    own = [r for r in records if r["model"] == model and r["preset"] == PRESET and r["method"] in known]
    return one_environment(own, where)


class Measurements:
    """A folder's measured records of one model, by method, task and temperature.

    Raises:
        UserError: they were measured in several environments; names the key.
    """

    def __init__(self, records: Iterable[Record], model: str, where: object):
        records = list(records)
        self.records = one_source(of_the_paper(records, model, where))
        known, taken = {VANILLA, *METHODS.values()}, {(r["task"], r["source"]) for r in self.records}
        asked = [r for r in records if r["model"] == model and r["preset"] == PRESET and r["method"] in known
                 and (r["task"], r["source"]) in taken]  # fmt: skip
        self._left_out = tables.not_in_the_numbers(tables.shown_cells(summarise(asked)))
        self.base = arm(r for r in self.records if r["method"] == VANILLA)
        self.summaries = {(s.method, s.task, s.temperature): s for s in summarise(self.records)}

    def __call__(self, method: str, task: str, temperature: float) -> Ours | None:
        """None where nothing was measured, or for a mean where one of the six tasks was not."""
        names = SIX_TASKS if task == MEAN else (task,)
        cells = [s for name in names if (s := self.summaries.get((method, name, temperature))) and s.prompts]
        if len(cells) < len(names):
            return None
        return self._mean(cells) if task == MEAN else _of(cells[0])

    def facts(self) -> tuple[str, ...]:
        """What measured it, and the weights; nothing where there are no records."""
        if not self.records:
            return ()
        r = self.records[0]
        how = f"Measured in {r['dtype']} with {r['threads']} threads, at most {r['max_new_tokens']} new tokens, seed {r['seed']}"
        return (how, *tables.weights_and_machine(list(self.summaries.values())), *self._left_out)

    def of(self, cells: Sequence[Cell]) -> list[Record]:
        """The records of these cells, vanilla's along."""
        wanted = {(name, c.task_here, c.temperature) for c in cells for name in (c.method_here, VANILLA)}
        return [r for r in self.records if (r["method"], r["task"], r["temperature"]) in wanted]

    def _mean(self, cells: Sequence[CellSummary]) -> Ours:
        """Unweighted over the six tasks, with intervals: prompts drawn again within each."""
        first, mean = cells[0], six_task_mean(cells)
        own: Arm = arm(r for r in self.records if (r["method"], r["temperature"]) == (first.method, first.temperature))
        speed, length = mean_estimates(own, self.base)
        return Ours(
            speed, length, mean.tau_no_loop, mean.decode_speedup, mean.step_costs,
            "/".join(sorted({c.source for c in cells})), first.max_new_tokens, mean.is_apart,
        )  # fmt: skip


def _of(c: CellSummary) -> Ours:
    return Ours(
        Estimate(c.speedup, c.speedup_ci95, c.prompts), Estimate(c.tau, c.tau_ci95, c.prompts), c.tau_no_loop,
        c.decode_speedup, c.step_costs, c.source, c.max_new_tokens, c.is_apart,
    )  # fmt: skip


def target_of(
    name: str, paper: str | None, max_new_tokens: int, records: Sequence[Record], facts: tuple[str, ...] = ()
) -> Target:  # fmt: skip
    """A model as measured in one environment, with what of that is not as in the paper."""
    departures = []
    for r in records[:1]:
        if (system := r.get("system", "paper")) != "paper":
            departures.append("no system prompt" if system == "none" else "another system prompt")
        if r["top_p"] < 1:
            departures.append(f"top-p {r['top_p']:g}")
    shas = {(r["task"], r["prompts_sha"]) for r in records if r["source"] == "paper" and r["task"] in SIX_TASKS}
    altered = {task for task, sha in shas if sha != PAPER_FILES[f"{tasks.get(task).paper_folder}/question.jsonl"]}
    return Target(name, paper, max_new_tokens, facts, tuple(departures), frozenset(altered))


# ---- the verdict ----------------------------------------------------------------------------------------------------


def judge(cell: Cell, target: Target, ours: Ours | None) -> Judged:
    return Judged(cell, target, ours, _verdict(cell, target, ours))


def _verdict(cell: Cell, target: Target, ours: Ours | None) -> str:
    if cell.method_here is None:
        return f"not comparable: {cell.method} is not among the methods here"
    if ours is None or (ours.speedup.value is None and ours.tau.value is None):
        return "not measured"
    if why := incomparable(target, ours.source, cell.task_here, ours.max_new_tokens):
        return why
    marks = "".join(f" {mark}" for mark, is_so in _marks(cell) if is_so)
    has_tau, has_speed = tau_agrees(cell, ours), speed_agrees(cell, ours)
    word = {
        (True, True): "τ and speed reproduced",
        (True, False): f"τ reproduced, speed {_speed_limit(cell, ours)}" if has_speed is False else "",
        (True, None): f"τ reproduced, speed not judged ({_no_speed(cell, ours)})",
        (False, True): f"not reproduced: τ {_gap(cell.tau, ours.tau)} the paper's (speed is)",
        (False, False): f"not reproduced: τ {_gap(cell.tau, ours.tau)} and speed {_gap(cell.speedup, ours.speedup)} the paper's",
        (False, None): f"not reproduced: τ {_gap(cell.tau, ours.tau)} the paper's; speed not judged ({_no_speed(cell, ours)})",
        (None, True): "speed reproduced",
        (None, False): f"not reproduced: speed {_gap(cell.speedup, ours.speedup)} the paper's",
        (None, None): f"not judged ({_no_speed(cell, ours)})",
    }[has_tau, has_speed]
    return f"{word}{marks}"


UNCONFIRMED, DIFFERS = "‡", "†"


def _marks(cell: Cell) -> list[tuple[str, bool]]:
    """Each mark of a verdict, and whether the cell has it: it rests on a transcription; the paper's method is not quite ours."""
    relied_on = any(not n.confirmed for n in cell.tau + cell.speedup)
    return [(UNCONFIRMED, relied_on), (DIFFERS, cell.method_here in OURS_DIFFER)]


def incomparable(target: Target, source: str, task: str, max_new_tokens: int) -> str:
    """`not comparable` and all that makes it so, or nothing. task: ours, or the mean of the six."""
    why = []
    if target.paper is None:
        why.append(f"{target.name} is not a model of the paper")
    if source != "paper":
        why.append(f"{source} prompts")
    if target.altered & ({task} if task in SIX_TASKS else set(SIX_TASKS)):
        why.append("a prompt file that is not the authors'")
    if max_new_tokens != target.max_new_tokens:
        why.append(f"at most {max_new_tokens} new tokens, not {target.max_new_tokens}")
    why += target.departures
    return f"not comparable: {'; '.join(why)}" if why else ""


def tau_agrees(cell: Cell, ours: Ours) -> bool | None:
    """None where the paper has no tau or none was measured."""
    if not cell.tau or ours.tau.value is None:
        return None
    ends = (ours.tau.value, *(ours.tau.ci95 or ()))  # a skewed interval need not hold the value
    # half a rounding error: 3.90 and 4.00 differ by 0.10 in the paper's two digits, whatever they do in binary
    return min(ends) - TOLERANCE - 1e-9 <= cell.tau[0].value <= max(ends) + TOLERANCE + 1e-9


def speed_agrees(cell: Cell, ours: Ours) -> bool | None:
    """None where it cannot be judged: no interval, no number of the paper's, or a baseline from another process."""
    if not cell.speedup or ours.speedup.ci95 is None or ours.is_apart:
        return None
    low, high = ours.speedup.ci95
    return low <= cell.speedup[0].value <= high


def _no_speed(cell: Cell, ours: Ours) -> str:
    if not cell.speedup:
        return "the paper has none"
    if ours.speedup.value is None:
        return "no baseline was measured"
    return "its baseline was measured in another process" if ours.is_apart else "no interval under 5 prompts"


def _gap(published: Sequence[Number], ours: Estimate) -> str:
    if not published or ours.value is None:
        return "differs from"
    return f"{ours.value - published[0].value:+.2f} of"


_PARTS = ("verify", "draft", "other")


def _speed_limit(cell: Cell, ours: Ours) -> str:
    """What of a step keeps the speed from the paper's: its largest part beyond the one vanilla step no method can save."""
    value, paper = ours.speedup.value, cell.speedup[0].value
    assert value is not None
    if value > paper:
        return f"{value - paper:+.2f} above the paper's"
    if ours.costs is None or ours.tau.value is None:
        return "limited by an unknown part (no traces)"
    c = ours.costs
    if ours.decode_speedup is not None and ours.decode_speedup >= paper:
        return f"limited by the prefill (decode alone {ours.decode_speedup:.2f}×)"
    beyond = {"c_verify": c.verify - 1, "c_draft": c.draft, "c_other": c.other}
    part = max(beyond, key=lambda name: beyond[name])
    cost = f"{c.verify:.2f} + {c.draft:.2f} + {c.other:.2f} vanilla steps a step"
    implied = f", the paper's τ / speedup is {cell.tau[0].value / paper:.2f}" if cell.tau else ""
    return f"limited by {part} ({cost}{implied})"


# ---- the table ------------------------------------------------------------------------------------------------------

_READING = """Paper: arXiv 2406.16858v2; others: who printed the same cell. τ reproduced: within 0.10 of the paper's, or the
    paper's within 0.10 of our interval; speed reproduced: our 95 % interval (paired bootstrap over conversations) covers the
    paper's. Decode: speedup without the prefill = τ / (c_verify + c_draft + c_other), each part in vanilla steps (~: means
    over tasks, of each by itself). Speed limited by: the part that is largest beyond the one forward that is
    always needed."""
_SECONDARY = f"{UNCONFIRMED} a third party's transcription of the paper, not read in it: what rests on it is not confirmed."


def report(item: Item, judged: Sequence[Judged]) -> Table:
    """The item as a table, a section a model and temperature."""
    groups: dict[tuple[Target, float], list[Judged]] = {}
    for j in judged:
        groups.setdefault((j.target, j.cell.temperature), []).append(j)
    sections = []
    for (target, temperature), group in groups.items():
        theirs = dict.fromkeys(n.model for j in group for n in j.cell.speedup)
        stands_in = "" if target.paper else f" (not in the paper, whose numbers are of {', '.join(theirs)})"
        title = f"{item.name.capitalize()}: {target.paper or target.name}, T = {temperature:g}{stands_in}"
        sections.append(Section(title, target.facts, pd.DataFrame([_row(j) for j in group])))
    notes = [" ".join(_READING.split())]
    if any(not n.confirmed for j in judged for n in j.cell.tau + j.cell.speedup):
        notes.append(_SECONDARY)
    if any(j.ours and j.ours.is_apart for j in judged):
        notes.append(APART)
    notes += [f"{DIFFERS} {name}: {how}" for name, how in OURS_DIFFER.items()
              if any(j.ours and j.cell.method_here == name for j in judged)]  # fmt: skip
    return Table(f"{item.kind}{item.number}", tuple(sections), tuple(notes), pd.DataFrame([_numbers(item, j) for j in judged]))


def _row(j: Judged) -> dict[str, str]:
    c, o = j.cell, j.ours
    return {
        "method": c.method_here or c.method,
        "task": tables.MEAN if c.task == MEAN else c.task_here,
        "prompts": str(o.tau.prompts) if o else "0",
        "speedup": _ours(o.speedup, o.is_apart) if o else NOTHING,
        "paper's": _published(c.speedup),
        "others'": _others(c, "speedup"),
        "τ": _ours(o.tau, False) if o else NOTHING,
        "paper's τ": _published(c.tau),
        "others' τ": _others(c, "tau"),
        "decode": _decomposed(o, is_mean=c.task == MEAN) if o else NOTHING,
        "verdict": j.verdict,
    }


def _decomposed(o: Ours, *, is_mean: bool) -> str:
    """`1.52 = 2.13 / (1.00 + 0.29 + 0.10)`: the decode speedup, tau and the costs of a step."""
    if o.costs is None or o.decode_speedup is None or o.tau.value is None:
        return NOTHING
    parts = " + ".join(number(getattr(o.costs, part)) for part in _PARTS)
    return f"{number(o.decode_speedup)} {'~' if is_mean else '='} {number(o.tau.value)} / ({parts})"


def _ours(e: Estimate, is_apart: bool) -> str:
    return ("≈" if is_apart and e.value is not None else "") + bracketed(number(e.value), e.ci95)


def _published(found: Sequence[Number]) -> str:
    """The paper's number, or the range of several models'; marked where it is a transcription."""
    if not found:
        return NOTHING
    low, high = min(found, key=lambda n: n.value), max(found, key=lambda n: n.value)
    text = low.text if len(found) == 1 else f"{low.text} to {high.text}"
    return text + ("" if all(n.confirmed for n in found) else f" {UNCONFIRMED}")


def _others(cell: Cell, metric: str) -> str:
    found = third_parties(cell, metric)
    return ", ".join(f"{n.text} {n.by}{'' if n.confirmed else f' {UNCONFIRMED}'}" for n in found) or NOTHING


def _numbers(item: Item, j: Judged) -> dict[str, Any]:
    c, o = j.cell, j.ours
    row: dict[str, Any] = {
        "item": item.name, "model": j.target.name, "paper_model": j.target.paper, "temperature": c.temperature,
        "method": c.method_here, "paper_method": c.method, "task": c.task_here, "source": o and o.source,
        "prompts": o.tau.prompts if o else 0, "max_new_tokens": o and o.max_new_tokens,
    }  # fmt: skip
    for name in ("speedup", "tau"):
        e: Estimate | None = getattr(o, name) if o else None
        low, high = (e.ci95 if e else None) or (None, None)
        row |= {name: e and e.value, f"{name}_low": low, f"{name}_high": high}
    row |= {"tau_no_loop": o and o.tau_no_loop, "decode_speedup": o and o.decode_speedup, "is_apart": o and o.is_apart}
    row |= {f"c_{part}": o and o.costs and getattr(o.costs, part) for part in _PARTS}
    for name in ("speedup", "tau"):
        published: tuple[Number, ...] = getattr(c, name)
        row[f"paper_{name}"] = published[0].value if len(published) == 1 else None
        row[f"paper_{name}_low"] = min((n.value for n in published), default=None)
        row[f"paper_{name}_high"] = max((n.value for n in published), default=None)
        row[f"paper_{name}_confirmed"] = all(n.confirmed for n in published) if published else None
        row[f"paper_{name}_source"] = "; ".join(sorted({f"{n.table}: {n.source}" for n in published}))
        row[f"others_{name}"] = "; ".join(
            f"{n.text} ({n.paper}, {n.table}; {n.source}; confirmed: {'yes' if n.confirmed else 'secondary'})"
            for n in third_parties(c, name)
        )
    return row | {"verdict": j.verdict}


# ---- figures 5 and 6: the draft's nodes -----------------------------------------------------------------------------

_READING_DRAFTS = {
    "5": """Of the forwards that drafted a position, how many accepted it with all of its ancestors: P1, P2 are the root's best
        and second child, P3, P4 those of P1, P5, P6 those of P2. In brackets 95 % intervals over conversations. Spread:
        standard deviation between conversations, and what chance alone would make it. The paper's figure is a plot of points
        without numbers; its text has P1 as the highest and P6 as the lowest.""",
    "6": """Draft nodes whose parent was accepted, by the draft's own untempered probability: how many the target took. The paper
        states two of its bars; reproduced: our 95 % interval covers the paper's value, to the digits it is given in. Slope of
        acceptance on confidence and expected calibration error (ECE) over 20 bins.""",
}
STATED = {"0": "acceptance_rate_when_confidence<0.05", "19": "acceptance_rate_when_confidence>0.95"}  # bins of Figure 6
ROUNDED = 0.005  # the paper gives two digits


def draft_report(item: Item, found: Sequence[tuple[Target, pd.DataFrame]]) -> Table:
    """Figure 5 or 6. found: a model with its rows of `acceptance.acceptance_table`, none where it has no trees."""
    method, task = METHODS[DRAFTS[1]], TASKS[DRAFTS[2]]
    sections, numbers = [], []
    for target, rows in found:
        if len(rows):
            rows = rows[(rows["method"] == method) & (rows["task"] == task) & (rows["temperature"] == 0)]
        shown: list[dict[str, str]] = []
        whole: list[dict[str, str]] = []
        for outputs in ("all", "no loops"):
            mine = rows[rows["outputs"] == outputs] if len(rows) else rows
            made = (_positions if item.number == "5" else _confidences)(mine, target)
            if made != whole:  # said once where no output looped
                shown += [{"outputs": outputs, **row} for row in made]
            whole = made
            numbers += [{"item": item.name, "model": target.name, "method": method, "task": task, "outputs": outputs, **r}
                        for r in mine.to_dict("records")]  # fmt: skip
        shown = shown or [{"outputs": "all", "verdict": f"not measured: `harness reproduce --{item.kind} {item.number}` does"}]
        title = f"{item.name.capitalize()}: {target.paper or target.name}, {method} on {task}, T = 0"
        sections.append(Section(title, target.facts, pd.DataFrame(shown)))
    return Table(
        f"figure{item.number}", tuple(sections), (" ".join(_READING_DRAFTS[item.number].split()),), pd.DataFrame(numbers)
    )


def _positions(rows: pd.DataFrame, target: Target) -> list[dict[str, str]]:
    found: list[Any] = [r for r in rows.itertuples() if r.kind == "position"] if len(rows) else []
    if not found:
        return []
    shown = []
    for r in found:
        spread = f"{number(_root(r.variance))} ({number(_root(r.chance_variance))})"
        shown.append({"at": r.at, "forwards": f"{r.n:,}", "rate": with_interval(r, "{:.3f}"), "spread": spread,
                      "paper's": NOTHING, "verdict": "the paper gives no number"})  # fmt: skip
    by_rate = sorted(found, key=lambda r: r.value)
    as_there = (by_rate[0].at, by_rate[-1].at) == ("P6", "P1")
    order = " < ".join(r.at for r in by_rate)
    word = incomparable(target, found[0].source, found[0].task, found[0].max_new_tokens) or (
        "reproduced" if as_there else "not reproduced"
    )
    return [
        *shown,
        {"at": "order", "forwards": "", "rate": order, "spread": "", "paper's": "P6 lowest, P1 highest", "verdict": word},
    ]


def _confidences(rows: pd.DataFrame, target: Target) -> list[dict[str, str]]:
    stated = {at: the_paper(metric)[0] for at, metric in STATED.items()}
    shown = []
    found: list[Any] = list(rows.itertuples()) if len(rows) else []
    for r in found:
        if r.kind == "calibration":
            n = stated.get(r.at)
            word = "the paper shows a bar without a number"
            if n is not None:
                word = incomparable(target, r.source, r.task, r.max_new_tokens) or _covers(r, n)
            edges, mean = f"{r.low:.2f} to {r.high:.2f}", number(r.mean_confidence, "{:.3f}")
            shown.append({"at": edges, "nodes": f"{r.n:,}", "confidence": mean,
                          "rate": with_interval(r, "{:.3f}"), "paper's": n.text if n else NOTHING, "verdict": word})  # fmt: skip
        elif r.kind == "fit" and r.at != "mean_gap":
            name = "slope" if r.at == "slope" else "ECE"
            shown.append({"at": name, "nodes": f"{r.n:,}", "confidence": "", "rate": with_interval(r, "{:.3f}"),
                          "paper's": NOTHING, "verdict": "the paper's bars lie along y = x"})  # fmt: skip
    return shown


def _covers(row: Any, published: Number) -> str:
    if pd.isna(row.value_low):
        return "not judged (no interval)"
    covers = row.value_low - ROUNDED <= published.value <= row.value_high + ROUNDED
    return "reproduced" if covers else f"not reproduced: {row.value - published.value:+.2f} of the paper's"


def _root(variance: float | None) -> float | None:
    return None if variance is None or pd.isna(variance) else float(variance) ** 0.5


def to_json(tables: Iterable[Table]) -> str:
    """All rows of the tables' numbers as one JSON array; what is not there is null."""
    rows = [row for table in tables for row in json.loads(table.numbers.to_json(orient="records"))]
    return json.dumps(rows, ensure_ascii=False)
