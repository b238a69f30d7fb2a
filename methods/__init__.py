"""The registry of decoding methods. One file a method: a builder decorated with `@method`, found by scanning this folder.

A builder's keyword arguments are the method's options (`--set name=value`). Their defaults are the preset `paper`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from harness.common.errors import UserError, unknown, users_code
from harness.common.plain_names import place, plain_name
from harness.common.source_hash import Package, closure_sha
from harness.common.users_files import files_to_run, run_file
from methods.base import Decode

T = TypeVar("T")

EAGLE, EAGLE3 = "eagle", "eagle3"
HEADS = (EAGLE, EAGLE3)
"""The kinds of drafters that are an EAGLE head: a dynamic tree is drafted with either, and replayed from its rows."""
ENGINES = {EAGLE: "draft_head", EAGLE3: "eagle3", "medusa": "heads", "hydra": "heads", "lm": "draft_lm"}
"""The module of `methods.engine` that drafts, for the kinds of drafters that have not given it their name."""
NATIVE_DRAFTERS = ("draft_head", "draft_lm", "eagle3")
"""Those of them that other engines have forwards of their own for: `methods.engine.native.drafters` in C, for one."""

DRAFTERS: dict[str, str] = {}
"""The kinds of drafters and what texts call them. `harness.load.kinds`, which knows all else of them, names them here."""


_DRAFTER_FILES: dict[str, Path] = {}  # of kinds that a user's file brings


def name_drafter(kind: str, title: str, file: Path | None = None) -> None:
    """Let methods name `kind` as what they draft with; `title` is what texts call it ("draft head").

    file: of a kind that a user's file brings, that file: what drafts is part of the code that its methods' records depend on.
    """
    DRAFTERS[kind] = title
    if file is not None:
        _DRAFTER_FILES[kind] = file


def engine_file(kind: str) -> Path | None:
    """The engine that drafts with a kind of drafter; None where it is not one of ours, but in a user's own file."""
    file = place(Path(__file__).parent / "engine", "drafter", ENGINES.get(kind, kind), suffix=".py")
    return file if file.is_file() else None


