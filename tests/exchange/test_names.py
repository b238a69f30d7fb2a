"""Names in answer files and in records: what an import makes of them, and where an export may write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import harness, isolate, refused, run
from hub_stand_in import stand_in
from places import TINY

from harness.exchange.export import export
from harness.exchange.imported import import_answers, temperature_in
from harness.exchange.imported_report import write_report
from harness.ledger.ledger import RECORDS, read

ROW: dict[str, Any] = {
    "question_id": 1, "answer_id": "a", "model_id": "m-temperature-0.0", "tstamp": 1.5,
    "choices": [{"index": 0, "turns": ["Hi"], "idxs": [2], "new_tokens": [9], "wall_time": [1.0]}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def answers(folder: Path, name: str = "answers.jsonl", prefix: bytes = b"", **changes: Any) -> Path:
    file = folder / name
    file.write_bytes(prefix + json.dumps({**ROW, **changes}).encode() + b"\n")
    return file


# ---- import ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_id", "temperature"),
    [
        ("m-temperature-1e-05", 1e-5), ("m-temperature-0.0", 0.0), ("m-temperature-1", 1.0), ("m-temp-0.6-ea", 0.6),
        ("m-temperature-1E-5", 1e-5), ("m-temperature-1.5e+00-x", 1.5), ("m", None), ("m-temperature-1e999", None),
        ("m-temperature-1.2.3", None),
    ],
)  # fmt: skip
def test_the_temperature_in_a_models_name_is_read_as_python_writes_it(
    tmp_path: Path, model_id: str, temperature: float | None
) -> None:
    assert temperature_in(model_id) == temperature
    import_answers(answers(tmp_path, model_id=model_id), None, None, tmp_path / "out")
    assert [r["temperature"] for r in read(tmp_path / "out", imported=True)] == [temperature]


def test_a_mistyped_tokenizer_asks_the_hub_once_and_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(monkeypatch) as hub:
        hub.silent = True
        outcome = harness("import", answers(tmp_path), "--tokenizer vicunna-7b --out", tmp_path / "out")
        refused(outcome, "--tokenizer vicunna-7b: no tokenizer there", "no answer in 0.3 s", "did you mean 'vicuna-7b'?")
        assert [asked.path for asked in hub.asked] == ["/api/models/vicunna-7b"]
        refused(harness("import", answers(tmp_path), "--tokenizer a/b/c --out", tmp_path / "out"), "no tokenizer there")
        assert len(hub.asked) == 1
    assert not (tmp_path / "out" / RECORDS).exists()


@pytest.mark.parametrize("spoil", ["{", '{"version": 3}', "[]", "[" * 100_000])
def test_a_spoilt_tokenizer_is_one_line(tmp_path: Path, spoil: str) -> None:
    folder = shutil.copytree(TINY.parent / "target", tmp_path / "tokenizer")
    (folder / "tokenizer.json").write_text(spoil)
    refused(harness("import", answers(tmp_path), "--tokenizer", folder, "--out", tmp_path / "out"), "no tokenizer there")


ODD = ["two\nlines", "a|b", "<b>", "a`b", "\x1b[31m", "", "x" * 1000, "a\u2028b"]


@pytest.mark.parametrize("field", ["model_id", "question_id", "category"])
@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_an_imported_name_that_would_break_what_is_written_is_refused(tmp_path: Path, field: str, name: str) -> None:
    choice = {k: v for k, v in ROW["choices"][0].items() if k != "idxs"} | {"decoding_steps": [3], "accept_lengths": [3, 3, 3]}
    file = answers(tmp_path, **{"category": "math", "choices": [choice], field: name})
    if (field, name) == ("category", ""):
        return
    refused(harness("import", file, "--out", tmp_path / "out"), f"{file}:1: field '{field}' is", "it must be a")
    assert not (tmp_path / "out" / RECORDS).exists()


def test_the_name_of_an_answer_file_cannot_break_the_report(tmp_path: Path) -> None:
    file = answers(tmp_path, name="a|b<script>\nx.jsonl")
    import_answers(file, None, None, tmp_path / "out")
    written = "".join(path.read_text() for path in write_report(tmp_path / "out"))
    assert "a_b_script_x.jsonl" in written and "<script>" not in written


def test_a_byte_order_mark_is_no_fault_of_an_answer_file(tmp_path: Path) -> None:
    import_answers(answers(tmp_path, prefix=b"\xef\xbb\xbf"), None, None, tmp_path / "out")
    assert len(read(tmp_path / "out", imported=True)) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("new_tokens", [10**400]), ("idxs", [10**30]), ("wall_time", [1e308]), ("wall_time", [10**400])]
)
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    file = answers(tmp_path, choices=[{**ROW["choices"][0], field: value}])
    refused(harness("import", file, "--out", tmp_path / "out"), f"{file}:1: field '{field}'")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"question_id": ' + "9" * 5000 + "}"])
def test_a_line_that_python_cannot_read_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    refused(harness("import", tmp_path / "a.jsonl", "--out", tmp_path / "out"), f"{tmp_path / 'a.jsonl'}:1")


def test_any_text_of_an_answer_is_imported_but_half_a_character(tmp_path: Path) -> None:
    file = answers(tmp_path, choices=[{**ROW["choices"][0], "turns": ["é | <b> \n\0"]}])
    assert harness("import", file, "--tokenizer", TINY, "--out", tmp_path / "out").code == 0
    file = answers(tmp_path, choices=[{**ROW["choices"][0], "turns": ["\ud800"]}])
    refused(harness("import", file, "--tokenizer", TINY, "--out", tmp_path / "other"), f"{file}:1: field 'turns'")


# ---- export ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A ledger whose records say something else. Keys are left as they are: what else a ledger must hold is not asked here."""

    def altered(**changes: Any) -> Path:
        folder = tmp_path / "ledger"
        assert run(folder, "--method pld --task gsm8k").code == 0
        records = [{**r, **changes} for r in read(folder)]
        monkeypatch.setattr("harness.exchange.export.read", lambda folder, **how: records)
        return folder

    return altered


@pytest.mark.parametrize("field", ["task", "model", "method"])
def test_an_export_writes_nothing_outside_its_folder(tmp_path: Path, ledger: Callable[..., Path], field: str) -> None:
    folder = ledger(**{field: "../../x"})
    before = sorted(tmp_path.rglob("*"))
    refused(harness("export --results", folder, "--out", tmp_path / "a" / "b"), f"{field} name '../../x' is no plain name")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_exports_file_names_are_plain_whatever_the_preset(tmp_path: Path, ledger: Callable[..., Path]) -> None:
    files = export(ledger(preset="../a b|c\n" * 30), tmp_path / "out", "eagle")
    assert {file.parent for file in files} == {tmp_path / "out" / "gsm8k"}
    assert all(len(file.name) < 120 and file.name.isascii() and file.name.isprintable() for file in files)
