"""Answer files of EAGLE and Spec-Bench: what an import shows, what it refuses, and that an export comes back the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from command_line import files, harness, isolate, measured, reason, refused, run
from make_ledger import FOLDER
from places import SHARED, TINY

from harness.exchange.imported import import_answers, token_counter
from harness.exchange.imported_report import report
from harness.forms.table import Table
from harness.forms.table import plain as plain_text
from harness.ledger.ledger import RECORDS, Ledger, read
from harness.ledger.record import validate
from harness.metrics.cells import summarise

PUBLISHED = SHARED / "published_outputs"
Turn = tuple[str, int, int, float]  # text, idx or steps, new_tokens, seconds


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def eagle(question: int | str, *turns: Turn, model: str = "m-ea-temperature-0.0", **changes: Any) -> dict[str, Any]:
    texts, idxs, new_tokens, seconds = (list(column) for column in zip(*turns, strict=True))
    choice = {"index": 0, "turns": texts, "idxs": idxs, "new_tokens": new_tokens, "wall_time": seconds}
    return {"question_id": question, "answer_id": "a", "model_id": model, "choices": [choice | changes], "tstamp": 1.5}


def spec_bench(question: int, category: str, lengths: list[int], *turns: Turn, **changes: Any) -> dict[str, Any]:
    row = eagle(question, *turns, model="m-method")
    (choice,) = row["choices"]
    choice["decoding_steps"] = choice.pop("idxs")
    row["choices"] = [choice | {"accept_lengths": lengths} | changes]
    return row | {"category": category}


def written(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def values(table: Table, part: str = "all") -> dict[str, float]:
    """The figures that have a value."""
    numbers = table.numbers[table.numbers["part"] == part].dropna(subset=["value"])
    return dict(zip(numbers["figure"], numbers["value"], strict=True))


def formulas(table: Table) -> dict[str, str]:
    return dict(zip(table.numbers["figure"], table.numbers["from"], strict=True))


METHOD = [eagle(1, ("Hi there, you", 2, 9, 1.0), ("b", 0, 2, 1.0)), eagle(2, ("same", 4, 20, 2.0), ("c", 1, 5, 2.0))]
PLAIN = [
    eagle(1, ("Hi there", 7, 0, 2.0), ("b", 1, 0, 2.0), model="m-base-temperature-0.0"),
    eagle(2, ("same", 19, 0, 5.0), ("c", 4, 0, 5.0), model="m-base-temperature-0.0"),
]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return written(tmp_path / "ea.jsonl", METHOD), written(tmp_path / "base.jsonl", PLAIN)


# ---- the authors' own files -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the authors' answer files are not beside the checkout")
def test_the_authors_files_give_the_figures_counted_from_them(tmp_path: Path) -> None:
    name = "llama-2-chat-70b-fp16-{}-in-temperature-0.0.jsonl"
    outcome = harness(
        "import", PUBLISHED / name.format("ea"), "--baseline", PUBLISHED / name.format("base"), "--out", tmp_path / "i"
    )
    assert outcome.code == 0, outcome.err
    table = report(tmp_path / "i")
    found = {figure: round(value, 3) for figure, value in values(table).items()}
    assert found["τ, pooled"] == 3.620 and found["τ, mean of turns"] == 3.737 and found["τ, index from 0"] == 3.658
    assert found["speed ratio, mean of questions"] == 2.995 and found["speed ratio, totals"] == 2.907
    assert "official formula" not in found and "needs --tokenizer" in formulas(table)["official formula"]
    for figure in ("speed ratio, mean of questions", "speed ratio, totals"):
        assert "idxs + 1, because its new_tokens are 0" in formulas(table)[figure]
    assert "7 of 80 differ mid-text (95, 98, 115, 122, 142, 156, 158)" in outcome.out
    assert "Unequal length limits: 40 of the baseline's 160 turns have exactly 512 tokens" in outcome.out
    assert len(read(tmp_path / "i", imported=True)) == 320


# ---- figures by hand ------------------------------------------------------------------------------------------------


def test_the_figures_of_a_small_pair_are_those_worked_out_by_hand(pair: tuple[Path, Path], tmp_path: Path) -> None:
    table = import_answers(pair[0], pair[1], None, tmp_path / "i")
    assert values(table) == pytest.approx({
        "τ, pooled": 36 / (3 + 1 + 5 + 2), "τ, mean of turns": (9 / 3 + 2 / 1 + 20 / 5 + 5 / 2) / 4,
        "τ, index from 0": 36 / (2 + 0 + 4 + 1), "tokens/s, mean of questions": (11 / 2 + 25 / 4) / 2,
        "tokens/s, baseline's": (10 / 4 + 25 / 10) / 2, "speed ratio, mean of questions": (11 / 2 + 25 / 4) / (2.5 + 2.5),
        "speed ratio, totals": (36 / 6) / (35 / 14),
    })  # fmt: skip
    text = plain_text(table)
    assert "Of 2 first answers 1 are the baseline's, 1 go on where the baseline's ends" in text and "0 of 2 differ" in text


def test_the_official_formula_counts_the_baselines_text_again(pair: tuple[Path, Path], tmp_path: Path) -> None:
    count = token_counter(str(TINY.parent / "target"))
    n = {text: sum(count(text)) - 1 for text in ("Hi there", "b", "same", "c")}
    for tokenizer in (str(TINY.parent / "target"), str(TINY)):
        table = import_answers(*pair, tokenizer, tmp_path / Path(tokenizer).name)
        base = ((n["Hi there"] + n["b"]) / 4 + (n["same"] + n["c"]) / 10) / 2
        assert values(table)["official formula"] == pytest.approx((11 / 2 + 25 / 4) / 2 / base)


def test_a_tokenizers_bos_is_counted_apart(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY.parent / "target", tmp_path / "t")
    plain = token_counter(str(folder))("Hi there")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    bos = next(token for token, number in tokenizer["model"]["vocab"].items() if number == 0)
    single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [*single, *single],
                                   "special_tokens": {bos: {"id": bos, "ids": [0], "tokens": [bos]}}}  # fmt: skip
    file.write_text(json.dumps(tokenizer))
    assert token_counter(str(folder))("Hi there") == (plain[0], plain[1] + 1)


def test_without_a_baseline_the_ratios_say_so(pair: tuple[Path, Path], tmp_path: Path) -> None:
    table = import_answers(pair[0], None, None, tmp_path / "i")
    assert "τ, pooled" in values(table) and "speed ratio, totals" not in values(table)
    assert formulas(table)["official formula"] == "no --baseline"
    alone = import_answers(pair[1], None, None, tmp_path / "j")
    assert formulas(alone)["τ"] == "its new_tokens are all 0: the file of a baseline"


def test_spec_benchs_accept_lengths_are_cut_into_turns_whichever_way_its_steps_are_counted(tmp_path: Path) -> None:
    first, second = ("a", 2, 5, 1.0), ("b", 1, 4, 1.0)
    numbered = spec_bench(1, "writing", [3, 2, 4], first, second)
    indexed = spec_bench(2, "qa", [3, 2, 4], ("a", 1, 5, 1.0), ("b", 0, 4, 1.0))
    old = spec_bench(3, "qa", [3, 2, 4], ("a", 1, 5, 1.0), ("b", 0, 4, 1.0))  # EAGLE's script there says idxs
    old["choices"][0]["idxs"] = old["choices"][0].pop("decoding_steps")
    table = import_answers(written(tmp_path / "f", [numbered, indexed, old]), None, None, tmp_path / "i")
    told = [r["foreign"] for r in read(tmp_path / "i", imported=True)]
    assert [(f["steps"], f["accept_lengths"]) for f in told] == [(2, [3, 2]), (1, [4])] * 3
    assert values(table)["mean accept length"] == values(table)["τ, pooled"] == pytest.approx(3.0)
    assert set(table.numbers["part"]) == {"all", "mt_bench", "qa"}
    assert values(table, "mt_bench")["tokens/s, mean of questions"] == pytest.approx(4.5)


def test_steps_that_contradict_the_accept_lengths_leave_tau_empty(tmp_path: Path) -> None:
    rows = [spec_bench(1, "qa", [3, 2, 4, 1], ("a", 9, 10, 1.0))]
    table = import_answers(written(tmp_path / "f", rows), None, None, tmp_path / "i")
    assert "τ, pooled" not in values(table) and "another number of steps" in formulas(table)["τ"]


def test_failed_turns_repeated_questions_and_further_choices_are_left_out_and_told(tmp_path: Path) -> None:
    failed = eagle(3, ("fine", 1, 4, 1.0), ("ERROR", 1, 4, 1.0))
    several = eagle(2, ("x", 1, 6, 1.0))
    several["choices"].append(several["choices"][0] | {"index": 1, "new_tokens": [600]})
    rows = [eagle(1, ("old", 1, 99, 1.0)), several, failed, eagle(1, ("new", 1, 4, 1.0))]
    text = plain_text(import_answers(written(tmp_path / "f", rows), None, None, tmp_path / "i"))
    assert values(report(tmp_path / "i"))["τ, pooled"] == pytest.approx((4 + 6) / 4)
    for said in ("1 questions stand in it more than once", "1 questions with a turn that failed", "1 further choices"):
        assert said in text
    errors = [r for r in read(tmp_path / "i", imported=True) if r["status"] == "error"]
    assert len(errors) == 1 and errors[0]["wall_s"] is None and errors[0]["foreign"]["new_tokens"] is None


def test_questions_of_one_side_only_are_left_out_and_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    written(pair[1], [*PLAIN[:1], eagle(9, ("z", 1, 0, 1.0), model="m-base-temperature-0.0")])
    table = import_answers(*pair, None, tmp_path / "i")
    assert table.numbers["questions"].unique().tolist() == [1]
    assert plain_text(table).count("1 questions are not in the other file") == 2


# ---- the records ----------------------------------------------------------------------------------------------------


def test_imported_records_are_valid_and_hold_null_for_what_the_file_does_not_tell(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    import_answers(*pair, None, tmp_path)
    records = read(tmp_path, imported=True)
    for r in records:
        validate(dict(r))
        assert r["token_ids"] is None and r["dtype"] is None and r["trace"] is None
    assert (records[0]["temperature"], records[0]["foreign"]["line"], records[0]["foreign"]["steps"]) == (0.0, 1, 3)
    with pytest.raises(ValueError, match="dtype"):  # null is for imported records alone
        validate({key: value for key, value in records[0].items() if key != "foreign"})


def test_importing_again_adds_nothing_and_another_import_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "i"
    command = ("import", pair[0], "--baseline", pair[1], "--out", out)
    first = harness(*command)
    before = files(out)
    assert harness(*command).out == first.out and files(out) == before
    refused(harness("import", pair[1], "--out", out), "holds another import", "choose another --out")
    assert files(out) == before


def test_imported_and_measured_records_never_share_a_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ours, theirs = shutil.copytree(FOLDER, tmp_path / "ours"), tmp_path / "theirs"
    assert harness("import", pair[0], "--out", theirs).code == 0
    refused(harness("import", pair[0], "--out", ours), f"{RECORDS}:1", "a record measured here")
    refused(run(theirs, "--method vanilla --task gsm8k"), f"{RECORDS}:1", "an imported answer file")
    refused(harness("plot --results", theirs), "an imported answer file")
    refused(harness("export --results", theirs, "--out", tmp_path / "x"), "an imported answer file")
    with Ledger(theirs, imported=True) as ledger:
        assert len(ledger.keys()) == 4


def test_the_table_of_an_import_is_the_import_again(pair: tuple[Path, Path], tmp_path: Path) -> None:
    printed = harness("import", *pair[:1], "--baseline", pair[1], "--out", tmp_path / "i").out
    assert harness("table --results", tmp_path / "i").code == 0
    drawn = (tmp_path / "i" / "tables" / "imported.md").read_text()
    assert "| τ, pooled | 3.273 |" in drawn and "3.273" in printed
    assert {p.suffix for p in (tmp_path / "i" / "tables").iterdir()} == {".md", ".csv"}


# ---- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["eagle", "spec-bench"])
def test_an_export_comes_back_with_the_figures_of_our_tables(format_: str, tmp_path: Path) -> None:
    records = measured(tmp_path / "run", "--method eagle2 --task mt_bench --limit 3 --max-new-tokens 24")
    outcome = harness("export --results", tmp_path / "run", "--format", format_, "--out", tmp_path / "x")
    assert outcome.code == 0, outcome.err
    paths = {Path(line).name: Path(line) for line in outcome.out.splitlines()}
    assert set(paths) == {f"tiny-{m}-float32-temperature-0.0.jsonl" for m in ("vanilla", "eagle2")}
    own, base = (paths[f"tiny-{m}-float32-temperature-0.0.jsonl"] for m in ("eagle2", "vanilla"))
    found = values(import_answers(own, base, str(TINY), tmp_path / "i"))
    (cell,) = [c for c in summarise(records) if c.method == "eagle2"]
    assert found["official formula"] == pytest.approx(cell.official.speedup)
    assert found["τ, index from 0"] == pytest.approx(cell.official.tau)
    traces = [r["trace"]["accepted"] for r in records if r["method"] == "eagle2" and r["trace"]]
    drawn, forwards = sum(sum(a) + len(a) for a in traces), sum(map(len, traces))
    assert len(traces) == 6 and found["τ, pooled"] == pytest.approx(drawn / forwards)
    vanilla = [r for r in records if r["method"] == "vanilla"]
    speed = sum(len(r["token_ids"]) for r in vanilla) / sum(r["wall_s"] or 0 for r in vanilla)
    own_s = sum(r["wall_s"] or 0 for r in records if r["method"] == "eagle2")
    assert found["speed ratio, totals"] == pytest.approx(drawn / own_s / speed)
    texts = [text for line in own.read_text().splitlines() for text in json.loads(line)["choices"][0]["turns"]]
    assert sorted(texts) == sorted(r["text"] for r in records if r["method"] == "eagle2")


def test_an_export_leaves_out_what_the_format_cannot_hold_and_says_so(tmp_path: Path) -> None:
    outcome = harness("export --results", FOLDER, "--format spec-bench --out", tmp_path)
    assert outcome.code == 0 and "left out: hf-generate (paper) on gsm8k at T = 0: it has no trace" in outcome.err
    assert not list(tmp_path.glob("*/*hf-generate*"))
    assert (tmp_path / "gsm8k" / "toy-eagle2-paper+depth=4+total=24-float32-temperature-0.0.jsonl").exists()
    rows = [
        json.loads(line) for line in (tmp_path / "cnn_dm" / "toy-eagle2-float32-temperature-0.0.jsonl").read_text().splitlines()
    ]
    assert [row["question_id"] for row in rows] == [0, 1, 2, 3, 4] and rows[0][
        "category"
    ] == "summarization"  # the skipped one is not
    assert sum(rows[0]["choices"][0]["accept_lengths"]) == sum(rows[0]["choices"][0]["new_tokens"])


def test_an_unknown_export_format_is_named(tmp_path: Path) -> None:
    refused(
        harness("export --results", FOLDER, "--format medusa --out", tmp_path), "unknown format 'medusa'", "eagle, spec-bench"
    )


# ---- bad input ------------------------------------------------------------------------------------------------------

GOOD = json.dumps(METHOD[0])


def changed(**fields: Any) -> str:
    return json.dumps(METHOD[1] | fields)


def choice(drop: str = "", **fields: Any) -> str:
    kept = {key: value for key, value in METHOD[1]["choices"][0].items() if key != drop}
    return changed(choices=[kept | fields])


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (GOOD[:-9], ["cut off, or not JSON", "eagle or spec-bench"]),
        ("[1]", ["another format, a JSON list", "eagle, spec-bench"]),
        ('{"prompt": 1}', ["another format", "'question_id' and 'choices'", "eagle, spec-bench"]),
        ('{"schema": 2, "key": "k"}', ["a record of our own", "harness export"]),
        (changed(modelid="x"), ["unknown field 'modelid'", "did you mean 'model_id'?", "known: answer_id, choices,"]),
        (choice(accepted=[1, 2]), ["unknown field 'accepted'", "in choices[0]", "known: idxs, index, new_tokens"]),
        (choice("idxs"), ["field 'idxs' is missing in choices[0]", "format eagle has turns, idxs, new_tokens, wall_time"]),
        (choice("idxs", idx=[1, 2]), ["unknown field 'idx'", "did you mean 'idxs'?"]),
        (choice(idxs=[1]), ["field 'idxs' has 1 entries for 2 turns"]),
        (choice(idxs=[1, 2.5]), ["field 'idxs' is [1, 2.5]", "a list of counts"]),
        (choice(new_tokens=[1, -3]), ["field 'new_tokens' is [1, -3]"]),
        (choice(wall_time=[1, 0]), ["field 'wall_time' is [1, 0]", "seconds over 0"]),
        (choice(wall_time=[1, float("nan")]), ["field 'wall_time'", "seconds over 0"]),
        (choice(turns="text"), ["field 'turns' is \"text\"", "a list of texts"]),
        (changed(choices=[]), ["field 'choices' is []", "at least one object"]),
        (changed(question_id=None), ["field 'question_id' is null"]),
        (changed(model_id="other"), ["field 'model_id' is 'other', but 'm-ea-temperature-0.0' before"]),
        (json.dumps(spec_bench(2, "qa", [5], ("a", 1, 5, 1.0))), ["format spec-bench, but the lines before are eagle"]),
    ],
    ids=reason,
)  # fmt: skip
def test_a_bad_line_is_named_with_file_line_field_and_choices(line: str, parts: list[str], tmp_path: Path) -> None:
    file = written(tmp_path / "answers.jsonl", [GOOD, line])
    refused(harness("import", file, "--out", tmp_path / "i"), "answers.jsonl:2: ", *parts)
    assert not (tmp_path / "i").exists()


def test_a_spec_bench_line_without_its_lists_names_what_it_lacks(tmp_path: Path) -> None:
    row = spec_bench(1, "qa", [5], ("a", 1, 5, 1.0))
    del row["choices"][0]["accept_lengths"]
    file = written(tmp_path / "answers.jsonl", [row])
    parts = ("answers.jsonl:1: field 'accept_lengths' is missing", "format spec-bench has turns, decoding_steps")
    refused(harness("import", file, "--out", tmp_path / "i"), *parts)


def test_files_that_share_no_question_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    others = [eagle(7, ("a", 1, 0, 1.0)), eagle(8, ("a", 1, 0, 1.0)), eagle(9, ("a", 1, 0, 1.0))]
    written(pair[1], others)
    outcome = harness("import", pair[0], "--baseline", pair[1], "--out", tmp_path / "i")
    refused(outcome, "ea.jsonl", "base.jsonl", "share no question", "1 (2 turns), 2 (2 turns)", "7 (1 turns)", "3 in all")


def test_files_and_tokenizers_that_are_not_there_are_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    refused(harness("import", tmp_path / "none.jsonl", "--out", tmp_path / "i"), "none.jsonl cannot be read")
    refused(harness("import", written(tmp_path / "empty", []), "--out", tmp_path / "i"), "empty; expected the answers of")
    (tmp_path / "no-tokenizer").mkdir()
    outcome = harness("import", pair[0], "--tokenizer", tmp_path / "no-tokenizer", "--out", tmp_path / "i")
    refused(outcome, "no tokenizer there", "smollm2-135m")
    assert not (tmp_path / "i").exists()
