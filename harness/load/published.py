"""Drafters of other projects by our names: what their config.json says, and what their tensors are called.

What is read, by the code of SpecForge 0.2.0, speculators 0.3.0 and 0.9.0, vLLM 0.11.0 and 0.33.0 and SGLang 0.5.23 (all on PyPI):

- EAGLE and EAGLE-2: `fc`, `layers.0`; of speculators' `eagle` (0.2 to 0.6) `fusion_fc`, `transformer`.
- EAGLE-3: `fc`, `midlayer`, `norm`, `lm_head`, `d2t`, `t2d`; of speculators `layers.0` for `midlayer`; of old SGLang
  `aux_norm_low` for `fc_norm.0`.
- Medusa: `0.0.linear`, `0.1`, with or without `medusa_head.`; of vLLM `blocks.0.layers.0`, `lm_heads.0`.
- Any of them below a trainer's prefix (`module.`, `model.` ..).

EAGLE-3's hidden states are named in three places, each with one meaning. A head's own `eagle_aux_hidden_state_layer_ids`, which
vLLM and speculators read, counts what layers are given: 0 is the embedding; n, of n layers, is what comes after the last one, and
before the final norm. In `eagle_config` SpecForge and SGLang count layers, whose outputs they take: one less. Our own folders'
`aux_hidden_states` counts as transformers does: n comes after the final norm. By our keys the first or the last is there, and
nothing in `eagle_config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

EAGLE3 = "LlamaForCausalLMEagle3"
EAGLE3_CONFIG, LAYERS = "eagle_config", "eagle_aux_hidden_state_layer_ids"
AUX = "aux_hidden_states"
SPECULATORS = "speculators_model_type"
_OLD = "weights_sha256"  # a key of our own folders, which counted as transformers does in `eagle_config` once
_NOT_OF_A_HEAD = (  # what a config of speculators tells besides
    SPECULATORS, "speculators_version", "speculators_config", "transformer_layer_config", "transformer_layer_architecture",
    "auto_map", "layernorms", "fusion_bias", "norm_before_fc", LAYERS, "embed_requires_grad", "architectures", "model_type",
)  # fmt: skip
_MEDUSA = ("num_heads", "num_hidden_layers", "truncated_vocab_size", "original_lm_head", "medusa_fc_bias", "logit_scale")


# ---- config.json ------------------------------------------------------------------------------------------------------


def is_eagle3(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is of an EAGLE-3 head: by its name, by a vocabulary of its own, or by the layers that it reads."""
    named, choices = values.get("architectures"), values.get(EAGLE3_CONFIG)
    is_named = isinstance(named, list) and any("eagle3" in str(x).lower() for x in named)
    names_states = AUX in values or (isinstance(choices, dict) and LAYERS in choices)
    return is_named or values.get("draft_vocab_size") is not None or names_states


