"""The signs before speeds: which records have them, and that every table that shows a speed shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from made_up_records import measured

import methods
from harness.forms.table import markdown
from harness.ledger.ledger import Ledger
from harness.ledger.record import Record
from harness.metrics import marks
from harness.metrics.cells import summarise
from harness.metrics.marks import DRAWN, EARLY, signs_of
from harness.metrics.pairing import side_of
from harness.paper.contrast import NOT_JUDGED, Contrast, faster
from harness.show.tables.cells import cell_numbers
from harness.show.tables.main import main_table
from harness.show.tables.meaning import conclusions
from harness.show.tables.paired import paired_table
from harness.show.tables.two_folders import comparison_table

CPU, GPU = "Some CPU, no GPU, 2 cores, torch 2.13.0", "Some CPU, Some GPU, CUDA 13, driver 5, 2 cores"
PAPER = {"top_k": 10, "depth": 6, "total": 59}


@pytest.mark.parametrize(
    ("method", "options", "machine", "stopped"),
    [
        ("eagle2", PAPER, CPU, True),
        ("eagle2-fr", PAPER | {"frequent": 8192}, CPU, True),
        ("eagle2", {"top_k": 2, "depth": 3, "total": 4}, CPU, True),
        ("eagle2", PAPER | {"stop_early": True}, CPU, False),  # it was asked for
        ("eagle2", PAPER | {"stop_early": False}, CPU, False),
        ("eagle2", PAPER, GPU, False),  # only CPUs stopped
        ("eagle2-no-rerank", PAPER, CPU, False),
        ("eagle2", {"top_k": 5, "depth": 1, "total": 3}, CPU, False),  # one level: nothing to leave out
        ("eagle2", {"top_k": 2, "depth": 2, "total": 4}, CPU, False),  # as many nodes as are kept, before the last level
        ("eagle2", {}, CPU, False),  # imported: its options are not known
        ("eagle1", {"shape": "0 1"}, CPU, False),
    ],
)
def test_a_speed_is_marked_where_drafts_stopped_early_before_that_was_an_option(
    method: str, options: dict[str, Any], machine: str, stopped: bool
) -> None:
    assert (EARLY in signs_of(method, options, machine, 0.0)) is stopped


def test_a_speed_is_marked_where_drafts_are_drawn_at_random() -> None:
    drawing = {name for name in methods.names() if methods.get(name).samples_drafts}
    assert {name for name in methods.names() if DRAWN in signs_of(name, {}, CPU, 1.0)} == drawing >= {"eagle1", "sps"}
    assert not any(signs_of(name, {}, CPU, 0.0) for name in methods.names())
    told = {name: bool(row.get("samples_drafts")) for name, row in methods._declared().items()}
    assert {name for name, draws in told.items() if draws} == drawing  # as read without importing a method


def test_every_sign_has_a_sentence_and_they_come_in_one_order() -> None:
    assert marks.joined([DRAWN, EARLY + DRAWN, ""]) == EARLY + DRAWN
    assert [note[0] for note in marks.notes(EARLY + DRAWN)] == [EARLY, DRAWN] and marks.notes("") == []


def records(of_eagle2: dict[str, Any], temperature: float = 0.0) -> list[Record]:
    """Six prompts decoded by vanilla, EAGLE-1, EAGLE-2 at these options, and EAGLE-2 without value."""
    found = []
    for i in range(6):
        for method in ("vanilla", "eagle1", "eagle2-no-value", "eagle2"):
            options = {"options": of_eagle2} if method == "eagle2" else {"options": PAPER} if method == "eagle2-no-value" else {}
            found.append(measured(method, i, [3, 2, 1], 1.0 + 0.1 * i, temperature=temperature, **options))
    return cast("list[Record]", [{**r, "machine": CPU} for r in found])


def test_speeds_of_marked_records_are_marked_in_tables_with_a_footnote() -> None:
    for own, is_marked in ((PAPER, True), (PAPER | {"stop_early": False}, False)):
        found = records(own)
        for table in (main_table(summarise(found)), paired_table(found, summarise(found))):
            text = markdown(table)
            assert ("§1.00×" in text or "§1.00 " in text) is is_marked
            assert ("drafted without the levels" in text) is is_marked
        (said, *_) = conclusions(summarise(found))
        assert ("costs §" in said) is is_marked and "alone costs §" not in said
    drawn = markdown(main_table(summarise(records(PAPER | {"stop_early": False}, temperature=1.0))))
    assert "| eagle1 | ¶" in drawn and "drawn at random" in drawn and "| eagle2 | 1" in drawn


def test_two_folders_are_compared_with_the_marks_of_each(tmp_path: Path) -> None:
    for name, own in (("a", PAPER), ("b", PAPER | {"stop_early": True})):
        with Ledger(tmp_path / name) as ledger:
            env = ledger.write_env({"cpu": "Some CPU", "gpu": None, "n_cores": 2, "threads": 2, "packages": {}})
            for r in records(own):
                ledger.append({key: value for key, value in r.items() if key != "machine"} | {"env": env})
    text = markdown(comparison_table(tmp_path / "a", tmp_path / "b"))
    assert "§1.00× → 1.00×" in text and "drafted without the levels" in text


def test_a_claim_on_speed_is_not_judged_where_one_side_was_drafted_with_fewer_levels() -> None:
    for own, is_judged in ((PAPER, False), (PAPER | {"stop_early": False}, True)):
        found = records(own)
        full, *others = (side_of(r for r in found if r["method"] == m) for m in ("eagle2", "eagle2-no-value", "eagle1"))
        ablated, static = (Contrast(full, other, faster, True) for other in others)
        assert ablated.on(("gsm8k",))[0].verdict.startswith(f"{NOT_JUDGED}: eagle2 drafted fewer levels") is not is_judged
        assert not static.on(("gsm8k",))[0].verdict.startswith(NOT_JUDGED)  # judged, and marked
        assert (static.signs, ablated.signs) == (("", "") if is_judged else (" §", " §"))
        assert Contrast(full, others[1], faster, False).signs == ""  # tau is what it was


@pytest.mark.parametrize("odd", ["many", None, 6.0, [1]])
def test_options_that_no_method_ran_with_are_no_error(odd: object) -> None:
    assert signs_of("eagle2", {"top_k": odd, "depth": 6, "total": 59}, "Some CPU, no GPU", 0.0) == ""


def test_a_speeds_mark_stands_in_the_csv_as_in_the_table() -> None:
    old = {"options": {"top_k": 10, "depth": 6, "total": 59}, "machine": "Some CPU, no GPU"}
    cells = summarise([measured("vanilla", 0, [0] * 8), measured("eagle2", 0, [3, 3], **old)])
    assert [row["mark"] for _, row in cell_numbers(cells).iterrows()] == ["", EARLY]
