"""Whose forward ran: in every footnote, in no cell together with another's, and no excuse where its rows do not round."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up_records import measured, only
from make_ledger import ENV, FOLDER

import methods
from harness.common.errors import UserError
from harness.common.machine import describe
from harness.ledger.checked import env_of
from harness.ledger.ledger import Ledger, read
from harness.metrics.cells import summarise
from harness.metrics.engines import LOSSY_NOTE, engine_notes, of_cells, of_records
from harness.metrics.groups import labels, notes_of
from harness.metrics.pairing import one_environment, side_of
from harness.paper.claims import _lossless, claims_table
from harness.show.tables.all import write_tables
from harness.show.tables.paired import divergences_table
from harness.show.tables.run import run_table
from harness.show.tables.two_folders import comparison_table
from methods.engine.llama import LlamaTarget
from methods.engine.target import HFTarget

NATIVE: dict[str, Any] = {"target_parts": {"engine": "native avx2"}, "row_invariant": True, "target_id": "a" * 16}
LEAN: dict[str, Any] = {"target_parts": {"engine": "lean"}, "row_invariant": False, "target_id": "b" * 16}


def records(engine: dict[str, Any], *names: str, **changes: Any) -> list[Any]:
    return [measured(name, i, [2, 2], **engine, **changes) for name in ("vanilla", *names) for i in range(3)]


def differing(engine: dict[str, Any], name: str = "eagle2") -> list[Any]:
    """The same, with one output of a method that is not vanilla's."""
    found = records(engine, name)
    found[-1]["token_ids"] = [*found[-1]["token_ids"][:-1], 77]
    return found


# ---- footnotes ----


def test_a_footnote_names_the_engine_of_each_dtype_and_others_loops_beside_it() -> None:
    both = [*records(NATIVE, "eagle2", "hf-generate"), *records({**LEAN, "dtype": "bfloat16"}, "hf-generate")]
    notes = engine_notes(of_records(both))
    assert notes[0] == "Engine of our loops: lean (bfloat16); native avx2 (float32, row-invariant)."
    assert notes[1] == "‡ hf-generate: others' loops, on transformers' own module and not on this engine."
    assert engine_notes(of_cells(summarise(both))) == notes
    assert engine_notes(of_records(records(LEAN, "hf-generate")))[1].startswith("hf-generate: others' loops")
    plain = {**LEAN, "target_parts": {"engine": "transformers 5.1.0 LlamaForCausalLM"}}
    assert engine_notes(of_records(records(plain, "hf-generate"))) == (
        "Engine of our loops: transformers 5.1.0 LlamaForCausalLM (float32).",
    )


def test_records_that_do_not_say_have_no_footnote() -> None:
    assert engine_notes(of_records(records({"target_parts": None}, "eagle2"))) == ()
    assert engine_notes(of_records(records({}, "eagle2", "hf-generate"))) == ()


