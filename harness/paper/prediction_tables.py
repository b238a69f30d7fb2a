"""Predictions as they are printed: a section a table of costs and temperature, the published splits, deeper levels."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import pandas as pd

from harness.common.names import VANILLA, label
from harness.costs.splits import Checked
from harness.costs.table import CostTable
from harness.forms.table import NOTHING, Section, Table, bracketed, number, one_line, times
from harness.paper.held_against import WITHIN, Held
from harness.paper.prediction import Chain, Deeper, Predicted
from harness.paper.published import MEAN

_NOTE = one_line("""
    Predicted: decode speedup = τ / (c_verify + c_draft + c_other), with the paper's τ and the costs of this machine, in steps of
    plain decoding; brackets hold the 95% interval of the costs alone. End to end: with the prefill of a prompt, and an answer, of
    the lengths told above. Needed: what a step must have cost where the paper's speedup was measured, its τ over its speedup.
    Consistent: the published speedup is within 5% of the predicted one, or within its interval.""")
_SPLITS = one_line("""
    The same arithmetic on times that others published: each point from the others, or from the parts they give. RADAR's saved
    time is expected to be missed: by task its outputs show 0.6 to 1.3 of what the calls that it saves cost.""")
_HELD = one_line("""
    Decode speedups of a ledger, its tasks pooled, beside those that its τ, its trees and a table of costs give. Costs in plain
    steps: measured, predicted.""")
_DEEPER = one_line("""
    A chain of drafts with the acceptance rates that EAGLE-1's paper (arXiv 2401.15077v3, Table 2) reports by depth. A level pays
    where it costs less than what it adds to τ is worth. Costs of a level in plain steps: all of it, and the draft head's part,
    c_draft, with what that may be at most. Nobody has published how often siblings are accepted, so of trees there are those with
    a published τ.""")


def predictions_table(found: Sequence[tuple[CostTable, Sequence[Predicted], Sequence[str]]]) -> Table:
    """Every predicted cell. found: a table of costs, its cells, and facts to stand above them."""
    sections, rows = [], []
    for table, cells, facts in found:
        for temperature in sorted({p.cell.temperature for p in cells}):
            mine = [p for p in cells if p.cell.temperature == temperature]
            shown = pd.DataFrame([_row(p) for p in mine])
            model = mine[0].cell.model
            title = f"{model}, T = {temperature:g}, on {table.machine.label}"
            sections.append(Section(title, tuple(facts), shown, tuple(_summary(mine))))
            rows += [_numbers(table, p) for p in mine]
    return Table("predict", tuple(sections), (_NOTE,), pd.DataFrame(rows))


def _row(p: Predicted) -> dict[str, str]:
    c = p.costs
    parts = f"{c.total:.2f} = {c.verify:.2f} + {c.draft:.2f} + {c.other:.2f}" if c else NOTHING
    return {
        "method": p.cell.method_here or p.cell.method,
        "task": "six-task mean" if p.cell.task == MEAN else p.cell.task_here,
        "paper's τ": number(p.tau),
        "a step costs": parts,
        "needed": number(p.needed),
        "predicted": bracketed(times(p.decode.value), (p.decode.low, p.decode.high), "{:.2f}×") if p.decode else NOTHING,
        "end to end": times(p.end_to_end),
        "published": times(p.published),
        "verdict": p.verdict,
    }


def _summary(cells: Sequence[Predicted]) -> list[str]:
    judged = [p for p in cells if p.decode is not None and p.published is not None]
    if not judged:
        return not_predicted(cells)
    n = sum(p.verdict == "consistent" for p in judged)
    lines = [f"{n} of {len(judged)} published speedups are consistent with the paper's τ and this machine's costs."]
    for method in dict.fromkeys(p.cell.method_here for p in judged):
        own = [p for p in judged if p.cell.method_here == method]
        needed = median(p.needed for p in own if p.needed is not None)
        costs = [p.costs.total for p in own if p.costs is not None]
        lines.append(
            f"{method}: where the paper measured, a step cost {needed:.2f} plain steps (median of {len(own)} cells); here it "
            f"costs {median(costs):.2f}."
        )
    return lines + not_predicted(cells)


def not_predicted(cells: Sequence[Predicted]) -> list[str]:
    """One line that names the methods without a prediction, by why; empty where there are none."""
    by_why: dict[str, dict[str, None]] = {}
    for p in cells:
        if p.decode is None:
            by_why.setdefault(p.why, {})[p.cell.method_here or p.cell.method] = None
    said = "; ".join(f"{', '.join(names)}: {why}" for why, names in by_why.items())
    return [f"Not predicted: {said}."] if said else []


def _numbers(table: CostTable, p: Predicted) -> dict[str, object]:
    c, d = p.costs, p.decode
    return {
        "model": table.model, "machine": table.machine.label, "mode": table.machine.mode, "item": p.item.name,
        "method": p.cell.method_here, "paper_method": p.cell.method, "task": p.cell.task_here, "temperature": p.cell.temperature,
        "paper_tau": p.tau, "paper_speedup": p.published, "needed": p.needed, "plain_ms": c and c.plain_ms,
        "c_verify": c and c.verify, "c_draft": c and c.draft, "c_other": c and c.other, "c_step": c and c.total,
        "predicted": d and d.value, "predicted_low": d and d.low, "predicted_high": d and d.high, "end_to_end": p.end_to_end,
        "verdict": p.verdict,
    }  # fmt: skip


def deeper_table(found: Sequence[tuple[CostTable, Chain, Sequence[Deeper], Sequence[tuple[str, float]]]]) -> Table:
    """What a deeper level may cost and what it costs. found: a table of costs, whose rates, the levels, `published_trees`."""
    sections, rows = [], []
    for table, chain, levels, trees in found:
        shown = pd.DataFrame([
            {"depth": str(d.depth), "adds to τ": number(d.gain), "pays under": number(d.pays_under, "{:.3f}"),
             "costs": number(d.costs, "{:.3f}"), "break-even c_draft": number(d.break_even, "{:.3f}"),
             "c_draft": number(d.draft, "{:.3f}"), "verdict": "pays" if d.pays else "does not pay"} for d in levels
        ])  # fmt: skip
        named = ", ".join(f"{name} {speedup:.2f}×" for name, speedup in trees)
        said = f"Of drafts with a published acceptance {trees[0][0]} pays most: {named}; plain decoding 1."
        sections.append(Section(f"{chain.title}, on {table.machine.label}", (), shown, (said,)))
        rows += [{"model": table.model, "machine": table.machine.label, "rates": chain.title, "depth": d.depth, "gain": d.gain,
                  "pays_under": d.pays_under, "costs": d.costs, "break_even_c_draft": d.break_even, "c_draft": d.draft,
                  "tau": d.tau, "speedup": d.speedup} for d in levels]  # fmt: skip
    return Table("levels", tuple(sections), (_DEEPER,), pd.DataFrame(rows))


def splits_table(found: Sequence[Checked]) -> Table:
    """The model beside published times."""
    shown = pd.DataFrame([
        {"what": c.what, "published, ms": number(c.published), "predicted, ms": number(c.predicted), "off": f"{c.error:+.1%}",
         "from": c.how} for c in found
    ])  # fmt: skip
    judged = [c for c in found if c.expected]
    worst = max(judged, key=lambda c: abs(c.error))
    said = f"The worst of {len(judged)} that it should predict: {worst.error:+.1%}, {worst.what}."
    numbers = pd.DataFrame([
        {"what": c.what, "published_ms": c.published, "predicted_ms": c.predicted, "error": c.error, "how": c.how,
         "source": c.source, "expected": c.expected} for c in found
    ])  # fmt: skip
    return Table("splits", (Section("Published times beside the model's", (), shown, (said,)),), (_SPLITS,), numbers)


def held_table(found: Sequence[tuple[CostTable, Sequence[Held], str]]) -> Table:
    """A ledger's decode speedups beside those that its tau and trees and costs give, a section a target on a machine.

    found: with the machine of the ledger's records, where the table's costs are held against those of several.
    """
    sections, numbers = zip(*(_held(*one) for one in found), strict=True)
    return Table("held", tuple(sections), (_HELD,), pd.concat(numbers, ignore_index=True))


def _held(table: CostTable, found: Sequence[Held], measured_on: str) -> tuple[Section, pd.DataFrame]:
    shown = pd.DataFrame([
        {"method": label(h.method, h.preset), "T": f"{h.temperature:g}", "τ": number(h.tau), "measured": times(h.measured),
         "predicted": times(h.predicted), "off": NOTHING if h.error is None else f"{h.error:+.1%}",
         "c_verify": _pair(h.verify), "c_draft": _pair(h.draft), "c_other": _pair(h.other),
         "verdict": h.why or ("within 5%" if abs(h.error or 0) <= WITHIN else f"missed: {h.most_off}")} for h in found
    ])  # fmt: skip
    judged = [h for h in found if h.error is not None and h.method != VANILLA]
    n = sum(abs(h.error or 0) <= WITHIN for h in judged)
    said = f"{n} of {len(judged)} decode speedups are within 5% of what is predicted." if judged else ""
    where = {"measured_on": measured_on} if measured_on else {}
    numbers = pd.DataFrame([
        {"model": table.model, "machine": table.machine.label, **where, "method": h.method, "preset": h.preset,
         "temperature": h.temperature, "tau": h.tau, "measured": h.measured, "predicted": h.predicted, "error": h.error,
         **{f"c_{p}_{w}": (v := getattr(h, p)) and v[i] for p in ("verify", "draft", "other") for i, w in
            enumerate(("measured", "predicted"))}, "why": h.why} for h in found
    ])  # fmt: skip
    facts = (f"Measured on: {measured_on}",) if measured_on else ()
    return Section(f"{table.model} on {table.machine.label}", facts, shown, (said,) if said else ()), numbers


def _pair(pair: tuple[float, float] | None) -> str:
    return NOTHING if pair is None else f"{pair[0]:.2f}, {pair[1]:.2f}"
