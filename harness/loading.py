"""ModelConfig -> target, drafter, tokenizer. Hashes, shapes, missing and unexpected keys are checked here."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import methods
from harness import chat, placement
from harness.config import Architecture, ModelConfig
from harness.drafters import Facts, check_target, fill, read_config, read_drafter, read_state
from harness.errors import UserError
from harness.fetch import cache_dir, sha256_file, whole_file
from harness.weights import drafter_folder, drafter_kind, require_packages, stored_bytes, weights_folder
from methods.engine.draft_head import EagleDrafter, EagleHead, HeadConfig
from methods.engine.layer import Linear
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


def render(config: ModelConfig, tokenizer: Any, turns: chat.Turns) -> str:
    system = chat.system_text(config.template, config.system)
    if config.template == "plain":
        return "".join(text for _, text in turns)
    if config.template in chat.RENDERED_WITHOUT_BOS:
        return chat.RENDERED_WITHOUT_BOS[config.template](system, turns)
    said = ([("system", system)] if system else []) + list(turns)
    messages = [{"role": role, "content": text} for role, text in said]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def check_template(config: ModelConfig, tokenizer: Any, folder: Path) -> None:
    """Find out before anything is measured that the tokenizer cannot render what the YAML's template promises.

    Raises:
        UserError: no chat template, another one than LLaMA-3's, or no BOS token to put in front.
    """
    if config.template in ("tokenizer", "llama-3") and not tokenizer.chat_template:
        raise UserError(f"model {config.name}: the tokenizer in {folder} has no chat template; its YAML may say template: plain")
    if config.template in chat.RENDERED_WITHOUT_BOS and tokenizer.bos_token_id is None:
        raise UserError(
            f"model {config.name}: the tokenizer in {folder} has no BOS token, which template {config.template} needs"
        )
    turns = [("user", " One?\n"), ("assistant", "Two."), ("user", "Three?")]
    try:
        found = render(config, tokenizer, turns if config.template == "llama-3" else turns[:1])
    except jinja2.TemplateError as e:  # some have no place for a system prompt, and say so
        raise UserError(f"model {config.name}: the chat template in {folder} cannot render a dialogue: {e}") from None
    wanted = chat.llama3(chat.system_text(config.template, config.system), turns)
    if config.template == "llama-3" and found != wanted:
        at = len(os.path.commonprefix([found, wanted]))
        shown = f"{found[at : at + 40]!r} where LLaMA-3's has {wanted[at : at + 40]!r}"
        raise UserError(f"model {config.name}: the chat template in {folder} renders {shown}")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(dtype: str) -> str:
    """`auto` -> bfloat16 where a plain decoding step's matmuls are at least 1.3 times as fast in it as in float32, else float32:
    a baseline in the slower one would flatter every method.

    Probed once per machine, torch version and thread count; the figures are kept in the cache.
    """
    if dtype != "auto":
        return dtype
    where = device()
    import platform

    from harness.environment import cpu_name

    name = torch.cuda.get_device_name() if where.type == "cuda" else cpu_name()
    key = f"{name}|{platform.machine()}|torch {torch.__version__}|{torch.get_num_threads()} threads"
    file = cache_dir() / "step-probe.json"
    known: dict[str, Any] = {}
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        pass
    if key not in known:
        known[key] = {d: _probe(getattr(torch, d), where) for d in ("bfloat16", "float32")}
        try:
            with whole_file(file) as tmp:
                tmp.write_text(json.dumps(known, indent=1))
        except OSError:
            pass  # a cache that cannot be written only costs the probe again
    return "bfloat16" if known[key]["bfloat16"] * 1.3 <= known[key]["float32"] else "float32"


def _probe(dtype: torch.dtype, where: torch.device) -> float:
    """Median seconds of one row through matrices of 32 M weights in all, which few caches hold, as decoding runs them."""
    matrices = [Linear(torch.randn(2048, 2048, device=where).to(dtype)) for _ in range(8)]
    row = torch.randn(1, 2048, device=where).to(dtype)
    times = []
    with torch.inference_mode():
        for _ in range(9):
            started = time.perf_counter()
            for matrix in matrices:
                matrix(row)
            if where.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    return sorted(times)[4]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, as it was when it was published.

    What a LLaMA tokenizer's settings leave open was `legacy` until transformers 5: a word begins after `</s>`, too.
    """
    from transformers import AutoTokenizer

    try:
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        old = str(said.get("tokenizer_class")).startswith("LlamaTokenizer") and said.get("legacy") is None
    except (OSError, ValueError, AttributeError):
        old = False
    return AutoTokenizer.from_pretrained(folder, **({"legacy": True} if old else {}))


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


