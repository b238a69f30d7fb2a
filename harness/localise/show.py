"""What was found on one engine, as a table of operators by rows, a table of what comes of it at the end, and one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from harness.forms.table import NOTHING, Section, Table
from harness.localise.engines import ENTERING
from harness.localise.findings import AGAIN, Findings, First, Setting, Sum

CELL = "a cell is the most ulp between a row and its plain step, and in how many layers they differ"
OWN = f"Operators, each on the plain steps' inputs, so that a difference is its own; {CELL}."
CARRIED = f"What each operator made; a difference may be carried on from one before; {CELL}."
END = "What comes of it: forwards that simply run, compared with plain steps."
MEANING = (
    "A plain step computes one row. A prefill begins a text; chains and trees stand behind a context. Every row is compared, "
    "bit by bit, with the plain step of the same token after the same path. An ulp is the spacing of the dtype's numbers at the "
    "value, or at the root mean square of its row where that is larger; counts are rounded up."
)


def table(title: str, findings: Findings, facts: Sequence[str], sentence: str) -> Table:
    """title: the engine and the dtype. facts: what was compared on what. sentence: `conclusion`, the table's last line."""
    operators = Section(f"{title}: which operator", (*facts, OWN if findings.own else CARRIED), by_operator(findings))
    end = Section(f"{title}: at the end", (END,), at_the_end(findings), _left_out(findings))
    return Table("localise", (operators, end), (MEANING, sentence), numbers(findings))


def by_operator(findings: Findings) -> pd.DataFrame:
    """A row an operator, in the order of computing, a column a number of rows; what shapes of forwards differ is summed up."""
    rows = []
    for name in dict.fromkeys(o.label for o in findings.operators):
        cells = {n: _cell(findings, name, n) for n in counts(findings)}
        if any(cells.values()) or not name.startswith(ENTERING):  # it nearly always is what another operator made
            rows.append({"operator": name} | {_rows(n): text or NOTHING for n, text in cells.items()})
    return pd.DataFrame(rows)


def counts(findings: Findings) -> list[int]:
    """The numbers of rows, ascending."""
    return sorted({setting.rows for setting in findings.settings})


def _cell(findings: Findings, name: str, n: int) -> str:
    layers, most = set(), 0.0
    for setting in findings.at_rows(n):
        for operator, found in findings.blamed[setting].items():
            if operator.label == name and found.differing:
                layers.add(operator.layer)
                most = max(most, found.ulp)
    if not layers:
        return ""
    return ulp(most) if layers == {None} else f"{ulp(most)}, {len(layers)} {'layer' if len(layers) == 1 else 'layers'}"


def ulp(value: float) -> str:
    """`3 ulp`, rounded up; `no number` where one of two is NaN or infinite."""
    return f"{math.ceil(value - 1e-6) or 1} ulp" if math.isfinite(value) else "no number"


def _rows(n: int) -> str:
    return f"{n} row" if n == 1 else f"{n} rows"


def at_the_end(findings: Findings) -> pd.DataFrame:
    """A row a setting: the first operator to blame, rows that differ at the end, and argmaxes that flip."""
    rows = []
    for setting in sorted(findings.settings, key=lambda s: s.rows):
        found, end = findings.first(setting), findings.end[setting]
        rows.append({
            "rows": str(setting.rows), "shape": setting.shape, "first operator": str(found.operator) if found else NOTHING,
            "it differs by": ulp(found.sum.ulp) if found else NOTHING,
            "rows differ at the end": _share(end.differing, end.compared), "argmaxes flip": _share(end.flips, end.compared),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole} ({part / whole:.0%})" if part else f"0/{whole}"


def _left_out(findings: Findings) -> tuple[str, ...]:
    names = sorted({o.name for o in findings.left_out})
    return (f"Not compared, as they do not make one row for each row: {', '.join(names)}.",) if names else ()


def conclusion(title: str, findings: Findings) -> str:
    """The finding in a sentence; title: the engine and the dtype."""
    for setting in findings.settings:
        if setting.shape == AGAIN and (other := findings.first_carried(setting)):
            return (
                f"{title}: the same plain step done again gives other bits, from {other.operator} on: what differs here need not "
                "be due to the number of rows."
            )
    first = next((found for n in counts(findings) if (found := _first_at(findings, n))), None)
    if first is None and not any(end.differing for end in findings.end.values()):
        what = "operator of any layer" if len(findings.operators) > 1 else "logit of any row"
        return f"{title}: no {what} changes a bit, at any of these row counts."
    if first is None:
        said = "no operator that is watched differs by itself"
    else:
        setting, (operator, differing) = first
        said = f"the first operator is {operator}, at {_rows(setting.rows)} ({setting.shape}), {ulp(differing.ulp)}"
    most = counts(findings)[-1]
    ends = [findings.end[setting] for setting in findings.at_rows(most)]
    rows = sum(end.compared for end in ends)
    differ, flip = sum(end.differing for end in ends) / rows, sum(end.flips for end in ends) / rows
    return f"{title}: {said}; at {_rows(most)} {differ:.0%} of rows differ at the end and {flip:.0%} of argmaxes flip."


def _first_at(findings: Findings, n: int) -> tuple[Setting, First] | None:
    """Over all shapes of n rows the operator that comes first in a forward, and a shape in which it differs most."""
    found = [(s, first) for s in findings.at_rows(n) if (first := findings.first(s))]
    place = {operator: i for i, operator in enumerate(findings.operators)}
    return min(found, key=lambda one: (place[one[1].operator], -one[1].sum.ulp), default=None)


def numbers(findings: Findings) -> pd.DataFrame:
    """A row a setting and operator that differs: by itself (`own_*`), and in forwards that simply run (`carried_*`)."""
    rows = []
    for setting in findings.settings:
        for operator in findings.operators:
            own, carried = (sums[setting].get(operator, Sum()) for sums in (findings.own, findings.carried))
            if own.differing or carried.differing:
                rows.append({
                    "shape": setting.shape, "rows": setting.rows, "layer": operator.layer, "operator": operator.label,
                    "compared": max(own.compared, carried.compared), "own_differ": own.differing, "own_ulp": own.ulp,
                    "carried_differ": carried.differing, "carried_ulp": carried.ulp,
                })  # fmt: skip
    return pd.DataFrame(rows)


def as_json(findings: Findings) -> dict[str, Any]:
    """All of it as plain JSON: `settings`, and `operators` that differ (see `numbers`). An ulp that is infinite is null."""
    settings = []
    for setting in findings.settings:
        found = findings.first(setting)
        settings.append({
            "shape": setting.shape, "rows": setting.rows, **asdict(findings.end[setting]),
            "first": {"layer": found.operator.layer, "operator": found.operator.label, **asdict(found.sum)} if found else None,
        })  # fmt: skip
    operators = numbers(findings).astype(object)
    return {
        "settings": _plain(settings),
        "operators": _plain(operators.where(operators.notna(), None).to_dict(orient="records")),
        "left_out": sorted({str(o) for o in findings.left_out}),
    }


def _plain(value: Any) -> Any:
    """JSON has no number that is infinite or none."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