def by_our_keys(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What a drafter's config.json says, by the keys of the authors' layout; `values` where it says so already.

    Raises:
        UserError: it is of a kind, or has an option, that is not read here.
    """
    if SPECULATORS in values:
        return _of_speculators(file, values)
    if values.get("model_type") == "medusa" or values.get("architectures") == ["MedusaModel"]:
        return _of_vllms_medusa(file, values)
    return _numbered(file, values) if is_eagle3(values) else values


def _of_speculators(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    kind, layer = values[SPECULATORS], values.get("transformer_layer_config")
    if kind not in ("eagle", "eagle3"):
        raise UserError(f"{file}: {SPECULATORS} is {str(kind)[:60]!r}; those read here are eagle and eagle3")
    if not isinstance(layer, dict):
        raise UserError(f"{file}: transformer_layer_config is {str(layer)[:60]}; it must be an object")
    if layer.get("model_type", "llama") != "llama":
        raise UserError(f"{file}: model_type of its layer is {str(layer['model_type'])[:60]!r}; a draft head here has a LLaMA's")
    rest = {key: value for key, value in values.items() if key not in _NOT_OF_A_HEAD and value is not None}
    if twice := sorted(key for key in rest.keys() & layer.keys() if rest[key] != layer[key] and "dtype" not in key):
        raise UserError(f"{file}: {twice[0]} is {rest[twice[0]]!r}, and {layer[twice[0]]!r} in transformer_layer_config")
    found = layer | rest | {"model_type": "llama"}
    if kind == "eagle":
        if values.get("layernorms"):
            raise UserError(f"{file}: layernorms is true: a draft head here has no norms around its layer")
        if values.get("transformer_layer_architecture", "auto") not in ("auto", "LlamaDecoderLayer"):
            raise UserError(
                f"{file}: transformer_layer_architecture is {str(values['transformer_layer_architecture'])[:60]!r}; "
                "a draft head here has the layer of a LLaMA"
            )
        return found | {"architectures": ["LlamaForCausalLM"], "bias": values.get("fusion_bias", False)}
    if "norm_before_residual" not in values:
        raise UserError(f"{file} lacks 'norm_before_residual', which is false to speculators and true to vLLM: write which")
    if values.get("embed_requires_grad"):
        raise UserError(
            f"{file}: embed_requires_grad is true: the head has an embedding of its own, and here it has the target's"
        )
    own = {"architectures": [EAGLE3], "bias": False, "norm_before_fc": values.get("norm_before_fc", False)}
    return _numbered(file, found | own | {LAYERS: values.get(LAYERS)})


def _numbered(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """An EAGLE-3 head's config with its choices where ours are, and one list of hidden states at most: `AUX` or `LAYERS`.

    Raises:
        UserError: two places contradict each other, no list of numbers, or one that an earlier version of ours may have written.
    """
    nested = values.get(EAGLE3_CONFIG) or {}
    if not isinstance(nested, dict):
        raise UserError(f"{file}: {EAGLE3_CONFIG} is {str(nested)[:60]}; it must be an object")
    lists = {AUX: values.get(AUX), LAYERS: values.get(LAYERS), f"{LAYERS} in {EAGLE3_CONFIG}": nested.get(LAYERS)}
    for place, found in lists.items():
        if found is not None and not (isinstance(found, list) and all(type(i) is int for i in found)):
            raise UserError(f"{file}: {place} is {str(found)[:60]}; it must be a list of layers")
    ours, own, below = (found or [] for found in lists.values())
    if below and not ours and _OLD in values:
        raise UserError(f"{file}: {EAGLE3_CONFIG} says {LAYERS} {below}. If an earlier `harness train` wrote that, it "
                        f"counts as transformers does: write \"{AUX}\": {below} beside {EAGLE3_CONFIG}, and "
                        f"{[i - 1 for i in below]} in it, as SGLang counts")  # fmt: skip
    named = ours or own or [i + 1 for i in below]
    if (own and own != named) or (below and [i + 1 for i in below] != named and (ours or below != own)):
        raise UserError(f"{file}: {', and '.join(f'{place} is {found}' for place, found in lists.items() if found)}")
    rest = {k: v for k, v in values.items() if k not in (AUX, LAYERS, "use_aux_norm")}
    if (norms := values.get("use_aux_norm")) is not None:  # SGLang's older word for fc_norm
        if not isinstance(norms, bool):
            raise UserError(f"{file}: use_aux_norm is {norms!r}; it must be true or false")
        if (told := values.get("fc_norm")) is not None and told is not norms:
            raise UserError(f"{file}: use_aux_norm is {norms}, and fc_norm {told!r}: two words for one choice")
        rest["fc_norm"] = norms
    if values.get("architectures") in (None, ["LlamaForCausalLM"]):
        rest["architectures"] = [EAGLE3]
    if named:
        rest[AUX if ours else LAYERS] = named
    return rest | {EAGLE3_CONFIG: {k: v for k, v in nested.items() if k != LAYERS}}


def _of_vllms_medusa(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    cut = values.get("truncated_vocab_size")
    if cut is not None and cut != values.get("vocab_size"):
        raise UserError(f"{file}: truncated_vocab_size is {cut}: heads over a part of the {values.get('vocab_size')} tokens")
    if values.get("logit_scale", 1) != 1:
        raise UserError(f"{file}: logit_scale is {values['logit_scale']!r}; Medusa heads here have none")
    rest = {key: value for key, value in values.items() if key not in _MEDUSA}
    heads, layers = values.get("num_heads"), values.get("num_hidden_layers", 1)
    return rest | {"architectures": ["MedusaHeads"], "medusa_num_heads": heads, "medusa_num_layers": layers}


# ---- tensors ----------------------------------------------------------------------------------------------------------

NESTED = ("state_dict", "model_state_dict", "draft_state_dict", "module", "model")  # what trainers put a state into
PREFIXES = ("module.", "_orig_mod.", "draft_model.", "model.", "ea_layer.", "medusa_heads.")
_BESIDE = ("lm_head.weight", "d2t", "t2d")  # what stands outside the prefix `model.`
_AUX_NORMS = {"aux_norm_low": "fc_norm.0", "aux_norm_mid": "fc_norm.1", "aux_norm_high": "fc_norm.2"}
_BLOCK = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")


def by_our_names(state: dict[str, Tensor], where: object) -> dict[str, Tensor]:
    """A drafter's tensors by the names of the authors' layouts. where: the file, for the error.

    Raises:
        UserError: two of them would have one name.
    """
    for _ in PREFIXES:
        for prefix in PREFIXES:
            if any(name.startswith(prefix) for name in state) and all(n.startswith(prefix) or n in _BESIDE for n in state):
                state = _renamed(state, lambda name, p=prefix: name.removeprefix(p), where)  # type: ignore[misc]
    if any(name.startswith("fusion_fc.") for name in state):
        state = _renamed(state, lambda name: re.sub(r"^transformer\.", "layers.0.", re.sub(r"^fusion_fc\.", "fc.", name)), where)
    if any(name == "layers.0.hidden_norm.weight" or name.startswith("midlayer.") for name in state):
        state = _renamed(state, _of_eagle3, where)
    return _medusas(state) if any(_BLOCK.fullmatch(name) for name in state) else state


def _of_eagle3(name: str) -> str:
    first, _, rest = name.partition(".")
    return re.sub(r"^layers\.0\.", "midlayer.", f"{_AUX_NORMS[first]}.{rest}" if first in _AUX_NORMS else name)


def _renamed(state: dict[str, Tensor], to: Callable[[str], str], where: object) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if found.setdefault(to(name), value) is not value:
            raise UserError(f"{where}: {name!r} and another tensor are both {to(name)!r}")
    return found


def _medusas(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """vLLM's Medusa as its authors name it: biases that it lacks are 0, and an LM head that all heads share is each one's."""
    import torch

    blocks = {name: found for name in state if (found := _BLOCK.fullmatch(name))}
    n_layers = 1 + max(int(found[2]) for found in blocks.values())
    heads = sorted({int(found[1]) for found in blocks.values()})
    out = {f"{found[1]}.{found[2]}.linear.{found[3]}": state[name] for name, found in blocks.items()}
    for name in [name for name in out if name.endswith(".weight")]:
        bias = f"{name.removesuffix('weight')}bias"
        out.setdefault(bias, torch.zeros(len(out[name]), dtype=out[name].dtype))
    rest = {name: value for name, value in state.items() if name not in blocks}
    shared = rest.pop("lm_head.weight", rest.get("lm_heads.0.weight") if "lm_heads.1.weight" not in rest else None)
    for i in heads:
        lm_head = rest.pop(f"lm_heads.{i}.weight", shared)
        if lm_head is not None:
            out[f"{i}.{n_layers}.weight"] = lm_head
    return out | rest
