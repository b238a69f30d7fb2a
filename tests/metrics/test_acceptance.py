"""What drafted trees tell of acceptance, against hand-counted trees and slow versions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from made_up_ledger import write_ledger
from made_up_records import measured
from make_ledger import FOLDER

from harness.forms.table import markdown
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.ledger.trees import Drafts, TreeStore
from harness.metrics import acceptance
from harness.show.plots.all import write_plots
from harness.show.tables.acceptance import acceptance_table
from harness.show.tables.all import write_tables
from methods.base import DraftedTree


def numbers_of(records: list[Record], kept: dict[str, Drafts]) -> pd.DataFrame:
    return acceptance.acceptance_numbers(acceptance.by_arm(records, acceptance.counted(kept.values())))


def drafts(trees: list[dict[str, Any]], key: str = "k", sampled: bool = False) -> Drafts:
    """trees: parents, path and perhaps confidence of each forward."""
    confident = all("confidence" in t for t in trees)
    return Drafts(
        key, sampled,
        sizes=np.array([len(t["parents"]) for t in trees]), accepted=np.array([len(t["path"]) for t in trees]),
        tokens=np.arange(sum(len(t["parents"]) for t in trees)),
        parents=np.array([p for t in trees for p in t["parents"]], dtype=np.int64),
        confidence=np.array([c for t in trees for c in t["confidence"]], dtype=float) if confident else None,
        path=np.array([i for t in trees for i in t["path"]], dtype=np.int64),
    )  # fmt: skip


def summed(of: Drafts) -> pd.DataFrame:
    return acceptance.frame_of([acceptance.sums(of)])


# the paper's Figure 5: P1, P2 on the root; P3, P4 on P1; P5, P6 on P2; and a third child of the root that is no position
FIGURE_5 = {"parents": [0, 0, 0, 1, 1, 2, 2], "confidence": [0.5, 0.3, 0.1, 0.6, 0.2, 0.4, 0.3]}


def counts(table: pd.DataFrame, kind: str) -> dict[int, tuple[int, int]]:
    rows = table[table["kind"] == kind]
    return {int(at): (int(n), int(a)) for at, n, a in zip(rows["at"], rows["n"], rows["accepted"], strict=True)}


def test_a_figure_5_tree_counted_by_hand() -> None:
    sums = summed(drafts([FIGURE_5 | {"path": [1, 5]}, FIGURE_5 | {"path": [2]}, FIGURE_5 | {"path": []}]))
    assert counts(sums, "position") == {1: (3, 1), 2: (3, 1), 3: (3, 0), 4: (3, 1), 5: (3, 0), 6: (3, 0)}
    assert counts(sums, "position_given") == {1: (3, 1), 2: (3, 1), 3: (1, 0), 4: (1, 1), 5: (1, 0), 6: (1, 0)}
    assert counts(sums, "depth") == {1: (3, 2), 2: (2, 1)}  # node 5 has no children: nothing was drafted at depth 3
    assert counts(sums, "rank") == {1: (5, 1), 2: (5, 2), 3: (3, 0)}
    depth = sums[sums["kind"] == "depth"].set_index("at")["confidence"]
    assert depth[1] == pytest.approx(3 * 0.9) and depth[2] == pytest.approx(0.8 + 0.7)
    assert counts(sums, "n_alpha") == {}
    # bins of 0.05; 0.3 / 0.05 is rounded below 6 nowhere that matters
    assert sum(n for n, _ in counts(sums, "calibration").values()) == 3 * 3 + 2 + 2


def test_the_ends_of_the_bins() -> None:
    tree = {"parents": [0, 0, 0, 0, 0], "confidence": [1.0, 0.95, 0.05, 0.0499, 0.0], "path": [1]}
    assert counts(summed(drafts([tree])), "calibration") == {19: (2, 1), 1: (1, 0), 0: (2, 0)}


def test_n_alpha_is_of_chains_that_a_head_drafted() -> None:
    chain = {"parents": [0, 1, 2], "confidence": [0.5, 0.5, 0.5]}
    trees = [chain | {"path": [1, 2]}, chain | {"path": []}, chain | {"path": [1, 2, 3]}]
    assert counts(summed(drafts(trees)), "n_alpha") == {0: (3, 2), 1: (2, 2), 2: (2, 1)}
    assert counts(summed(drafts(trees, sampled=True)), "n_alpha") == {0: (3, 2), 1: (2, 2), 2: (2, 1)}
    copied = [{k: v for k, v in t.items() if k != "confidence"} for t in trees]
    sums = summed(drafts(copied))
    assert counts(sums, "n_alpha") == counts(sums, "calibration") == {} and counts(sums, "depth")[1] == (3, 2)


def test_of_sampled_drafts_only_those_up_to_the_accepted_one_were_tried() -> None:
    d = drafts([{"parents": [0, 0, 0, 2, 1], "confidence": [0.2] * 5, "path": [2]}], sampled=True)
    assert acceptance.nodes(d).tried.tolist() == [True, True, False, True, False]
    sums = summed(d)
    assert set(sums["kind"]) == {"depth"} and sums["confidence"].isna().all()  # a draw is no forecast


def slow_nodes(tree: dict[str, Any]) -> list[tuple[int, int, bool, bool]]:
    """(depth, rank, accepted, tried) of each node, one at a time."""
    found = []
    for i, parent in enumerate(tree["parents"], start=1):
        depth, up = 1, parent
        while up:
            depth, up = depth + 1, tree["parents"][up - 1]
        rank = tree["parents"][: i - 1].count(parent)
        found.append((depth, rank, i in tree["path"], parent == 0 or parent in tree["path"]))
    return found


def random_tree(rng: random.Random) -> dict[str, Any]:
    parents = [rng.randrange(i) for i in range(1, rng.randrange(1, 14))]
    path: list[int] = []
    while children := [i for i, p in enumerate(parents, start=1) if p == (path[-1] if path else 0)]:
        if rng.random() < 0.4:
            break
        path.append(rng.choice(children))
    return {"parents": parents, "path": path}


@pytest.mark.parametrize("seed", range(20))
def test_nodes_are_those_of_the_slow_version(seed: int) -> None:
    rng = random.Random(seed)
    trees = [random_tree(rng) for _ in range(6)]
    found = acceptance.nodes(drafts(trees))
    columns = (found.depth, found.rank, found.accepted, found.tried)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == [row for tree in trees for row in slow_nodes(tree)]


# ---- fits -----------------------------------------------------------------------------------------------------------


def simulated(bend: float, seed: int, forwards: int = 300) -> dict[str, Any]:
    """One node a forward, accepted with probability confidence ** bend."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(0, 1, forwards)
    return {"c": c, "y": rng.uniform(0, 1, forwards) < c**bend}


