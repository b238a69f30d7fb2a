"""Reading draft LMs: narrow ones trained here, and whole ones of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from harness.common.errors import UserError
from harness.load.config_keys import check_keys, positive, rope_of
from harness.load.drafters import (
    EMBEDDING,
    check_embedding,
    check_sizes,
    check_target,
    config_from,
    fill,
    read_config,
    read_state,
)
from harness.load.kinds import ReadDrafter, TargetFacts, kind_named
from harness.load.layout import weight_files, weights_digest
from harness.load.prompt_text import load_tokenizer
from harness.load.self_check import is_finite
from methods.base import Drafter
from methods.engine.draft_lm import NarrowConfig, NarrowLM
from methods.engine.engines import lm_drafter
from methods.engine.target import HFTarget


def read_lm(folder: Path, target: TargetFacts) -> ReadDrafter:
    """The draft LM of a folder. `read` of `DrafterKind`."""
    values = read_config(folder, "lm", target.model)
    if kind_named(values) is None:
        return _whole_lm(folder, values, target)
    check_sizes(folder, values, "lm", target)
    check_target(folder, values, "lm", target.model, target.sha)
    state, digest = read_state(folder, values)
    embedding = state.pop(EMBEDDING, None)
    narrow = NarrowLM(narrow_config(folder, values))
    fill(narrow, state, folder)

    def attach(t: HFTarget) -> Drafter:
        check_embedding(folder, embedding, t.embedding)
        return lm_drafter(t, narrow.folded(t.embedding, t.lm_head.weight))

    return ReadDrafter(attach, digest)


def narrow_config(folder: Path, values: dict[str, Any]) -> NarrowConfig:
    """
    Raises:
        UserError: a value is missing, impossible, or one that a narrow LM here does not honour.
    """
    file, ropes = folder / "config.json", ("rope_theta", "rope_parameters", "rope_scaling")
    check_keys(file, values, [*NarrowConfig.__dataclass_fields__, *ropes], "narrow draft LM")
    if any(values.get(key) is not None for key in ropes):
        theta, stretch = rope_of(file, values)
        if stretch:
            raise UserError(f"{file}: rope_type is {stretch['rope_type']!r}; a narrow draft LM here has the default one")
        values = values | {"rope_theta": theta}
    config = config_from(NarrowConfig, folder, values)
    heads = config.width // min(config.width, 64)
    if config.width % (2 * heads):
        raise UserError(f"{file}: width {config.width} is no even multiple of {heads} heads")
    return config


def differing_tokens(ours: dict[str, int], theirs: dict[str, int]) -> list[str]:
    """What two tokenizers' vocabularies disagree in, lowest id first: `'token' (theirs: id, ours: id)`."""
    differ = [t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)]
    differ.sort(key=lambda t: (min(v for v in (ours.get(t), theirs.get(t)) if v is not None), t))
    return [f"{t!r} ({theirs.get(t, 'not')} there, {ours.get(t, 'not')} here)" for t in differ]


def _whole_lm(folder: Path, values: dict[str, Any], target: TargetFacts) -> ReadDrafter:
    """A whole LLaMA as draft LM: its tokenizer must be the target's, token by token."""
    import transformers

    from methods.engine.llama import is_plain_llama
    from methods.engine.target import cannot_verify

    files = weight_files(folder)
    try:
        theirs = load_tokenizer(folder)
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
            folder, dtype=getattr(torch, target.dtype), output_loading_info=True, trust_remote_code=False
        )
        model, info = found
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as e:
        raise UserError(f"cannot load the draft LM in {folder}: {(str(e).splitlines() or ['?'])[0]}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = [k for k in info[what] if not str(k).endswith("rotary_emb.inv_freq")]
        if keys:
            raise UserError(f"the draft LM in {folder}: {what.replace('_', ' ')}: {', '.join(map(str, sorted(keys)[:5]))}")
    if not is_plain_llama(model):
        why = cannot_verify(model.config, type(model)) or "no biases, SiLU, a default, linear or llama3 rope"
        raise UserError(f"the draft LM in {folder} is a {type(model).__name__}; it must be a plain LLaMA ({why})")
    positive(folder / "config.json", "rms_norm_eps", model.config.rms_norm_eps)
    positive(folder / "config.json", "rope_theta", model.config.rope_parameters["rope_theta"])
    if bad := next((name for name, p in model.named_parameters() if not is_finite(p)), None):
        raise UserError(f"the draft LM in {folder}: {bad} holds NaN or infinity")
    return ReadDrafter(lambda t: lm_drafter(t, model.to(t.lm_head.weight.device).eval()), weights_digest(files))
