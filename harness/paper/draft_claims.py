"""The paper's claims about drafts: calibration, acceptance by position and by context."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from harness.common.names import SIX_TASKS, VANILLA
from harness.common.progress import Progress
from harness.ledger import trees
from harness.metrics import acceptance
from harness.metrics.definitions import Estimate, estimated
from harness.paper.claim_arms import DYNAMIC, STATIC, ClaimArms
from harness.paper.contrast import (
    NOT_JUDGED,
    NOT_MEASURED,
    NOTHING_THERE,
    Array,
    Judge,
    Outcome,
    Row,
    above_zero,
    between,
    positive,
)

FIGURES_ON = "alpaca"  # its Figures 5 and 6

SLOPE, MOST_ECE = (0.8, 1.2), 0.05


def draft_rows(m: ClaimArms, folder: Path, progress: Progress) -> list[Row]:
    """The claims on drafted trees at T = 0. Positions are those of EAGLE-1's tree, which always drafts all six."""
    groups: dict[str, pd.DataFrame] = {}
    if trees.has_trees(folder):
        wanted = [r for r in m.records if r["temperature"] == 0 and r["method"] in (STATIC, DYNAMIC) and r["preset"] == "paper"]
        base = [r for r in m.records if r["method"] == VANILLA and r["temperature"] == 0]
        counts = acceptance.counted(trees.each_drafts(folder, {r["key"] for r in wanted}))
        groups = {named["method"]: g for named, g in acceptance.by_arm([*wanted, *base], counts)}
    rows = []
    if groups:
        progress.expect(3)
    for method in (STATIC, DYNAMIC):
        if groups:
            progress.step(f"calibration of {method}")
        for on in (FIGURES_ON, "all tasks"):
            group = _of(groups.get(method), on)
            rows += [_fit(method, name, on, group) for name in ("slope", "ece")]
    position = ("acceptance depends on position", f"{STATIC}: rate at P1 less that at P6 (Figure 5)")
    context = ("acceptance depends on context", f"{STATIC}: variance between queries at P1 to P6 beyond chance's (Figure 5)")
    if groups:
        progress.step("positions")
    for on in (FIGURES_ON, "all tasks"):
        group = _of(groups.get(STATIC), on)
        rows.append(_tree_row(*position, on, group, position_columns, p1_less_p6, above_zero, "{:+.2f}"))
        rows.append(_tree_row(*context, on, group, variance_columns, excess_variance, positive, "{:+.4f}"))
    return rows


def _of(group: pd.DataFrame | None, on: str) -> pd.DataFrame | None:
    if group is None:
        return None
    chosen = group[group["task"] == on] if on in SIX_TASKS else group
    return chosen if len(chosen) else None


UNSEEN = Outcome(NOTHING_THERE, f"{NOT_MEASURED}: run with --trees")
ALL_LOOPED = Outcome(NOTHING_THERE, f"{NOT_JUDGED}: every output looped")


def _fit(method: str, name: str, on: str, group: pd.DataFrame | None) -> Row:
    low, high = SLOPE if name == "slope" else (-math.inf, MOST_ECE)
    bounds = f"in [{low}, {high}]" if name == "slope" else f"at most {high}"
    shown = "slope" if name == "slope" else "ECE"

    def found(of: pd.DataFrame) -> Outcome:
        binned = acceptance.fit_sums(of[of["kind"] == "calibration"])
        fit = acceptance.fits(binned)[name]
        if fit.value is None:
            return UNSEEN
        return Outcome(Estimate(fit.value, fit.ci95, binned.shape[2]), *between(low, high, fit.low, fit.high))

    both = (UNSEEN, UNSEEN) if group is None else (found(group), _without_loops(group, found))
    test = f"{method}: {shown} {'of nodes' if name == 'slope' else 'over 20 bins'} {bounds} (Figure 6)"
    return Row(f"draft confidence is calibrated: {shown}", test, 0.0, on, *both, "{:.3f}")


def _without_loops(group: pd.DataFrame, found: Callable[[pd.DataFrame], Outcome]) -> Outcome:
    rest = group[~group["looped"]]
    return found(rest) if len(rest) else ALL_LOOPED


def _tree_row(
    claim: str, test: str, on: str, group: pd.DataFrame | None, columns_of: Callable[[pd.DataFrame], Array],
    statistic: Callable[[Array], Array], judged: Judge, form: str,
) -> Row:  # fmt: skip
    def found(of: pd.DataFrame) -> Outcome:
        columns = columns_of(of)
        if columns.shape[1] == 0:
            return UNSEEN
        e = estimated([columns], statistic)
        return Outcome(e, *judged(e.spread))

    both = (UNSEEN, UNSEEN) if group is None else (found(group), _without_loops(group, found))
    return Row(claim, test, 0.0, on, *both, form)


def position_columns(group: pd.DataFrame) -> Array:
    """-> [12, queries]: forwards that drafted P1 to P6, then those that accepted it."""
    rows = group[group["kind"] == "position"]
    counts = rows.pivot_table(index="query", columns="at", values=["n", "accepted"], aggfunc="sum", fill_value=0.0)
    names = [(what, at) for what in ("n", "accepted") for at in range(1, len(acceptance.POSITIONS) + 1)]
    return counts.reindex(columns=pd.MultiIndex.from_tuples(names), fill_value=0.0).to_numpy(dtype=float).T


def variance_columns(group: pd.DataFrame) -> Array:
    """-> [24, queries], four rows a position: whether the query has two forwards there, its rate, the rate squared, and the
    variance that chance alone would give the rate."""
    n, accepted = np.split(position_columns(group), 2)
    enough = n >= 2
    rate = np.where(enough, accepted / np.where(enough, n, 1), 0.0)
    chance = np.where(enough, rate * (1 - rate) / np.where(enough, n - 1, 1), 0.0)
    return np.concatenate([enough.astype(float), rate, rate**2, chance])


def p1_less_p6(sums: Array) -> Array:
    """sums: [12, ...] -> the rate at P1 less the rate at P6."""
    return sums[6] / sums[0] - sums[11] / sums[5]


def excess_variance(sums: Array) -> Array:
    """sums: [24, ...] -> mean over positions of the rates' variance between queries less what chance gives."""
    n, rate, squares, chance = np.split(sums, 4)
    return ((squares - rate**2 / n) / (n - 1) - chance / n).mean(axis=0)
