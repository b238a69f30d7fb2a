"""Python files that a user wrote and includes: which of them register something, and running them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from harness.common.errors import TriedToExit, UserError, in_one_line, users_code
from harness.common.files import read_text

_run: set[str] = set()  # the files that were run in this process

REGISTERING = {"method", "add_kind", "name_drafter"}  # calls that make a method or a kind of drafter known
TASK = "TASK"


def files_to_run(path: Path) -> list[Path]:
    """The Python files that including `path` runs: a file named by itself, and those of a folder that register something.

    Raises:
        UserError: nothing at `path`, or a file that cannot be read or parsed.
    """
    if not path.exists():
        raise UserError(f"cannot include {path}: no such file or folder")
    path = path.resolve()
    if path.is_dir():
        return [file for file in sorted(path.glob("*.py")) if file.is_file() and registrations(file)]
    return [path] if path.suffix == ".py" and registrations(path) is not None else []


def registrations(file: Path) -> frozenset[str]:
    """What a file makes known: names of `REGISTERING`, and `TASK`. Found by reading its syntax tree; nothing is run.

    Raises:
        UserError: it cannot be read or parsed.
    """
    try:
        tree = ast.parse(read_text(file))
    except SyntaxError as e:
        raise UserError(f"cannot load {file}:{e.lineno or 1}: {e.msg}") from None
    except (ValueError, RecursionError, MemoryError) as e:
        raise UserError(f"cannot load {file}: {in_one_line(e)}") from None
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    found &= REGISTERING
    for node in tree.body:
        assigned = [*getattr(node, "targets", ()), getattr(node, "target", None)]
        found.update(n.id for n in assigned if isinstance(n, ast.Name) and n.id == TASK)
    return frozenset(found)


def run_file(file: Path) -> ModuleType:
    """Import a file by its path. It stays unknown where it fails.

    Raises:
        UserError: `file:line: what it raised`, whatever that was.
    """
    _run.add(str(file))
    name = f"harness_users_file_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with users_code():
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raised = error.__cause__ if isinstance(error, TriedToExit) and error.__cause__ else error
        lines = [f.lineno for f in traceback.extract_tb(raised.__traceback__) if f.filename == str(file)]
        reason = " ".join(str(error).split()) if isinstance(error, UserError | TriedToExit) else in_one_line(error)
        raise UserError(f"cannot load {file}:{lines[-1] if lines else 1}: {reason}") from error
    return module


def place_in_users_file(error: BaseException) -> str | None:
    """`file:line` of the last step of a user's file on the way to an error; None where there is none."""
    steps = traceback.extract_tb(error.__traceback__)
    return next((f"{step.filename}:{step.lineno}" for step in reversed(steps) if step.filename in _run), None)
