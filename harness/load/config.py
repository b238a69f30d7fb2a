"""A model's YAML -> checked, frozen values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

import methods
import models
from harness.common.bounds import OF_METHODS, bounded
from harness.common.errors import UserError, unknown
from harness.common.files import hub_folder
from harness.common.yaml_file import read_yaml
from harness.load.architecture import Architecture
from harness.load.kinds import KINDS
from harness.load.sources import GGUFWheel, HubRepo, Line, LocalFolder, ModelName, Package, PathText, PresetName

MODELS = Path(models.__file__).parent

SUFFIXES = (".yaml", ".yml")

MOST = 1 << 24  # tokens, prompts, ids: a hundred times what any model has

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]

Template = Literal["tokenizer", "plain", "vicuna_v1.1", "llama-2", "llama-3"]


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{value} is neither a number nor a text")
    return value


class ModelConfig(pydantic.BaseModel, extra="forbid", frozen=True):
    """One target.

    drafters: by kind (`harness.load.kinds`), each a folder relative to the YAML or a repository. head: the same for the kind
    `eagle`. system: `paper` (the system prompt that the reference evaluates this template with; none for `tokenizer` and
    `plain`), `none`, or a text. packages: needed to read it, besides the harness's own dependencies. paper: its name in the
    paper's tables. presets: draft-tree settings by name. folder: where the YAML lies.
    given: what `--model` was, name or path; commands in messages name the model so.
    """

    name: ModelName
    title: Line
    weights: GGUFWheel | LocalFolder | HubRepo
    licence: Line = "unknown"
    head: HubRepo | PathText | None = None
    drafters: dict[str, HubRepo | PathText] = {}
    architecture: Architecture | None = None
    paper: Line | None = None
    packages: tuple[Package, ...] = ()
    template: Template = "tokenizer"
    system: str = pydantic.Field(default="paper", min_length=1)
    dtype: Dtype = "auto"
    context_length: int = pydantic.Field(strict=True, gt=0, le=MOST)
    stop_ids: list[Annotated[int, pydantic.Field(strict=True, ge=0, lt=MOST)]]
    limit: int = pydantic.Field(default=80, strict=True, gt=0, le=MOST)
    max_new_tokens: int = pydantic.Field(default=512, strict=True, gt=0, le=MOST)
    presets: dict[PresetName, dict[str, Annotated[int | float | str, pydantic.BeforeValidator(_no_flag)]]] = {}
    folder: Path = MODELS
    given: str = ""

    @pydantic.model_validator(mode="after")
    def _plain_has_no_system(self) -> Self:
        if self.template == "plain" and self.system not in ("paper", "none"):
            raise ValueError("template plain has no place for a system prompt; system may be paper or none")
        return self

    @pydantic.field_validator("presets")
    @classmethod
    def _presets_are_in_bounds(cls, presets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, preset in presets.items():
            for option in sorted(preset.keys() & OF_METHODS.keys()):
                try:
                    bounded(option, preset[option], least=0)
                except UserError as e:
                    raise ValueError(f"{name}: {e}") from None
        return presets

    @pydantic.field_validator("drafters")
    @classmethod
    def _kinds_are_known(cls, drafters: dict[str, HubRepo | str]) -> dict[str, HubRepo | str]:
        for kind in drafters:
            if kind not in KINDS:
                raise ValueError(str(unknown("kind of drafter", kind, KINDS)))
        return drafters

    @pydantic.model_validator(mode="after")
    def _one_head(self) -> Self:
        if self.head is not None and methods.EAGLE in self.drafters:
            raise ValueError(f"head and drafters: {methods.EAGLE} are the same drafter; give one of them")
        return self

    @property
    def head_folder(self) -> Path | None:
        """Where the EAGLE head is, or would be: nothing is fetched."""
        return self.drafter_folder(methods.EAGLE)

    def drafter_source(self, kind: str) -> HubRepo | str | None:
        """A folder relative to the YAML, or a repository; None: the model has no drafter of that kind."""
        found = self.drafters.get(kind)
        return self.head if found is None and kind == methods.EAGLE else found

    def drafter_folder(self, kind: str) -> Path | None:
        """Where a drafter is, or would be: nothing is fetched."""
        source = self.drafter_source(kind)
        if isinstance(source, HubRepo):
            return hub_folder(source.hub, source.revision)
        return None if source is None else (self.folder / source).resolve()


_included: dict[str, Path] = {}


def include(path: Path) -> list[str]:
    """Make a user's model YAML, or all of a folder that say where weights are, known by name -> the names.

    Raises:
        UserError: a YAML that is malformed, or a name that another file has.
    """
    found = []
    for file in [path.resolve()] if path.is_file() else [f for f in sorted(path.resolve().iterdir()) if _is_model(f)]:
        if file.suffix in SUFFIXES:
            config = read_model(file)
            if config.name in known_models() and known_models()[config.name] != file:
                raise UserError(f"model {config.name!r} is defined twice: {known_models()[config.name]} and {file}")
            _included[config.name] = file
            found.append(config.name)
    return found


def _is_model(file: Path) -> bool:
    """Whether a file beside a user's own is a model's YAML: others may lie there."""
    if file.suffix not in SUFFIXES or not file.is_file():
        return False
    values = read_yaml(file)
    return isinstance(values, dict) and "weights" in values


def known_models() -> dict[str, Path]:
    """The models by name, and their files."""
    return {p.stem: p for p in sorted(MODELS.glob("*.yaml"))} | _included


def model_config(name: str) -> ModelConfig:
    """By name, or by a path to a YAML.

    Raises:
        UserError: no such model, or a YAML that is malformed or has unknown or missing keys.
    """
    if name.endswith(SUFFIXES):
        return read_model(Path(name))
    known = known_models()
    if name not in known:
        raise unknown("model", name, known)
    return read_model(known[name]).model_copy(update={"given": name})


def paper_models() -> dict[str, str]:
    """The paper's targets: name in its tables -> name of our YAML."""
    found = {}
    for name in sorted(p.stem for p in MODELS.glob("*.yaml")):
        config = model_config(name)
        if config.paper is not None:
            found[config.paper] = name
    return found


