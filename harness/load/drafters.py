"""What reading any drafter's folder takes: its config.json, its tensors, and whether they fit the target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.common.errors import UserError
from harness.common.identities import shown_id
from harness.load.config_keys import positive, whole
from harness.load.kinds import TargetFacts, kind_of, kind_shown, training
from harness.load.layout import weight_files, weights_digest
from harness.load.published import by_our_keys, by_our_names
from harness.load.self_check import is_finite
from harness.load.weights import unpickled

Config = TypeVar("Config")
EMBEDDING = "embed_tokens.weight"  # what published heads carry besides their own weights


def read_config(folder: Path, kind: str, model: str) -> dict[str, Any]:
    """What the config.json of a drafter of `kind` for `model` says, by our keys (`published`).

    Raises:
        UserError: no config.json, no JSON object in it, or a drafter of another kind.
    """
    file, title = folder / "config.json", kind_of(kind).title
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError:
        raise UserError(f"no {title} for {model} in {folder}: {training(kind, model)}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is not JSON: {e}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected an object, not {type(values).__name__}")
    values = by_our_keys(file, values)
    holds = kind_shown(folder, values)
    if holds is not None and holds != kind:
        raise UserError(f"{folder} holds a {kind_of(holds).title}, where {model} should have a {title}")
    return values


def check_target(folder: Path, values: dict[str, Any], kind: str, model: str, sha: str) -> None:
    """sha: of the weights of `model`.

    Raises:
        UserError: config.json names the hash of another target.
    """
    made_for = values.get("target_sha256")
    if made_for is not None and made_for != sha:
        raise UserError(
            f"the {kind_of(kind).title} in {folder} was trained for a target with sha256 {shown_id(str(made_for))}..; "
            f"{model} has {shown_id(sha)}.."
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
        if field.type == "int":
            whole(file, name, value)
        if field.type == "float":
            positive(file, name, value)
        if field.type == "bool" and not isinstance(value, bool):
            raise UserError(f"{file}: {name} is {value!r}; it must be true or false")
    return config


def read_state(folder: Path, values: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors in a folder's weights by our names, in one file or in shards, and their `weights_digest`. values: its
    config.json's, which may name that. What is under `EMBEDDING` must be a copy of the target's: `check_embedding`.

    Raises:
        UserError: not there, truncated or altered; or one tensor in two shards, or under two names.
    """
    state: dict[str, Tensor] = {}
    files = weight_files(folder)
    for file in files:
        if not file.exists():
            raise UserError(f"no {file.name} in {folder}")
        try:
            part = unpickled(file)[0] if file.suffix in (".bin", ".pt") else load_file(file)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file} is truncated or altered: {(str(e).splitlines() or ['?'])[0]}") from None
        if twice := sorted(part.keys() & state.keys()):
            raise UserError(f"{file}: {twice[0]!r} is in another shard, too")
        state |= part
    digest, expected = weights_digest(files), values.get("weights_sha256")
    if expected is not None and digest != expected:
        raise UserError(f"{files[0]} has sha256 {digest}, its config.json says {expected}: truncated or altered")
    state = by_our_names(state, files[0])
    # old files hold rotary tables; they follow from the config
    return {k: v for k, v in state.items() if not k.endswith(".rotary_emb.inv_freq")}, digest


ROWS = 4096  # of an embedding that are compared at once


def check_embedding(folder: Path, own: Tensor | None, target: Tensor) -> None:
    """own: the embedding [vocab, hidden] in a drafter's file, None where there is none; target: the target's.

    A copy may have been rounded to its own dtype, and the target's to the one that it runs in: by a step of the coarser at most.

    Raises:
        UserError: it is another than the target's, which the drafter would be given.
    """
    if own is None:
        return
    check_embedding_shape(folder, own, (len(target), target.shape[1]))
    steps = [torch.finfo(x.dtype) for x in (own, target)]
    rtol, atol = max(step.eps for step in steps), max(step.tiny * step.eps for step in steps)
    for i in range(0, len(own), ROWS):
        a, b = (x[i : i + ROWS].detach().cpu().double() for x in (own, target))
        if (off := ~torch.isclose(a, b, rtol, atol)).any():
            row = int(off.any(-1).nonzero()[0])
            raise UserError(f"{weight_files(folder)[0]}: {EMBEDDING} is not the target's (token {i + row} differs by up to "
                            f"{float((a - b)[row].abs().max()):.2g}): a drafter here has no embedding of its own")  # fmt: skip


def check_embedding_shape(folder: Path, own: Tensor | None, shape: tuple[int, int]) -> None:
    """
    Raises:
        UserError: an embedding in a drafter's file that cannot be a copy of the target's.
    """
    if own is not None and (own.shape != shape or not own.is_floating_point()):
        raise UserError(f"{weight_files(folder)[0]}: {EMBEDDING} has shape {list(own.shape)} and dtype {own.dtype}; a copy of "
                        f"the target's has {list(shape)}")  # fmt: skip


def fill(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Load a state into a module, strictly.

    Raises:
        UserError: as `check_state`.
    """
    check_state(module.state_dict(), state, folder)
    module.load_state_dict(state)


def check_state(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], folder: Path) -> None:
    """
    Raises:
        UserError: a key is missing, unexpected or of another shape, or holds NaN or infinity; the first is named.
    """
    file = weight_files(folder)[0]
    for what, keys in (("missing", wanted.keys() - state.keys()), ("unexpected", state.keys() - wanted.keys())):
        if keys:
            raise UserError(f"{file}: {what} key {sorted(keys)[0]!r} ({len(keys)} in all)")
    for key, value in wanted.items():
        if value.shape != state[key].shape:
            raise UserError(f"{file}: {key} has shape {list(state[key].shape)}, expected {list(value.shape)}")
        if not is_finite(state[key]):
            raise UserError(f"{file}: {key} holds NaN or infinity")


def n_heads(folder: Path) -> int | None:
    """How many levels the heads of a folder can draft, by its config.json; None where that does not say.

    Medusa's own files are not asked: the number in them need not be that of the weights.
    """
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))["num_heads"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
