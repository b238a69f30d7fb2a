"""What a ledger holds is checked when it is read: a bad line is named, counted and left out; with --strict it is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import harness, isolate, refused, run
from made_up_ledger import write_ledger
from made_up_records import measured, unmeasured
from make_ledger import ENV, METHODS, base_record, keyed, output_of
from places import ROOT

import harness as api
from harness.common.errors import UserError
from harness.ledger.ledger import OLD_SCHEMA, RECORDS, Ledger, read
from harness.ledger.record import CELL_FIELDS_OF, SCHEMA, canonical_hash, sample_key

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def lines_of(folder: Path) -> list[str]:
    return (folder / RECORDS).read_text().splitlines()


def put(folder: Path, *lines: str) -> Path:
    (folder / RECORDS).write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Six good records; line 3 is EAGLE-2's first."""
    records = [measured(method, i, [1, 2, 0]) for method in ("vanilla", "eagle2") for i in range(2)]
    return write_ledger(tmp_path / "ledger", [*records, measured("pld", 0, [1]), unmeasured("pld", 1, "error")])


@pytest.mark.parametrize(
    "folder", ["tests/data/ledger", *(str(p.parent.relative_to(ROOT)) for p in ROOT.glob("results/*/records*"))]
)
def test_of_the_committed_ledgers_no_line_is_left_out(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(read(ROOT / folder, strict=True).footnotes) <= {OLD_SCHEMA} and capsys.readouterr().err == ""


def deep(record: dict[str, Any]) -> str:
    return json.dumps(record | {"options": "DEEP"}).replace('"DEEP"', '{"a":' * 100_000 + "1" + "}" * 100_000)


def with_trace(**columns: Any) -> Change:
    return lambda r: r | {"trace": r["trace"] | columns}


def looping(record: dict[str, Any]) -> dict[str, Any]:
    return keyed(record | {"token_ids": [7] * 64, "trace": None, "max_new_tokens": 64})


BAD: dict[str, Change] = {
    "not JSON": lambda r: "{broken",
    "not JSON: empty": lambda r: "",
    "not JSON: UTF-16": lambda r: json.dumps(r).encode("utf-16").decode("latin-1"),
    "not a JSON object": lambda r: [1, 2],
    "not a record (no baseline_sha, category, cell and": lambda r: {"key": "k", "schema": SCHEMA},
    "record schema 99": lambda r: r | {"schema": 99},
    "record schema True": lambda r: r | {"schema": True},
    "an imported answer file": lambda r: r | {"foreign": {}},
    "wall_s is 0": lambda r: r | {"wall_s": 0},
    "wall_s is '0.3'": lambda r: r | {"wall_s": "0.3"},
    "wall_s is -3": lambda r: r | {"wall_s": -3},
    "wall_s is None": lambda r: r | {"wall_s": None},
    "wall_s is inf": lambda r: json.dumps(r).replace('"wall_s": 1.0', '"wall_s": 1e999'),
    "NaN is in it": lambda r: r | {"wall_s": float("nan")},
    "Infinity is in it": lambda r: r | {"load": float("inf")},
    "wall_s is 0.15, and its parts are 0.19": lambda r: r | {"wall_s": 0.15},
    "wall_s is 1.0, and its parts are 12": with_trace(target_s=[4, 4, 4]),
    "prefill_s is [1]": lambda r: r | {"prefill_s": [1]},
    "trace is [1]": lambda r: r | {"trace": [1]},
    "trace is {'accepted': [1]}": lambda r: r | {"trace": {"accepted": [1]}},
    "trace.accepted is [1, 2, None]": with_trace(accepted=[1, 2, None]),
    "trace.accepted is [1, 2, True]": with_trace(accepted=[1, 2, True]),
    "trace.draft_s is [-0.1": with_trace(draft_s=[-0.1, 0, 0]),
    "trace.tree_size is 3": with_trace(tree_size=3),
    "trace: its columns have 3, 3, 2": with_trace(draft_s=[0.1, 0.1]),
    "trace: a forward accepted more nodes": with_trace(tree_size=[4, 1, 4]),
    "and 1 + sum(accepted + 1) - n_cut is 7 - 1": lambda r: r | {"n_cut": 1},
    "n_cut is -1": lambda r: r | {"n_cut": -1},
    "token_ids is [1, None]": lambda r: r | {"token_ids": [1, None]},
    "token_ids is [-1]": lambda r: r | {"token_ids": [-1]},
    "token_ids is [1000": lambda r: r | {"token_ids": [10**400]},
    "token_ids is None": lambda r: r | {"token_ids": None},
    "token_ids holds 7 ids, and max_new_tokens is 5": lambda r: keyed(r | {"max_new_tokens": 5}),
    "token_ids or finish is lacking": lambda r: r | {"finish": None},
    "finish is 'tired'": lambda r: r | {"finish": "tired"},
    "status is 'fine'": lambda r: r | {"status": "fine"},
    "wall_s is 1.0; it must be empty where": lambda r: r | {"status": "error", "error": "x", "trace": None, "token_ids": []},
    "error is 'x'; it must be null": lambda r: r | {"error": "x"},
    "n_prompt is 1000": lambda r: r | {"n_prompt": 10**400},
    "threads is 0": lambda r: r | {"threads": 0},
    "top_p is 2": lambda r: r | {"top_p": 2},
    "turn is 3 of 1": lambda r: r | {"turn": 3},
    "model is ''": lambda r: r | {"model": ""},
    "model is '\\ud800'": lambda r: r | {"model": "\ud800"},
    "options is []": lambda r: r | {"options": []},
    "nested too deeply": deep,
    "env is '../../etc'": lambda r: r | {"env": "../../etc"},
    "'wall_s' stands in it twice": lambda r: json.dumps(r)[:-1] + ', "wall_s": 0.5}',
    "key is": lambda r: r | {"sample_id": "7"},
    "that of a warm-up of its run, method and preset is": lambda r: r | {"is_warmup": True},
    "looped is True, and its token_ids say False": lambda r: r | {"looped": True},
    "looped is False, and its token_ids say True": lambda r: looping(r),
    "cpu_s is 1.1, of one thread, and wall_s is 1.0": lambda r: r | {"cpu_s": 1.1},
    "cpu_s 0.99, and prefill_s and the steps take 0.19 s": lambda r: r | {"cpu_s": 0.99},
    "trace.tree_size is [4, 4, 4]; vanilla drafts nothing": lambda r: r | {"method": "vanilla"},
    "cell is": lambda r: r | {"options": {"total": 5}},
    "measured already in line 1": lambda r: {},  # a copy of the first line
}  # fmt: skip


@pytest.mark.parametrize(("why", "change"), BAD.items(), ids=BAD)
def test_a_bad_line_is_named_with_its_value_left_out_and_refused_by_strict(
    ledger: Path, why: str, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    good = lines_of(ledger)
    changed = change(json.loads(good[2]))
    bad = good[0] if changed == {} else changed if isinstance(changed, str) else json.dumps(changed)
    put(ledger, *good[:2], bad, *good[3:])
    why = why.split(": ")[0] if why.startswith("not JSON") else why
    found = read(ledger)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{ledger / RECORDS}:3: left out: ") and why in told and len(told) < 400
    (footnote,) = found.footnotes
    assert footnote.startswith(f"1 line of {ledger / RECORDS} could not be read and is left out: line 3 (") and why in footnote
    put(ledger, *good[:2], *good[3:])
    assert list(found) == read(ledger) and read(ledger).footnotes == ()
    put(ledger, *good[:2], bad, *good[3:])
    with pytest.raises(UserError, match=f"{RECORDS}:3: "):
        read(ledger, strict=True)
    read(ledger, quiet=True)
    assert capsys.readouterr().err == ""


def test_a_run_names_a_bad_line_measures_it_anew_and_rewrites_nothing(tmp_path: Path) -> None:
    words = "--method vanilla --task alpaca --limit 2"
    assert run(tmp_path / "l", words).code == 0
    good = lines_of(tmp_path / "l")
    spoilt = json.dumps(json.loads(good[-1]) | {"wall_s": "0.3"})
    put(tmp_path / "l", *good[:-1], spoilt)
    again = run(tmp_path / "l", words)
    assert again.code == 0 and again.err.count("wall_s is '0.3'") == 1 and "does not count, and stays where it is" in again.err
    after = lines_of(tmp_path / "l")
    assert after[: len(good)] == [*good[:-1], spoilt]
    assert json.loads(after[-1])["key"] == json.loads(spoilt)["key"] and len(after) == len(good) + 2  # a warm-up, too
    assert "nothing to measure" in run(tmp_path / "l", words).err


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n\x00\x00", b"hello", "{}\n".encode("utf-16"), b"[1]\n[2]\n[3]\n", b"\xff\n", b'{"theirs": '],
)
def test_a_file_without_one_good_line_is_no_ledger_and_is_not_touched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORDS).write_bytes(content)
    for command in ("table", "plot", "claims", "report", "export --out out"):
        refused(harness(command, "--results", tmp_path), f"no records in {tmp_path}", "read")
    for use in (Ledger, read):
        with pytest.raises(UserError, match=f"no records in {tmp_path}: (its only line cannot|none of its . lines can) be read"):
            use(tmp_path)
    assert (tmp_path / RECORDS).read_bytes() == content


