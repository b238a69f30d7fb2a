"""The paper's Tables 1 to 3 and Figures 1 and 2 as tables: our number, the paper's, others' and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.forms.table import NOTHING, Section, Table, bracketed, number, one_line, times
from harness.metrics import marks
from harness.metrics.by_definition import NOT_STATED, OF_QUESTIONS, OF_QUESTIONS_FROM_0, OTHER_TAUS, POOLED, WORDS
from harness.metrics.cells import speed_mark
from harness.metrics.definitions import Estimate
from harness.metrics.groups import APART, SHARED_MACHINE
from harness.metrics.groups import MEAN as SIX_TASK_MEAN
from harness.paper.prediction import Predictions
from harness.paper.published import MEAN, OURS_DIFFER, Item, Number, third_parties
from harness.paper.verdict import DIFFERS, PARTS, UNCONFIRMED, Judged, Ours, ReportedModel

_NOTE = one_line("""
    Paper: arXiv 2406.16858v2. Others: who printed the same cell. Numbers are compared by one definition only. The paper's speedup
    is the quotient of two means over questions, so it is held against our speedup by questions, counted as its scripts count.
    Whether its τ is pooled or a mean of questions over an index from 0 is not known: ours stands there by both, and the verdict
    says where only the second agrees. τ is reproduced where it is within 0.10 of the paper's, or the paper's within 0.10 of our
    interval. Speed is reproduced where our 95 % interval (jackknife over conversations) covers the paper's. Decode: speedup
    without the prefill = τ / (c_verify + c_draft + c_other), each part in vanilla steps (~: each is a mean over tasks). Speed is
    limited by the part that is largest, beyond the one forward that is always needed.""")
_DEFINED = one_line("""
    A number of others that is not averaged as the paper's says how it is, with ours by that definition beside it where there is
    one.""")
_PAPERS = {"speedup": (OF_QUESTIONS,), "tau": (POOLED, OF_QUESTIONS_FROM_0)}  # with which the table has columns of ours
_REPLAYED = one_line("""
    τ replayed: of vanilla's answers to so many prompts as stand in brackets, by `harness replay`, whose steps are a run's. The
    verdict on τ, and τ by questions, are of it where it is of more prompts than were run.""")
_PREDICTED = "Predicted: the decode speedup that the paper's τ would give on {} (`harness predict`)."
_SECONDARY = f"{UNCONFIRMED} a third party's transcription of the paper. We did not read it there, so it is not confirmed."


def judged_table(item: Item, judged: Sequence[Judged], predictions: Predictions | None = None) -> Table:
    """Table 1, 2 or 3 or Figure 1 or 2: our cells beside the paper's, a section a model and temperature.

    predictions: shown in a column of their own, where there are any.
    """
    predictions = predictions or {}
    replayed = any(j.ours and j.ours.replayed for j in judged)
    groups: dict[tuple[ReportedModel, float], list[Judged]] = {}
    for j in judged:
        groups.setdefault((j.target, j.cell.temperature), []).append(j)
    sections = []
    for (target, temperature), group in groups.items():
        theirs = dict.fromkeys(n.model for j in group for n in j.cell.speedup)
        stands_in = "" if target.paper else f" (not in the paper, whose numbers are of {', '.join(theirs)})"
        title = f"{item.name.capitalize()}: {target.paper or target.name}, T = {temperature:g}{stands_in}"
        sections.append(Section(title, target.facts, pd.DataFrame([_row(j, predictions, replayed) for j in group])))
    notes = [_NOTE, *([_REPLAYED] if replayed else [])]
    if of_machines := dict.fromkeys(p.machine for j in judged if (p := predictions.get(_key(j))) and p.decode):
        notes.append(_PREDICTED.format(", ".join(of_machines)))
    if any(_as_defined(n, j) for j in judged for metric in ("speedup", "tau") for n in third_parties(j.cell, metric)):
        notes.append(_DEFINED)
    if any(not n.confirmed for j in judged for n in j.cell.tau + j.cell.speedup):
        notes.append(_SECONDARY)
    if any(j.ours and j.ours.is_apart for j in judged):
        notes.append(APART)
    if any(j.ours and j.ours.is_shared for j in judged):
        notes.append(SHARED_MACHINE)
    notes += marks.notes(marks.joined(j.ours.signs for j in judged if j.ours))
    notes += [f"{DIFFERS} {name}: {how}" for name, how in OURS_DIFFER.items()
              if any(j.ours and j.cell.method_here == name for j in judged)]  # fmt: skip
    return Table(
        f"{item.kind}{item.number}", tuple(sections), tuple(notes), pd.DataFrame([_numbers(item, j, predictions) for j in judged])
    )


def _key(j: Judged) -> tuple[str, str, str, float]:
    return j.target.name, j.cell.method, j.cell.task, j.cell.temperature


def _row(j: Judged, predictions: Predictions, replayed: bool) -> dict[str, str]:
    c, o, p = j.cell, j.ours, predictions.get(_key(j))
    return {
        "method": c.method_here or c.method,
        "task": SIX_TASK_MEAN if c.task == MEAN else c.task_here,
        "prompts": str(o.tau.prompts) if o else "0",
        "speedup": _ours(o.speedup, speed_mark(o.is_apart, o.is_shared) + o.signs) if o else NOTHING,
        "by questions": _ours(o.speedup_of_questions, speed_mark(o.is_apart, o.is_shared) + o.signs) if o else NOTHING,
        "paper's": _published(c.speedup),
        "others'": _others(j, "speedup"),
        **({"predicted": times(p.decode.value) if p and p.decode else NOTHING} if predictions else {}),
        "τ": _ours(o.tau, "") if o else NOTHING,
        **({"τ replayed": _replayed(o)} if replayed else {}),
        "τ by questions, from 0": number(_value(o.tau_as(OF_QUESTIONS_FROM_0))) if o else NOTHING,
        "paper's τ": _published(c.tau),
        "others' τ": _others(j, "tau"),
        "decode": _decomposed(o, is_mean=c.task == MEAN) if o else NOTHING,
        "verdict": j.verdict,
    }


def _decomposed(o: Ours, *, is_mean: bool) -> str:
    """`1.52 = 2.13 / (1.00 + 0.29 + 0.10)`: the decode speedup, tau and the costs of a step."""
    if o.costs is None or o.decode_speedup is None or o.tau.value is None:
        return NOTHING
    parts = " + ".join(number(getattr(o.costs, part)) for part in PARTS)
    return f"{number(o.decode_speedup)} {'~' if is_mean else '='} {number(o.tau.value)} / ({parts})"


def _replayed(o: Ours | None) -> str:
    """`2.98 [2.93, 3.03] (480)`: with the prompts that it is of."""
    found = o and o.replayed
    return f"{_ours(found.tau, '')} ({found.tau.prompts})" if found else NOTHING


def _value(e: Estimate | None) -> float | None:
    return e.value if e else None


def _ours(e: Estimate, mark: str) -> str:
    return (mark if e.value is not None else "") + bracketed(number(e.value), e.ci95)


def _published(found: Sequence[Number]) -> str:
    """The paper's number, or the range over several models; marked where it is a transcription."""
    if not found:
        return NOTHING
    low, high = min(found, key=lambda n: n.value), max(found, key=lambda n: n.value)
    text = low.text if len(found) == 1 else f"{low.text} to {high.text}"
    return text + ("" if all(n.confirmed for n in found) else f" {UNCONFIRMED}")


