"""Drafters besides the EAGLE head: Medusa and Hydra heads, draft LMs. Read strictly, checked against the target they are for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import methods
from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.load.layout import MEDUSA_PICKLED, PICKLED, kind_named, weight_files, weights_digest
from harness.load.weights import EMBEDDING, unpickled
from methods.engine.draft_lm import LMDrafter, NarrowConfig, NarrowLM
from methods.engine.heads import (
    Accuracies,
    HeadsConfig,
    IndependentHeadsDrafter,
    PublishedHeads,
    PublishedHeadsDrafter,
    ResidualHeads,
    SequentialHeadsDrafter,
)
from methods.engine.target import HFTarget


@dataclass(frozen=True, slots=True)
class Facts:
    """What a drafter must fit: the target's name, sizes, hash, tokenizer and dtype."""

    model: str
    vocab_size: int
    hidden_size: int
    sha: str
    tokenizer: Any
    dtype: str


Attach = Callable[[HFTarget], Any]
"""A loaded target -> its drafter."""


def read_drafter(kind: str, folder: Path, target: Facts) -> tuple[Attach, str]:
    """Read the drafter of a folder before the target is there; -> (what makes it a drafter of the target, the sha256 of its
    weights and of what trees are chosen by).

    Raises:
        UserError: not there, altered, of another kind or size, made for another target, or with another tokenizer.
    """
    values = read_config(folder, kind, target.model)
    if kind == "lm" and kind_named(values) is None:
        return _hub_lm(folder, values, target)
    _check_sizes(folder, values, kind, target)
    check_target(folder, values, kind, target.model, target.sha)
    state, digest = read_state(folder, values)
    if kind == "lm":
        narrow = NarrowLM(_config(NarrowConfig, folder, values))
        fill(narrow, state, folder)
        return lambda t: LMDrafter(narrow.folded(t.embedding, t.lm_head.weight)), digest
    heads: ResidualHeads | PublishedHeads
    if "medusa_num_heads" in values:
        heads = _published(folder, state, target)
    else:
        heads = ResidualHeads(_config(HeadsConfig, folder, values | {"sees_tokens": kind == "hydra"}))
    fill(heads, state, folder)
    accuracies = _accuracies(folder, values, len(heads.heads))
    if accuracies:  # a tree may be chosen by them: with others these are other heads
        digest = hashlib.sha256(f"{digest} {accuracies}".encode()).hexdigest()

    def attach(t: HFTarget) -> IndependentHeadsDrafter | SequentialHeadsDrafter | PublishedHeadsDrafter:
        where = t.lm_head.weight.device
        heads.to(where, t.dtype)
        embedding = t.embedding.to(where)
        if isinstance(heads, PublishedHeads):
            return PublishedHeadsDrafter(heads, embedding, accuracies)
        drafter = SequentialHeadsDrafter if heads.config.sees_tokens else IndependentHeadsDrafter
        return drafter(heads, embedding, t.lm_head, accuracies)

    return attach, digest


def n_heads(folder: Path) -> int | None:
    """How many levels the heads of a folder can draft, by its config.json; None where that does not say.

    Medusa's own files are not asked: the number in them need not be that of the weights.
    """
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_heads"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_config(folder: Path, kind: str, model: str) -> dict[str, Any]:
    """Raises UserError: no config.json, not JSON, no object, or that of another kind of drafter."""
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"no {methods.DRAFTERS[kind]} for {model} in {folder}: {training(kind, model)}") from None
    except ValueError as e:
        raise UserError(f"{file} is not JSON: {e}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected an object, not {type(values).__name__}")
    holds = kind_named(values)
    if holds is not None and holds != kind:
        raise UserError(f"{folder} holds a {methods.DRAFTERS[holds]}, where {model} should have a {methods.DRAFTERS[kind]}")
    return values


def training(kind: str, model: str) -> str:
    """How to come by a drafter: the end of a message."""
    command = {"lm": "sps"}.get(kind, kind)
    return f"`harness train {command} --model {model} --out DIR` makes one"


def check_target(folder: Path, values: dict[str, Any], kind: str, model: str, target_sha: str) -> None:
    """Raises UserError where config.json names the hash of another target."""
    made_for = values.get("target_sha256")
    if made_for is not None and made_for != target_sha:
        what = "head" if kind == methods.EAGLE else methods.DRAFTERS[kind]
        raise UserError(
            f"the {what} in {folder} was trained for a target with sha256 {made_for[:16]}..; {model} has {target_sha[:16]}.."
        )


