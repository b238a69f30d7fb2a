"""ModelConfig -> target, drafter, tokenizer. Hashes, shapes, missing and unexpected keys are checked here."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import methods
from harness.common.errors import UserError
from harness.load import chat, placement
from harness.load.config import Architecture, ModelConfig
from harness.load.drafters import Facts, read_drafter
from harness.load.dtype import device, resolve_dtype
from harness.load.eagle_head import beside_last_layer, load_frequent, load_head
from harness.load.layout import drafter_kind, stored_bytes
from harness.load.prompt_text import check_template, load_tokenizer, render
from harness.load.weights import drafter_folder, require_packages, weights_folder
from methods.engine.draft_head import EagleDrafter, EagleHead
from methods.engine.llama import LlamaTarget, is_lean
from methods.engine.target import HFTarget

# what some of transformers' models do to logits after the LM head (Granite, Cohere, Gemma 2)
SCALINGS = ("logits_scaling", "logit_scale", "final_logit_softcapping")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything a run needs of a model. `drafter`: its EAGLE head, None where it has none; `drafters`: those of other kinds."""

    config: ModelConfig
    target: HFTarget
    drafter: EagleDrafter | None
    tokenizer: Any
    dtype: str
    target_sha: str
    head_sha: str | None
    frequent_sha: str | None = None  # of the list of frequent tokens beside the head
    drafters: Mapping[str, Any] = field(default_factory=dict)
    drafter_shas: Mapping[str, str] = field(default_factory=dict)

    def drafter_of(self, kind: str | None) -> Any:
        """The drafter of a kind of `methods.DRAFTERS`, None where there is none, or none is asked for."""
        return self.drafter if kind == methods.EAGLE else self.drafters.get(kind or "")

    def sha_of(self, kind: str | None) -> str | None:
        """The hash of its weights."""
        return self.head_sha if kind == methods.EAGLE else self.drafter_shas.get(kind or "")

    def render(self, turns: list[tuple[str, str]]) -> str:
        """[(role, text), ..] ending with a user turn -> the prompt as the model is given it, template included."""
        return render(self.config, self.tokenizer, turns)

    def encode(self, rendered: str) -> list[int]:
        """Token ids of a rendered prompt: with BOS, once, where the template's text leaves it to the tokenizer."""
        ids = self.encode_text(rendered)
        return [self.tokenizer.bos_token_id, *ids] if self.config.template in chat.RENDERED_WITHOUT_BOS else ids

    def encode_text(self, text: str) -> list[int]:
        """Token ids of any other text: nothing is added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def piece(self, token: int) -> str:
        """The text of one token, special ones included; bytes that are no character of their own become U+FFFD."""
        text: str = self.tokenizer.decode([token])
        # sentencepiece drops a leading space where a text begins
        starts_word = str(self.tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")
        return f" {text}" if starts_word and not text.startswith(" ") else text


def load(
    config: ModelConfig, dtype: str = "auto", head: Path | None = None, with_head: bool = True,
    drafters: Collection[str] | None = None,
) -> Loaded:  # fmt: skip
    """Load a target in `dtype` and those of its drafters that are asked for, where it has them.

    head: a folder in place of its own drafter of that kind. drafters: kinds of `methods.DRAFTERS`, by default the EAGLE head,
    unless `with_head` is False.

    Raises:
        UserError: weights or head missing, altered, of other shapes, or made for another target.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    require_packages(config)
    folder, target_sha = weights_folder(config)
    wanted = set(drafters) if drafters is not None else {methods.EAGLE} if with_head else set()
    folders = {kind: path for kind in sorted(wanted) if (path := _folder(config, kind, head)) is not None}
    own = folders.pop(methods.EAGLE, None)
    name = resolve_dtype(config.dtype if dtype == "auto" else dtype)
    weights: EagleHead | None = None
    frequent, head_sha, frequent_sha = None, None, None
    placed: dict[str, torch.device] | None = None
    try:
        # before the target's weights: what does not fit is found out in seconds
        sizes, tokenizer = transformers.AutoConfig.from_pretrained(folder), load_tokenizer(folder)
        check_template(config, tokenizer, folder)
        if own is not None:
            weights, head_sha = load_head(own, config.name, (sizes.vocab_size, sizes.hidden_size), target_sha)
            frequent, frequent_sha = load_frequent(own, sizes.vocab_size)
        facts = Facts(config.name, sizes.vocab_size, sizes.hidden_size, target_sha, tokenizer, name)
        others = {kind: read_drafter(kind, path, facts) for kind, path in folders.items()}
        if device().type == "cuda":
            drafters_size = sum(map(stored_bytes, folders.values()))
            placed = placement.on_gpus(
                Architecture.of(folder), name, config.context_length, placement.free_on_gpus(), drafters_size
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, name), output_loading_info=True, ignore_mismatched_sizes=True, device_map=placed
            )
            model, info = found
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
        raise UserError(f"cannot load model {config.name} from {folder}: {(str(e).splitlines() or ['?'])[0]}") from e
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):  # transformers would fill missing and misshapen weights with random ones and go on
            keys = sorted(k if isinstance(k, str) else f"{k[0]} {list(k[1])} for {list(k[2])}" for k in info[what])
            raise UserError(f"model {config.name}: {what.replace('_', ' ')} in {folder}: {', '.join(keys[:5])}")
    for scaling in SCALINGS:
        if getattr(model.config, scaling, None) not in (None, 1):
            raise UserError(f"model {config.name}: {type(model).__name__} changes its logits after the LM head ({scaling} = "
                            f"{getattr(model.config, scaling)}), which decoding here would leave out")  # fmt: skip
    try:
        model = model if placed else model.to(device())
        target = LlamaTarget(model) if is_lean(model) else HFTarget(model)
        drafter = None if weights is None else beside_last_layer(target, weights, frequent)
        attached = {kind: attach(target) for kind, (attach, _) in others.items()}
    except (ValueError, AttributeError) as e:  # modules go by other names outside LLaMA's family
        raise UserError(f"model {config.name}: {type(model).__name__} cannot be a target here: {e}") from e
    except torch.OutOfMemoryError as e:
        raise UserError(f"model {config.name} and its drafters do not fit in the GPU's memory: {str(e).splitlines()[0]}") from e
    return Loaded(
        config, target, drafter, tokenizer, name, target_sha, head_sha, frequent_sha, attached,
        {kind: sha for kind, (_, sha) in others.items()},
    )  # fmt: skip


def _folder(config: ModelConfig, kind: str, head: Path | None) -> Path | None:
    return head if head is not None and drafter_kind(head) == kind else drafter_folder(config, kind)
