"""What a setting's numbers mean on its machine, in sentences computed from the cells: whether a step pays, and the best tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.common.names import BASELINES
from harness.metrics.cells import CellSummary, joint_mark
from harness.metrics.groups import Variant, by_variant, labels
from harness.metrics.marks import without_signs
from harness.metrics.steps import StepCosts
from harness.show.tables.cell_text import marked_text

_METHOD = "eagle2"  # the sentences are about it where it was measured


@dataclass(frozen=True, slots=True)
class MethodMeans:
    """Unweighted means over one variant's cells; None where a cell lacks the value."""

    variant: Variant
    name: str
    options: Mapping[str, Any]
    tau: float | None
    costs: StepCosts | None
    speedup: float | None
    n_draft: float | None  # nodes a step, root excluded
    mark: str  # of its speed
    tasks: frozenset[tuple[str, str]]


def conclusions(summaries: Sequence[CellSummary]) -> tuple[str, ...]:
    """At most two sentences on the cells of one setting; one whose numbers are lacking is left out.

    They are about EAGLE-2 at the paper's options. Where it was not measured they are about the method with the longest accepts.
    """
    arms = arms_of(summaries)
    subject = subject_of([a for a in arms if a.tau is not None and a.costs is not None])
    if subject is None:
        return ()
    return (_whether_it_pays(subject), *_best_tree(rivals_of(subject, arms)))


def arms_of(summaries: Sequence[CellSummary]) -> list[MethodMeans]:
    """The drafting methods of one setting with their means, in the order of tables."""
    names = labels(summaries)
    return [_arm(variant, names[variant], cells) for variant, cells in by_variant(summaries) if variant[0] not in BASELINES]


def subject_of(arms: Sequence[MethodMeans]) -> MethodMeans | None:
    """EAGLE-2, at the paper's options where there are these; else the method with the longest accepts."""
    return max(arms, key=lambda a: (a.variant[0] == _METHOD, a.variant[1] == "paper", a.tau or 0.0), default=None)


def rivals_of(subject: MethodMeans, arms: Sequence[MethodMeans]) -> list[MethodMeans]:
    """The subject and its method's other variants, those on the same tasks."""
    return [a for a in arms if a.variant[0] == subject.variant[0] and a.tasks == subject.tasks]


def _arm(variant: Variant, name: str, cells: Sequence[CellSummary]) -> MethodMeans:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return fmean(known) if known and len(known) == len(values) else None

    costs = [c.step_costs for c in cells if c.step_costs]
    return MethodMeans(
        variant, name, cells[0].options,
        tau=mean([c.tau for c in cells]),
        costs=StepCosts(*(fmean(getattr(c, part) for c in costs) for part in ("verify", "draft", "other")))
        if len(costs) == len(cells) else None,
        speedup=mean([c.speedup for c in cells]),
        n_draft=mean([c.mean_tree_size for c in cells]),
        mark=joint_mark(cells),
        tasks=frozenset((c.task, c.source) for c in cells),
    )  # fmt: skip


def _whether_it_pays(arm: MethodMeans) -> str:
    """`A step of eagle2 costs 7.0 vanilla steps and yields 3.0 tokens, so it cannot pay; ...`."""
    assert arm.tau is not None and arm.costs is not None
    cost = arm.costs.verify + arm.costs.draft + arm.costs.other
    # two digits where one would print both sides alike
    form = "{:.2f}" if f"{arm.tau:.1f}" == f"{cost:.1f}" else "{:.1f}"
    tokens, steps = form.format(arm.tau), form.format(cost)
    text = f"A step of {arm.name} costs {arm.mark}{steps} vanilla steps and yields {tokens} tokens, "
    text += "so it pays" if arm.tau > cost else "so it cannot pay here"
    if arm.n_draft is not None:
        rows = f"{arm.n_draft + 1:.0f}"  # the root is verified, too
        text += f"; verifying {rows} rows alone costs {without_signs(arm.mark)}{form.format(arm.costs.verify)} vanilla steps"
    return text + "."


def _best_tree(arms: Sequence[MethodMeans]) -> tuple[str, ...]:
    """The fastest of one method's variants, where several were measured on the same tasks."""
    timed = [a for a in arms if a.speedup is not None and a.options]
    if len(timed) < 2:
        return ()
    best = max(timed, key=lambda a: a.speedup or 0.0)
    options = " ".join(f"{name}={value}" for name, value in best.options.items())
    what = "tree" if {"total", "shape", "nodes"} & best.options.keys() else "options"
    verb = "is" if what == "tree" else "are"
    return (f"The best {what} found for {best.variant[0]} (of {len(timed)} measured) {verb} {options}, "
            f"at {marked_text(best.speedup, best.mark)} vanilla's speed.",)  # fmt: skip