def told_engine(folder: Path, engine: str, **more: Any) -> Path:
    """A copy of the made-up ledger whose environment says which engine ran."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("tables", "env-*"))
    lines = (folder / "records.jsonl").read_text()
    old = next(FOLDER.glob("env-*.json")).stem.removeprefix("env-")
    (folder / "records.jsonl").unlink()
    with Ledger(folder) as ledger:
        name = ledger.write_env({**ENV, "target_parts": {"engine": engine}, **more})
    (folder / "records.jsonl").write_text(lines.replace(f'"env": "{old}"', f'"env": "{name}"'))
    return folder


@pytest.mark.slow
def test_every_table_of_a_ledger_has_the_footnote_and_is_else_as_it_was(tmp_path: Path) -> None:
    folder = told_engine(tmp_path / "ledger", "lean")
    written = [path for path in write_tables(folder) if path.suffix == ".md"]
    assert len(written) > 6
    for path in written:
        now, before = path.read_text(), (FOLDER / "tables" / path.name).read_text()
        notes = [line for line in now.splitlines() if "Engine of our loops: lean (float32)." in line or "others' loops" in line]
        assert len(notes) == 2, path
        kept = [line for line in now.splitlines() if line not in notes and line]
        assert kept == [line for line in before.splitlines() if line], path
    for table in (claims_table(folder), comparison_table(folder, folder), run_table(summarise(read(folder)))):
        assert any("Engine of our loops: lean (float32)." in note for note in table.notes), table.name


def test_two_folders_name_each_ones_engine(tmp_path: Path) -> None:
    a, b = told_engine(tmp_path / "a", "lean"), told_engine(tmp_path / "b", "native avx2", row_invariant=True)
    notes = comparison_table(a, b).notes
    assert "A: Engine of our loops: lean (float32)." in notes
    assert "B: Engine of our loops: native avx2 (float32, row-invariant)." in notes


# ---- marks ----


def test_others_loops_are_marked_beside_a_row_invariant_engine_alone() -> None:
    names = labels(summarise(records(NATIVE, "eagle2", "hf-generate"))).values()
    assert sorted(names) == ["eagle2", "hf-generate ‡", "vanilla"]
    assert "hf-generate" in labels(summarise(records(LEAN, "hf-generate"))).values()
    shown = divergences_table(differing(NATIVE, "hf-generate"), summarise(differing(NATIVE, "hf-generate"))).sections[0].shown
    assert list(shown["method"]) == ["hf-generate ‡"]


def test_who_is_anothers_loop_is_read_without_loading_any_method() -> None:
    assert methods.is_external("hf-generate") and methods.is_external("hf-assisted")
    assert not methods.is_external("eagle2") and not methods.is_external("nobody's")


# ---- not pooled ----


def test_records_of_two_engines_are_in_no_cell_together_and_claims_on_both_are_refused() -> None:
    both = [*records(NATIVE, "eagle2"), *records(LEAN, "eagle2")]
    cells = [s for s in summarise(both) if s.method == "eagle2"]
    assert [(s.engine, s.prompts) for s in cells] == [("native avx2", 3), ("lean", 3)]
    with pytest.raises(UserError, match=r"mixed environments: target_id \(engine\) of the records"):
        one_environment(both, "here")


# ---- identical ----


def test_a_difference_on_a_row_invariant_engine_is_lossy_and_elsewhere_a_number() -> None:
    cell = only(differing(NATIVE))
    assert cell.is_lossy and (cell.identical, cell.n_compared) == (2, 3)
    table = run_table([cell])
    assert list(table.sections[0].shown["identical"]) == ["2/3 lossy"] and LOSSY_NOTE in table.notes
    assert LOSSY_NOTE in divergences_table(differing(NATIVE), [cell]).notes
    for other in (only(differing(LEAN)), only(records(NATIVE, "eagle2"))):
        assert not other.is_lossy and LOSSY_NOTE not in notes_of([other])
    assert not only(differing(NATIVE, "hf-generate"), "hf-generate").is_lossy  # it runs transformers' module, which rounds
    assert not only(differing(NATIVE, "typical"), "typical").is_lossy  # it promises nothing


@pytest.mark.parametrize(("engine", "judged"), [(NATIVE, "not shown: 1 differ on a row-invariant engine"), (LEAN, "shown")])
def test_the_claim_of_losslessness_is_not_shown_by_an_audit_where_outputs_differ_on_a_row_invariant_engine(
    engine: dict[str, Any], judged: str
) -> None:
    base, own = (side_of(r for r in differing(engine) if r["method"] == name) for name in ("vanilla", "eagle2"))
    assert _lossless(own, base, {"eagle2": "lossless (quick)"}).all.verdict == judged


# ---- environments ----


def test_what_an_engine_tells_of_itself_is_in_the_environment() -> None:
    told: dict[str, Any] = {
        "dtype": "float32",
        "threads": 1,
        "target_sha": "t",
        "target_parts": {"engine": "native avx2"},
        "engine_sha": "e",
        "head_sha": None,
        "seed": 0,
        "template": "chatml",
        "system": "none",
        "n_devices": 1,
    }
    facts = {"pages": "2 MB", "native": {"path": "avx2", "compiler": "gcc 13.3.0", "flags": "-O3"}}
    env = describe(**told, is_row_invariant=True, engine_facts=facts)
    assert env["row_invariant"] is True and {key: env[key] for key in facts} == facts
    assert not {"pages", "native"} & describe(**told, is_row_invariant=False, engine_facts={}).keys()
    assert HFTarget.is_row_invariant is LlamaTarget.is_row_invariant is False


@pytest.mark.parametrize(("key", "value", "part"), [("pages", 2, "pages is 2"), ("native", "x", "native is"),
                                                    ("row_invariant", 1, "row_invariant is 1")])  # fmt: skip
def test_an_environment_with_another_kind_of_value_is_refused(key: str, value: object, part: str, tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        name = ledger.write_env({**ENV, key: value})
    with pytest.raises(ValueError, match=part):
        env_of((tmp_path / f"env-{name}.json").read_bytes(), name)
