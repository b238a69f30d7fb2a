"""The formats that heads are written in: what each can hold, its config.json and the names of its tensors.

What loads there, by the code of SpecForge 0.2.0, speculators 0.9.0, vLLM 0.33.0 and SGLang 0.5.23 (all on PyPI), and of the
authors (SafeAILab/EAGLE):

- vLLM's `fc` has no bias, and a bias in the file is dropped in silence. SGLang's `fc` of EAGLE and EAGLE-2 always has one.
- `norm_output` says to vLLM, SGLang and speculators that a drafted state is fed back normed; absent is false. To SpecForge it
  says that logits go through the norm; absent is true, and states are fed back as they are. So for SpecForge it is left out:
  where it is absent, all of them mean the same.
- SpecForge and SGLang count the layers whose outputs are read, from 0: one less than transformers' number of the hidden state,
  which vLLM and speculators take. The usual three are everybody's default, so for SpecForge and SGLang they are left out. Of n
  layers, state n is none that any of them takes: behind the final norm here, before it in vLLM.
- vLLM and speculators have no maps for a draft vocabulary that is the target's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.common.errors import UserError, unknown
from harness.exchange.heads.head import Head
from harness.exchange.heads.target import Target
from harness.load.published import EAGLE3, EAGLE3_CONFIG, LAYERS, SPECULATORS
from methods.engine.eagle3 import Eagle3Config, default_layers, is_usual

Values = dict[str, Any]
SPECULATORS_VERSION = "0.9.0"
NORMS = frozenset({"fc_norm", "norm_before_fc", "norm_output", "norm_before_residual"})
WIDE, STRETCHED = "head_dim", "rope"


@dataclass(frozen=True, slots=True)
class Format:
    """config: (head, target, levels drafted) -> config.json. holds: by kind of head, which of `features` it may have; a kind that
    is not there cannot be written, because of `why_not`."""

    name: str
    loads_in: str
    config: Callable[[Head, Target, int], Values]
    holds: Mapping[str, frozenset[str]]
    why_not: Mapping[str, str]

    def written(self, head: Head, target: Target, levels: int) -> tuple[Values, dict[str, Tensor]]:
        """(config.json, the tensors by their names there).

        Raises:
            UserError: the format cannot hold the head, and why.
        """
        if head.kind not in self.holds:
            fit = ", ".join(name for name, f in FORMATS.items() if head.kind in f.holds)
            raise UserError(f"{head.folder} holds {TITLES[head.kind]}, which --format {self.name} does not fit: "
                            f"{self.why_not[head.kind]}; those that fit are {fit}")  # fmt: skip
        if odd := [why for feature, why in features(head, target) if feature not in self.holds[head.kind]]:
            raise UserError(f"{head.folder} does not fit --format {self.name}: {odd[0]}, which {self.loads_in} does not compute")
        return self.config(head, target, levels), self._tensors(head)

    def _tensors(self, head: Head) -> dict[str, Tensor]:
        found = {name: value.contiguous() for name, value in head.tensors.items() if name != "fc.bias"}
        if "bias" in self.holds[head.kind] and "fc.bias" in head.tensors:
            found["fc.bias"] = head.tensors["fc.bias"]
        elif self.name == "sglang" and head.eagle3 is None:
            found["fc.bias"] = torch.zeros(len(head.tensors["fc.weight"]), dtype=head.tensors["fc.weight"].dtype)
        if head.eagle3 is not None and self.name in ("vllm", "speculators"):
            if head.eagle3.draft_vocab_size == head.config.vocab_size:
                found = {name: value for name, value in found.items() if name not in ("d2t", "t2d")}
            if self.name == "speculators":
                found = {name.replace("midlayer.", "layers.0."): value for name, value in found.items()}
        return found


TITLES = {"eagle": "a head of EAGLE or EAGLE-2", "eagle3": "a head of EAGLE-3"}


def features(head: Head, target: Target) -> Iterator[tuple[str, str]]:
    """What a head has that not every format holds: (its name, in words)."""
    c, e = head.config, head.eagle3
    if head.has_bias:
        yield "bias", "its fc has a bias"
    if c.head_dim * c.num_attention_heads != c.hidden_size:
        yield WIDE, f"its {c.num_attention_heads} attention heads have head_dim {c.head_dim}, with hidden_size {c.hidden_size}"
    if c.rope_scaling:
        yield STRETCHED, f"its rope is of type {c.rope_scaling['rope_type']}"
    if e is None:
        return
    for name in sorted(NORMS):
        if getattr(e, name):
            yield name, f"{name} is true"
    reads = f"it reads the hidden states {_listed(e.aux_layers)}"
    if not is_usual(e.aux_layers, target.n_layers):
        yield "layers", f"{reads}, not the usual {_usual(target)}"
    if not 0 < min(e.aux_layers) <= max(e.aux_layers) < target.n_layers:
        yield "ends", f"{reads}, and of {target.n_layers} layers it can be told 1 to {target.n_layers - 1}"
    if max(e.aux_layers) == target.n_layers:
        yield "last", f"{reads}, the last of them after the target's final norm"


def _listed(items: tuple[Any, ...]) -> str:
    return ", ".join(map(str, items))


def _usual(target: Target) -> str:
    try:
        return _listed(default_layers(target.n_layers))
    except ValueError:
        return "none"


# ---- config.json ------------------------------------------------------------------------------------------------------


def _llama(head: Head, target: Target) -> Values:
    """What every format says of the layer, by the keys of a LLaMA's config.json before transformers 5, which all of them read."""
    c = head.config
    stretch = {key: value for key, value in (c.rope_scaling or {}).items() if key != "rope_theta"}
    return {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": 1, "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim, "rms_norm_eps": c.rms_norm_eps, "rope_theta": c.rope_theta, "rope_scaling": stretch or None,
        "vocab_size": c.vocab_size, "max_position_embeddings": head.context or target.context, "attention_bias": False,
        "mlp_bias": False, "tie_word_embeddings": False,
        "torch_dtype": str(head.tensors["fc.weight"].dtype).removeprefix("torch."),
    }  # fmt: skip