def _others(j: Judged, metric: str) -> str:
    found = third_parties(j.cell, metric)
    return ", ".join(f"{n.text} {n.by}{'' if n.confirmed else f' {UNCONFIRMED}'}{_as_defined(n, j)}" for n in found) or NOTHING


def _as_defined(n: Number, j: Judged) -> str:
    """How a number of others is averaged, if not as the paper's is, and ours averaged so: ` (mean of questions; ours 4.20)`."""
    if not n.definition or set(n.definitions) & set(_PAPERS[n.metric]):
        return ""
    name = n.definitions[0] if n.definitions else NOT_STATED
    ours = j.ours and (j.ours.tau_as(name) if n.metric == "tau" else j.ours.speedup_as(name))
    return f" ({WORDS[name]}{f'; ours {number(ours.value)}' if ours else ''})"


def _numbers(item: Item, j: Judged, predictions: Predictions) -> dict[str, Any]:
    c, o, p = j.cell, j.ours, predictions.get(_key(j))
    row: dict[str, Any] = {
        "item": item.name, "model": j.target.name, **j.target.where, "paper_model": j.target.paper,
        "temperature": c.temperature,
        "method": c.method_here, "paper_method": c.method, "task": c.task_here, "source": o and o.source,
        "prompts": o.tau.prompts if o else 0, "max_new_tokens": o and o.max_new_tokens,
    }  # fmt: skip
    for name in ("speedup", "speedup_of_questions", "tau"):
        e: Estimate | None = getattr(o, name) if o else None
        low, high = (e.ci95 if e else None) or (None, None)
        row |= {name: e and e.value, f"{name}_low": low, f"{name}_high": high}
    row |= {f"tau_{name}": o and _value(o.tau_as(name)) for name in OTHER_TAUS}
    again = o.replayed.tau if o and o.replayed else None
    low, high = (again.ci95 if again else None) or (None, None)
    row |= {"tau_replayed": again and again.value, "tau_replayed_low": low, "tau_replayed_high": high,
            "prompts_replayed": again.prompts if again else 0}  # fmt: skip
    row |= {"tau_no_loop": o and o.tau_no_loop, "decode_speedup": o and o.decode_speedup, "is_apart": o and o.is_apart}
    row |= {f"c_{part}": o and o.costs and getattr(o.costs, part) for part in PARTS}
    for name in ("speedup", "tau"):
        published: tuple[Number, ...] = getattr(c, name)
        row[f"paper_{name}"] = published[0].value if len(published) == 1 else None
        row[f"paper_{name}_low"] = min((n.value for n in published), default=None)
        row[f"paper_{name}_high"] = max((n.value for n in published), default=None)
        row[f"paper_{name}_confirmed"] = all(n.confirmed for n in published) if published else None
        row[f"paper_{name}_definition"] = "; ".join(sorted({n.definition for n in published}))
        row[f"paper_{name}_source"] = "; ".join(sorted({f"{n.table}: {n.source}" for n in published}))
        row[f"others_{name}"] = "; ".join(
            f"{n.text} ({n.definition}; {n.paper}, {n.table}; {n.source}; confirmed: {'yes' if n.confirmed else 'secondary'})"
            for n in third_parties(c, name)
        )
    if predictions:
        decode = p.decode if p else None
        row |= {
            "predicted": decode and decode.value,
            "predicted_low": decode and decode.low,
            "predicted_high": decode and decode.high,
        }
    return row | {"verdict": j.verdict}
