"""Files that somebody else wrote, spoilt at random: each ends in one clear line or in a right result, never in a traceback."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Outcome, harness, isolate
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from made_up_records import measured, unmeasured
from make_ledger import ENV, keyed
from places import TINY

from harness.ledger.ledger import RECORDS, Ledger, read
from harness.ledger.record import CELL_FIELDS, READ_BESIDE, cell_key, validate

CASES = {"table": 125, "model": 125, "prompts": 125, "answers": 125}  # 500 a run
THOROUGH = 20
DEEP = "deeply nested: the reader of JSON gives up"  # stands for what `json.dumps` cannot write
PLAIN = settings(deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# ---- how files are spoilt -------------------------------------------------------------------------------------------

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 3, 1.5, -0.5, 0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**400, "", " ",
    "0.3", "nan", "\ud800", "a\nb", "a|b`c", "<script>alert(1)</script>", "../../x", "/", "a b c", "x" * 5000, "\x00", [], {},
    [None], ["0"], [[]], {"a": 1}, [1e400], [-1], [True], DEEP, [DEEP], {"hub": "a b c", "revision": "main"}, {"path": "nowhere"},
    {"path": [1]},
]  # fmt: skip
BYTES = [b"\n", b"\x00", b"\xff\xfe", b"{", b"}", b"[", b'"', b",", b":", b"\r", b"\t", b"- ", b"&a [*a]", b"#", b"%",
         b"\xe2\x80\xa8", b"!!python/object:os.system ", b"9" * 5000, b"NaN", b"[" * 1100, b"\xed\xa0\x80"]  # fmt: skip


@st.composite
def spoilt_value(draw: st.DrawFn, value: Any) -> Any:
    """The value with one or two things in it replaced, taken away, renamed or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(value))
        named = [place for place in places if isinstance(place[0], dict)]  # else most places are in long lists
        if not places:
            break
        holder, at = draw(st.sampled_from(named if named and draw(st.integers(0, 3)) else places))
        what = draw(st.sampled_from(("junk", "junk", "junk", "junk", "junk", "gone", "renamed", "wrapped")))
        if what == "junk":
            holder[at] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif what == "gone":
            del holder[at]
        elif what == "renamed" and isinstance(holder, dict):
            holder[f"{at}s"] = holder.pop(at)
        else:
            holder[at] = [holder[at]]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for at in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, at
        yield from _places(value[at])


def written(value: Any) -> bytes:
    return json.dumps(value).encode().replace(json.dumps(DEEP).encode(), b"[" * 1100 + b"]" * 1100)


@st.composite
def spoilt_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """The file cut off, re-encoded, or with a piece put in, doubled or taken out."""
    what = draw(st.sampled_from(("cut", "put in", "out", "twice", "utf-16", "bom", "crlf", "rubbish", "empty")))
    if what in ("utf-16", "bom", "crlf", "empty"):
        return {"utf-16": data.decode().encode("utf-16"), "bom": b"\xef\xbb\xbf" + data, "crlf": data.replace(b"\n", b"\r\n"),
                "empty": b""}[what]  # fmt: skip
    if what == "rubbish":
        return draw(st.binary(max_size=60))
    a, b = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
    if what == "put in":
        return data[:a] + draw(st.sampled_from(BYTES)) + data[a:]
    return {"cut": data[:a], "out": data[:a] + data[b:], "twice": data[:b] + data[a:]}[what]


def spoilt_lines(rows: list[Any], most: int = 1) -> st.SearchStrategy[bytes]:
    """A JSON-lines file with up to `most` lines spoilt, or the file as a whole."""

    @st.composite
    def some_lines(draw: st.DrawFn) -> bytes:
        lines = [written(row) for row in rows]
        for at in draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=most, unique=True)):
            is_value = draw(st.integers(0, 4)) > 0
            lines[at] = written(draw(spoilt_value(rows[at]))) if is_value else draw(spoilt_bytes(lines[at]))
        return b"".join(line + b"\n" for line in lines)

    whole = b"".join(written(row) + b"\n" for row in rows)
    return st.one_of(*[some_lines()] * 6, spoilt_bytes(whole))


def one_line_or_done(outcome: Outcome) -> bool:
    """Whether a command did what it was asked for; else it must have said why, in one line."""
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in outcome.err + outcome.out
    if outcome.code == 0:
        assert not errors, outcome.err
        return True
    assert outcome.code in (1, 2) and len(errors) == 1 and outcome.err.splitlines()[-1] == errors[0], outcome
    assert len(errors[0]) < 1500, errors[0]
    return False


_LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]