@dataclass(frozen=True, slots=True)
class Method:
    """A registered method.

    `options`: every option with its default; `presets`: named changes to them. `exact`: the output distribution is the
    target's. `drafter`: the kind of drafter that it drafts with, None where it has none. `external`: somebody else's loop,
    measured for comparison only. `group`: whose word asks for it, where `all` does not. `replay_only`: it knows what vanilla will
    say, so that it is no method but a bound, and only `harness replay` has it. `pins`: of options that name a file, what adds its
    hash to the value. `served`: an engine elsewhere decodes, and no target is loaded. `places`: options that say where something
    is found and not what it does; they are in no record and no label.
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
    group: str = ""
    replay_only: bool = False
    levels: Callable[[Mapping[str, Any]], int] | None = None
    pins: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    served: bool = False
    places: Collection[str] = ()

    def __reduce__(self) -> tuple[Callable[..., Method], tuple[str, str | None]]:
        """Pickled by its name: another process has the code."""
        return _named, (self.name, self.drafter)

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that its records depend on, with what they import: its own, the target's forwards and its drafter's."""
        if self.served:
            return (Path(self.file),)
        engine = Path(__file__).parent / "engine"
        drafting = engine_file(self.drafter) if self.drafter else None
        brought = _DRAFTER_FILES.get(self.drafter or "")
        others = sorted(file.parent for file in engine.glob("*/target.py"))  # engines with forwards of their own
        forwards = (engine / "target.py", engine / "llama.py", *(other / "target.py" for other in others))
        has_own = ENGINES.get(self.drafter or "") in NATIVE_DRAFTERS
        drafters = (file for other in others for file in sorted(other.glob("drafter*.py")) if has_own)
        return (Path(self.file), *forwards, *drafters, *(file for file in (drafting, brought) if file))

    @property
    def needs_head(self) -> bool:
        """Whether it drafts with an EAGLE head, of either kind."""
        return self.drafter in HEADS

    def on(self, kind: str | None) -> Method:
        """The same method with another kind of EAGLE head. A policy takes either; another method is as it is. The code is the
        same: engines have the drafters of both kinds in one file."""
        is_free = self.group == POLICIES and self.needs_head and kind in HEADS
        return replace(self, drafter=kind) if is_free else self

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

    def pinned(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, with the hash of each file that one names.

        Raises:
            UserError: there is no such file, or it is another than the hash says.
        """
        return {**options, **{k: pin(options[k]) for k, pin in self.pins.items()}}


@dataclass(frozen=True, slots=True)
class Arm:
    """A method with the options in force. `preset`: how tables name them."""

    method: Method
    preset: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def told(self) -> dict[str, Any]:
        """The options as records have them."""
        return {k: v for k, v in self.options.items() if k not in self.method.places}


_METHODS: dict[str, Method] = {}


_PACKAGE = Package("methods", Path(__file__).parent)
_NATIVE = (_PACKAGE.folder / "engine" / "native" / "target.py",)  # which imports what compiles the C


def code_sha(name: str) -> str:
    """The hash of the code that a method's tokens and times depend on: `Method.sources` and what they import in this package."""
    return closure_sha(get(name).sources, _PACKAGE)


def engine_sha() -> str:
    """The hash of all of `methods.engine`, on which the tokens and times of every method may depend."""
    return closure_sha(tuple(sorted((_PACKAGE.folder / "engine").rglob("*.py"))), _PACKAGE)


def native_sha() -> str:
    """The hash of the native engine: its C sources, the flags that they are compiled with, and what calls them."""
    return closure_sha(_NATIVE, _PACKAGE)


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
    group: str = "",
    replay_only: bool = False,
    pins: Mapping[str, Callable[[str], str]] | None = None,
    served: bool = False,
    places: Collection[str] = (),
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    small: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
) -> Callable[[Callable[..., Decode]], Callable[..., Decode]]:
    """Register a builder `(**options) -> Decode` under `name`; `line` is what `harness list methods` says of it.

    drafter: the kind of drafter that it drafts with (`harness.load.kinds`); None: it needs no weights but the target's.
    needs_head: short for drafter="eagle". needs_frequent: the drafter's list of frequent tokens is needed, too.
    levels: how many levels its tree has under given options, for drafters with one head a level; 0: as many as there are heads.
    small: options that draft at most five nodes over four tokens, so that the audit can walk every branch of chance. Several
    such sets, where trees of several shapes are to be walked.
    samples_drafts: at T > 0 drafts are sampled and verified by rejection. The law is the target's, the ids are not vanilla's.
    dynamic: top_k, depth and total make a dynamic tree, ranked by value and reranked. `harness tune` chooses them by replay.
    candidates: changes to the options. `harness tune` decodes with each, and with the options in force, and keeps the best.
    group: its methods are asked for by this word; `all` leaves them out. replay_only, pins, served, places: as in `Method`.

    Raises:
        UserError: an option without a default, an unknown kind of drafter, a value of the wrong type, or a name that is taken or
            not plain.
    """
    if plain_name("method", name) == "all":
        raise UserError("method name 'all' is the word for all methods; choose another")
    sets = [*(presets or {}).values(), *candidates, *([small] if isinstance(small, Mapping) else small)]
    if not isinstance(line, str) or not all(isinstance(options, Mapping) for options in sets):
        raise UserError(f"method {name!r}: line is a text; presets, candidates and small hold options by name")
    for preset in presets or {}:
        plain_name("preset", preset)

    def register(build: Callable[..., Decode]) -> Callable[..., Decode]:
        parameters = inspect.signature(build, eval_str=True).parameters
        bare = [k for k, p in parameters.items() if p.default is p.empty]
        if bare:
            raise UserError(f"method {name!r} in {build.__module__}: option {bare[0]!r} needs a default, its value under 'paper'")
        kind = EAGLE if needs_head else drafter
        if kind is not None and kind not in DRAFTERS and engine_file(kind) is None:
            raise UserError(f"method {name!r} in {build.__module__}: {unknown('drafter', kind, {*ENGINES, *DRAFTERS})}")
        file = inspect.getsourcefile(build) or "?"
        if name in _METHODS:
            raise UserError(f"method {name!r} is registered twice: in {_METHODS[name].file} and in {file}")
        types = {
            k: p.annotation if isinstance(p.annotation, type) and p.annotation is not p.empty else type(p.default)
            for k, p in parameters.items()
        }
        _METHODS[name] = Method(
            name=name, line=line, build=_failing_alone(build), options={k: p.default for k, p in parameters.items()},
            presets=presets or {}, exact=exact, drafter=kind, needs_frequent=needs_frequent, samples_drafts=samples_drafts,
            dynamic=dynamic, candidates=tuple(candidates), external=external, group=group, replay_only=replay_only, file=file,
            pins=pins or {}, served=served, places=tuple(places),
            small=(small,) if isinstance(small, Mapping) else tuple(small), types=types,
            levels=_guarded(levels) if levels is not None else None,
        )  # fmt: skip
        return build

    return register