def paper_model(name: str) -> ModelConfig:
    """A target of the paper, by our name or by the paper's.

    Raises:
        UserError: it is not in the paper.
    """
    known = paper_models()
    config = model_config(known.get(name, name))
    if config.paper not in known:
        raise not_in_paper(name)
    return config


def not_in_paper(name: str) -> UserError:
    """The error for a model that the paper has no numbers of; it names those that it has."""
    choices = ", ".join(f"{ours} ({theirs})" for theirs, ours in paper_models().items())
    return UserError(f"model {name!r} is not in the paper; its targets are: {choices}")


def read_model(path: Path) -> ModelConfig:
    """A model's YAML, checked.

    Raises:
        UserError: it cannot be read, is malformed, or has unknown, missing or repeated keys.
    """
    values: Any = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    keys = ModelConfig.model_fields.keys() - {"folder", "given"}  # these are ours to set
    for key in values:
        if key not in keys:
            raise UserError(f"{path}: {unknown('key', str(key), keys)}")
    try:
        return ModelConfig(**values, folder=path.parent.resolve(), given=str(path))
    except pydantic.ValidationError as e:
        first = _clearest(e)
        where = ".".join(str(x) for x in first["loc"])
        raise UserError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None


def _clearest(error: pydantic.ValidationError) -> Any:
    """The first error. `weights` and `head` may be of several forms: the error is for the form that the file comes closest to."""
    kinds: dict[tuple[int | str, ...], list[Any]] = {}
    for e in error.errors():
        kinds.setdefault(e["loc"][:2] if e["loc"][:1] in (("weights",), ("head",)) else e["loc"], []).append(e)
    # of two that are as close, the form that the value has and that says what is wrong with it
    return min(kinds.values(), key=lambda errors: (len(errors), errors[0]["type"] != "value_error"))[0]