def _noted(head: Head) -> Values:
    return {} if head.target_sha is None else {"target_sha256": head.target_sha}


def _direct(named: str, bias: bool | None = None) -> Callable[[Head, Target, int], Values]:
    """A head of EAGLE or EAGLE-2. bias: None for what the head has."""

    def config(head: Head, target: Target, levels: int) -> Values:
        has = "fc.bias" in head.tensors if bias is None else bias
        return {"architectures": [named], **_llama(head, target), "bias": has, **_noted(head)}

    return config


def _third(head: Head, target: Target, e: Eagle3Config) -> Values:
    """What an EAGLE-3 head's config.json says everywhere but in speculators."""
    return {
        "architectures": [EAGLE3], **_llama(head, target), "draft_vocab_size": e.draft_vocab_size, "bias": False,
        "target_hidden_size": head.config.hidden_size, "num_aux_hidden_states": len(e.aux_layers), "fc_norm": e.fc_norm,
        "norm_before_residual": e.norm_before_residual, "norm_output": e.norm_output, **_noted(head),
        EAGLE3_CONFIG: {"use_aux_hidden_state": True, "norm_before_fc": e.norm_before_fc},
    }  # fmt: skip


def _counting_layers(head: Head, target: Target, levels: int) -> Values:
    """Of the authors and of SGLang: the layers whose outputs are read, where they are not the usual."""
    assert head.eagle3 is not None
    values, e = _third(head, target, head.eagle3), head.eagle3
    if not is_usual(e.aux_layers, target.n_layers):
        values[EAGLE3_CONFIG] |= {LAYERS: [i - 1 for i in e.aux_layers]}
    return values


def _specforge(head: Head, target: Target, levels: int) -> Values:
    return {key: value for key, value in _counting_layers(head, target, levels).items() if key != "norm_output"}


def _vllm(head: Head, target: Target, levels: int) -> Values:
    if head.eagle3 is None:
        return _direct("LlamaForCausalLM", False)(head, target, levels)
    return _third(head, target, head.eagle3) | {LAYERS: list(head.eagle3.aux_layers)}


def _sglang(head: Head, target: Target, levels: int) -> Values:
    of = _direct("LlamaForCausalLMEagle", True) if head.eagle3 is None else _counting_layers
    return of(head, target, levels)


def _speculators(head: Head, target: Target, levels: int) -> Values:
    e = head.eagle3
    assert e is not None
    layer = _llama(head, target)
    stretch = layer.pop("rope_scaling") or {"rope_type": "default"}
    layer |= {"rope_parameters": {**stretch, "rope_theta": layer["rope_theta"]}, "dtype": layer.pop("torch_dtype")}
    method = {"proposal_type": "greedy", "speculative_tokens": levels, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    return {
        "architectures": ["Eagle3Speculator"], SPECULATORS: "eagle3", "speculators_version": SPECULATORS_VERSION,
        "draft_vocab_size": e.draft_vocab_size, "norm_before_residual": e.norm_before_residual, "fc_norm": e.fc_norm,
        "target_hidden_size": head.config.hidden_size, LAYERS: list(e.aux_layers), "norm_before_fc": e.norm_before_fc,
        "norm_output": e.norm_output, "embed_requires_grad": False, "dtype": layer["dtype"], "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3", "proposal_methods": [method], "default_proposal_method": "greedy",
            "verifier": {"name_or_path": target.address, "architectures": list(target.architectures)},
        },
        **_noted(head),
    }  # fmt: skip


# ---- the formats ------------------------------------------------------------------------------------------------------

_ALL = NORMS | {WIDE, STRETCHED, "layers", "ends"}
_NO_EAGLE = "its fc reads three hidden states through an LM head of its own"
_NO_EAGLE3 = "its fc reads one feature, and its logits are the target's"

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("eagle", "the authors' code", _direct("LlamaForCausalLM"), {"eagle": frozenset({"bias"})}, {"eagle3": _NO_EAGLE3}),
        Format("eagle3", "the authors' code", _counting_layers, {"eagle3": frozenset()}, {"eagle": _NO_EAGLE}),
        Format(
            "specforge", "SpecForge", _specforge, {"eagle3": frozenset({"fc_norm", WIDE, STRETCHED, "layers"})},
            {"eagle": "SpecForge trains none"},
        ),
        Format(
            "speculators", "speculators", _speculators, {"eagle3": _ALL},
            {"eagle": "speculators had them in 0.2 to 0.6 and has them no more"},
        ),
        Format("vllm", "vLLM", _vllm, {"eagle": frozenset({WIDE, STRETCHED}), "eagle3": _ALL}, {}),
        Format(
            "sglang", "SGLang", _sglang,
            {"eagle": frozenset({"bias", WIDE, STRETCHED}),
             "eagle3": frozenset({"fc_norm", "norm_before_fc", "norm_output", WIDE, STRETCHED, "layers"})}, {},
        ),
    )
}  # fmt: skip


def format_of(name: str) -> Format:
    """
    Raises:
        UserError: there is no such format.
    """
    if name not in FORMATS:
        raise unknown("format of heads", name, FORMATS)
    return FORMATS[name]