def one_node_trees(sample: dict[str, Any], key: str) -> Drafts:
    return drafts([{"parents": [0], "confidence": [c], "path": [1] * int(y)}
                   for c, y in zip(sample["c"], sample["y"], strict=True)], key)  # fmt: skip


def test_fits_are_those_computed_node_by_node() -> None:
    sample = simulated(2.0, seed=1)
    c, y = sample["c"], sample["y"].astype(float)
    calibration = summed(one_node_trees(sample, "k")).assign(query="q")
    fits = {f["at"]: f["value"] for f in acceptance.fits_of(calibration[calibration["kind"] == "calibration"])}
    assert fits["slope"] == pytest.approx(np.polyfit(c, y, 1)[0])
    bins = np.minimum((c * 20).astype(int), 19)
    gaps = {b: abs(y[bins == b].mean() - c[bins == b].mean()) for b in set(bins.tolist())}
    assert fits["ece"] == pytest.approx(sum(gap * np.mean(bins == b) for b, gap in gaps.items()))
    assert fits["mean_gap"] == pytest.approx(np.mean(list(gaps.values())))


def ledger(bend: float, n: int = 30) -> tuple[list[Record], dict[str, Drafts]]:
    records = [measured("eagle2", i, [1] * 4) for i in range(n)]
    return records, {r["key"]: one_node_trees(simulated(bend, seed=i), r["key"]) for i, r in enumerate(records)}


def fitted(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["kind"] == "fit") & (table["outputs"] == acceptance.ALL)].set_index("at")


def test_an_honest_draft_is_found_calibrated_and_a_boastful_one_is_not() -> None:
    honest, boastful = (fitted(numbers_of(*ledger(bend))) for bend in (1.0, 3.0))
    assert honest["value_low"]["slope"] < 1 < honest["value_high"]["slope"] and honest["value"]["ece"] < 0.02
    assert boastful["value_low"]["ece"] > 0.1


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_its_columns_tasks_pooled_and_loops_apart() -> None:
    records: list[Record] = []
    for task in ("gsm8k", "alpaca"):
        for i in range(6):
            records.append(measured("vanilla", i, [0] * 3, task=task))
            records.append(measured("eagle2", i, [1] * 3, task=task, looped=task == "alpaca" and i < 2))
    kept = {r["key"]: drafts([FIGURE_5 | {"path": [1]}] * 3, r["key"]) for r in records if r["method"] == "eagle2"}
    table = numbers_of(records, kept)
    named = {"model", "temperature", "method", "preset", "options", "head", "code", "task", "source", "outputs", "kind", "at"}
    numbers = {"low", "high", "n", "accepted", "value", "value_low", "value_high", "mean_confidence", "queries", "variance",
               "chance_variance", "generations", "forwards"}  # fmt: skip
    assert named | numbers <= set(table.columns) and not table.duplicated([*named]).any()
    p1 = table[(table["kind"] == "position") & (table["at"] == "P1")].set_index(["task", "outputs"])
    assert p1["n"].to_dict() == {("gsm8k", "all"): 18, ("gsm8k", "no loops"): 18, ("alpaca", "all"): 18,
                                 ("alpaca", "no loops"): 12, ("all", "all"): 36, ("all", "no loops"): 30}  # fmt: skip
    assert p1["queries"]["all", "all"] == 12 and p1["forwards"]["all", "no loops"] == 30
    report = markdown(acceptance_table(acceptance.by_arm(records, acceptance.counted(kept.values()))))
    assert "P6" in report and "| eagle2 |" in report


