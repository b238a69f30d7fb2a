"""Files of tuned presets: what is kept, what replaces what, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from harness.common.errors import UserError
from harness.ledger.tuned_presets import Entry, Key, rows, save, stored

KEY = Key("tiny", "t", "ab", "eagle2", 0.0, "float32", 1, "Some CPU", "lean")
FIGURES = {"tau": 2.0, "speedup": 1.5}


def entry(key: Key, **options: Any) -> Entry:
    return Entry(key, options, {**FIGURES, "speedup_ci95": [1.4, 1.6], "tau_ci95": None}, FIGURES)


def test_an_entry_comes_back_as_it_was_and_a_newer_one_replaces_it(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "tuned.json"
    others = [replace(KEY, temperature=1.0), replace(KEY, threads=2), replace(KEY, engine="native avx2")]
    for one in (entry(KEY, total=4), *(entry(key, total=5) for key in others), entry(KEY, total=6)):
        save(one, file)
    assert stored(file) == [*(entry(key, total=5) for key in others), entry(KEY, total=6)]


def test_entries_of_earlier_versions_are_of_no_known_engine_and_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    row = asdict(entry(KEY, total=4))
    older = {"key": {k: v for k, v in row["key"].items() if k != "engine"}, "options": {}, "predicted": FIGURES}
    file.write_text(json.dumps([older, row]))
    assert rows(file) == [row]
    save(entry(KEY, total=5), file)
    assert len(json.loads(file.read_text())) == 1


def test_a_spoilt_list_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    row = asdict(entry(KEY, total=4))
    spoilt_rows: list[Any] = [
        row | {"predicted": {"tau": 2.0}}, row | {"predicted": FIGURES | {"tau": "2.0"}}, row | {"options": [4]}, 1, "k", None,
        row | {"raced": FIGURES | {"speedup": float("nan")}}, row | {"key": row["key"] | {"temperature": "0"}},
        row | {"key": row["key"] | {"threads": None}}, row | {"key": row["key"] | {"machine": 5}}, row | {"raced": None},
        row | {"key": row["key"] | {"engine": None}}, row | {"raced": FIGURES | {"speedup_ci95": [1.0]}},
        row | {"raced": FIGURES | {"tau_ci95": [1.0, "2"]}}, {k: v for k, v in row.items() if k != "raced"},
        row | {"key": row["key"] | {"colour": "red"}},
    ]  # fmt: skip
    spoilt_files = ('[{"key": {}}]', "{}", "null", "[" * 100_000, "rubbish", *(json.dumps([r]) for r in spoilt_rows))
    for spoilt in spoilt_files:
        file.write_text(spoilt)
        with pytest.raises(UserError, match="no list of tuned presets"):
            rows(file)
    file.write_text(json.dumps([row]))
    assert rows(file) == [row]
