"""The paper's Figures 5 and 6, about drafted trees, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.common.hints import hinted
from harness.forms.table import NOTHING, Section, Table, number, one_line, with_interval
from harness.paper.published import DRAFTS, METHODS, TASKS, Item, Number, the_paper
from harness.paper.verdict import ReportedModel, incomparable

_NOTES = {
    "5": one_line("""
        Rate: of the forwards that drafted a position, how many accepted it with all of its ancestors. P1 and P2 are the root's
        best and second child, P3 and P4 are P1's, P5 and P6 are P2's. In brackets: 95 % intervals over conversations. Spread: the
        standard deviation between conversations, and in brackets what chance alone would make it. The paper's figure is a plot of
        points without numbers; its text says that P1 is the highest and P6 the lowest."""),
    "6": one_line("""
        Rate: how many draft nodes the target took, of those whose parent was accepted, by the draft's own untempered probability.
        The paper states two of its bars. One is reproduced where our 95 % interval covers the paper's value, to the digits that
        the paper gives. Slope: of acceptance on confidence. ECE: expected calibration error over 20 bins."""),
}
STATED = {"0": "acceptance_rate_when_confidence<0.05", "19": "acceptance_rate_when_confidence>0.95"}  # bins of Figure 6
ROUNDED = 0.005  # the paper gives two digits


def drafts_table(item: Item, found: Sequence[tuple[ReportedModel, pd.DataFrame]]) -> Table:
    """Figure 5 or 6 as a table, a section a model.

    found: each model with its rows of `acceptance_numbers`; none where it has no trees.
    """
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
            numbers += [{"item": item.name, "model": target.name, **target.where, "method": method, "task": task,
                         "outputs": outputs, **r}
                        for r in mine.to_dict("records")]  # fmt: skip
        measure = hinted("reproduce", f"--{item.kind}", item.number)
        shown = shown or [{"outputs": "all", "verdict": f"not measured: {measure} does"}]
        title = f"{item.name.capitalize()}: {target.paper or target.name}, {method} on {task}, T = 0"
        sections.append(Section(title, target.facts, pd.DataFrame(shown)))
    return Table(f"figure{item.number}", tuple(sections), (_NOTES[item.number],), pd.DataFrame(numbers))


def _positions(rows: pd.DataFrame, target: ReportedModel) -> list[dict[str, str]]:
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


def _confidences(rows: pd.DataFrame, target: ReportedModel) -> list[dict[str, str]]:
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