def _failing_alone(build: Callable[..., Decode]) -> Callable[..., Decode]:
    """A builder whose `sys.exit()`, and that of what it builds, is an ordinary error: it fails a prompt, not the command."""

    @wraps(build)
    def built(*args: Any, **options: Any) -> Decode:
        return _guarded(_guarded(build)(*args, **options))

    return built


def _guarded(call: Callable[..., T]) -> Callable[..., T]:
    @wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> T:
        with users_code():
            return call(*args, **kwargs)

    return guarded


def _as_type(name: str, option: str, value: Any, kind: type) -> Any:
    if not isinstance(value, str) or kind is str:
        return value
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        raise UserError(f"option {option} of {name} takes {kind.__name__}, not {value!r}") from None


POLICIES = "policies"
GROUPS = (POLICIES,)
"""Words that ask for the methods of a group, which `all` leaves out."""
SERVERS = "servers"
"""The group of engines elsewhere. It is no such word: each needs an address of its own."""


def names(exact: bool | None = None, group: str = "") -> list[str]:
    """All methods of a group, or those of this repository's own loops that are (not) exact: `--method all` is names(exact=True).

    The methods of `policies/` are a group of their own; those of "" are in none.
    """
    _scan()
    own = {n: m for n, m in _METHODS.items() if m.group == group}
    return sorted(n for n, m in own.items() if exact is None or (m.exact is exact and not m.external))


def registered() -> list[Method]:
    """Every method, whatever group it is in."""
    _scan()
    return list(_METHODS.values())


def only_replayed(m: Method) -> str | None:
    """Why a method cannot be run; None where it can."""
    return f"method {m.name} is a bound or a control that only `harness replay` has" if m.replay_only else None


def _named(name: str, kind: str | None) -> Method:
    return get(name).on(kind)


def get(name: str) -> Method:
    _scan()
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]


def drafter_of(name: str) -> str | None:
    """The kind of drafter that a method drafts with; None where it has none, and where no such method is known.

    For rooms that judge records: it reads the registrations of this folder as text, so nothing is imported, torch least of all.
    """
    if name in _METHODS:
        return _METHODS[name].drafter
    told = _declared().get(name, {})
    drafter = EAGLE if told.get("needs_head") else told.get("drafter")
    return None if drafter is None else str(drafter)


def samples_drafts(name: str) -> bool:
    """Whether a method draws its drafts at T > 0; for the same rooms as `drafter_of`."""
    return _METHODS[name].samples_drafts if name in _METHODS else bool(_declared().get(name, {}).get("samples_drafts"))


def is_external(name: str) -> bool:
    """Whether a method is another's loop, on transformers' own module; for the same rooms as `drafter_of`."""
    return _METHODS[name].external if name in _METHODS else bool(_declared().get(name, {}).get("external"))


def is_served(name: str) -> bool:
    """Whether a method is an engine elsewhere; for the same rooms as `drafter_of`."""
    return _METHODS[name].served if name in _METHODS else bool(_declared().get(name, {}).get("served"))


@cache
def _declared() -> dict[str, dict[str | None, Any]]:
    """What this folder's files register their methods with, as far as it is written out."""
    found: dict[str, dict[str | None, Any]] = {}
    for file in (file for folder in (".", POLICIES) for file in (Path(__file__).parent / folder).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "method" and node.args:
                if isinstance(node.args[0], ast.Constant):
                    told = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                    found[str(node.args[0].value)] = told
    return found


def include(path: Path, run_already: Collection[Path] = ()) -> list[str]:
    """Register the methods of a user's file, or of those files of a folder that register something; returns their names.

    run_already: files that are not run again.

    Raises:
        UserError: a file that cannot be read or run, or a name that is taken or not plain.
    """
    _scan()
    files = files_to_run(path)
    for file in files:
        if file not in run_already and all(Path(m.file).resolve() != file for m in _METHODS.values()):
            run_file(file)
    return sorted(name for name, m in _METHODS.items() if Path(m.file).resolve() in files)


_scanned = False


def _scan() -> None:
    global _scanned
    if not _scanned:
        _scanned = True
        for folder in ("", POLICIES):
            for module in pkgutil.iter_modules([str(Path(__file__).parent / folder)]):
                if not module.ispkg and module.name != "base":
                    importlib.import_module(".".join(filter(None, (__name__, folder, module.name))))
