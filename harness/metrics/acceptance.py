"""What drafted trees tell of acceptance: calibration, depth, rank, position, n-alpha. Pure functions of records and trees.

A draft node is *tried* where its parent was accepted; the root always is. Only then is it known whether the target would have
taken the node. Where siblings are verified one by one by rejection, those after the accepted one are not tried. Acceptance is
counted before an output is cut at a stop id or at the budget. A *query* is a conversation: all its turns and repeats together.

`acceptance.csv` (`acceptance_numbers`) has a row per setting, method, preset, task, `outputs`, `kind` and `at`:

- setting, `method`, `preset`, `options`, `head`, `code` (hashes): as in the other tables. `task` is `all` for all tasks pooled,
  and `source` is then empty. `outputs` is `all` or `no loops` (neither the method's output nor vanilla's looped).
- `kind` and `at` say what is counted:

  ============== =========== =============================================================================================
  kind           at          n, of which `accepted`
  ============== =========== =============================================================================================
  calibration    0..19       tried nodes whose confidence lies in [low, high), 1.0 in the last bin (the paper's Figure 6)
  depth          1..         forwards that accepted depth - 1 and had drafted children there
  rank           1..         tried nodes, by their place among their siblings, the most confident first
  position       P1..P6      forwards that drafted the position (Figure 5: P1, P2 are the root's best and second child, P3, P4
                             are P1's, P5, P6 are P2's); accepted: with all of its ancestors
  position_given P1..P6      the same, tried nodes only
  n_alpha        0..         chains of a draft head only: forwards that accepted n drafts; accepted: one more. The draft of that
                             one saw n features that were the head's own (EAGLE-1's n-alpha)
  fit            slope       all bins: of accepted on confidence, least squares over nodes
  fit            ece         all bins: sum of |accepted - confidence| / n, the expected calibration error
  fit            mean_gap    the same unweighted, over the bins that hold a node: most nodes are in the first bin
  ============== =========== =============================================================================================

- `value`: accepted / n; of a `fit` what `at` names. `value_low`, `value_high`: its 95 % interval over queries (jackknife; of
  the two errors see `fits`); empty under 5 queries.
- `mean_confidence`: over the n. For `depth` it is the sum over all children: what the draft expected of the depth.
- `queries`: those with n > 0. `variance`: of their rates. `chance_variance`: what chance alone would make it, if every query had
  the same rate. `forwards`: all forwards of these outputs. `generations`: outputs with trees.

Confidence is untempered at every temperature. Where drafts are sampled (`eagle1` at T > 0), rank is the order of drawing and
confidence forecasts nothing. Such drafts have `depth` and `n_alpha` only, without `mean_confidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import methods
from harness.common.names import method_order, preset_order, task_order
from harness.ledger.record import Record
from harness.ledger.trees import Drafts, Ints
from harness.metrics.arms import Arms
from harness.metrics.definitions import estimated
from harness.metrics.intervals import Interval, Spread, jackknife, rate_interval
from harness.metrics.pairing import Setting, Variant, conversation_of, measured, side_of, without_loops

N_BINS = 20  # of 0.05: the paper's Figure 6 tells of under 0.05 and over 0.95
POSITIONS = ("P1", "P2", "P3", "P4", "P5", "P6")
ALL, NO_LOOPS = "all", "no loops"
ARM = ["method", "preset", "options", "head", "code"]
SUMS = ("n", "accepted", "confidence", "squares", "products")
Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """Columns [nodes] over all draft nodes of a generation.

    `place`, `above`: its own and its parent's number over all trees, roots included; `depth` from 1; `rank` among its siblings,
    from 0; `position`: 1..6 for P1..P6, else 0; `confidence`: nan where there is none; `accepted`; `tried`.
    """

    place: Ints
    above: Ints
    depth: Ints
    rank: Ints
    position: Ints
    confidence: Array
    accepted: Flags
    tried: Flags


def nodes(drafts: Drafts) -> Nodes:
    forward, number = drafts.numbered()
    root = np.cumsum(drafts.sizes + 1) - drafts.sizes - 1
    n_all = len(number) + len(root)
    place, above = root[forward] + number, root[forward] + drafts.parents
    on_path = np.repeat(root, drafts.accepted) + drafts.path
    taken = np.zeros(n_all, dtype=bool)
    taken[root] = taken[on_path] = True
    parent = np.arange(n_all)  # a root is its own
    parent[place] = above
    depth, up = np.zeros(len(place), dtype=np.int64), place
    while np.any(below_root := parent[up] != up):
        depth, up = depth + below_root, parent[up]
    by_parent = np.argsort(above, kind="stable")
    grouped = above[by_parent]
    rank = np.empty(len(place), dtype=np.int64)
    rank[by_parent] = np.arange(len(place)) - np.searchsorted(grouped, grouped)
    position = np.zeros(n_all, dtype=np.int64)
    for level in (1, 2):  # P(2i + 1), P(2i + 2) hang on Pi
        here = (depth == level) & (rank < 2) & ((level == 1) | (position[above] > 0))
        position[place[here]] = 2 * position[above[here]] + rank[here] + 1
    tried = taken[above]
    if drafts.sampled:  # siblings drawn after the one accepted were never looked at
        accepted_child = np.full(n_all, n_all)
        accepted_child[parent[on_path]] = on_path
        tried &= place <= accepted_child[above]
    confidence = np.full(len(place), np.nan) if drafts.confidence is None else drafts.confidence
    return Nodes(place, above, depth, rank, position[place], confidence, taken[place], tried)


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """A generation's trees reduced to rows of `kind` (an index of `KINDS`) and `at`, with `columns` [SUMS, rows].

    squares: of confidence; products: of confidence and accepted.
    """

    kinds: NDArray[np.int8]
    at: NDArray[np.int32]
    columns: Array
    forwards: int
    is_chain: bool


def counted(drafts: Iterable[Drafts]) -> dict[str, Counts]:
    """Each generation's counts by its key. Of trees that are read one by one nothing else stays in memory."""
    return {d.key: sums(d) for d in drafts}


