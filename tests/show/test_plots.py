"""Figures: one per setting and question, the numbers drawn beside each, the same bytes each time."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_ledger import write_ledger
from made_up_records import measured, unmeasured
from make_ledger import FOLDER
from matplotlib.figure import Figure
from matplotlib.text import Text

from harness.common.errors import UserError
from harness.common.names import SIX_TASKS
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.metrics.cells import summarise
from harness.metrics.pairing import setting_of
from harness.show.plots import all as plots
from harness.show.plots import draw
from harness.show.plots.all import _file_names, write_plots
from harness.show.plots.data import Panel
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


def test_each_setting_has_its_figures_as_png_and_csv(drawn: Path) -> None:
    greedy = {f"{figure}_toy_T0_float32" for figure in ("speedup", "tau", "acceptance", "time", "ablations")}
    sampled = {f"{figure}_toy_T1_float32" for figure in ("speedup", "tau", "acceptance", "time")}  # no ablation at T = 1
    assert {path.stem for path in drawn.iterdir()} == greedy | sampled
    for stem in greedy | sampled:
        assert (drawn / f"{stem}.png").read_bytes().startswith(PNG)
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


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """What is drawn of `FOLDER` at T = 0, by the plot's name, once a test asks `write_plots` for it."""
    kept: dict[str, Figure] = {}

    def kept_plot(plot: plots.LedgerPlot) -> plots.LedgerPlot:
        def keep(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
            plot.draw(figure, data, panel)
            kept.setdefault(plot.name, figure)

        return replace(plot, draw=keep)

    monkeypatch.setattr(plots, "PLOTS", tuple(map(kept_plot, plots.PLOTS)))
    return kept


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_many_methods_have_a_row_each_the_fastest_on_top(
    tmp_path: Path, figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "MANY_BARS", 1)
    write_plots(FOLDER, tmp_path)
    data = numbers_at(tmp_path, "speedup_toy_T0_float32")
    axes = figures["speedup"].axes[0]
    (marks,) = [line for line in axes.get_lines() if line.get_label() == "six-task mean"]
    mean = data[data["task"] == "six-task mean"].sort_values("speedup", ascending=False)
    shown = sorted(zip(marks.get_ydata(), marks.get_xdata(), strict=True), reverse=True)  # from the top
    assert [x for _, x in shown] == pytest.approx(mean["speedup"].tolist())
    assert {tick.get_text() for tick in axes.get_yticklabels()} >= {"EAGLE-2", "EAGLE-2 (depth=4, total=24)", "PLD"}


def test_more_than_six_curves_are_small_multiples_and_six_are_one_picture(
    tmp_path: Path, figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plots(FOLDER, tmp_path)
    n_methods = numbers_at(tmp_path, "acceptance_toy_T0_float32")["label"].nunique()
    together = figures.pop("acceptance")
    assert n_methods == 6 and len(together.axes) == 1
    monkeypatch.setattr(draw, "MANY_CURVES", 5)
    write_plots(FOLDER, tmp_path)
    apart = [ax for ax in figures["acceptance"].axes if ax.axison]
    titles = [ax.get_title(loc="left") for ax in apart]
    assert len(apart) == n_methods and "EAGLE-2 without value" in titles
    firsts = [ax.get_lines()[n_methods].get_ydata()[0] for ax in apart]  # after the others' in grey
    assert firsts == sorted(firsts, reverse=True)


def test_a_legend_names_only_what_is_in_the_picture(tmp_path: Path, figures: dict[str, Figure]) -> None:
    records = [measured(m, i, [a] * 3) for m, a in (("vanilla", 0), ("pld", 1), ("eagle2", 2)) for i in range(5)]
    write_plots(write_ledger(tmp_path, records))
    assert legend_of(figures["tau"]) == ["EAGLE-2", "PLD", "vanilla"]  # no looping outputs, the longest accepts first
    assert "untraced" not in legend_of(figures["time"])


def test_a_picture_of_speeds_says_what_their_signs_in_tables_say(tmp_path: Path, figures: dict[str, Figure]) -> None:
    options = {"top_k": 10, "depth": 6, "total": 59}  # of records from before drafts could be asked to stop early
    records = [measured(m, i, [a] * 3, **({"options": options} if m == "eagle2" else {}))
               for m, a in (("vanilla", 0), ("pld", 1), ("eagle2", 2)) for i in range(5)]  # fmt: skip
    write_plots(write_ledger(tmp_path, records))
    said = {name: figure.legends[0].get_title().get_text().replace("\n", " ") for name, figure in figures.items()}
    assert {name for name, text in said.items() if "EAGLE-2: drafted without the levels" in text} == {"speedup", "time"}
    assert "PLD" not in said["speedup"]


def test_pictures_name_methods_and_tasks_in_words_and_no_hashes(tmp_path: Path, figures: dict[str, Figure]) -> None:
    write_plots(FOLDER, tmp_path)
    for figure in figures.values():
        shown = " ".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())
        assert not re.search(r"eagle2|mt_bench|gsm8k|7a7a7a|4e4e4e", shown), shown
    assert "EAGLE-2" in legend_of(figures["speedup"])
    assert "MT-bench\n(bundled)" in [t.get_text() for t in figures["speedup"].axes[0].get_xticklabels()]


@pytest.mark.parametrize(("n_deep", "has_interval"), [(4, False), (5, True)])
def test_no_interval_is_drawn_from_fewer_than_five_prompts(tmp_path: Path, n_deep: int, has_interval: bool) -> None:
    records = [measured("eagle2", i, [2, 1 + i % 2, 1, 0] if i < n_deep else [0, 0, 0, 0]) for i in range(6)]
    write_plots(write_ledger(tmp_path, records))
    data = numbers(tmp_path / "plots", "acceptance").set_index("depth")
    assert pd.notna(data["low"][1])  # all six reach it
    assert pd.notna(data["low"][2]) is has_interval  # n_deep of them do


def numbers_at(folder: Path, stem: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{stem}.csv")


def test_ablations_show_the_paired_differences_of_the_table(drawn: Path) -> None:
    data = pd.read_csv(drawn / "ablations_toy_T0_float32.csv")
    records = read(FOLDER)
    table = paired_table(records, summarise(records)).numbers
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
    assert {path.stem for path in paths} == {"time__odd_na_me_T0_float32"}


def test_a_name_with_dollars_in_it_is_no_formula(tmp_path: Path) -> None:
    records = [measured(method, 0, [1], model="$\\frac{$", task="$", category="$x_{$") for method in ("vanilla", "eagle2")]
    assert write_plots(write_ledger(tmp_path, records))


def test_a_figure_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to .*out"):
        write_plots(FOLDER, tmp_path / "out")
