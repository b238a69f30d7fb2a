"""What reading any drafter's folder takes: its config.json, its tensors, and whether they fit the target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.load.kinds import TargetFacts, kind_named, kind_of, training
from harness.load.layout import MEDUSA_PICKLED, PICKLED, weight_files
from harness.load.weights import EMBEDDING, unpickled

Config = TypeVar("Config")


def read_config(folder: Path, kind: str, model: str) -> dict[str, Any]:
    """What the config.json of a drafter of `kind` for `model` says.

    Raises:
        UserError: no config.json, no JSON object in it, or a drafter of another kind.
    """
    file, title = folder / "config.json", kind_of(kind).title
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"no {title} for {model} in {folder}: {training(kind, model)}") from None
    except ValueError as e:
        raise UserError(f"{file} is not JSON: {e}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected an object, not {type(values).__name__}")
    holds = kind_named(values)
    if holds is not None and holds != kind:
        raise UserError(f"{folder} holds a {kind_of(holds).title}, where {model} should have a {title}")
    return values


def check_target(folder: Path, values: dict[str, Any], kind: str, target: TargetFacts) -> None:
    """
    Raises:
        UserError: config.json names the hash of another target.
    """
    made_for = values.get("target_sha256")
    if made_for is not None and made_for != target.sha:
        raise UserError(
            f"the {kind_of(kind).title} in {folder} was trained for a target with sha256 {made_for[:16]}..; "
            f"{target.model} has {target.sha[:16]}.."
        )


def check_sizes(folder: Path, values: dict[str, Any], kind: str, target: TargetFacts) -> None:
    """
    Raises:
        UserError: config.json names another hidden size or vocabulary size than the target has.
    """
    for name, there in (("hidden_size", target.hidden_size), ("vocab_size", target.vocab_size)):
        if name in values and values[name] != there:
            title = kind_of(kind).title
            raise UserError(f"the {title} in {folder} is for a target with {name} {values[name]}; {target.model} has {there}")


def config_from(kind: type[Config], folder: Path, values: dict[str, Any]) -> Config:
    """A config.json's values as a dataclass `kind` of whole numbers over 0, numbers over 0, and truth values.

    Raises:
        UserError: a value is missing, or not of its kind.
    """
    file, fields = folder / "config.json", getattr(kind, "__dataclass_fields__")  # noqa: B009  (mypy: not every type has them)
    try:
        config = kind(**{name: values[name] for name in fields})
    except KeyError as e:
        raise UserError(f"{file} lacks {e.args[0]!r}") from None
    for name, field in fields.items():
        value = getattr(config, name)
        if field.type == "int" and (not isinstance(value, int) or value < 1):
            raise UserError(f"{file}: {name} is {value!r}; it must be a whole number of at least 1")
        if field.type == "float" and not (isinstance(value, (int, float)) and value > 0):
            raise UserError(f"{file}: {name} is {value!r}; it must be a number over 0")
    return config


def read_state(folder: Path, values: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors in a folder's one weights file, and that file's sha256. values: its config.json's, which may name the sha256.

    Raises:
        UserError: not there, truncated or altered.
    """
    file = weight_files(folder)[0]
    if not file.exists():
        raise UserError(f"no {file.name} in {folder}")
    try:
        state, digest = unpickled(file) if file.name in (PICKLED, MEDUSA_PICKLED) else (load_file(file), sha256_file(file))
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file} is truncated or altered: {(str(e).splitlines() or ['?'])[0]}") from None
    expected = values.get("weights_sha256")
    if expected is not None and digest != expected:
        raise UserError(f"{file} has sha256 {digest}, its config.json says {expected}: truncated or altered")
    # old files hold rotary tables besides the embedding; they follow from the config
    return {k: v for k, v in state.items() if k != EMBEDDING and not k.endswith(".rotary_emb.inv_freq")}, digest


def fill(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Load a state into a module, strictly.

    Raises:
        UserError: a key is missing, unexpected or of another shape; the first is named.
    """
    file, wanted = weight_files(folder)[0], module.state_dict()
    for what, keys in (("missing", wanted.keys() - state.keys()), ("unexpected", state.keys() - wanted.keys())):
        if keys:
            raise UserError(f"{file}: {what} key {sorted(keys)[0]!r} ({len(keys)} in all)")
    for key, value in wanted.items():
        if value.shape != state[key].shape:
            raise UserError(f"{file}: {key} has shape {list(state[key].shape)}, expected {list(value.shape)}")
    module.load_state_dict(state)


def n_heads(folder: Path) -> int | None:
    """How many levels the heads of a folder can draft, by its config.json; None where that does not say.

    Medusa's own files are not asked: the number in them need not be that of the weights.
    """
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_heads"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