KINDS = ("calibration", "depth", "n_alpha", "position", "position_given", "rank")


def sums(drafts: Drafts) -> Counts:
    """A generation's counts."""
    all_nodes, expects = nodes(drafts), drafts.confidence is not None and not drafts.sampled
    tried = all_nodes.tried
    confidence = all_nodes.confidence if expects else np.full(len(tried), np.nan)
    kinds: list[int] = []
    places: list[NDArray[Any]] = []
    columns: list[list[NDArray[Any]]] = []

    def count(kind: str, at: Ints, accepted: NDArray[Any], c: NDArray[Any]) -> None:
        if not len(at):
            return
        counted = [np.bincount(at, x) for x in (np.ones(len(at)), accepted, c, c * c, c * accepted)]
        held = np.flatnonzero(counted[0])
        kinds.extend([KINDS.index(kind)] * len(held))
        places.append(held)
        columns.append([x[held] for x in counted])

    # a step goes on from an accepted node that has children: was one of them accepted, what confidence had they together
    steps, first = np.unique(all_nodes.above[tried], return_index=True)
    depth = all_nodes.depth[tried][first]
    taken, expected = (np.bincount(all_nodes.above[tried], x[tried])[steps] for x in (all_nodes.accepted, confidence))
    count("depth", depth, taken, expected)
    is_chain = drafts.is_chain
    if drafts.confidence is not None and is_chain:
        count("n_alpha", depth - 1, taken, expected)
    if not drafts.sampled:
        for kind, at, counted in (
            ("rank", all_nodes.rank + 1, tried),
            ("position", all_nodes.position, all_nodes.position > 0),
            ("position_given", all_nodes.position, (all_nodes.position > 0) & tried),
        ):
            count(kind, at[counted], all_nodes.accepted[counted], confidence[counted])
    if expects:
        bins = np.minimum((confidence[tried] * N_BINS).astype(np.int64), N_BINS - 1)
        count("calibration", bins, all_nodes.accepted[tried], confidence[tried])
    rows = np.concatenate([np.array(own, float) for own in columns], axis=1) if columns else np.empty((len(SUMS), 0))
    held_at = np.concatenate([*places, np.empty(0, np.int64)]).astype(np.int32)
    return Counts(np.array(kinds, np.int8), held_at, rows, len(drafts.sizes), is_chain)


def frame_of(parts: Sequence[Counts]) -> pd.DataFrame:
    """The rows of some generations, one after another: `kind`, `at` and `SUMS`."""
    kinds, at, columns = (np.concatenate([getattr(p, name) for p in parts], axis=-1) for name in ("kinds", "at", "columns"))
    return pd.DataFrame({"kind": np.array(KINDS)[kinds], "at": at} | dict(zip(SUMS, columns, strict=True)))