def test_trees_of_a_generation_that_failed_later_count_for_nothing() -> None:
    failed = {**measured("eagle2", 0, [1] * 9), "key": "k", "status": "error", "wall_s": None}
    kept = {"k": drafts([FIGURE_5 | {"path": [1]}])}
    assert numbers_of([cast(Record, failed)], kept).empty
    whole = cast(Record, {**measured("eagle2", 1, [1] * 9), "key": "k2"})
    table = numbers_of([cast(Record, failed), whole], {**kept, "k2": drafts([FIGURE_5 | {"path": [1]}], "k2")})
    assert set(table["generations"]) == {1}


def test_the_variance_within_a_position_is_between_conversations() -> None:
    records = [measured("eagle2", i, [1] * 4) for i in range(6)]
    kept = {r["key"]: drafts([FIGURE_5 | {"path": [1] if i % 2 else []}] * 4, r["key"]) for i, r in enumerate(records)}
    table = numbers_of(records, kept)
    row = table[(table["kind"] == "position") & (table["at"] == "P1") & (table["outputs"] == "all")].iloc[0]
    assert row["value"] == 0.5 and row["variance"] == pytest.approx(np.var([0, 1] * 3, ddof=1))
    assert row["chance_variance"] == pytest.approx(0.25 / 4)


@pytest.mark.parametrize(("units", "known"), [(4, False), (5, True)])
def test_an_interval_needs_five_conversations(units: int, known: bool) -> None:
    table = numbers_of(*ledger(1.0, n=units))
    assert table["value_low"].notna().any() == known


def test_intervals_of_rates_cover_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        p = np.clip(rng.normal(0.6, 0.15, 20), 0.02, 0.98)  # queries differ, as within a position
        n = rng.integers(5, 40, 20).astype(float)
        low, high = acceptance.rate_interval(n, rng.binomial(n.astype(int), p).astype(float)) or (0.0, 0.0)
        covered += low <= 0.6 <= high
    assert 0.90 < covered / 400 < 0.985


def test_a_ledger_without_trees_has_no_such_table(tmp_path: Path) -> None:
    assert "acceptance" not in {path.stem for path in write_tables(FOLDER, tmp_path)}
    assert numbers_of(read(FOLDER), {}).empty


# ---- the figures ----------------------------------------------------------------------------------------------------


def tree(path: list[int], **columns: Any) -> DraftedTree:
    drawn = {**FIGURE_5, **columns}
    return DraftedTree(list(range(len(drawn["parents"]))), drawn["parents"], drawn["confidence"], path, False)


def test_figures_5_and_6_and_n_alpha_are_drawn_from_the_files_with_their_numbers(tmp_path: Path) -> None:
    static, chain = ([measured(m, i, [1, 0, 2]) for i in range(5)] for m in ("eagle1", "eagle2"))
    folder = write_ledger(tmp_path, static + chain)
    store = TreeStore(folder, str)
    for r in static:
        store.add(r["cell"], r["key"], r["token_ids"], [tree([1]), tree([]), tree([2, 6])])
    line = {"parents": [0, 1, 2], "confidence": [0.9, 0.8, 0.7]}
    for r in chain:
        store.add(r["cell"], r["key"], r["token_ids"], [tree([1], **line), tree([], **line), tree([1, 2], **line)])
    drawn = {path.name.split("_toy")[0]: pd.read_csv(path) for path in write_plots(folder) if path.suffix == ".csv"}
    assert {"positions", "calibration", "n_alpha"} <= drawn.keys()
    positions = drawn["positions"]
    assert set(positions["method"]) == {"eagle1"} and len(positions) == 6 * 5  # a chain has not all six positions
    rates = positions.groupby("position")["rate"].mean()
    assert rates.to_dict() == pytest.approx({"P1": 1 / 3, "P2": 1 / 3, "P3": 0, "P4": 0, "P5": 1 / 3, "P6": 0})
    alpha = drawn["n_alpha"]
    assert set(alpha["method"]) == {"eagle2"} and alpha["rate"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    binned = drawn["calibration"].set_index(["method", "bin"])
    # 0.9 is tried in every forward, 0.8 where it was accepted, 0.7 where both were
    assert binned.loc["eagle2"][["n", "accepted"]].to_dict("index") == {
        18: {"n": 15, "accepted": 10}, 16: {"n": 10, "accepted": 5}, 14: {"n": 5, "accepted": 0}
    }  # fmt: skip
