"""Tasks: what the models are asked. Every file of this folder that defines `TASK` is a task; so is every included one.

A new task is one file with its questions beside it (`my_task.jsonl`, FastChat format:
`{"question_id": 1, "turns": ["..."]}` a line), given with `--include my_task.py`:

    from tasks import Task

    TASK = Task(name="my_task", title="My task", line="what it asks of a model")

In this folder the same file needs no `--include`, and its questions lie in `bundled/`.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from harness.common.errors import UserError, unknown
from harness.common.names import SIX_TASKS
from harness.common.users_files import TASK, files_to_run, registrations, run_file
from tasks import sources as _sources
from tasks.base import HubSpec, Prompt, PromptSet, Row, Task

__all__ = [
    "HubSpec", "Prompt", "PromptSet", "Row", "Task", "check_model", "check_reads_text", "get", "include", "known", "load",
    "names", "names_for", "own", "resolve", "sources_of",
]  # fmt: skip

_registry: dict[str, Task] = {}


def known() -> list[str]:
    """All task names: the paper's six in its order, then the others as they came."""
    return [n for n in SIX_TASKS if n in _registry] + [n for n in _registry if n not in SIX_TASKS]


def names() -> list[str]:
    """The tasks of text, which is all but those that are for certain models: the paper's six and the user's."""
    return [n for n in known() if not _registry[n].models]


def own(model: str) -> list[str]:
    """The tasks that are for this model and few others; none for a model of text."""
    return [n for n in known() if model in _registry[n].models]


def names_for(model: str) -> list[str]:
    """The tasks that a model can be asked: what `--task all` means."""
    return own(model) or names()


def check_model(name: str, model: str) -> None:
    """
    Raises:
        UserError: there is no such task, or the model cannot be asked it.
    """
    task, choices = get(name), names_for(model)
    if name not in choices:
        who = f"is for {', '.join(task.models)} alone" if task.models else "is a task of text"
        raise UserError(f"task {name!r} {who}: model {model} can be asked {', '.join(choices) or 'no task'}")


def get(name: str) -> Task:
    """
    Raises:
        UserError: there is no such task; the nearest name is in the message.
    """
    if name not in _registry:
        raise unknown("task", name, _registry)
    return _registry[name]


def check_reads_text(model: str, for_what: str) -> None:
    """
    Raises:
        UserError: the model has tasks of its own, so dialogues of ShareGPT, which `for_what` takes, are not for it.
    """
    if own(model):
        raise UserError(
            f"{for_what} takes dialogues of ShareGPT, and model {model} reads no text: it is for {', '.join(own(model))}"
        )


def load(
    name: str,
    *,
    source: str = "auto",
    limit: int | None = None,
    prompts_dir: Path | None = None,
    seed: int = 0,
) -> PromptSet:
    """The task's prompts: the first `limit` of the set, or all where it has fewer.

    Question files keep their order; pypi and hub sets are shuffled by `seed`. Raising the limit only adds prompts.
    `prompts_dir` (else `$HARNESS_PROMPTS`, else what `harness data pull` fetched) is where source `paper` looks.

    Raises:
        UserError: unknown task or source, unreadable or malformed file, nothing cached and no network.
    """
    return _sources.load(get(name), source, limit, prompts_dir, seed)


def resolve(name: str, source: str = "auto", prompts_dir: Path | None = None) -> str:
    """The source that `load` would read, without reading or fetching it."""
    return _sources.resolve(get(name), source, prompts_dir)


def sources_of(name: str) -> list[str]:
    """The sources a task can come from."""
    return _sources.declared(get(name))


def include(path: Path) -> list[str]:
    """Register the tasks of a user's file, or of every file in a folder -> their names.

    Files without a `TASK` are not run: a user's methods may lie in the same folder.

    Raises:
        UserError: nothing at `path`, a file that cannot be run, or a name that is taken (the message has both files).
    """
    return [_of(file).name for file in files_to_run(path) if TASK in registrations(file)]


def _of(file: Path) -> Task:
    """The task of a file, which is run once."""
    known = next((task for task in _registry.values() if task.home == file), None)
    return known or _add(run_file(file), file)


def _add(module: ModuleType, file: Path) -> Task:
    task = getattr(module, TASK, None)
    if not isinstance(task, Task):
        raise UserError(f"{file}: TASK is of type {type(task).__name__}, not tasks.Task")
    known = _registry.get(task.name)
    if known is not None:
        raise UserError(f"task {task.name!r} is defined twice: in {known.home} and in {file}")
    _registry[task.name] = replace(task, home=file)
    return _registry[task.name]


for _file in sorted(_sources.PACKAGE.glob("*.py")):
    if not _file.stem.startswith("_") and hasattr(_module := importlib.import_module(f"tasks.{_file.stem}"), "TASK"):
        _add(_module, _file)
