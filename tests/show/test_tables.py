"""Tables: the stored ledger gives the stored tables, and no table says more than its records do.

The tables in tests/data/ledger/tables are remade by `python tests/make_ledger.py`; read the diff before committing it.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import harness, refused
from made_up_ledger import write_ledger
from made_up_records import measured, unmeasured
from make_ledger import ENV, FOLDER, METHODS, base_record, make_ledger, output_of
from places import TINY

from harness.common.errors import UserError
from harness.common.names import KNOWN_METHODS, SIX_TASKS, in_words, label, label_in_words, method_order, task_order
from harness.common.progress import Progress
from harness.forms.colours import colour
from harness.forms.table import Section, Table, csv, markdown, plain
from harness.ledger.audit_words import audits_of
from harness.ledger.ledger import RECORDS, read
from harness.ledger.record import Record
from harness.metrics.cells import CellSummary, summarise
from harness.show.contents import read_contents
from harness.show.tables.all import TABLES, write_tables
from harness.show.tables.cells import categories_table, cell_numbers, cells_table
from harness.show.tables.main import main_table
from harness.show.tables.paired import divergences_table, paired_table
from harness.show.tables.run import print_run_table, run_table
from harness.show.tables.two_folders import comparison_table

GOLDEN = sorted((FOLDER / "tables").iterdir())


def stored(**changes: Any) -> list[dict[str, Any]]:
    return [dict(r) | changes for r in read(FOLDER)]


# ---- golden ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    assert {path.name for path in write_tables(FOLDER, out)} == {path.name for path in GOLDEN}
    return out


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_the_stored_ledger_gives_the_stored_tables(redrawn: Path, golden: Path) -> None:
    assert (redrawn / golden.name).read_text() == golden.read_text(), "python tests/make_ledger.py remakes the tables"


def test_the_stored_ledger_is_what_its_script_makes(tmp_path: Path) -> None:
    make_ledger(tmp_path)
    for path in [*FOLDER.glob("env-*.json"), FOLDER / RECORDS]:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_tables_go_beside_the_records_unless_told_otherwise(tmp_path: Path) -> None:
    folder = write_ledger(tmp_path / "run", [measured("eagle2", 0, [1])])
    assert folder / "tables" / "main.md" in write_tables(folder)


# ---- what a table must say ------------------------------------------------------------------------------------------


def reports(records: list[Record]) -> dict[str, str]:
    summaries = summarise(records)
    tables = [main_table(summaries), cells_table(summaries), categories_table(records, summaries),
              paired_table(records, summaries), divergences_table(records, summaries)]  # fmt: skip
    return {table.name: markdown(table) for table in tables} | {"run": plain(run_table(summaries))}


def test_every_table_states_model_sources_dtype_threads_and_budget() -> None:
    for name, text in reports(read(FOLDER)).items():
        for said in ("toy", "bundled", "float32", "2 threads", "at most 72 new tokens", "T = 0"):
            assert said in text, (name, said)
        assert "Example CPU 3000" in text and "not the benchmark's own" in text, name


def test_inexact_methods_are_marked_in_every_table_that_shows_them() -> None:
    for name, text in reports(read(FOLDER)).items():
        rows = [line for line in text.splitlines() if line.lstrip("| ").startswith("typical")]
        assert all("typical †" in row for row in rows), name
        assert "† not exact" in text or not rows, name
    assert "typical †" in markdown(comparison_table(FOLDER, FOLDER))


def test_tau_stands_beside_tau_without_loops_where_they_differ() -> None:
    text = reports(read(FOLDER))
    assert "1.15× / 1.41 (1.27)" in text["main"] and "1.10× / 1.33 |" in text["main"]
    assert "1.41 (1.27)" in text["run"] and "loops flatter τ" in text["run"]


@pytest.mark.parametrize(
    "change",
    [{"model": "m2"}, {"temperature": 0.5}, {"dtype": "float64"}, {"max_new_tokens": 99}, {"threads": 1}, {"seed": 7},
     {"target_sha": "x" * 16}, {"target_id": "x" * 16}],
)  # fmt: skip
def test_settings_have_sections_of_their_own_and_are_never_averaged(change: dict[str, Any]) -> None:
    one = [measured(m, i, [1, 1]) for m in ("vanilla", "eagle2") for i in range(5)]
    two = [measured(m, i, [3, 3], **change) for m in ("vanilla", "eagle2") for i in range(5)]
    table = main_table(summarise(one + two))
    assert len(table.sections) == 2
    taus = {section.shown["gsm8k (pypi)"].iloc[1] for section in table.sections}
    assert taus == {"1.00× / 2.00", "1.00× / 4.00"}


def test_two_machines_in_one_folder_are_two_sections(tmp_path: Path) -> None:
    write_ledger(tmp_path, [measured("vanilla", i, [0]) for i in range(5)])
    write_ledger(tmp_path, [measured("eagle2", i, [1]) for i in range(5)], ENV | {"cpu": "Other CPU"})
    table = main_table(summarise(read(tmp_path)))
    assert [section.facts[-1].split(",")[0] for section in table.sections] == ["Machine: Example CPU 3000",
                                                                               "Machine: Other CPU"]  # fmt: skip
    assert table.sections[1].shown["gsm8k (pypi)"].tolist() == ["— / 2.00"]  # no speedup across machines


def test_rows_that_would_read_the_same_are_told_apart() -> None:
    records = [measured("eagle2", 0, [1]), measured("eagle2", 0, [2], head_id="abcdef012345"),
               measured("eagle2", 0, [3], options={"total": 5})]  # fmt: skip
    names = main_table(summarise(records)).sections[0].shown["method"].tolist()
    assert len(set(names)) == 3 and any("head abcdef" in name for name in names)
    assert main_table(summarise(records[:1])).sections[0].shown["method"].tolist() == ["eagle2"]


def test_two_sources_of_a_task_are_two_columns_and_have_no_six_task_mean() -> None:
    records = [measured("eagle2", 0, [1], task=task) for task in SIX_TASKS]
    shown = main_table(summarise(records)).sections[0].shown
    assert shown["six-task mean"].tolist() == ["— / 2.00"]
    twice = main_table(summarise([*records, measured("eagle2", 0, [1], source="paper")])).sections[0].shown
    assert {"gsm8k (paper)", "gsm8k (pypi)"} <= set(twice.columns)
    assert twice["six-task mean"].tolist() == ["—"]


def test_what_was_left_out_is_named() -> None:
    records = [measured("vanilla", 0, [0]), measured("eagle2", 0, [1]), measured("eagle2", 1, [1]),
               unmeasured("eagle2", 2, "error"), unmeasured("eagle2", 3, "skipped"),
               measured("pld", 0, [1], turn=2, n_turns=2)]  # fmt: skip
    (section,) = main_table(summarise(records)).sections
    said = section.facts[-1]
    for part in ("eagle2 gsm8k: 1 failed", "1 skipped", "1 without a baseline", "pld gsm8k: 1 lack a turn"):
        assert part in said


def test_first_turns_measured_only_to_build_second_turns_are_not_shown() -> None:
    first = measured("vanilla", 0, [0], n_turns=2)
    other = [measured("eagle2", 0, [1], turn=t, n_turns=2) for t in (1, 2)]
    assert main_table(summarise([first, *other])).sections[0].shown["method"].tolist() == ["eagle2"]
    assert main_table(summarise([first])).sections == ()


@pytest.mark.parametrize(
    "records",
    [
        [unmeasured("eagle2", 0, "error")],
        [unmeasured("vanilla", 0, "skipped"), unmeasured("eagle2", 0, "skipped")],
        [measured("eagle2", 0, [])],
        [measured("vanilla", 0, [0], is_warmup=True)],
        [measured("hf-generate", 0, [0], trace=None, prefill_s=None)],
    ],
)
def test_records_without_numbers_give_tables_without_numbers(tmp_path: Path, records: list[Record]) -> None:
    for path in write_tables(write_ledger(tmp_path, records)):
        assert not re.search(r"\b(nan|None|inf)\b", path.read_text()), path.name
    assert "—" in plain(run_table(summarise(records))) or records[0]["is_warmup"]


def test_a_table_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to .*out"):
        write_tables(FOLDER, tmp_path / "out")
    with pytest.raises(UserError, match="no records"):
        write_tables(tmp_path)


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_the_frames_have_the_numbers_of_the_summaries() -> None:
    records = read(FOLDER)
    summaries = summarise(records)
    tidy = cell_numbers(summaries)
    assert len(tidy) == len(summaries)
    assert tidy["tau"].tolist() == pytest.approx([s.tau if s.tau else float("nan") for s in summaries], nan_ok=True)
    wide = main_table(summaries).numbers
    row = wide[(wide["method"] == "eagle2") & (wide["preset"] == "paper") & (wide["temperature"] == 0)].iloc[0]
    taus = [s.tau for s in summaries if (s.method, s.preset, s.temperature) == ("eagle2", "paper", 0)]
    assert row["six-task mean tau"] == pytest.approx(sum(filter(None, taus)) / 6)


def test_ablations_are_paired_at_equal_presets_and_eagle1_with_every_preset() -> None:
    records = read(FOLDER)
    table = paired_table(records, summarise(records)).numbers
    pairs = set(zip(table["method"], table["against"], strict=True))
    small = label("eagle2", METHODS["eagle2-small"].preset)
    assert pairs == {("eagle2", "eagle1"), (small, "eagle1"), ("eagle2", "eagle2-no-value")}
    mean = table[(table["task"] == "six-task mean") & (table["against"] == "eagle1")].iloc[0]
    single = table[(table["task"] != "six-task mean") & (table["against"] == "eagle1") & (table["method"] == "eagle2")]
    assert mean["tau_difference"] == pytest.approx(single["tau_difference"].mean())
    assert mean["tau"] - mean["tau_against"] == pytest.approx(mean["tau_difference"])
    assert (table["tau_difference_low"] <= table["tau_difference_high"]).all()


def test_eagle3_is_paired_with_eagle2_at_equal_presets() -> None:
    records = read(FOLDER)
    for r in records:
        r["method"] = "eagle3" if r["method"] == "eagle2-no-value" else r["method"]
    table = paired_table(records, summarise(records))
    assert ("eagle3", "eagle2") in set(zip(table.numbers["method"], table.numbers["against"], strict=True))
    assert set(table.numbers.loc[table.numbers["method"] == "eagle3", "against"]) == {"eagle2"}
    assert any(note.startswith("eagle3 against eagle2") for note in table.notes)


def test_csv_leaves_empty_what_does_not_apply() -> None:
    frame = pd.read_csv(io.StringIO(csv(cells_table(summarise(read(FOLDER))))))
    hf = frame[frame["method"] == "hf-generate"].iloc[0]
    assert pd.isna(hf["tau"]) and hf["identical"] == 5


def test_a_folder_compared_with_itself_has_not_changed() -> None:
    table = comparison_table(FOLDER, FOLDER)
    assert set(table.numbers["in"]) == {"both"}
    assert (table.numbers["tau_difference"].dropna() == 0).all() and (table.numbers["speedup_ratio"] == 1).all()
    assert set(table.numbers["differs"]) == {""}
    assert table.sections[0].facts[2] == "Differs: nothing of settings, machine, weights and options"


def test_a_comparison_tells_what_changed_and_what_is_on_one_side_only(tmp_path: Path) -> None:
    changed = []
    for r in stored():
        if r["method"] == "eagle2" and r["wall_s"]:
            r |= {"wall_s": r["wall_s"] * 2, "head_sha": "another head", "head_id": "another id"}
        if r["method"] != "pld":
            changed.append(r)
    write_ledger(tmp_path, changed, ENV | {"cpu": "Other CPU"})
    table = comparison_table(FOLDER, tmp_path)
    eagle2 = table.numbers[table.numbers["method"] == "eagle2"]
    assert eagle2["speed_ratio"].tolist() == pytest.approx([0.5] * len(eagle2))
    assert eagle2["speedup_ratio"].tolist() == pytest.approx([0.5] * len(eagle2))
    assert set(eagle2["differs"]) == {"head_sha head_id machine"}
    assert set(table.numbers[table.numbers["method"] == "pld"]["in"]) == {"A"}
    top = "\n".join(table.sections[0].facts)
    assert f"A = {FOLDER}\nB = {tmp_path}" in top and "Measured only in A: pld (2 cells)" in top
    assert "Differs: drafter weights of eagle2" in top and "speeds are not comparable, τ is" in top
    for form in (markdown(table), plain(table)):
        assert "Other CPU" in form


def test_a_comparison_begins_with_the_six_task_means_and_fits_100_columns() -> None:
    table = comparison_table(FOLDER, FOLDER)
    titles = [section.title for section in table.sections[:3]]
    assert "means over the six tasks" in titles[1] and "task by task" in titles[2]
    mean = table.numbers[(table.numbers["task"] == "six-task mean") & (table.numbers["method"] == "eagle2")].iloc[0]
    (theirs,) = [r for r in main_table(summarise(read(FOLDER))).numbers.to_dict("records")
                 if (r["method"], r["preset"], r["temperature"]) == ("eagle2", "paper", 0)]  # fmt: skip
    assert mean["tau_a"] == mean["tau_b"] == pytest.approx(theirs["six-task mean tau"])
    assert mean["speedup_a"] == pytest.approx(theirs["six-task mean speedup"]) and mean["speed_ratio"] == pytest.approx(1)
    printed = plain(table, width=100)
    assert "Questions" in printed and "CNN/DM" in printed  # task names in words
    assert max(map(len, printed.splitlines())) <= 100
    assert printed.splitlines()[1].startswith("A = ")


def test_settings_that_make_two_folders_incomparable_are_named(tmp_path: Path) -> None:
    write_ledger(tmp_path, stored(dtype="float64", max_new_tokens=99))
    refused(
        harness("table --compare", FOLDER, tmp_path, "--out", tmp_path / "out"),
        f"nothing was measured both in A = {FOLDER} and in B = {tmp_path}: differs: dtype: float32 in A, float64 in B; ",
        "Differs: budget (max_new_tokens): 72 in A, 99 in B",
    )
    assert not (tmp_path / "out").exists()


def test_folders_with_other_methods_have_nothing_to_compare(tmp_path: Path) -> None:
    for name, method in (("a", "eagle1"), ("b", "pld")):
        write_ledger(tmp_path / name, [r for r in stored() if r["method"] == method])
    said = "measured only in A: eagle1 (6 cells); Measured only in B: pld (2 cells)"
    with pytest.raises(UserError, match=re.escape(said)):
        comparison_table(tmp_path / "a", tmp_path / "b")


def test_a_folder_with_two_heads_cannot_be_compared(tmp_path: Path) -> None:
    write_ledger(tmp_path, [measured("eagle2", 0, [1]), measured("eagle2", 0, [1], head_id="other")])
    with pytest.raises(UserError, match="eagle2 .paper. on gsm8k"):
        comparison_table(FOLDER, tmp_path)


# ---- forms ----------------------------------------------------------------------------------------------------------


def test_markdown_rows_have_as_many_cells_as_their_header() -> None:
    records = read(FOLDER)
    odd = [Record(**{**r, "preset": "a|b"}) if r["preset"] != "paper" else r for r in records]
    for text in reports(odd).values():
        header = 0
        for line in text.splitlines():
            if line.startswith("|"):
                n = line.replace("\\|", "").count("|")
                header = header if header and not line.startswith("| method") else n
                assert n == header, line


@pytest.mark.parametrize(
    "name", ["a|b", "a\\|b", "a\nb", "a\u2028b", "a`b", "<script>alert(1)</script>", "a\r\n| :-- |\n# b", "\\", "<!-- b"]
)
def test_no_name_can_break_a_table_or_become_html(name: str) -> None:
    rows = pd.DataFrame([{"method": name, name: name}, {"method": "last", name: "1"}])
    text = markdown(Table("t", (Section(name, (f"Prompts: {name}",), rows, (name,)),), (f"note on {name}",), pd.DataFrame()))
    lines = text.splitlines()
    assert len(lines) == 12 and "<" not in text
    for line in (line for line in lines if line.startswith("|")):
        cells = re.sub(r"\\.", "", line)  # what is escaped
        assert cells.count("|") == 3 and "`" not in cells, line
    assert len(plain(Table("t", (Section(name, (), rows),), ("a note",), pd.DataFrame())).splitlines()) == 6


def test_a_table_of_a_given_width_breaks_its_words_and_loses_none() -> None:
    table = main_table(summarise(read(FOLDER)))
    narrow = plain(table, width=60)
    assert sorted("".join(narrow.split())) == sorted("".join(plain(table).split()))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_run_is_printed_by_rich_on_a_terminal_and_in_plain_lines_elsewhere() -> None:
    summaries = summarise(read(FOLDER))
    terminal, file = _Terminal(), io.StringIO()
    print_run_table(summaries, terminal)
    print_run_table(summaries, file)
    assert file.getvalue() == plain(run_table(summaries)) + "\n"
    assert "─" in terminal.getvalue() and "─" not in file.getvalue()
    for out in (terminal, file):
        assert "natural" in out.getvalue() and "eagle2" in out.getvalue()


def test_the_summaries_of_a_run_may_come_in_any_order() -> None:
    summaries = summarise(read(FOLDER))
    mixed: list[CellSummary] = [*summaries[1::2], *summaries[::2]]
    assert [section.title.count("T = ") for section in run_table(mixed).sections] == [1, 1]


def test_every_table_is_listed_once_under_its_own_name() -> None:
    contents = read_contents(FOLDER, Progress("test"))
    names = [entry.name for entry in TABLES]
    assert len(set(names)) == len(names)
    assert [entry.make(contents, Progress("test")).name for entry in TABLES] == names


# ---- style ----------------------------------------------------------------------------------------------------------


def test_methods_stand_in_one_order_with_strangers_last() -> None:
    shuffled = ["zebra", "eagle2", "vanilla", "eagle2-no-rerank", "aardvark", "pld", "eagle1", "hf-generate",
                "eagle2-no-value", "eagle2-no-both"]  # fmt: skip
    assert sorted(shuffled, key=method_order) == ["vanilla", "hf-generate", "pld", "eagle1", "eagle2-no-both",
                                                  "eagle2-no-value", "eagle2-no-rerank", "eagle2", "aardvark",
                                                  "zebra"]  # fmt: skip
    assert sorted(["x", *reversed(SIX_TASKS)], key=task_order) == [*SIX_TASKS, "x"]
    assert len({colour(method, shuffled) for method in shuffled}) == len(shuffled)


def test_methods_and_tasks_have_names_in_words_and_strangers_keep_theirs() -> None:
    names = {"eagle2": "EAGLE-2", "mt_bench": "MT-bench", "gsm8k": "GSM8K", "my_method": "my_method"}
    assert {name: in_words(name) for name in names} == names
    assert label_in_words("eagle2", "eagle2 (paper+depth=4+total=24) †") == "EAGLE-2 (depth=4, total=24) †"
    assert {name for name in (*KNOWN_METHODS, *SIX_TASKS) if in_words(name) == name} == {"vanilla"}


def test_a_default_preset_is_not_spelled_out() -> None:
    assert label("eagle2", "paper") == "eagle2" and label("eagle2", "fast") == "eagle2 (fast)"


def test_golden_records_are_simulated_with_every_odd_case() -> None:
    """What the golden tables rest on; a ledger that lost a case would test less and still pass."""
    records = [json.loads(line) for line in (FOLDER / RECORDS).read_text().splitlines()]
    assert {r["status"] for r in records} == {"ok", "error", "skipped"}
    assert {r["temperature"] for r in records} == {0.0, 1.0}
    assert any(r["is_warmup"] for r in records) and any(r["looped"] for r in records)
    assert any(not r["exact"] for r in records) and any(r["status"] == "ok" and not r["trace"] for r in records)
    assert any(r["turn"] == 2 for r in records) and {r["preset"] for r in records} > {"paper"}


def test_a_copied_ledger_reads_the_same(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "copy")
    assert summarise(read(tmp_path / "copy")) == summarise(read(FOLDER))


def test_a_simulated_output_is_consistent() -> None:
    made = output_of(METHODS["eagle1"], base_record(METHODS["eagle1"], "gsm8k", 0.0), list(range(30)))
    assert 1 + sum(n + 1 for n in made["trace"]["accepted"]) - made["n_cut"] == 30


# ---- several models -------------------------------------------------------------------------------------------------


def test_several_models_have_a_row_each_and_one_has_none(tmp_path: Path) -> None:
    one = write_ledger(tmp_path / "one", stored())
    assert not [path for path in write_tables(one) if path.stem == "models"]
    both = write_ledger(tmp_path / "both", [*stored(), *(r | {"key": r["key"] + "b"} for r in stored(model="other"))])
    (written,) = [path for path in write_tables(both) if path.name == "models.md"]
    rows = [line for line in written.read_text().splitlines() if line.startswith(("| toy", "| other"))]
    assert [re.split(r" *\| *", row)[1:3] for row in rows] == [["other", "0"], ["other", "1"], ["toy", "0"], ["toy", "1"]]
    numbers = pd.read_csv(written.with_suffix(".csv")).query("model == 'other' and temperature == 0 and method == 'eagle2'")
    (mean,) = (
        main_table(summarise(read(FOLDER)))
        .numbers.query("method == 'eagle2' and preset == 'paper' and temperature == 0")
        .to_dict("records")
    )
    assert numbers["speedup"].item() == pytest.approx(mean["six-task mean speedup"]) and numbers["on"].item() == "six-task mean"


def test_each_of_several_models_has_its_own_audit(tmp_path: Path) -> None:
    for model in ("a", "b"):
        (tmp_path / "audit" / model).mkdir(parents=True)
        (tmp_path / "audit" / model / "lossless.json").write_text(json.dumps({"model": model, "methods": {"eagle2": model}}))
    assert audits_of(tmp_path) == {"a": {"eagle2": "a"}, "b": {"eagle2": "b"}}


@pytest.mark.parametrize("pages", [(), ("audit/audit.md",), ("audit/a/audit.md", "audit/b/audit.md")])
def test_the_pages_of_audits_are_named_where_they_are(tmp_path: Path, pages: tuple[str, ...]) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    for page in ("audit/lossless.json", *pages):
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text(json.dumps({"model": read(FOLDER)[0]["model"], "methods": {"eagle2": "lossless (quick)"}}))
    assert harness("table --results", tmp_path, "--out", tmp_path / "tables").code == 0
    for name in ("main", "means"):
        said = (tmp_path / "tables" / f"{name}.md").read_text()
        named = f" ({', '.join(f'`{page}`' for page in pages)})" if pages else ""
        assert f"found on this model{named}. " in said and said.count("audit.md") == len(pages)


def test_a_file_in_the_place_of_a_ledgers_folder_is_told_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "ledger")
    file = tmp_path / "ledger" / RECORDS
    before = sorted(tmp_path.rglob("*"))
    for command in ("table", "plot", "claims", "report", "reproduce --no-run", f"export --out {tmp_path / 'out'}",
                    f"table --compare {FOLDER}", f"verify --model {TINY} --out {tmp_path / 'audit'}"):  # fmt: skip
        done = harness(command, *([] if "--compare" in command else ["--results"]), file)
        refused(done, f"{file} is a file; a ledger is named by its folder, {file.parent}")
    assert sorted(tmp_path.rglob("*")) == before


# ---- the commands ---------------------------------------------------------------------------------------------------


def test_the_commands_end_with_one_line_that_counts_the_files(tmp_path: Path) -> None:
    for command, n_files in (("table", len(GOLDEN)), ("plot", 18)):
        done = harness(f"{command} --results", FOLDER, "--out", tmp_path / command)
        assert done.code == 0, done.err
        assert done.out == f"{n_files} files in {tmp_path / command}\n"
        assert len(list((tmp_path / command).iterdir())) == n_files


def test_a_comparison_is_written_only_where_it_is_asked_for(tmp_path: Path) -> None:
    before = sorted(FOLDER.rglob("*"))
    printed = harness("table --compare", FOLDER, FOLDER)
    written = harness("table --compare", FOLDER, FOLDER, "--out", tmp_path)
    assert printed.code == written.code == 0 and printed.out == written.out
    assert max(map(len, printed.out.splitlines())) <= 100
    assert {path.name for path in tmp_path.iterdir()} == {"compare.md", "compare.csv"} and sorted(FOLDER.rglob("*")) == before