def slope(s: Array) -> Array:
    """s: [bins, 5, ...] in the order of `SUMS` -> slope of accepted on confidence, least squares over nodes."""
    n, y, c, cc, cy = s.sum(axis=0)
    return (n * cy - c * y) / (n * cc - c * c)


def ece(gaps: Array, n: Array) -> Array:
    """Expected calibration error: each bin's |rate - mean confidence|, weighted by its nodes.

    gaps: [bins, ...], each bin's |sum of accepted - sum of confidence|; n: its nodes.
    """
    return gaps.sum(axis=0) / n.sum(axis=0)


def mean_gap(gaps: Array, n: Array) -> Array:
    """The same with equal weight for each bin that holds a node."""
    held = n > 0
    return (gaps / np.where(held, n, 1.0) * held).sum(axis=0) / held.sum(axis=0)


ERRORS: dict[str, Callable[[Array, Array], Array]] = {"ece": ece, "mean_gap": mean_gap}


@dataclass(frozen=True, slots=True)
class Fit:
    """A figure of the reliability diagram. `low` tells how far below it the truth may lie, `high` how far above; None for both
    under 5 queries."""

    value: float | None
    low: Spread | None
    high: Spread | None
    least: float = -np.inf

    @property
    def ci95(self) -> Interval | None:
        return (max(self.least, self.low.interval()[0]), self.high.interval()[1]) if self.low and self.high else None


def fits(binned: Array) -> dict[str, Fit]:
    """binned: [bins, SUMS, queries] -> `slope`, `ece` and `mean_gap` with how well they are known over queries.

    Noise never lowers a sum of |gaps|: near 0 it lies well above the truth, and a jackknife's interval covers 82 to 90 %. So its
    ends come from two estimates. The sum itself is too high on average. The sum of gaps that take their sign from the other
    queries is too low on average: noise cancels in it. Between their ends the interval covers 94 % and more.
    """

    def slope_of(sums: Array) -> Array:
        return slope(sums.reshape(N_BINS, len(SUMS), *sums.shape[1:]))

    e = estimated([binned.reshape(-1, binned.shape[2])], slope_of)
    found = {"slope": Fit(e.value, e.spread, e.spread)}
    n, gaps = binned[:, 0], binned[:, 1] - binned[:, 2]
    by_others = np.sign(gaps.sum(axis=1, keepdims=True) - gaps) * gaps
    for name, error in ERRORS.items():

        def signed(sums: Array, error: Callable[[Array, Array], Array] = error) -> Array:
            return error(*np.split(sums, 2))

        def whole(sums: Array, error: Callable[[Array, Array], Array] = error) -> Array:
            return error(np.abs(sums[:N_BINS]), sums[N_BINS:])

        e, low = estimated([np.concatenate([gaps, n])], whole), jackknife([np.concatenate([by_others, n])], signed)
        high = replace(e.spread, centre=e.value) if e.spread and e.value is not None else None
        found[name] = Fit(e.value, low, high, least=0.0)
    return found


ArmSums = tuple[dict[str, Any], pd.DataFrame]  # what names a setting and method, and the sums of its generations


def acceptance_numbers(drafted: Iterable[ArmSums]) -> pd.DataFrame:
    """The rows of `acceptance.csv`, described above, from what `by_arm` yields; no rows where no record has trees."""
    rows: list[dict[str, Any]] = []
    for named, group in drafted:
        tasks: list[tuple[str, str]] = sorted(
            set(zip(group["task"], group["source"], strict=True)), key=lambda t: task_order(t[0])
        )
        for task, source in [*tasks, *([(ALL, "")] if len(tasks) > 1 else [])]:
            of_task = group if task == ALL else group[(group["task"] == task) & (group["source"] == source)]
            for outputs in (ALL, NO_LOOPS):
                mine = of_task if outputs == ALL else of_task[~of_task["looped"]]
                where = named | {"task": task, "source": source, "outputs": outputs,
                                 "generations": mine["key"].nunique(),
                                 "forwards": int(mine.drop_duplicates("key")["forwards"].sum())}  # fmt: skip
                rows += [where | row for row in rows_of(mine)]
    return pd.DataFrame(rows)


def drafting_arms(records: Iterable[Record], counts: Mapping[str, Counts]) -> list[tuple[Setting, Variant]]:
    """The settings and methods that have generations with trees, in the order of tables."""
    found = ((setting, variant) for setting, variants in Arms.of(records).settings.items() for variant, own in variants.items()
             if any(r["key"] in counts for r in measured(own)))  # fmt: skip
    return sorted(found, key=lambda k: (astuple(k[0]), method_order(k[1][0]), preset_order(k[1][1]), k[1]))


