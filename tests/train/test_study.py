"""`scripts/study.py`: short trainings on the shards that a training left."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import isolate
from places import ROOT, TINY
from tiny_model import shared_tiny_model

from harness.train.data import make_text_shards


@pytest.mark.parametrize("keep", [True, False])
def test_it_trains_on_texts_whose_features_were_kept_and_on_such_as_were_not(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    spec = importlib.util.spec_from_file_location("study", ROOT / "scripts/study.py")
    assert spec and spec.loader
    study: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    tiny, work = shared_tiny_model("float32"), tmp_path / "work"
    for name in ("answers", "held_out"):
        texts = [(prompt[i : i + 60], 8) for i, prompt in enumerate(tiny.prompts) if len(prompt) > 80]
        make_text_shards(work / name, tiny.loaded.target.model, texts, n_tokens=10**6, keep_features=keep, say=lambda text: None)
    study.main.callback(
        work, tmp_path / "out", str(TINY), 300, 4, ("base",), None, 2, 1, ("batch_tokens=128", "frequent_rows=384")
    )
    (row,) = pd.read_csv(tmp_path / "out" / "study.csv").to_dict("records")
    assert row["variant"] == "base" and 0 <= row["top1"] <= 1
