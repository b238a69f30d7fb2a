"""The numbers that plots draw, one data frame a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from harness.common.names import BASELINES, label_in_words, preset_order
from harness.forms.colours import PARTS, colour, hatch, marker
from harness.metrics import acceptance
from harness.metrics.arms import Arms
from harness.metrics.cells import CellSummary, means_of, six_task_mean
from harness.metrics.comparisons import ABLATIONS, FULL, comparisons
from harness.metrics.definitions import Interval, point, tokens_per_s
from harness.metrics.groups import MEAN, Variant, by_setting, by_variant, labels, shown_cells
from harness.metrics.pairing import Setting, Side, compared, titles
from harness.metrics.steps import acceptance_by_depth, time_split
from harness.show.contents import Contents


@dataclass(frozen=True, slots=True)
class Panel:
    """What a plot is made from: one setting's summaries and arms, and how its methods look."""

    setting: Setting
    summaries: tuple[CellSummary, ...]
    arms: Arms  # of all settings
    looks: dict[Variant, Look]
    drafted: tuple[acceptance.ArmSums, ...] = ()  # of the arms whose trees were kept
    title: str = ""  # the setting's, with its machine where that alone tells it from another one


@dataclass(frozen=True, slots=True)
class Look:
    label: str  # in the data
    name: str  # in the picture, in words
    colour: str
    hatch: str
    marker: str


def speedup_data(panel: Panel) -> pd.DataFrame:
    """Speedup over vanilla by task and method, and the six-task mean, with intervals."""
    return _by_task(panel, "speedup")


def tau_data(panel: Panel) -> pd.DataFrame:
    """Tokens per target forward by task and method, and the six-task mean, with intervals; and without looping outputs."""
    return _by_task(panel, "tau", "tau_no_loop")


def _by_task(panel: Panel, value: str, *more: str) -> pd.DataFrame:
    rows = []
    for variant, cells in by_variant(s for s in panel.summaries if s.method not in BASELINES):
        for s in cells:
            row = {**_arm(panel, variant), "task": s.task, "source": s.source, "prompts": s.prompts}
            rows.append(row | {name: getattr(s, name) for name in (value, *more)} | _ends(getattr(s, f"{value}_ci95")))
        mean = six_task_mean(cells)
        row = {**_arm(panel, variant), "task": MEAN, "source": "", "prompts": sum(s.prompts for s in cells)}
        if getattr(mean, value) is not None:
            ci95 = means_of(panel.arms, panel.setting, variant)[("speedup", "tau").index(value)].ci95
            rows.append(row | {name: getattr(mean, name) for name in (value, *more)} | _ends(ci95))
    return _with_value(rows, value)


def acceptance_data(panel: Panel) -> pd.DataFrame:
    """Acceptance rate by depth, all tasks pooled, for every method that drafts."""
    rows = []
    for variant, cells in by_variant(panel.summaries):
        n_tasks = len({(s.task, s.source) for s in cells})
        for d in acceptance_by_depth(_arm_of(panel, variant).values(), intervals=True):
            counts = {"n_tasks": n_tasks, "depth": d.depth, "n_reached": d.n_reached, "n_accepted": d.n_accepted}
            rows.append({**_arm(panel, variant), **counts, "rate": d.rate, **_ends(d.ci95)})
    return pd.DataFrame(rows)


def time_data(panel: Panel) -> pd.DataFrame:
    """Where the time of a generated token goes, all tasks pooled.

    The unit is vanilla's time per token on the same prompts, or milliseconds where the setting has no baseline.
    """
    base = panel.arms.base(panel.setting)
    relative = any(compared(_arm_of(panel, v), base) for v, _ in by_variant(panel.summaries) if v[0] not in BASELINES)
    rows = []
    for variant, _ in by_variant(panel.summaries):
        everything = _arm_of(panel, variant)
        own = compared(everything, base) if relative else everything
        per_second = point([own], tokens_per_s)
        scale = point([own, base], lambda _, b: tokens_per_s(b)) if relative else 1000.0
        if not per_second or not scale:
            continue
        split = time_split(list(own.values()))
        parts = {part: getattr(split, part) if split else 0.0 for part in PARTS if part != "untraced"}
        parts["untraced"] = 0.0 if split else 1 / per_second
        unit = "vanilla's on the same prompts" if relative else "ms"
        n_tasks = len({(r["task"], r["source"]) for r in own.values()})
        row = {**_arm(panel, variant), "n_tasks": n_tasks, "unit": unit}
        rows.append(row | {part: seconds * scale for part, seconds in parts.items()})
    return pd.DataFrame(rows)


def ablation_data(panel: Panel) -> pd.DataFrame:
    """What full EAGLE-2 gains in tau over each ablation on the same prompts, by task."""
    rows = []
    for c in comparisons(panel.arms, panel.summaries):
        if c.names[0] == FULL and c.names[1] in ABLATIONS:
            row = {"method": c.names[1], "label": c.against, "task": c.task, "source": c.source}
            difference = {"prompts": c.tau_difference.prompts, "tau_difference": c.tau_difference.value}
            rows.append({**row, **difference, **_ends(c.tau_difference.ci95)})
    return _with_value(rows, "tau_difference")


