"""Tasks: what the models are asked. Every file of this folder that defines `TASK` is a task; so is every included one.

A new task is one file with its questions beside it (`my_task.jsonl`, FastChat format:
`{"question_id": 1, "turns": ["..."]}` a line), given with `--include my_task.py`:

    from tasks import Task

    TASK = Task(name="my_task", title="My task", line="what it asks of a model")

In this folder the same file needs no `--include`, and its questions lie in `bundled/`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from harness.common.errors import UserError, unknown
from harness.common.names import SIX_TASKS
from tasks import sources as _sources
from tasks.base import HubSpec, Prompt, PromptSet, Row, Task

__all__ = [
    "HubSpec", "Prompt", "PromptSet", "Row", "Task", "get", "include", "load", "names", "resolve", "sources_of",
]  # fmt: skip

_registry: dict[str, Task] = {}


def names() -> list[str]:
    """All task names: the paper's six in its order, then the others as they came."""
    return [n for n in SIX_TASKS if n in _registry] + [n for n in _registry if n not in SIX_TASKS]


def get(name: str) -> Task:
    """
    Raises:
        UserError: there is no such task; the nearest name is in the message.
    """
    if name not in _registry:
        raise unknown("task", name, _registry)
    return _registry[name]


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
    if not path.exists():
        raise UserError(f"cannot include {path}: no such file or folder")
    files = sorted(path.resolve().glob("*.py")) if path.is_dir() else [path.resolve()]
    with_task = [file for file in files if file.suffix == ".py" and _has_task(file)]
    return [_add(_run(file), file).name for file in with_task]


def _add(module: ModuleType, file: Path) -> Task:
    task = module.TASK
    if not isinstance(task, Task):
        raise UserError(f"{file}: TASK is of type {type(task).__name__}, not tasks.Task")
    known = _registry.get(task.name)
    if known is not None and known.home != file:  # the same file may be included twice, by name and by folder
        raise UserError(f"task {task.name!r} is defined twice: in {known.home} and in {file}")
    _registry[task.name] = replace(task, home=file)
    return _registry[task.name]


def _has_task(file: Path) -> bool:
    """Whether a top-level statement assigns `TASK`. Found without running the file, which may register methods."""
    try:
        body = ast.parse(file.read_bytes()).body
    except SyntaxError as error:
        raise UserError(f"{file}:{error.lineno}: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    assigned = [n for node in body for n in getattr(node, "targets", [getattr(node, "target", None)])]
    return any(isinstance(n, ast.Name) and n.id == "TASK" for n in assigned)


def _run(file: Path) -> ModuleType:
    """Import a file by its path, once a process."""
    name = f"included_task_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        what = " ".join(str(error).split())
        reason = what if isinstance(error, UserError) else f"{type(error).__name__}: {what}"
        raise UserError(f"{file}:{lines[-1] if lines else 1}: {reason}") from error
    return module


for _file in sorted(_sources.PACKAGE.glob("*.py")):
    if not _file.stem.startswith("_") and hasattr(_module := importlib.import_module(f"tasks.{_file.stem}"), "TASK"):
        _add(_module, _file)