def test_what_is_left_out_is_counted_below_every_table_claim_and_on_the_page_and_told_once(ledger: Path) -> None:
    good = lines_of(ledger)
    put(
        ledger,
        *good[:2],
        "rubbish",
        good[2].replace('"wall_s": 1.0', '"wall_s": -1.0'),
        *good[3:],
        good[0],
        *["no"] * 4,
        '{"torn',
    )
    (ledger / RECORDS).write_text((ledger / RECORDS).read_text()[:-1])
    footnote = "8 lines of "
    (clean := ledger.parent / "clean").mkdir()
    put(clean, *good[:2], *good[3:])
    for env in ledger.glob("env-*"):
        (clean / env.name).write_bytes(env.read_bytes())
    for command, out in (("table", "tables"), ("claims", "claims")):
        done = harness(command, "--results", ledger)
        assert done.code == 0 and done.err.count("left out: ") == 5 and "3 more lines: left out" in done.err, done.err
        assert harness(command, "--results", clean).code == 0
        for file in (ledger / out).iterdir():
            theirs = (clean / out / file.name).read_text()
            if file.suffix == ".md":
                kept = "\n\n".join(p for p in file.read_text().strip().split("\n\n") if not p.startswith(footnote))
                assert footnote in file.read_text() and kept == theirs.strip()
            else:
                assert file.read_text() == theirs
    compared = harness("table --compare", clean, ledger)
    assert compared.code == 0 and footnote in " ".join(compared.out.split())  # it is broken where a line is full
    page = harness("report --generations 0 --results", ledger)
    written = (ledger / "report.html").read_text()
    assert page.code == 0 and "<dt>notes</dt>" in written and footnote in written
    assert footnote in api.read(ledger).attrs["footnotes"][0] and len(api.read(ledger)) == 5
    for command in ("table", "plot", "claims", "report", "export --out out"):
        refused(harness(command, "--strict --results", ledger), f"{RECORDS}:3: not JSON", "(and 7 more); without --strict")
    refused(harness("table --strict --compare", clean, ledger), "without --strict")
    with pytest.raises(UserError, match="without --strict"):
        api.read(ledger, strict=True)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "is missing"),
        (b"", "cannot be read"),
        (b"[1]", "no JSON object"),
        (b'{"cpu": "Another CPU"}', "altered: the hash of what it holds is"),
        (b"[" * 100_000, "nested too deeply"),
        ("{}".encode("utf-16"), "cannot be read"),
    ],
)
def test_an_env_file_that_its_name_is_not_the_hash_of_leaves_the_machine_unknown(
    ledger: Path, content: bytes | None, why: str
) -> None:
    (env,) = ledger.glob("env-*.json")
    env.unlink()
    if content is not None:
        env.write_bytes(content)
    done = harness("table --results", ledger)
    assert done.code == 0 and done.err.count(why) == 1, done.err
    text = (ledger / "tables" / "main.md").read_text()
    assert "unknown machine" in text and "The machine of some records is not known" in text and why in text
    refused(harness("table --strict --results", ledger), why, "unknown machine")
    refused(harness("run --model", "tests/tiny/tiny.yaml", "--method none --task alpaca --out", ledger), "unknown method")
    with Ledger(ledger) as opened:
        with pytest.raises(UserError, match=env.name):
            opened.check_machine(read(ledger, quiet=True)[0]["cell"], ENV)
        if content is not None:
            with pytest.raises(UserError, match=env.name):
                opened.write_env(ENV)
            assert env.read_bytes() == content