def beside_last_layer(target: HFTarget, head: EagleHead, frequent: torch.Tensor | None) -> EagleDrafter:
    """A drafter where the features it reads come from: over several GPUs that is the last one's, with a copy of the embedding."""
    where = target.lm_head.weight.device
    return EagleDrafter(head.to(where, target.dtype), target.embedding.to(where), target.lm_head, frequent)


FREQUENT = "frequent.safetensors"


def load_frequent(folder: Path, vocab: int) -> tuple[torch.Tensor | None, str | None]:
    """The token ids beside a head, most frequent in its training data first, and their file's hash; None without one.

    Raises:
        UserError: the file cannot be read, or does not hold distinct token ids.
    """
    file = folder / FREQUENT
    if not file.exists():
        return None, None
    try:
        tokens = load_file(file)["tokens"].long()
    except (SafetensorError, OSError, KeyError) as e:
        raise UserError(f"{file} is truncated or altered: {(str(e).splitlines() or ['?'])[0]}") from None
    if (
        tokens.dim() != 1
        or len(tokens) < 1
        or len(tokens.unique()) < len(tokens)
        or not 0 <= tokens.min() <= tokens.max() < vocab
    ):
        raise UserError(f"{file}: expected distinct token ids under {vocab}")
    return tokens, sha256_file(file)


def load_head(folder: Path, model: str, embedding_shape: tuple[int, int], target_sha: str) -> tuple[EagleHead, str]:
    """A head in the official layout: `model.safetensors` (or `pytorch_model.bin`) and `config.json`, read strictly.

    A copy of the embedding in the file is ignored: the target's is used. `"bias"` absent from config.json means true.
    embedding_shape: the target's vocabulary and hidden size.
    """
    config, values = head_config(folder, model)
    check_fit(config, folder, model, embedding_shape)
    check_target(folder, values, methods.EAGLE, model, target_sha)
    state, digest = read_state(folder, values)
    head = EagleHead(config)
    fill(head, state, folder)
    return head, digest


def head_config(folder: Path, model: str) -> tuple[HeadConfig, dict[str, Any]]:
    """The config.json of a head for `model`, and all that it says.

    Raises:
        UserError: not there, not JSON, or sizes missing or impossible.
    """
    config_file, values = folder / "config.json", read_config(folder, methods.EAGLE, model)
    try:
        heads = int(values["num_attention_heads"])
        config = HeadConfig(
            hidden_size=int(values["hidden_size"]),
            intermediate_size=int(values["intermediate_size"]),
            num_attention_heads=heads,
            num_key_value_heads=int(values.get("num_key_value_heads", heads)),
            rms_norm_eps=float(values.get("rms_norm_eps", 1e-6)),
            rope_theta=float(values.get("rope_theta", 10000.0)),
            vocab_size=int(values["vocab_size"]),
            bias=values.get("bias", True),
        )
    except KeyError as e:
        raise UserError(f"{config_file} lacks {e.args[0]!r}") from None
    except (TypeError, ValueError) as e:
        raise UserError(f"{config_file}: {e}") from None
    if min(config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) < 1:
        raise UserError(f"{config_file}: sizes and numbers of heads must be at least 1")
    return config, values


def check_fit(config: HeadConfig, folder: Path, model: str, embedding_shape: tuple[int, int]) -> None:
    """Raises UserError for a head made for a target of another size."""
    vocab, hidden = embedding_shape
    if config.hidden_size != hidden or config.vocab_size != vocab:
        raise UserError(
            f"the head in {folder} is for a target with hidden size {config.hidden_size} and {config.vocab_size} tokens; "
            f"{model} has {hidden} and {vocab}"
        )


def ids_sha(ids: list[int]) -> str:
    """Hash of token ids, for naming a turn another record was built from."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
