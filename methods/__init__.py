"""The registry of decoding methods. One file a method: a builder decorated with `@method`, found by scanning this folder.

A builder's keyword arguments are the method's options (`--set name=value`); their defaults are the preset `paper`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.common.errors import UserError, unknown
from harness.common.source_hash import Package, closure_sha
from methods.base import Decode


@dataclass(frozen=True, slots=True)
class Method:
    """A registered method. `options`: every option with its default; `presets`: named changes to them.

    `exact`: the output distribution is the target's; `external`: somebody else's loop, measured for comparison only.
    """

    name: str
    line: str
    build: Callable[..., Decode]
    options: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Any]]
    exact: bool
    drafter: str | None
    needs_frequent: bool
    samples_drafts: bool
    dynamic: bool
    candidates: Sequence[Mapping[str, Any]]
    external: bool
    file: str
    small: Sequence[Mapping[str, Any]]
    types: Mapping[str, type] = field(default_factory=dict)
    levels: Callable[[Mapping[str, Any]], int] | None = None

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that its records depend on, with what they import: its own, the target's forwards and its drafter's."""
        engine = Path(__file__).parent / "engine"
        used = ["target", "llama", *([ENGINES[self.drafter]] if self.drafter else [])]
        return (Path(self.file), *(engine / f"{name}.py" for name in used))

    @property
    def needs_head(self) -> bool:
        """Whether it drafts with the model's EAGLE head."""
        return self.drafter == EAGLE

    @property
    def tunable(self) -> bool:
        """Whether `harness tune` can choose its options."""
        return self.dynamic or bool(self.candidates)

    def resolve(self, preset: str, changes: Mapping[str, Any], model_presets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """All options in force: defaults, then the model's and the method's preset, then `--set`.

        Raises:
            UserError: a preset neither the method nor the model knows, or an option the method does not have.
        """
        known = {"paper", *self.presets, *model_presets}  # and `tuned`, which comes from `harness tune` as a model's preset
        if preset not in known:
            raise unknown("preset", preset, known)
        options = dict(self.options)
        for source in (model_presets.get(preset, {}), self.presets.get(preset, {})):
            options |= {k: v for k, v in source.items() if k in options}
        for k, v in changes.items():
            if k not in options:
                has = ", ".join(options) or "none"
                raise UserError(f"method {self.name} has no option {k!r}; it has: {has}")
            options[k] = _as_type(self.name, k, v, self.types[k])
        return options


@dataclass(frozen=True, slots=True)
class Arm:
    """A method with the options in force. `preset`: how tables name them."""

    method: Method
    preset: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.method.name


EAGLE = "eagle"
DRAFTERS = {
    EAGLE: "draft head",
    "medusa": "set of Medusa heads",
    "hydra": "set of Hydra heads",
    "lm": "draft LM",
}
"""The kinds of drafters that a model may have weights for, and what they are called."""

ENGINES = {EAGLE: "draft_head", "medusa": "heads", "hydra": "heads", "lm": "draft_lm"}  # of `methods.engine`

_METHODS: dict[str, Method] = {}


def code_sha(name: str) -> str:
    """Of the code that a method's tokens and times depend on: what `Method.sources` import in this package."""
    return closure_sha(get(name).sources, Package("methods", Path(__file__).parent))


def method(
    name: str,
    *,
    line: str,
    exact: bool = True,
    needs_head: bool = False,
    drafter: str | None = None,
    levels: Callable[[Mapping[str, Any]], int] | None = None,
    needs_frequent: bool = False,
    samples_drafts: bool = False,
    dynamic: bool = False,
    candidates: Sequence[Mapping[str, Any]] = (),
    external: bool = False,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    small: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
) -> Callable[[Callable[..., Decode]], Callable[..., Decode]]:
    """Register a builder `(**options) -> Decode` under `name`; `line` is what `harness list methods` says of it.

    needs_head: it drafts with the model's EAGLE head; needs_frequent: with the list of frequent tokens beside it, too.
    drafter: what else it drafts with, one of `DRAFTERS`; levels: of its tree under given options, each of which takes a head;
    0 where its shape is chosen by the heads' held-out accuracies.
    small: options that draft at most five nodes over four tokens, so that every branch of chance can be walked; several such
    sets, where trees of several forms are to be walked.
    samples_drafts: at T > 0 drafts are sampled and verified by rejection: the law is the target's, the ids are not vanilla's.
    dynamic: top_k, depth and total make a dynamic tree ranked by value and reranked: `harness tune` chooses them by replay.
    candidates: changes to the options among which `harness tune` chooses by decoding with each; those in force are always tried.
    """

    def register(build: Callable[..., Decode]) -> Callable[..., Decode]:
        parameters = inspect.signature(build, eval_str=True).parameters
        bare = [k for k, p in parameters.items() if p.default is p.empty]
        if bare:
            raise UserError(f"method {name!r} in {build.__module__}: option {bare[0]!r} needs a default, its value under 'paper'")
        kind = EAGLE if needs_head else drafter
        if kind is not None and kind not in DRAFTERS:
            raise UserError(f"method {name!r} in {build.__module__}: {unknown('drafter', kind, DRAFTERS)}")
        file = inspect.getsourcefile(build) or "?"
        if name in _METHODS:
            raise UserError(f"method {name!r} is registered twice: in {_METHODS[name].file} and in {file}")
        types = {
            k: p.annotation if isinstance(p.annotation, type) and p.annotation is not p.empty else type(p.default)
            for k, p in parameters.items()
        }
        _METHODS[name] = Method(
            name=name, line=line, build=build, options={k: p.default for k, p in parameters.items()}, presets=presets or {},
            exact=exact, drafter=kind, needs_frequent=needs_frequent, samples_drafts=samples_drafts, dynamic=dynamic,
            candidates=tuple(candidates), external=external, file=file,
            small=(small,) if isinstance(small, Mapping) else tuple(small), types=types, levels=levels,
        )  # fmt: skip
        return build

    return register


def _as_type(name: str, option: str, value: Any, kind: type) -> Any:
    if not isinstance(value, str) or kind is str:
        return value
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        raise UserError(f"option {option} of {name} takes {kind.__name__}, not {value!r}") from None


def names(exact: bool | None = None) -> list[str]:
    """All methods, or those of this repository's own loops that are (not) exact: `--method all` is names(exact=True)."""
    _scan()
    return sorted(n for n, m in _METHODS.items() if exact is None or (m.exact is exact and not m.external))


def get(name: str) -> Method:
    _scan()
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]


def include(path: Path) -> list[str]:
    """Register the methods of a user's file, or of every .py file of a folder; returns their names."""
    _scan()
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    for file in files:
        if any(Path(m.file).resolve() == file.resolve() for m in _METHODS.values()):
            continue  # named twice, by itself and with its folder
        module = f"harness_user_methods.{file.stem}"
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        try:
            spec.loader.exec_module(loaded)
        except UserError:
            raise
        except Exception as e:
            raise UserError(f"cannot load {file}: {type(e).__name__}: {e}") from e
    theirs = {file.resolve() for file in files}
    return sorted(name for name, m in _METHODS.items() if Path(m.file).resolve() in theirs)


_scanned = False


def _scan() -> None:
    global _scanned
    if not _scanned:
        _scanned = True
        for module in pkgutil.iter_modules(__path__):
            if not module.ispkg and module.name != "base":
                importlib.import_module(f"{__name__}.{module.name}")
