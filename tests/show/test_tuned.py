"""The table of tuned options: what was predicted and raced, against what was measured on the tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import harness, isolate, run
from made_up_records import measured
from make_ledger import ENV
from places import TINY

from harness.common.names import SIX_TASKS
from harness.forms.table import markdown
from harness.ledger.record import Record
from harness.ledger.tuned_presets import Entry, Key, save
from harness.load.config import model_config
from harness.load.engine import expected_engine
from harness.metrics.cells import summarise
from harness.run import tuned
from harness.show.tables.tuned import tuned_table

OPTIONS = {"depth": 2, "total": 5}
KEY = Key("toy", "t", "ab", "eagle2", 0.0, "float32", 2, ENV["cpu"], "lean")
ENTRY = Entry(
    KEY, OPTIONS, {"tau": 2.1, "speedup": 1.5, "tau_ci95": [2.0, 2.2], "speedup_ci95": None, "conversations": 6},
    {"tau": 2.4, "speedup": 2.0, "conversations": 5},
)  # fmt: skip
MACHINE = f"{ENV['cpu']}, no GPU, 2 cores"


def records(tasks: tuple[str, ...] = SIX_TASKS, **changes: Any) -> list[Record]:
    """Every prompt 2 tokens a step; 20 tokens of vanilla take 4 s after the prefill, of the method 2.5 s: 1.6 times as fast."""
    found = []
    for task in tasks:
        for i in range(5):
            where: dict[str, Any] = {"task": task, "machine": MACHINE, "target_parts": {"engine": "lean"}, **changes}
            found.append(measured("vanilla", i, [1] * 10, 4.1, **where))
            found.append(measured("eagle2", i, [1] * 10, 2.6, preset="tuned", options=OPTIONS, **where))
    return found


def test_each_figure_stands_beside_what_was_measured_with_its_error() -> None:
    table = tuned_table(summarise(records()), [ENTRY])
    (section,) = table.sections
    (row,) = section.shown.to_dict("records")
    assert row == {
        "method": "eagle2 (tuned)", "τ predicted": "2.40 (+20.0%)", "τ raced": "2.10 (+5.0%)", "τ measured": "2.00",
        "cost predicted": "1.20 (-4.0%)", "cost raced": "1.40 (+12.0%)", "cost measured": "1.25",
        "decode predicted": "2.00× (+25.0%)", "decode raced": "1.50× (-6.2%)", "decode measured": "1.60×", "tasks": "6",
    }  # fmt: skip
    assert section.conclusions == (
        "Decode speedups as predicted: 0 of 1 within 5% of the six-task mean; furthest off is eagle2 (tuned), by +25.0%.",
        "Decode speedups as raced: 0 of 1 within 5% of the six-task mean; furthest off is eagle2 (tuned), by -6.2%.",
    )
    (numbers,) = table.numbers.to_dict("records")
    assert numbers["raced_decode_speedup_off"] == pytest.approx(1.5 / 1.6 - 1) and numbers["measured_cost"] == pytest.approx(1.25)
    assert (numbers["raced_tau_low"], numbers["raced_tau_high"], numbers["raced_decode_speedup_low"]) == (2.0, 2.2, None)
    close = replace(ENTRY, raced=ENTRY.raced | {"speedup": 1.62})
    assert "as raced: 1 of 1 within 5%" in markdown(tuned_table(summarise(records()), [close]))


def test_a_mean_of_fewer_tasks_is_not_called_that_of_six() -> None:
    (section,) = tuned_table(summarise(records(("gsm8k", "alpaca"))), [ENTRY]).sections
    assert section.shown["tasks"].tolist() == ["2"] and "of the mean over the tasks measured" in section.conclusions[0]


@pytest.mark.parametrize(
    "change", [{"engine": "native avx2"}, {"threads": 1}, {"machine": "Another CPU"}, {"dtype": "bfloat16"}, {"temperature": 1.0}]
)
def test_an_entry_of_anything_else_is_not_held_against_what_was_measured(change: dict[str, Any]) -> None:
    other = replace(ENTRY, key=replace(KEY, **change))
    assert not tuned_table(summarise(records()), [other]).sections
    assert not tuned_table(summarise(records()), [replace(ENTRY, options={"depth": 3, "total": 5})]).sections
    assert not tuned_table(summarise(records(target_parts={})), [ENTRY]).sections  # nobody knows which engine ran
    assert not tuned_table(summarise(records()), []).sections


def test_a_ledger_of_tuned_options_has_the_table_and_another_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    config = model_config(str(TINY))
    key = tuned.tuned_key(config, "pld", None, temperature=0.0, dtype="float32", threads=1)
    figures = {"tau": 2.0, "speedup": 1.5}
    save(Entry(replace(key, engine=expected_engine(config, "float32")), {"max_ngram": 2, "n_draft": 3}, figures, figures),
         tuned.found_here())  # fmt: skip
    for name, preset, has in (("a", "tuned", True), ("b", "paper", False)):
        assert run(tmp_path / name, f"--method pld --task gsm8k --preset {preset}").code == 0
        assert harness("table --results", tmp_path / name).code == 0
        assert (tmp_path / name / "tables" / "tuned.md").exists() == has
    assert "| pld (tuned) | 2.00 (" in (tmp_path / "a" / "tables" / "tuned.md").read_text()
