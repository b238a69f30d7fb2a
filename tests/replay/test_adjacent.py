"""Adaptive trees against fixed ones of their size: the control on made-up replays, tables, and what pixels say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from places import ROOT, TINY

from harness.common.errors import UserError
from harness.forms.figure import png_bytes
from harness.replay.adjacent import Compared, Setting, adjacency_table, adjusted, equal_tree, fastest
from harness.replay.mosaics import by_kind, first_pixel, kinds_of_pixels, map_of, mosaics, region_table, steps_of_pixels
from harness.replay.price import prices_named
from harness.replay.record import Replay
from harness.show.mosaic import SIDE, UNKNOWN

SHAPE = {"top_k": 10, "depth": 6, "total": 59}
BOUNDS = {"least_top_k": 1, "most_top_k": 4, "least_depth": 1, "most_depth": 8}
ADAPTIVE = {"adjacency": "above", "step": "one", "beta": 0.5, **BOUNDS, **SHAPE}
PRICE = prices_named(["call=0.1,verify=1.3"])["call=0.1,verify=1.3"]


def replay(steps: list[tuple[int, int, list[int]]], method: str = "adt", sample: str = "a", **changes: Any) -> Replay:
    """steps: (accepted, nodes, rows of each call)."""
    accepted, sizes, calls = (list(column) for column in zip(*steps, strict=True)) if steps else ([], [], [])
    made = {
        "answer": f"answer-{sample}", "model": "digits-mosaic", "target_id": "t", "head_id": "h", "dtype": "bfloat16",
        "method": method, "preset": "paper", "options": ADAPTIVE if method == "adt" else SHAPE, "code_sha": "c",
        "task": "digits", "source": "bundled", "sample_id": sample, "turn": 1, "repeat": 0, "temperature": 0.0, "top_p": 1.0,
        "max_new_tokens": 769, "n_prompt": 257, "tokens": 1 + sum(accepted) + len(accepted), "accepted": accepted,
        "sizes": sizes, "calls": calls, "asked": 0, "lacking": 0,
    }  # fmt: skip
    return Replay(**made | changes)


def steps_of(top_k: int, depth: int, total: int) -> tuple[int, int, list[int]]:
    """A step of EAGLE-2's, with nothing accepted."""
    return 0, min(total, top_k + (depth - 1) * top_k**2), [1] + [top_k] * (depth - 1)


# ---- the fixed tree of the same size ----


@pytest.mark.parametrize("shape", [(10, 6, 59), (4, 3, 8), (1, 5, 5), (3, 1, 3), (1, 1, 1), (2, 16, 20)])
def test_the_fixed_tree_of_a_fixed_trees_size_is_itself(shape: tuple[int, int, int]) -> None:
    found = equal_tree([replay([steps_of(*shape)] * 3), replay([steps_of(*shape)] * 2, sample="b")])
    assert tuple(found.values()) == shape and list(found) == ["top_k", "depth", "total"]


def test_means_are_over_steps_and_the_nearest_is_found() -> None:
    # by steps: (30 + 30 + 12) / 3 = 24 nodes, (6 + 6 + 3) / 3 = 5 calls, (21 + 21 + 9) / 3 = 17 rows: the root's, and 4 a level
    one = replay([(0, 30, [1, 4, 4, 4, 4, 4]), (0, 30, [1, 4, 4, 4, 4, 4])])
    other = replay([(0, 12, [1, 4, 4])], sample="b")
    assert equal_tree([one, other]) == {"top_k": 4, "depth": 5, "total": 24}
    # by replays it would have been 21 nodes and 4.5 calls
    assert equal_tree([other]) == {"top_k": 4, "depth": 3, "total": 12}
    # 7.4 nodes are nearer to 7 than to 8, 2.4 calls to 2, and 5.2 rows to the root's and a level of 4
    mixed = replay([(0, 7, [1, 3])] * 3 + [(0, 8, [1, 3, 3])] * 2)
    assert equal_tree([mixed]) == {"top_k": 4, "depth": 2, "total": 7}


def test_nodes_come_before_calls_where_a_shape_cannot_have_both() -> None:
    # 13 nodes in 1.4 calls: one level holds 10 children only, so that two are drafted
    found = equal_tree([replay([(0, 10, [1])] * 3 + [(0, 17, [1, 3])] * 3 + [(0, 12, [1])] * 3)])
    assert (found["depth"], found["total"]) == (2, 13)


def test_of_a_width_that_is_given_the_nearest_is_found() -> None:
    own = [replay([(0, 30, [1, 4, 4, 4, 4, 4])] * 2 + [(0, 12, [1, 4, 4])])]
    assert equal_tree(own, 10) == {"top_k": 10, "depth": 5, "total": 24}
    assert equal_tree(own, 1) == {"top_k": 1, "depth": 6, "total": 24}  # a chain of 6 is as near as it comes in nodes


def test_no_step_has_no_size() -> None:
    for none in ([], [replay([])]):
        with pytest.raises(UserError, match="no step was replayed"):
            equal_tree(none)


