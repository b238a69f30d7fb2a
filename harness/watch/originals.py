"""Whether a user's file replaced code of this repository, the clock, or operations of torch.

What they are is remembered before the first of a user's files is loaded: every function, class and constant of `methods` and of
the harness, by identity, and of each function the code, defaults and closure. A function patched in place is another, too.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import time
from types import FunctionType, ModuleType
from typing import Any

import methods

Facts = tuple[Any, ...]
OURS = ("methods", "harness")
# what it is called -> where it lies, under which name, what it was
_remembered: dict[str, tuple[Any, str, Facts]] = {}
_known: dict[str, tuple[methods.Method, Facts]] = {}  # the registered methods, and what their builders were


def remember() -> None:
    """Take in what there is now. `methods` is loaded whole for that."""
    import torch
    import torch.nn.functional

    methods.names()
    for found in pkgutil.walk_packages(methods.__path__, "methods."):
        importlib.import_module(found.name)
    importlib.import_module("harness.watch.run")
    forget()
    _known.update({name: ((m := methods.get(name)), _facts(m.build)) for name in (m.name for m in methods.registered())})
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in OURS and isinstance(module, ModuleType):
            _take(name, module, constants=name.startswith("methods."))
    _take("time", time)
    _take("torch", torch)
    _take("torch.nn.functional", torch.nn.functional)
    _take("torch.Tensor", torch.Tensor)


def forget() -> None:
    """No file of a user's is loaded: there is nothing to compare."""
    _remembered.clear()
    _known.clear()


def replaced() -> list[str]:
    """What is another now, a line each; empty where nothing is, or nothing was remembered."""
    found = []
    for called, (place, name, was) in _remembered.items():
        now = _facts(vars(place).get(name))
        if not _same(now, was):
            found.append(f"{called} was replaced{_from(now[0])}: nothing can be measured beside it")
    for name, (m, was) in _known.items():
        other = methods._METHODS.get(name)
        if other is not m or not _same(_facts(m.build), was):
            found.append(f"method {name} was replaced{_from(other.build if other else None)}: nothing can be measured beside it")
    return found


def _same(now: Facts, was: Facts) -> bool:
    return len(now) == len(was) and all(a is b for a, b in zip(now, was, strict=True))


def shadowed(*models: Any) -> list[str]:
    """Functions of a model, or of what it holds, that an instance has in place of its class's; empty where no file is loaded."""
    found = []
    for held in [x for m in models if m is not None for x in (m, getattr(m, "cache", None), getattr(m, "_clock", None))]:
        for name, value in vars(held).items() if _remembered and hasattr(held, "__dict__") else ():
            if callable(value) and callable(getattr(type(held), name, None)):
                found.append(f"{type(held).__name__}.{name} was replaced{_from(value)}: nothing can be measured beside it")
    return found


def _take(called: str, place: Any, constants: bool = False) -> None:
    for name, value in list(vars(place).items()):
        is_code = callable(value) or isinstance(value, staticmethod | classmethod | property | ModuleType)
        if name.startswith("__") and not (inspect.isclass(place) and isinstance(value, FunctionType)):
            continue
        if is_code or constants and name != "_scanned":
            _remembered[f"{called}.{name}"] = (place, name, _facts(value))
        if inspect.isclass(value) and value.__module__ == called and called.split(".")[0] in OURS:
            _take(f"{called}.{name}", value)


def _facts(value: Any) -> Facts:
    """What a thing is: itself, and of a function all that decides what it does."""
    if isinstance(value, staticmethod | classmethod):
        return (value, *_facts(value.__func__))
    if isinstance(value, property):
        return (value, *_facts(value.fget), *_facts(value.fset))
    if not isinstance(value, FunctionType):
        return (value,)
    cells = [_content(cell) for cell in value.__closure__ or ()]
    defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return (value, value.__code__, *defaults, *cells, *_wrapped(value))


def _wrapped(value: FunctionType) -> Facts:
    inner = vars(value).get("__wrapped__")
    return _facts(inner) if inner is not None else ()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _from(value: Any) -> str:
    code = getattr(inspect.unwrap(value) if callable(value) else value, "__code__", None)
    return f" by {code.co_filename}" if code is not None else ""
