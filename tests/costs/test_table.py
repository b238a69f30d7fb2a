"""A table of costs: figures with intervals, what lies between two that were measured, and the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_costs import at, figure, table

from harness.common.errors import UserError
from harness.costs.table import Figure, Sum, as_json, read


@pytest.mark.parametrize(("n", "beyond"), [(1, 0), (3, 0), (5, 0), (9, 1), (25, 7)])
def test_an_interval_is_of_order_statistics(n: int, beyond: int) -> None:
    found = Figure.of([float(i) for i in range(n)])
    assert found == (found.ms, beyond, n - 1 - beyond) and found.ms == (n - 1) / 2


def test_variances_of_parts_add_up() -> None:
    found = Sum.of([Figure(1, 1 - 1.96, 1 + 1.96), Figure(2, 2 - 2 * 1.96, 2 + 2 * 1.96)])
    assert found.ms == 3 and found.variance == pytest.approx(5) and Sum.of([]) == (0, 0)
    twice = Sum.of([Figure(1, 1 - 1.96, 1 + 1.96)] * 2)  # one measurement, which errs the same both times
    assert twice.ms == 2 and twice.variance == pytest.approx(4)


def test_costs_between_two_that_were_measured_lie_on_the_line_through_both() -> None:
    t = table(at(100), at(300, plain=14))
    assert t.verify(16, 100).ms == 12 and t.verify(38, 100).ms == pytest.approx(16)
    assert t.verify(104, 100).ms == pytest.approx(28)  # beyond the last it goes on as between the last two
    assert t.plain(200).ms == pytest.approx(12) and t.plain(5).ms == 10 and t.plain(500).ms == pytest.approx(18)
    falling = table(at(100, verify={1: figure(10), 8: figure(9)}))
    assert falling.verify(80, 100).ms == 9  # and never under it
    assert t.observe(2.5, 100).ms == pytest.approx(1.15) and t.level(10, 250).low == pytest.approx(1.8)
    assert t.has("eagle") and not t.has("lm") and not t.is_scaled


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file, t = tmp_path / "a.json", table(at(100), at(300), frequent=8192)
    file.write_text(as_json(t), encoding="utf-8")
    assert as_json(read(file)) == as_json(t) and read(file).contexts[1].verify[60].ms == 20 and read(file).frequent == 8192


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layers_measured": 0}, "layers_measured: Input should be greater than or equal to 1"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"contexts": []}, "contexts"),
        ({"machine": {"cpu": "a CPU", "threads": 2, "dtype": "bfloat16", "engine": "lean", "mode": "magic"}}, "machine.mode"),
        ({"outside": {"plain": -1}}, "outside.plain"),
    ],
)
def test_a_file_that_is_no_table_is_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(json.loads(as_json(table())) | change), encoding="utf-8")
    with pytest.raises(UserError, match=f"is no table of costs that `harness costs` writes: {why}"):
        read(file)


@pytest.mark.parametrize("spoilt", [[0, 0, 0], [1, 2, 3], [float("nan"), 1, 2], [-1, -2, 3], [1, 1], "x"])
def test_a_figure_that_cannot_be_is_refused(spoilt: Any, tmp_path: Path) -> None:
    value = json.loads(as_json(table()))
    value["contexts"][0]["plain"] = spoilt
    file = tmp_path / "a.json"
    file.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match=r"contexts\.0\.plain"):
        read(file)


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match="is no table of costs"):
        read(tmp_path / "a.json")