# ---- choosing, and the table ----


def test_the_fastest_options_are_by_tokens_over_their_price() -> None:
    quick, slow = ADAPTIVE | {"beta": 0.3}, ADAPTIVE | {"beta": 0.7}
    steps = {0.3: [(2, 4, [1, 2])] * 4, 0.7: [(3, 40, [1, 4, 4, 4, 4, 4])] * 3}  # 12 tokens each
    own = [replay(steps[o["beta"]], options=o, sample=s) for o in (slow, quick) for s in "ab"]
    assert fastest(own, PRICE) == quick
    cheap = prices_named(["call=0,verify=1"])["call=0,verify=1"]
    assert fastest(own, cheap) == slow  # fewer steps
    with pytest.raises(UserError, match="no replays"):
        fastest([], PRICE)


def a_setting(n: int = 8) -> Setting:
    """`above` accepts more than the round before and than its control, in each of n pictures; by how much differs."""

    def arm(accepted: int, method: str = "adt", **options: Any) -> list[Replay]:
        rows = []
        for i in range(n):
            steps = [(accepted, 12, [1, 3, 3, 3])] * (5 + i) + [(accepted - 1, 12, [1, 3, 3, 3])] * (i % 3)
            base = ADAPTIVE if method == "adt" else SHAPE
            rows.append(replay(steps, method, sample=str(i), options=base | options))
        return rows

    equal = arm(2, "eagle2", top_k=3, depth=4, total=12)
    compared = [
        Compared("above", "one", arm(3), equal),
        Compared("previous-round", "one", arm(2, adjacency="previous-round"), equal),
        Compared("none", "", arm(1, adjacency="none"), equal),
    ]
    return Setting(0.0, PRICE, compared, arm(3, "eagle2"), equal, 4)


def test_the_table_answers_the_question_with_intervals_and_holm() -> None:
    s = a_setting()
    table = adjacency_table([s])
    (section,) = table.sections
    assert section.facts == ("8 conversations; intervals over them", "costs: call=0.1,verify=1.3; options chosen on 4 others")
    rows = section.shown.set_index("adjacency")
    assert list(rows.index) == ["EAGLE-2", "fixed tree of a grid", "above", "previous-round", "none"]
    assert rows.loc["EAGLE-2", "setting"] == "10/6/59" and rows.loc["none", "setting"] == "10/6/59"
    assert rows.loc["above", "the same size"] == "3/4/12: 12.0 nodes, 4.00 calls"
    numbers = table.numbers.set_index(["adjacency", "statistic"])
    over = numbers.loc[("above", "over fixed tree of the same size")]
    tokens = [np.array([sum(a + 1 for a in r.accepted) for r in own]).sum() for own in (s.compared[0].replays, s.grid)]
    assert over.value == pytest.approx(tokens[0] / tokens[1])  # steps and their prices are the same
    assert over.value_low > 1 and over.p < 0.05
    assert numbers.loc[("previous-round", "over fixed tree of the same size")].value == pytest.approx(1.0)
    above, own, before = section.conclusions
    assert above.startswith("above over previous-round (one): 1.3") and above.endswith("; faster (p = 0.000).")
    assert own.endswith("; faster (p = 0.000).") and own.startswith("above, one over the fixed tree of the same size")
    assert before.endswith("1.000; no conversation differs from another: no test.")
    ps = adjusted([s.over(c.replays, c.equal) for c in s.compared])
    raw = s.over(s.compared[0].replays, s.compared[0].equal).spread.p_above(1.0)  # type: ignore[union-attr]
    assert ps[0] == pytest.approx(2 * raw, rel=1e-6, abs=0) and ps[2] == pytest.approx(1.0)  # the lesser of two tests
    assert ps[1] is None  # in each picture the same as its control: nothing to test on


def test_with_few_pictures_nothing_is_said_to_be_shown() -> None:
    (section,) = adjacency_table([a_setting(3)]).sections
    assert all("too few conversations to say" in line for line in section.conclusions)
    assert set(section.shown["p"]) == {"—"}


# ---- pixels ----


def test_steps_lie_on_the_pixels_that_they_made() -> None:
    r = replay([(2, 5, [1, 2]), (0, 4, [1]), (1, 3, [1])])
    step, right = steps_of_pixels(r)
    # pixels 0 to 255 are given, 256 is the prefill's, 257 the first that a step drafts
    assert first_pixel(r) == 257
    assert step[255:264].tolist() == [-1, -1, 0, 0, 0, 1, 2, 2, -1] and (step < 0).sum() == SIDE * SIDE - 6
    assert right[257:263].tolist() == [True, True, False, False, True, False] and right.sum() == 3
    values = map_of(r, r.sizes)
    assert values.shape == (SIDE, SIDE) and np.isnan(values[:8]).all() and np.isnan(values[8, 0])
    assert values[8, 1:7].tolist() == [5, 5, 5, 4, 3, 3]


