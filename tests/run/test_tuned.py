"""The preset `tuned`: found by all that it holds for, the engine included, and kept beside the records it was measured with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import isolate, refused, run
from places import TINY

from harness.common.errors import UserError
from harness.ledger.tuned_presets import Entry, Key, save, stored
from harness.load.config import model_config
from harness.load.engine import expected_engine
from harness.load.model import load
from harness.run import tuned
from methods.engine.native.build import VARIABLE

KEY = Key("tiny", "t", "ab", "eagle2", 0.0, "float32", 1, "Some CPU", "lean")
FIGURES = {"tau": 2.0, "speedup": 1.5}


def test_an_entry_is_found_again_by_all_of_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    file = tmp_path / "shipped.json"
    save(Entry(KEY, {"total": 6}, FIGURES, FIGURES), file)
    assert tuned.lookup(KEY, file).options == {"total": 6}
    for change in ({"machine": "Other CPU"}, {"head": "cd"}, {"threads": 2}, {"dtype": "bfloat16"}, {"temperature": 0.5},
                   {"engine": "native avx2"}):  # fmt: skip
        with pytest.raises(UserError, match=r"there is one for T = 0 in float32, 1 threads, engine lean.*harness tune"):
            tuned.lookup(replace(KEY, **change), file)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("asked", ["native:portable", "torch", "module"])
def test_the_engine_is_known_before_anything_is_loaded(dtype: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, asked)
    config = model_config(str(TINY))
    assert expected_engine(config, dtype) == load(config, dtype, drafters=()).identity.engine


def test_an_engine_that_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "steam")
    with pytest.raises(UserError, match="^cannot tell which engine runs model tiny of .*HARNESS_ENGINE=steam: there is no such"):
        expected_engine(model_config(str(TINY)), "float32")


def test_what_was_tuned_on_another_engine_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    config = model_config(str(TINY))
    key = tuned.tuned_key(config, "pld", None, temperature=0.0, dtype="float32", threads=1)
    options = {"max_ngram": 2, "n_draft": 3}
    save(Entry(replace(key, engine="another"), options, FIGURES, FIGURES), tuned.found_here())
    words = "--method pld --task gsm8k --preset tuned"
    refused(run(tmp_path / "out", words), "no tuned preset of pld", "engine another", "harness tune")
    save(Entry(replace(key, engine=expected_engine(config, "float32")), options, FIGURES, FIGURES), tuned.found_here())
    made = run(tmp_path / "out", words, "--json")
    assert made.code == 0 and made.cells["pld", "gsm8k"]["settings"] == options


def test_a_run_keeps_the_entries_it_was_measured_with_beside_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    config = model_config(str(TINY))
    key = tuned.tuned_key(config, "pld", None, temperature=0.0, dtype="float32", threads=1)
    key = replace(key, engine=expected_engine(config, "float32"))
    entry = Entry(key, {"max_ngram": 2, "n_draft": 3}, FIGURES, FIGURES)
    save(entry, tuned.found_here())
    assert run(tmp_path / "paper", "--method pld --task gsm8k").code == 0
    assert not (tmp_path / "paper" / "tuned.json").exists()
    assert run(tmp_path / "out", "--method pld --task gsm8k --preset tuned").code == 0
    save(Entry(key, {"max_ngram": 3, "n_draft": 3}, FIGURES, FIGURES), tuned.found_here())  # tuned anew: that is not what ran
    assert stored(tmp_path / "out" / "tuned.json") == [entry]
    assert len(json.loads((tmp_path / "out" / "tuned.json").read_text())) == 1
