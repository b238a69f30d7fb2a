"""Adjacency-adaptive trees against fixed ones: of EAGLE-2's setting, of the same size, and of a grid search."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from harness.common.errors import UserError
from harness.forms.table import Section, Table, bracketed, number
from harness.metrics.definitions import Estimate, estimated
from harness.replay.price import Prices
from harness.replay.record import Replay, of_methods
from harness.replay.rows import CHILDREN
from harness.replay.tables import EXACT, STATISTICS, Summed, adjusted, costs, counts, faster, speedup, strata

NAME = "adjacent-trees"
FIXED, GRID, EQUAL = "EAGLE-2", "fixed tree of a grid", "fixed tree of the same size"
LEVEL = 0.05


def equal_tree(replays: Iterable[Replay], top_k: int | None = None) -> dict[str, Any]:
    """The setting of EAGLE-2 whose fixed tree costs what these replays' trees cost in the mean of their steps.

    Nearest in nodes verified a step; of those alike nearest in calls of the drafter, then in rows that it runs. top_k: of this
    width alone. No node is asked for more children than a pool holds.

    Raises:
        UserError: they have no step.
    """
    sums = np.array([[len(r.accepted), sum(r.sizes), sum(map(len, r.calls)), sum(map(sum, r.calls))] for r in replays])
    if not len(sums) or not sums[:, 0].sum():
        raise UserError("no step was replayed: there is no mean size to find a fixed tree of")
    steps, *means = sums.sum(axis=0)
    nodes, calls, rows = (float(total / steps) for total in means)
    totals = sorted({max(int(nodes), 1), int(nodes) + 1})
    shapes = itertools.product(range(1, int(calls) + 2), [top_k] if top_k else range(1, CHILDREN + 1), totals)

    def apart(shape: tuple[int, int, int]) -> tuple[float, ...]:
        d, k, n = shape
        return abs(min(n, k + (d - 1) * k * k) - nodes), abs(d - calls), abs(1 + (d - 1) * k - rows), n

    depth, width, total = min(shapes, key=apart)
    return {"top_k": width, "depth": depth, "total": total}


def by_options(replays: Iterable[Replay]) -> list[list[Replay]]:
    """Replays of one method with one set of options together, each temperature apart."""
    return [own for _, own in of_methods(replays)]


def fastest(replays: Iterable[Replay], price: Prices) -> dict[str, Any]:
    """Of several sets of options those of the highest predicted speed, the mean over tasks; the first of equals.

    Raises:
        UserError: there are no replays.
    """
    sets = by_options(replays)
    if not sets:
        raise UserError("there are no replays to choose options from")
    return dict(max(sets, key=lambda own: estimated(list(strata([costs(own, price)]).values()), speedup).value or 0.0)[0].options)


@dataclass(frozen=True, slots=True)
class Compared:
    """One adjacency and step at the options chosen for some costs, and the fixed tree of its size, over the same answers."""

    adjacency: str
    step: str
    replays: Sequence[Replay]
    equal: Sequence[Replay]

    @property
    def name(self) -> str:
        return f"{self.adjacency}, {self.step}" if self.step else self.adjacency


@dataclass(slots=True)
class Setting:
    """What is compared at one temperature under one costs. `fixed`: EAGLE-2 at the paper's setting; `grid`: at that of a grid
    search on held-out conversations."""

    temperature: float
    price: Prices
    compared: Sequence[Compared]
    fixed: Sequence[Replay]
    grid: Sequence[Replay]
    chosen_on: int
    _costs: dict[int, Summed] = field(default_factory=dict)

    def costs(self, replays: Sequence[Replay]) -> Summed:
        if id(replays) not in self._costs:
            self._costs[id(replays)] = costs(replays, self.price)
        return self._costs[id(replays)]

    def speed(self, replays: Sequence[Replay]) -> Estimate:
        return estimated(list(strata([self.costs(replays)]).values()), speedup, 0.0)

    def over(self, one: Sequence[Replay], other: Sequence[Replay]) -> Estimate:
        """One's speed over another's, paired by conversation."""
        return estimated(list(strata([self.costs(one), self.costs(other)]).values()), faster, 0.0)


def adjacency_table(settings: Sequence[Setting]) -> Table:
    """Per temperature and costs a section, an adjacency and step a row. p: of being no faster than the tree of its size."""
    sections, numbers = [], list[dict[str, Any]]()
    for s in settings:
        ps = adjusted([s.over(c.replays, c.equal) for c in s.compared])
        rows = [_row(s, name, "", own, None, None, numbers) for name, own in ((FIXED, s.fixed), (GRID, s.grid))]
        rows += [_row(s, c.adjacency, c.step, c.replays, c, p, numbers) for c, p in zip(s.compared, ps, strict=True)]
        first = s.fixed[0]
        n = len({(r.task, r.sample_id) for r in s.fixed})
        facts = (f"{n} conversations; intervals over them", f"costs: {s.price.name}; options chosen on {s.chosen_on} others")
        title = f"{first.model}, T = {s.temperature:g}, {first.dtype}, {s.price.name}"
        sections.append(Section(title, facts, pd.DataFrame(rows), tuple(_answers(s, ps, numbers))))
    return Table(NAME, tuple(sections), NOTES, pd.DataFrame(numbers))


NOTES = (
    "Replays of vanilla's answers. Speeds are of decoding, prefill left out, predicted by the costs.",
    EXACT,
    f"{EQUAL}: EAGLE-2 at the setting (width/depth/nodes) nearest in nodes a step, then in calls; as wide as is nearest in rows"
    " drafted, or as EAGLE-2's own: what is faster on the conversations that options are chosen on.",
    "p: of being no faster than that tree, one-sided, paired by conversation; Holm's over a section's rows. Of above over"
    f" previous-round: Holm's over the steps. Faster: p < {LEVEL:g}. No p, no interval: no conversation differs from another.",
    "beta, steps, bounds and sizes of adjacency-adaptive trees are unpublished: chosen here, per row, on held-out conversations.",
)  # fmt: skip


def _row(
    s: Setting, adjacency: str, step: str, own: Sequence[Replay], compared: Compared | None, p: float | None,
    numbers: list[dict[str, Any]],
) -> dict[str, str]:  # fmt: skip
    by_task = list(strata([counts(own)]).values())
    found = {name: estimated(by_task, statistic, 0.0) for name, (statistic, _) in STATISTICS.items()}
    found["speed"] = s.speed(own)
    if own is not s.fixed:
        found[f"over {FIXED}"] = s.over(own, s.fixed)
    if compared:
        found[f"over {GRID}"], found[f"over {EQUAL}"] = s.over(own, s.grid), s.over(own, compared.equal)
    shown = {"adjacency": adjacency, "step": step, "setting": _setting(own[0].options)}
    for name, form in (
        ("tau", "{:.2f}"), ("nodes", "{:.1f}"), ("calls a step", "{:.2f}"), ("speed", "{:.2f}×"),
        (f"over {FIXED}", "{:.3f}"), (f"over {GRID}", "{:.3f}"),
    ):  # fmt: skip
        shown[name] = _shown(found.get(name), form, name not in ("nodes", "calls a step"))
    equal = compared.equal if compared else None
    sizes = list(strata([counts(equal)]).values()) if equal else []
    nodes = estimated(sizes, STATISTICS["nodes"][0]).value if equal else None
    calls = estimated(sizes, STATISTICS["calls a step"][0]).value if equal else None
    shown["the same size"] = f"{_setting(equal[0].options)}: {nodes:.1f} nodes, {calls:.2f} calls" if equal else number(None)
    shown[f"over {EQUAL}"] = _shown(found.get(f"over {EQUAL}"), "{:.3f}", True)
    shown["p"] = number(p, "{:.3f}")
    for name, e in found.items():
        numbers.append(_number(s, adjacency, step, name, e, p if name == f"over {EQUAL}" else None))
    return shown


def _answers(s: Setting, ps: Sequence[float | None], numbers: list[dict[str, Any]]) -> Iterable[str]:
    """Does `above` beat `previous-round`, and does either beat the fixed tree of its size?"""
    by_name = {(c.adjacency, c.step): i for i, c in enumerate(s.compared)}
    pairs = [(a, b) for (adjacency, step), a in by_name.items() if adjacency == "above"
             and (b := by_name.get(("previous-round", step))) is not None]  # fmt: skip
    found = [s.over(s.compared[a].replays, s.compared[b].replays) for a, b in pairs]
    for (a, _), e, p in zip(pairs, found, adjusted(found), strict=True):
        step = s.compared[a].step
        numbers.append(_number(s, "above", step, "over previous-round", e, p))
        yield f"above over previous-round ({step}): {_shown(e, '{:.3f}', True)}; {_verdict(e, p)}."
    for i in dict.fromkeys(i for pair in pairs for i in pair):
        e = s.over(s.compared[i].replays, s.compared[i].equal)
        yield f"{s.compared[i].name} over the {EQUAL}: {_shown(e, '{:.3f}', True)}; {_verdict(e, ps[i])}."


def _verdict(e: Estimate, p: float | None) -> str:
    if p is None or e.ci95 is None:
        return "too few conversations to say" if e.spread is None else "no conversation differs from another: no test"
    if p < LEVEL:
        return f"faster (p = {p:.3f})"
    return "slower: its interval is below 1" if e.ci95[1] < 1 else f"not shown to be faster (p = {p:.3f})"


def _setting(options: Mapping[str, Any]) -> str:
    """A fixed tree as width/depth/nodes; of an adaptive one what is chosen."""
    if "beta" not in options:
        return f"{options['top_k']}/{options['depth']}/{options['total']}"
    if options["adjacency"] == "none":
        size = min(options["total"], options["top_k"] * options["depth"])
        return f"{options['top_k']}/{options['depth']}/{size}"
    return (f"beta {options['beta']:g}, width {options['least_top_k']} to {options['most_top_k']}, "
            f"depth {options['least_depth']} to {options['most_depth']}, at most {options['total']} nodes")  # fmt: skip


def _shown(e: Estimate | None, form: str, with_interval: bool) -> str:
    if e is None:
        return number(None)
    differ = e.spread is not None and e.spread.error > 0
    return bracketed(number(e.value, form), e.ci95 if with_interval and differ else None, form)


def _number(s: Setting, adjacency: str, step: str, name: str, e: Estimate, p: float | None) -> dict[str, Any]:
    low, high = e.ci95 or (None, None)
    return {"temperature": s.temperature, "costs": s.price.name, "adjacency": adjacency, "step": step, "statistic": name,
            "value": e.value, "value_low": low, "value_high": high, "p": p, "conversations": e.prompts}  # fmt: skip
