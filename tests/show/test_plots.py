"""Figures: one per setting and question, the numbers drawn beside each, the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_ledger import write_ledger
from made_up_records import measured, unmeasured
from make_ledger import FOLDER
from matplotlib.figure import Figure

from harness.common.errors import UserError
from harness.common.names import SIX_TASKS
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.metrics.cells import summarise
from harness.metrics.pairing import setting_of
from harness.show.plots import draw as plots
from harness.show.plots.all import _file_names, write_plots
from harness.show.tables.paired import paired_table

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plots")
    paths = write_plots(FOLDER, out)
    assert sorted(paths) == sorted(out.iterdir())
    return out


def numbers(folder: Path, figure: str) -> pd.DataFrame:
    (path,) = folder.glob(f"{figure}_*.csv")
    return pd.read_csv(path)


def test_each_setting_has_its_figures_as_png_pdf_and_csv(drawn: Path) -> None:
    greedy = {f"{figure}_toy_T0_float32" for figure in ("speedup", "tau", "acceptance", "time", "ablations")}
    sampled = {f"{figure}_toy_T1_float32" for figure in ("speedup", "tau", "acceptance", "time")}  # no ablation at T = 1
    assert {path.stem for path in drawn.iterdir()} == greedy | sampled
    for stem in greedy | sampled:
        assert (drawn / f"{stem}.png").read_bytes().startswith(PNG)
        assert (drawn / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(drawn / f"{stem}.csv")) > 0


def test_drawing_again_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    for path in write_plots(FOLDER, tmp_path):
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


def test_the_numbers_beside_a_figure_are_the_summaries(drawn: Path) -> None:
    cells = {(s.method, s.preset, s.task): s for s in summarise(read(FOLDER)) if s.temperature == 0}
    for figure in ("speedup", "tau"):
        data = pd.read_csv(drawn / f"{figure}_toy_T0_float32.csv")
        assert "vanilla" not in set(data["method"])  # it is the line at 1
        assert not data[figure].isna().any()
        for row in data[data["task"] != "six-task mean"].itertuples():
            cell = cells[str(row.method), str(row.preset), str(row.task)]
            assert getattr(row, figure) == pytest.approx(getattr(cell, figure))
            assert (row.low, row.high) == pytest.approx(getattr(cell, f"{figure}_ci95"))


def test_the_mean_over_tasks_has_the_interval_of_its_value(drawn: Path) -> None:
    for figure in ("speedup", "tau"):
        data = pd.read_csv(drawn / f"{figure}_toy_T0_float32.csv")
        mean = data[(data["task"] == "six-task mean") & (data["method"] == "eagle2")].iloc[0]
        tasks = data[(data["method"] == mean["method"]) & (data["preset"] == mean["preset"]) & data["low"].notna()].iloc[:-1]
        assert mean["low"] < mean[figure] < mean["high"]
        assert mean["high"] - mean["low"] < (tasks["high"] - tasks["low"]).mean()  # six times the prompts


def test_many_arms_have_a_row_each_and_the_paper_s_options_stand_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: dict[str, Figure] = {}

    def keep(figure: Figure, stem: Path, suffixes: Any) -> list[Path]:
        figures.setdefault(stem.name.split("_")[0], figure)
        return []

    monkeypatch.setattr(plots, "save_figure", keep)
    monkeypatch.setattr(plots, "MANY", 1)
    write_plots(FOLDER, tmp_path)
    data = numbers_at(tmp_path, "speedup_toy_T0_float32")
    axes = figures["speedup"].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(dict.fromkeys(data["label"]))
    marks = {line.get_label(): line for line in axes.get_lines()}
    mean = data[data["task"] == "six-task mean"]
    assert list(marks["six-task mean"].get_xdata()) == pytest.approx(mean["speedup"].tolist())
    shown = {text.get_text().split(",")[0] for text in figures["acceptance"].legends[0].get_texts()} - {"too few for an interval"}
    every = set(numbers_at(tmp_path, "acceptance_toy_T0_float32")["label"])
    assert shown < every and not any("(" in name for name in shown)


def numbers_at(folder: Path, stem: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{stem}.csv")


def test_ablations_show_the_paired_differences_of_the_table(drawn: Path) -> None:
    data = pd.read_csv(drawn / "ablations_toy_T0_float32.csv")
    table = paired_table(read(FOLDER))
    table = table[table["against"] == "eagle2-no-value"]
    assert data["task"].tolist() == [*SIX_TASKS, "six-task mean"]
    assert data["tau_difference"].tolist() == pytest.approx(table["tau_difference"].tolist())
    assert data["low"].tolist() == pytest.approx(table["tau_difference_low"].tolist())


def test_the_parts_of_the_time_add_up_to_the_slowdown(drawn: Path) -> None:
    data = pd.read_csv(drawn / "time_toy_T1_float32.csv").set_index("method")
    totals = data[["draft", "verify", "prefill", "other", "untraced"]].sum(axis=1)
    (cell,) = [s for s in summarise(read(FOLDER)) if s.temperature == 1 and s.method == "eagle2"]
    assert totals["vanilla"] == pytest.approx(1) and totals["eagle2"] == pytest.approx(1 / (cell.speedup or 0))
    untraced = pd.read_csv(drawn / "time_toy_T0_float32.csv").set_index("method").loc["hf-generate"]
    assert untraced["untraced"] > 0 and untraced["verify"] == 0


def test_acceptance_says_how_many_forwards_each_point_rests_on(drawn: Path) -> None:
    data = pd.read_csv(drawn / "acceptance_toy_T0_float32.csv")
    assert data["rate"].tolist() == pytest.approx((data["n_accepted"] / data["n_reached"]).tolist())
    assert set(data["method"]) == {"pld", "eagle1", "eagle2-no-value", "eagle2", "typical"}


def test_without_a_baseline_time_is_in_milliseconds_and_there_is_no_speedup(tmp_path: Path) -> None:
    folder = write_ledger(tmp_path, [measured("eagle2", i, [1, 1]) for i in range(5)])
    names = {path.name.split("_")[0] for path in write_plots(folder)}
    assert names == {"tau", "acceptance", "time"}
    data = numbers(folder / "plots", "time")
    assert data["unit"].tolist() == ["ms"]
    assert data[["draft", "verify", "prefill", "other"]].iloc[0].sum() == pytest.approx(1000 / 5)


@pytest.mark.parametrize(
    ("records", "figures"),
    [
        ([unmeasured("eagle2", 0, "error")], set()),
        ([measured("vanilla", 0, [0])], {"time"}),
        ([measured("vanilla", 0, [0]), measured("eagle2", 0, [0])], {"speedup", "tau", "time"}),  # nothing ever accepted
        ([measured("hf-generate", 0, [0], trace=None)], {"time"}),
        ([measured("eagle2", 0, [])], {"time"}),
        ([measured("vanilla", 0, [0], task="my_task"), measured("pld", 0, [1], task="my_task", preset="fast")],
         {"speedup", "tau", "acceptance", "time"}),
    ],
)  # fmt: skip
def test_what_was_not_measured_is_not_drawn(tmp_path: Path, records: list[Record], figures: set[str]) -> None:
    paths = write_plots(write_ledger(tmp_path, records))
    assert {path.name.split("_")[0] for path in paths} == figures


def test_methods_nobody_has_seen_are_drawn_too(tmp_path: Path) -> None:
    records = [measured("vanilla", i, [0] * 3) for i in range(5)]
    for method in ("mine", "yours"):
        for preset in ("paper", "fast"):
            records += [measured("eagle2", i, [1], method=method, preset=preset) for i in range(5)]
    write_plots(write_ledger(tmp_path, records))
    data = numbers(tmp_path / "plots", "speedup")
    assert data["label"].tolist() == ["mine", "mine (fast)", "yours", "yours (fast)"]


@pytest.mark.parametrize(
    ("change", "ending"),
    [({"max_new_tokens": 99}, "_99tokens"), ({"threads": 4}, "_4threads"), ({"seed": 3}, "_seed3"), ({"top_p": 0.9}, "_p0.9"),
     ({"target_sha": "b" * 64}, "_bbbbbbbb"), ({"machine": "B"}, "_machine1"), ({"temperature": 1.0}, "_T1_float32")],
)  # fmt: skip
def test_settings_that_differ_have_files_of_their_own(change: dict[str, Any], ending: str) -> None:
    names = _file_names([setting_of(measured("eagle2", 0, [1])), setting_of(measured("eagle2", 0, [1], **change))])
    assert len(set(names)) == 2 and names[1].endswith(ending) and names[0].startswith("toy_T0_float32")


def test_a_models_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    paths = write_plots(write_ledger(tmp_path, [measured("vanilla", 0, [0], model="../../odd/na me")]))
    assert {path.parent for path in paths} == {tmp_path / "plots"}
    assert {path.stem for path in paths} == {"time_..-..-odd-na-me_T0_float32"}


def test_a_figure_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to .*out"):
        write_plots(FOLDER, tmp_path / "out")