def test_what_is_beyond_the_answer_or_the_picture_is_no_pixel() -> None:
    cut = replay([(4, 5, [1, 2])], tokens=4)  # two of the step's five tokens are beyond the budget
    assert steps_of_pixels(cut)[0][257:261].tolist() == [0, 0, 0, -1] and steps_of_pixels(cut)[1].sum() == 3
    whole = replay([(7, 8, [1])] * 96)  # 768 tokens from pixel 257 on: the last is EOS, beyond the picture
    step, right = steps_of_pixels(whole)
    assert step[-1] == 95 and (step[257:] >= 0).all() and right[257:].mean() == pytest.approx(672 / 767)


def a_picture() -> np.ndarray:
    """Row of cells 1: blank, plain, noisy, and a cell that is not whole."""
    rng = np.random.default_rng(0)
    levels = np.zeros((SIDE, SIDE), dtype=np.int64)
    levels[8:16, 8:16] = 7
    levels[8:16, 16:24] = rng.integers(1, 17, (8, 8))
    levels[8:16, 24:] = UNKNOWN
    return levels


def test_kinds_are_of_the_cell_of_each_pixel() -> None:
    kinds = kinds_of_pixels(a_picture()).reshape(SIDE, SIDE)
    assert set(kinds[8:16, :8].flatten()) == {"blank"} and set(kinds[8:16, 8:16].flatten()) == {"plain"}
    assert set(kinds[8:16, 16:24].flatten()) == {"noisy"} and set(kinds[8:16, 24:].flatten()) == {""}


def test_steps_count_where_they_begin_and_pixels_where_they_lie() -> None:
    # from pixel 257 (row 8, column 1): 3 tokens in blank; 6 from column 4, two of them in plain; 8 in plain from column 10
    r = replay([(2, 5, [1, 2]), (5, 6, [1, 2, 2]), (7, 9, [1])])
    found = by_kind([r], {"answer-a": a_picture()})
    blank, plain = found["blank", "a"], found["plain", "a"]
    # made, drafted right, steps, tokens, nodes, calls
    assert blank.tolist() == [7, 6, 2, 9, 11, 5]
    assert plain.tolist() == [8, 7, 1, 8, 9, 1]  # 2 of the second step, 6 of the third; 2 lie in noisy, where none began
    assert set(found) == {("blank", "a"), ("plain", "a")}
    with pytest.raises(UserError, match="its picture is not here"):
        by_kind([r], {})


def test_regions_are_a_row_a_kind_and_method() -> None:
    own = [replay([(2, 5, [1, 2]), (5, 6, [1, 2, 2]), (7, 9, [1])], sample=s) for s in "abcdef"]
    table = region_table({0.0: {"above": own, "EAGLE-2": own}}, {f"answer-{s}": a_picture() for s in "abcdef"}, "some costs")
    (section,) = table.sections
    assert list(zip(section.shown["cell"], section.shown["method"], strict=True)) == [
        (cell, method) for cell in ("blank", "plain") for method in ("above", "EAGLE-2")
    ]
    assert section.shown["tau"][0] == "4.50 [4.50, 4.50]" and section.shown["drafted right"][0] == "85.7%"


def test_a_picture_of_mosaics_has_a_row_a_map_and_the_same_bytes_again() -> None:
    r = replay([(2, 5, [1, 2]), (5, 6, [1, 2, 2])])
    pictures, maps = [a_picture()] * 2, {"accepted": [map_of(r, r.accepted)] * 2, "nodes": [map_of(r, r.sizes)] * 2}
    made = mosaics(pictures, maps)
    assert len(made.axes) == 3 * (2 + 1)  # and a bar beside each row
    shown = [ax.images[0].get_array() for ax in made.axes if ax.images]
    assert np.isnan(np.ma.filled(shown[0].astype(float), np.nan)[8:16, 24:]).all()
    assert np.ma.filled(shown[2].astype(float), np.nan)[8, 1:9].tolist() == [2, 2, 2, 5, 5, 5, 5, 5]
    assert png_bytes(mosaics(pictures, maps)) == png_bytes(mosaics(pictures, maps))


@pytest.mark.slow
def test_the_script_goes_from_answers_to_tables_on_any_model(tmp_path: Path) -> None:
    """Of the tiny model's texts, as if they were pictures: chosen on one conversation, told of the two others."""
    words = f"--model {TINY} --task mt_bench --limit 3 --choose-on 1 --max-new-tokens 10 --few --out {tmp_path}"
    made = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "adjacent_trees.py"), *words.split()], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    numbers = pd.read_csv(tmp_path / "tables" / "adjacent-trees.csv")
    assert set(numbers["temperature"]) == {0, 1} and numbers["costs"].nunique() == 3
    assert {"left", "above", "both", "diagonal", "previous-round", "random", "none"} < set(numbers["adjacency"])
    chosen_on = {json.loads(line)["sample_id"] for line in (tmp_path / "choosing" / "replays.jsonl").read_text().splitlines()}
    assert len(chosen_on) == 1 and set(numbers["conversations"]) == {2}