def fuzzed(name: str, files: st.SearchStrategy[Any]) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """A test of as many files as `CASES` says, and a slow one of 20 times as many."""

    def both(check: Callable[[Any], None]) -> Callable[..., None]:
        @pytest.mark.parametrize(
            "n", [CASES[name], pytest.param(CASES[name] * THOROUGH, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
        )
        def test(n: int) -> None:
            settings(PLAIN, max_examples=n)(given(files)(check))()

        return test

    return both


# ---- ledgers --------------------------------------------------------------------------------------------------------

_TWO = [
    measured(method, i, [1, 2, 0], text=f"text {i}", options={"total": 4}) for method in ("vanilla", "eagle2") for i in range(2)
]
RECORDED = [
    *map(keyed, _TWO), keyed(measured("eagle2", 2, [1], temperature=1.0, task="mt_bench", n_turns=2)),
    keyed(unmeasured("pld", 0, "error")),
]  # fmt: skip


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """What records.jsonl and the env file hold; one of them is spoilt."""
    env = {**ENV, "packages": dict(ENV["packages"])}
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        name = ledger.write_env(env)
        whole = next(Path(folder).glob("env-*.json")).read_bytes()
    rows = [record | {"env": name} for record in RECORDED]
    if draw(st.integers(0, 6)) == 0:
        spoilt = draw(st.one_of(spoilt_value(json.loads(whole)).map(written), spoilt_bytes(whole)))
        return b"".join(written(row) + b"\n" for row in rows), spoilt
    return draw(spoilt_lines(rows, most=4)), whole


def _of_a_ledger(case: tuple[bytes, bytes]) -> None:
    records, env = case
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / RECORDS).write_bytes(records)
        name = _env_name()
        (folder / f"env-{name}.json").write_bytes(env)
        command = ("table", "claims", "export", "table")[len(records) % 4]
        outcome = harness(command, "--results", folder, "--out", folder / "out")
        if not one_line_or_done(outcome):
            return
        kept = read(folder, quiet=True)
        for record in kept:  # what is read is right by the slow and separate check
            stored = {key: value for key, value in record.items() if key not in READ_BESIDE}
            validate(stored)
            if not record["is_warmup"]:
                assert record["cell"] == cell_key(**{field: stored[field] for field in CELL_FIELDS})
        lines = records.split(b"\n")
        whole = {row["key"] for row in RECORDED if written(row | {"env": name}) in lines}
        assert whole <= {record["key"] for record in kept}  # and what nobody touched is never left out
        n_left_out = len([line for line in records.removesuffix(b"\n").split(b"\n")]) - len(kept)
        assert bool(n_left_out) == any("left out" in footnote for footnote in kept.footnotes)
        if n_left_out and command != "export":
            assert all("left out" in text.read_text() for text in (folder / "out").glob("*.md"))
        strict = harness(command, "--strict --results", folder, "--out", folder / "strict")
        assert one_line_or_done(strict) == (not kept.footnotes)


def _env_name() -> str:
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        return ledger.write_env(ENV)


test_a_spoilt_ledger_is_read_without_its_bad_lines_or_refused = fuzzed("table", ledgers())(_of_a_ledger)


# ---- a model's YAML -------------------------------------------------------------------------------------------------

MODEL = yaml.safe_load(TINY.read_text()) | {
    "system": "paper", "template": "tokenizer", "dtype": "auto", "paper": None, "packages": [],
    "architecture": {"parameters": 135488, "layers": 2, "hidden": 64, "kv_heads": 1, "head_dim": 16, "vocab": 256},
}  # fmt: skip


@st.composite
def yamls(draw: st.DrawFn) -> bytes:
    whole = TINY.read_bytes()
    if draw(st.integers(0, 3)) == 0:
        return draw(spoilt_bytes(whole))
    return written(draw(spoilt_value(MODEL)))


def _of_a_model(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.yaml"
        file.write_bytes(data)
        for folder in ("target", "head", "medusa", "hydra", "sps"):
            (Path(temporary) / folder).symlink_to(TINY.parent / folder)
        one_line_or_done(harness("run --dry-run --method vanilla --method eagle2 --task alpaca --source bundled --model", file))


test_a_spoilt_model_file_is_understood_or_refused = fuzzed("model", yamls())(_of_a_model)


# ---- question files -------------------------------------------------------------------------------------------------

QUESTIONS = [{"question_id": i, "category": "c", "turns": [f"Why {i}?"], "reference": ["so"]} for i in (1, 2)]


def _of_questions(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "alpaca" / "question.jsonl"
        file.parent.mkdir()
        file.write_bytes(data)
        dry = harness("run --dry-run --method vanilla --task alpaca --source paper --model", TINY, "--prompts", temporary)
        if one_line_or_done(dry) and len(data) % 3 == 0:
            words = "run --method vanilla --task alpaca --source paper --limit 1 --max-new-tokens 2 --dtype float32 --threads 1"
            one_line_or_done(harness(words, "--model", TINY, "--prompts", temporary, "--out", Path(temporary) / "out"))


test_a_spoilt_question_file_is_understood_or_refused = fuzzed("prompts", spoilt_lines(QUESTIONS))(_of_questions)


# ---- answer files ---------------------------------------------------------------------------------------------------


def _answer(question: int, steps: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "turns": ["Hi there", "b"], steps: [2, 0], "new_tokens": [9, 2], "wall_time": [1.0, 0.5]}
    return {"question_id": question, "answer_id": "a", "model_id": "m-temperature-0.0", "choices": [choice | more], "tstamp": 1.5}


EAGLE = [_answer(1, "idxs"), _answer(2, "idxs")]
SPEC_BENCH = [_answer(i, "decoding_steps", accept_lengths=[4, 5]) | {"category": "qa"} for i in (1, 2)]


def _of_answers(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "ea.jsonl").write_bytes(data)
        (folder / "base.jsonl").write_bytes(b"".join(written(row) + b"\n" for row in EAGLE))
        baseline = ("--baseline", folder / "base.jsonl") if len(data) % 2 else ()
        if one_line_or_done(harness("import", folder / "ea.jsonl", *baseline, "--out", folder / "i")):
            assert not read(folder / "i", imported=True, quiet=True).footnotes
            assert one_line_or_done(harness("table --results", folder / "i"))


test_a_spoilt_answer_file_is_understood_or_refused = fuzzed("answers", st.one_of(spoilt_lines(EAGLE), spoilt_lines(SPEC_BENCH)))(
    _of_answers
)
