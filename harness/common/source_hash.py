"""Hashes of code: whether a record was measured, or a finding made, by the code that is here now.

A hash covers the files that certain modules import, directly or not, within one package (their import closure), and the C sources
beside them. It covers what the code does, not how it is laid out: docstrings, comments and empty lines change nothing, nor does
moving a module.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

OURS = ("harness", "methods", "tasks", "models")
C = (".c", ".h")


@dataclass(frozen=True, slots=True)
class Package:
    """A package by its dotted name, and the folder it lies in."""

    name: str
    folder: Path


def closure(roots: Collection[Path], package: Package) -> set[Path]:
    """The files of `package` that the roots reach by imports, and the roots; of a root elsewhere also what lies beside it.

    Of C all sources and headers in the folder of a file of the package: they are compiled together. The package's own
    `__init__.py` is left out: it describes what is in the package, and imports all of it.
    """
    found: set[Path] = set()
    waiting = [root.resolve() for root in roots]
    while waiting:
        file = waiting.pop()
        if file not in found and file.is_file():
            found.add(file)
            if file.suffix not in C:
                waiting += _imported(file, package)
                if package.folder.resolve() in file.parents:
                    waiting += (beside for beside in file.parent.iterdir() if beside.suffix in C)
    return found


@cache
def closure_sha(roots: tuple[Path, ...], package: Package) -> str:
    """First 16 hex digits over what the files of a closure do, in whatever order and folder they lie."""
    parts = sorted(_working_text(file, package.name) for file in closure(roots, package))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _imported(file: Path, package: Package) -> Iterator[Path]:
    inside = package.folder.resolve() in file.parents
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield from _relative(file, node)
            continue
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.startswith(f"{package.name}."):
                yield from _file_of(package.folder.joinpath(*name.removeprefix(f"{package.name}.").split(".")))
            elif not inside and name.split(".")[0] not in OURS:
                yield from _file_of(file.parent.joinpath(*name.split(".")))


def _relative(file: Path, node: ast.ImportFrom) -> Iterator[Path]:
    """`from .core import N`: the module, and the names that are modules themselves."""
    base = file.parents[node.level - 1]
    base = base.joinpath(*node.module.split(".")) if node.module else base
    for place in (base, *(base / alias.name for alias in node.names)):
        yield from _file_of(place)


def _file_of(module: Path) -> Iterator[Path]:
    for file in (module.with_suffix(".py"), module / "__init__.py"):
        if file.is_file():
            yield file.resolve()


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8-sig"))


def _lines_alone(node: ast.stmt, lines: list[str]) -> range:
    """The lines of a statement, if nothing else that does something stands on them; else none."""
    first, last = node.lineno, node.end_lineno or node.lineno
    before = lines[first - 1].encode()[: node.col_offset]
    after = lines[last - 1].encode()[node.end_col_offset :].strip()
    return range(first, last + 1) if not before.strip() and (not after or after.startswith(b"#")) else range(0)


@cache
def _working_text(file: Path, package: str) -> str:
    """The lines that do something, and the names that are imported from the package, wherever they lie in it.

    Not among them: docstrings, comments, imports of our own modules, and what `@method(...)` tells the registry.
    """
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix in C:
        return _working_c(text)
    lines, idle, names = text.split("\n"), set[int](), set[str]()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            idle.update(_lines_alone(node, lines))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            idle.update(_lines_alone(node, lines))
            if f"{node.module}.".startswith(f"{package}."):
                names.update(f"{alias.name} as {alias.asname}" for alias in node.names)
        elif isinstance(node, ast.Import) and all(alias.name.split(".")[0] in OURS for alias in node.names):
            idle.update(_lines_alone(node, lines))
        elif isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "method":
                    idle.update(range(decorator.lineno, (decorator.end_lineno or decorator.lineno) + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            idle.add(token.start[0])
    working = [line.rstrip() for i, line in enumerate(lines, start=1) if i not in idle and line.strip()]
    return "\n".join([*sorted(names), *working])


_QUOTED_OR_IDLE = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""  # which may hold what looks like a comment
    r"""|(?:[ \t]|//[^\n]*|/\*.*?\*/)+""",
    re.DOTALL,
)


def _working_c(text: str) -> str:
    """C without comments, empty lines and indents."""
    lines = (line.strip() for line in _QUOTED_OR_IDLE.sub(lambda found: found[1] or " ", text).split("\n"))
    return "\n".join(line for line in lines if line)