def by_arm(records: Iterable[Record], counts: Mapping[str, Counts]) -> Iterator[ArmSums]:
    """For each setting and method (preset, options, head): what names it, and the counts of all its generations with trees.

    The rows also have the generation's key, task, source, query, forwards and whether it looped.
    """
    arms = Arms.of(records)
    for setting, variant in drafting_arms(arms, counts):
        # trees are kept before their record, so a generation that failed later may have them
        own = side_of(r for r in arms.settings[setting][variant] if r["key"] in counts)
        clean = {r["key"] for r in without_loops(own, arms.base(setting)).values()}
        about = pd.DataFrame(
            [{"key": r["key"], "task": r["task"], "source": r["source"], "query": "\x1f".join(conversation_of(r)),
              "looped": r["key"] not in clean, "forwards": counts[r["key"]].forwards} for r in own.values()]
        )  # fmt: skip
        parts = [counts[r["key"]] for r in own.values()]
        of_generation = about.iloc[np.repeat(np.arange(len(parts)), [len(p.at) for p in parts])].reset_index(drop=True)
        group = pd.concat([frame_of(parts), of_generation], axis=1)
        of_head = methods.drafter_of(variant[0]) in methods.HEADS  # n-alpha counts the head's own features; others have none
        if not (of_head and all(p.is_chain for p in parts)):
            group = group[group["kind"] != "n_alpha"]
        named = asdict(setting) | dict(zip(ARM, variant, strict=True))
        if len(group):
            yield named, group


def rows_of(group: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows of the table from the sums of some generations: rates, then fits."""
    yield from rates_of(group)
    yield from fits_of(group[group["kind"] == "calibration"])


def rates_of(group: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Rates with their intervals and spread between queries, a row for each `kind` and `at`."""
    if group.empty:
        return
    by_query = group.groupby(["kind", "at", "query"], sort=True)[list(SUMS)].sum(min_count=1)
    columns = by_query.to_numpy(dtype=float).T  # [sums, kinds x places x queries]
    places = list(zip(by_query.index.get_level_values("kind"), by_query.index.get_level_values("at"), strict=True))
    starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
        kind, at = places[start]
        n, accepted, confidence = columns[:3, start:end]
        rates, total = accepted / n, float(n.sum())
        rate = float(accepted.sum()) / total
        edges = {"low": at / N_BINS, "high": (at + 1) / N_BINS} if kind == "calibration" else {"low": None, "high": None}
        low, high = rate_interval(n, accepted) or (None, None)
        yield {
            "kind": kind, "at": POSITIONS[at - 1] if kind.startswith("position") else str(at), **edges, "n": int(total),
            "accepted": int(accepted.sum()), "value": rate, "value_low": low, "value_high": high,
            "mean_confidence": float(confidence.sum()) / total, "queries": len(n),
            "variance": float(rates.var(ddof=1)) if len(n) > 1 else None,
            "chance_variance": float(np.mean(rate * (1 - rate) / n)),
        }  # fmt: skip


def fits_of(calibration: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Slope and errors of the reliability diagram with intervals over queries."""
    if calibration.empty:
        return
    binned = fit_sums(calibration)
    n, accepted, confidence = binned[:, :3].sum(axis=(0, 2))
    for name, fit in fits(binned).items():
        low, high = fit.ci95 or (None, None)
        yield {
            "kind": "fit", "at": name, "low": None, "high": None, "n": int(n), "accepted": int(accepted), "value": fit.value,
            "value_low": low, "value_high": high, "mean_confidence": float(confidence / n), "queries": binned.shape[2],
            "variance": None, "chance_variance": None,
        }  # fmt: skip


def fit_sums(calibration: pd.DataFrame) -> Array:
    """Rows of kind `calibration` -> [bins, SUMS, queries]. Summed over queries it is what `slope`, `ece` and `mean_gap` take."""
    queries = {query: i for i, query in enumerate(sorted(set(calibration["query"])))}
    binned = np.zeros((N_BINS, len(SUMS), len(queries)))
    at, query = calibration["at"].to_numpy(), calibration["query"].map(queries).to_numpy()
    for i, name in enumerate(SUMS):
        np.add.at(binned[:, i], (at, query), calibration[name].to_numpy())
    return binned