def position_data(panel: Panel) -> pd.DataFrame:
    """Acceptance by position in the tree, a row a conversation (the paper's Figure 5).

    Where some methods' trees always have all six positions, only these are shown. A dynamic tree has the deeper positions only
    where the draft was confident, so its rates there are not comparable.
    """
    of_arm, always = [], []
    for named, group in panel.drafted:
        rows = group[group["kind"] == "position"]
        n = rows.groupby("at")["n"].sum()
        if {2, 6} <= set(n.index):
            of_arm.append((named, rows))
            always.append(n[6] >= 0.99 * n[1])
    data = []
    for (named, rows), complete in zip(of_arm, always, strict=True):
        if complete or not any(always):
            r: Any
            by_query = rows.groupby(["at", "task", "source", "query"], as_index=False)[["n", "accepted"]].sum()
            for r in by_query.itertuples():
                row = {**_arm(panel, _variant(named)), "position": acceptance.POSITIONS[r.at - 1], "task": r.task}
                row |= {"source": r.source, "sample_id": r.query.split("\x1f")[-1], "n": int(r.n), "accepted": int(r.accepted)}
                data.append(row | {"rate": r.accepted / r.n})
    return pd.DataFrame(data)


def calibration_data(panel: Panel) -> pd.DataFrame:
    """Acceptance against the draft's confidence in 20 bins, tasks pooled (the paper's Figure 6), with the fit's slope and ECE."""
    rows = []
    for named, group in panel.drafted:
        binned = group[group["kind"] == "calibration"]
        fits = {f["at"]: f["value"] for f in acceptance.fits_of(binned)}
        for r in acceptance.rates_of(binned):
            row = {**_arm(panel, _variant(named)), "bin": r["at"], "bin_low": r["low"], "bin_high": r["high"]}
            row |= {k: r[k] for k in ("n", "accepted", "mean_confidence")}
            row |= {"rate": r["value"], "low": r["value_low"], "high": r["value_high"]}
            rows.append(row | {"n_tasks": binned["task"].nunique(), "slope": fits["slope"], "ece": fits["ece"]})
    return pd.DataFrame(rows)


def n_alpha_data(panel: Panel) -> pd.DataFrame:
    """Acceptance of a chain's next draft after n of the head's own features, tasks pooled (EAGLE-1's n-alpha)."""
    rows = []
    for named, group in panel.drafted:
        chains = group[group["kind"] == "n_alpha"]
        for r in acceptance.rates_of(chains):
            row = {**_arm(panel, _variant(named)), "n_features": int(r["at"]), "n": r["n"], "accepted": r["accepted"]}
            row |= {"rate": r["value"], "low": r["value_low"], "high": r["value_high"]}
            rows.append(row | {"n_tasks": chains["task"].nunique()})
    return pd.DataFrame(rows)


def _with_value(rows: list[dict[str, Any]], value: str) -> pd.DataFrame:
    """The rows that have the value; what was not measured is not drawn."""
    return pd.DataFrame([row for row in rows if row[value] is not None])


def panels_of(contents: Contents) -> list[Panel]:
    """A panel a setting, in the order of tables."""
    panels = []
    groups = by_setting(shown_cells(contents.summaries))
    title_of = titles(setting for setting, _ in groups)
    for setting, summaries in groups:
        named = asdict(setting)
        drafted = tuple(arm for arm in contents.drafted if all(arm[0][name] == value for name, value in named.items()))
        panels.append(Panel(setting, tuple(summaries), contents.records, _looks(summaries), drafted, title_of[setting]))
    return panels


def _looks(summaries: Sequence[CellSummary]) -> dict[Variant, Look]:
    names = labels(summaries)
    methods = {method for method, *_ in names}
    looks = {}
    for method in methods:
        siblings = sorted((v for v in names if v[0] == method), key=lambda v: (preset_order(v[1]), v))
        for place, variant in enumerate(siblings):
            name = label_in_words(method, names[variant])
            looks[variant] = Look(names[variant], name, colour(method, methods), hatch(place), marker(place))
    return looks


def _arm(panel: Panel, variant: Variant) -> dict[str, Any]:
    return {"method": variant[0], "preset": variant[1], "label": panel.looks[variant].label}


def _variant(named: Mapping[str, Any]) -> Variant:
    return named["method"], named["preset"], named["options"], named["head"], named["code"]


def _arm_of(panel: Panel, variant: Variant) -> Side:
    return panel.arms.side(panel.setting, variant)


def _ends(ci95: Interval | None) -> dict[str, float | None]:
    low, high = ci95 or (None, None)
    return {"low": low, "high": high}