def test_what_a_thread_waited_is_not_missing_in_its_steps_and_a_warm_up_has_its_own_key(tmp_path: Path) -> None:
    records = [measured("eagle2", 0, [1, 2, 0], cpu_s=0.4), measured("eagle2", 1, [1], wall_s=0.3, cpu_s=0.33)]
    warm_up = measured("eagle2", 2, [1], is_warmup=True)
    assert [r["is_warmup"] for r in read(write_ledger(tmp_path, [*records, warm_up]), strict=True)] == [False, False, True]


@pytest.mark.parametrize("system", ["paper", "none"])
def test_the_older_schemas_cell_keys_hold_the_system_prompt(tmp_path: Path, system: str) -> None:
    record = output_of(METHODS["vanilla"], base_record(METHODS["vanilla"], "gsm8k", 0.0), list(range(20)))
    plain = cell_key_of_2(record)
    mixed = cell_key_of_2(record | {"prompts_sha": hashlib.sha256(f"{record['prompts_sha']} none".encode()).hexdigest()})
    with Ledger(tmp_path) as ledger:
        env = ledger.write_env(ENV | {"system": system})
        for cell in (plain, mixed):
            key = sample_key(cell, record["sample_id"], 1, 0, record["prompt_sha"])
            ledger.append(record | {"schema": 2, "cell": cell, "key": key, "env": env})
    assert [r["cell"] for r in read(tmp_path)] == [plain if system == "paper" else mixed]


def cell_key_of_2(record: dict[str, Any]) -> str:
    return canonical_hash({name: record[name] for name in CELL_FIELDS_OF[2]})


def test_a_ledger_of_others_answers_is_checked_as_well(tmp_path: Path) -> None:
    choice = {"index": 0, "turns": ["Hi"], "idxs": [2], "new_tokens": [9], "wall_time": [1.0]}
    rows = [{"question_id": i, "answer_id": "a", "model_id": "m", "choices": [choice], "tstamp": 1.5} for i in (1, 2, 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert harness("import", tmp_path / "a.jsonl", "--out", tmp_path / "i").code == 0
    good = lines_of(tmp_path / "i")
    put(
        tmp_path / "i",
        good[0].replace('"steps": 3', '"steps": -3'),
        good[1].replace('"sample_id": "2"', '"sample_id": "7"'),
        good[2],
    )
    done = harness("table --results", tmp_path / "i")
    assert (
        done.code == 0
        and "foreign.steps is -3" in done.err
        and "2 lines of" in (tmp_path / "i" / "tables" / "imported.md").read_text()
    )
    refused(harness("table --strict --results", tmp_path / "i"), "foreign.steps is -3", "(and 1 more)")