def read_state(folder: Path, values: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a folder's one weights file and its sha256, checked where config.json says what it should be.

    Raises:
        UserError: not there, truncated or altered.
    """
    file = weight_files(folder)[0]
    if not file.exists():
        raise UserError(f"no {file.name} in head folder {folder}")
    try:
        state, digest = unpickled(file) if file.name in (PICKLED, MEDUSA_PICKLED) else (load_file(file), sha256_file(file))
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file} is truncated or altered: {(str(e).splitlines() or ['?'])[0]}") from None
    expected = values.get("weights_sha256")
    if expected is not None and digest != expected:
        raise UserError(f"{file} has sha256 {digest}, its config.json says {expected}: truncated or altered")
    # besides the embedding, files of that time may hold rotary tables, which follow from the config
    return {k: v for k, v in state.items() if k != EMBEDDING and not k.endswith(".rotary_emb.inv_freq")}, digest


def fill(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Load a state strictly.

    Raises:
        UserError: names the first key that is missing, unexpected or of another shape.
    """
    file, wanted = weight_files(folder)[0], module.state_dict()
    for what, keys in (("missing", wanted.keys() - state.keys()), ("unexpected", state.keys() - wanted.keys())):
        if keys:
            raise UserError(f"{file}: {what} key {sorted(keys)[0]!r} ({len(keys)} in all)")
    for key, value in wanted.items():
        if value.shape != state[key].shape:
            raise UserError(f"{file}: {key} has shape {list(state[key].shape)}, expected {list(value.shape)}")
    module.load_state_dict(state)


def _check_sizes(folder: Path, values: dict[str, Any], kind: str, target: Facts) -> None:
    for name, there in (("hidden_size", target.hidden_size), ("vocab_size", target.vocab_size)):
        if name in values and values[name] != there:
            raise UserError(
                f"the {methods.DRAFTERS[kind]} in {folder} is for a target with {name} {values[name]}; {target.model} has {there}"
            )


def _config(kind: type[Any], folder: Path, values: dict[str, Any]) -> Any:
    file = folder / "config.json"
    try:
        config = kind(**{name: values[name] for name in kind.__dataclass_fields__})
    except KeyError as e:
        raise UserError(f"{file} lacks {e.args[0]!r}") from None
    for name, field in kind.__dataclass_fields__.items():
        value = getattr(config, name)
        if field.type == "int" and (not isinstance(value, int) or value < 1):
            raise UserError(f"{file}: {name} is {value!r}; it must be a whole number of at least 1")
        if field.type == "float" and not (isinstance(value, (int, float)) and value > 0):
            raise UserError(f"{file}: {name} is {value!r}; it must be a number over 0")
    return config


def _accuracies(folder: Path, values: dict[str, Any], n: int) -> Accuracies:
    found = values.get("accuracies", [])
    try:
        rows = tuple(tuple(float(x) for x in row) for row in found)
    except (TypeError, ValueError):
        rows = ((),)
    if rows and (len(rows) != n or len({len(row) for row in rows}) != 1 or not all(0 <= x <= 1 for row in rows for x in row)):
        raise UserError(f"{folder / 'config.json'}: accuracies must be a row of shares of equal length for each of {n} heads")
    return rows


def _published(folder: Path, state: dict[str, Tensor], target: Facts) -> PublishedHeads:
    """An empty module for heads in Medusa's own layout; the state's keys get its prefix."""
    try:
        there = 1 + max(int(key.split(".")[0]) for key in state)
        layers = max(int(key.split(".")[1]) for key in state)
    except (ValueError, IndexError):
        raise UserError(f"{weight_files(folder)[0]}: not Medusa's layout: keys are not HEAD.LAYER...") from None
    for key in [*state]:
        state["heads." + key.replace(".linear.", ".")] = state.pop(key)
    return PublishedHeads(target.hidden_size, target.vocab_size, there, layers)


def differing_tokens(ours: dict[str, int], theirs: dict[str, int]) -> list[str]:
    """What two tokenizers' vocabularies disagree in, lowest id first: `'token' (theirs: id, ours: id)`."""
    differ = [t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)]
    differ.sort(key=lambda t: (min(v for v in (ours.get(t), theirs.get(t)) if v is not None), t))
    return [f"{t!r} ({theirs.get(t, 'not')} there, {ours.get(t, 'not')} here)" for t in differ]


def _hub_lm(folder: Path, values: dict[str, Any], target: Facts) -> tuple[Attach, str]:
    """A whole LLaMA as draft LM: its tokenizer must be the target's, token by token."""
    import transformers

    from methods.engine.llama import is_plain_llama

    files = weight_files(folder)
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError, KeyError) as e:
        raise UserError(f"the draft LM in {folder} has no tokenizer to compare: {(str(e).splitlines() or ['?'])[0]}") from None
    differ = differing_tokens(target.tokenizer.get_vocab(), theirs.get_vocab())
    if differ:
        more = f", and {len(differ) - 5:,} more" if len(differ) > 5 else ""
        raise UserError(
            f"the draft LM in {folder} has another tokenizer than {target.model}: {', '.join(differ[:5])}{more}; "
            "speculative sampling needs the same tokens"
        )
    if values.get("vocab_size") != target.vocab_size:
        raise UserError(
            f"the draft LM in {folder} has logits for {values.get('vocab_size')} tokens, {target.model} for {target.vocab_size}"
        )
    try:
        found: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, target.dtype), output_loading_info=True
        )
        model, info = found
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as e:
        raise UserError(f"cannot load the draft LM in {folder}: {(str(e).splitlines() or ['?'])[0]}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = [k for k in info[what] if not str(k).endswith("rotary_emb.inv_freq")]
        if keys:
            raise UserError(f"the draft LM in {folder}: {what.replace('_', ' ')}: {', '.join(map(str, sorted(keys)[:5]))}")
    if not is_plain_llama(model):
        raise UserError(f"the draft LM in {folder} is a {type(model).__name__}; it must be a plain LLaMA")
    return lambda t: LMDrafter(model.to(t.lm_head.weight.device).eval()), weights_digest(files)
