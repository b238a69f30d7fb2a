"""ModelConfig -> target, drafters, tokenizer. Hashes, shapes, missing and unexpected keys are checked here."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

import methods
from harness.common.errors import UserError, in_one_line, say
from harness.load import chat, placement
from harness.load.architecture import Architecture
from harness.load.config import ModelConfig
from harness.load.config_keys import positive
from harness.load.declared import check_declared
from harness.load.dtype import device, resolve_dtype
from harness.load.identity import TargetIdentity, config_sha, drafter_id, template_sha, tokenizer_sha
from harness.load.kinds import TargetFacts, drafter_kind, kind_of
from harness.load.prompt_text import beginning, check_ids, check_template, how_read, ids_of, load_tokenizer, render
from harness.load.self_check import make_target
from harness.load.weights import drafter_folder, require_packages, weights_folder
from methods.base import Drafter
from methods.engine.draft_head import EagleDrafter
from methods.engine.engines import target_type
from methods.engine.native import pages
from methods.engine.target import HFTarget, cannot_verify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reference = Callable[[str], list[int]]  # sentencepiece's ids of a text
WARM_UP = "caching_allocator_warmup"  # of transformers, before it loads weights onto a GPU
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
# what some of transformers' models do to logits after the LM head (Granite, Cohere, Gemma 2)
SCALINGS = ("logits_scaling", "logit_scale", "final_logit_softcapping")


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter beside its target. `sha`, `frequent_sha`: as `ReadDrafter` has them. `id`: of its weights and its config."""

    drafter: Drafter
    sha: str
    id: str
    frequent_sha: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that a run needs of a model. `identity`: what decides its tokens. `drafters`: those loaded, by kind.

    `reference`: what gives sentencepiece's ids of a text, where there is a file to say (`harness.load.sentencepiece_ids`).
    """

    config: ModelConfig
    target: HFTarget
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    identity: TargetIdentity
    drafters: Mapping[str, LoadedDrafter] = field(default_factory=dict)
    reference: Reference | None = None

    @property
    def target_sha(self) -> str:
        """The hash of the target's weights."""
        return self.identity.weights

    def identity_in(self, dtype: str) -> TargetIdentity:
        """The target's identity in a dtype, in which another engine may run it; nothing is loaded."""
        named, model = getattr(torch, dtype), self.target.model
        return replace(self.identity, engine=target_type(model, named).engine_in(model, named))

    def is_row_invariant_in(self, dtype: str) -> bool:
        """Whether the engine that runs the target in a dtype is row-invariant; nothing is loaded."""
        return target_type(self.target.model, getattr(torch, dtype)).is_row_invariant

    def drafter_of(self, kind: str | None) -> Any:
        """The drafter of a kind of `harness.load.kinds`; None where none was loaded, or none is asked for."""
        found = self.drafters.get(kind or "")
        return found.drafter if found else None

    def sha_of(self, kind: str | None) -> str | None:
        """The hash of a drafter's weights and of what else decides what it drafts; None as in `drafter_of`."""
        found = self.drafters.get(kind or "")
        return found.sha if found else None

    @property
    def drafter(self) -> EagleDrafter | None:
        """The EAGLE head's drafter, which trees are replayed with."""
        found: EagleDrafter | None = self.drafter_of(methods.EAGLE)
        return found

    @property
    def head_sha(self) -> str | None:
        """The hash of the EAGLE head."""
        return self.sha_of(methods.EAGLE)

    def frequent_sha_of(self, kind: str | None) -> str | None:
        """The hash of the list of frequent tokens beside a drafter; None where there is none."""
        found = self.drafters.get(kind or "")
        return found.frequent_sha if found else None

    def drafter_id(self, kind: str | None, *, with_frequent: bool = False) -> str | None:
        """The identity of a drafter, with its list of frequent tokens where that is used; None as in `drafter_of`."""
        found = self.drafters.get(kind or "")
        if found is None or not (with_frequent and found.frequent_sha):
            return found.id if found else None
        return hashlib.sha256(f"{found.id} {found.frequent_sha}".encode()).hexdigest()[:16]

    def render(self, turns: list[tuple[str, str]]) -> str:
        """[(role, text), ..] ending with a user turn -> the prompt as the model is given it, template included."""
        return render(self.config, self.tokenizer, turns)

    def encode(self, rendered: str, name: str = "a prompt") -> list[int]:
        """Token ids of a rendered prompt: with BOS, once, where the template's text leaves it to the tokenizer.

        name: the prompt's, for the error.

        Raises:
            UserError: by the model's own `tokenizer.model` it has other ids, or the tokenizer has no token for a word of it.
        """
        return encode(self.config, self.tokenizer, rendered, self.reference, name)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of any other text: nothing is added.

        Raises:
            UserError: the tokenizer has no token for a word of it.
        """
        return ids_of(self.config, self.tokenizer, text, "a text")

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special ones; cleaned up where the tokenizer's settings ask for it."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def piece(self, token: int) -> str:
        """The text of one token, be it special or not. Bytes that are no whole character become U+FFFD."""
        text = str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))
        piece = str(self.tokenizer.convert_ids_to_tokens(token))
        # sentencepiece drops a leading space where a text begins
        return " " * (_leading(piece, "\u2581") - _leading(text, " ")) + text


def _leading(text: str, character: str) -> int:
    return len(text) - len(text.lstrip(character))


def encode(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, rendered: str, reference: Reference | None, name: str
) -> list[int]:  # fmt: skip
    """Token ids of a rendered prompt; see `Loaded.encode`."""
    ids = ids_of(config, tokenizer, rendered, name)
    if reference is not None:
        check_ids(config, tokenizer, name, ids, reference(rendered))
    if config.template == "plain":
        return [*beginning(tokenizer, rendered, ids), *ids]
    return [tokenizer.bos_token_id, *ids] if config.template in chat.RENDERED_WITHOUT_BOS else ids


def load(
    config: ModelConfig, dtype: str = "auto", head: Path | None = None, drafters: Collection[str] = (methods.EAGLE,), *,
    layers: int | None = None, context: int | None = None, on_one_gpu: bool = False,
) -> Loaded:  # fmt: skip
    """Load a target in `dtype` and those drafters, of the kinds asked for, that it has.

    drafters: kinds of `harness.load.kinds`. head: a drafter's folder, in place of the model's own of that kind.
    layers: only the target's first so many are read (None: all). What they compute is no model's text; it serves the audit of
    methods, where the whole does not fit. The identity is still that of the whole. context: tokens that there must be room for
    on GPUs (None: the model's whole context).
    on_one_gpu: the process's own (torch's current device), where others have theirs.

    Raises:
        UserError: an unknown kind; weights that are missing, altered, of other shapes, or made for another target; no room; or
            so many layers as it does not have.
    """
    import transformers

    from harness.load.sentencepiece_ids import reference

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kinds = sorted(kind_of(kind).name for kind in drafters)
    require_packages(config)
    folder, target_sha = weights_folder(config)
    folders = {kind: path for kind in kinds if (path := _folder(config, kind, head)) is not None}
    name = resolve_dtype(config.dtype if dtype == "auto" else dtype)
    try:
        # before the target's weights: what does not fit is found out in seconds
        sizes = _sizes(config, folder)
        _check_config(config, folder, sizes)
        tokenizer = load_tokenizer(folder)
        check_declared(config, folder, sizes, tokenizer)
        check_template(config, tokenizer, folder)
        theirs = reference(folder, tokenizer)
        template = template_sha(
            partial(render, config, tokenizer), lambda text: encode(config, tokenizer, text, theirs, "a probe of the template")
        )
        facts = TargetFacts(
            config.name, sizes.vocab_size, sizes.hidden_size, target_sha, tokenizer, name, sizes.num_hidden_layers
        )
        read = {kind: kind_of(kind).read(path, facts) for kind, path in folders.items()}
        if layers is not None:
            _cut(config, sizes, layers)
        room = context or config.context_length
        placed = _placed(folder, name, folders, layers, room, on_one_gpu) if device().type == "cuda" else None
        model = _target_model(config, folder, name, placed, sizes if layers is not None else None)
    except torch.OutOfMemoryError as e:
        raise _no_room(config, e) from e
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
        raise UserError(f"cannot load model {config.name} from {folder}: {(str(e).splitlines() or ['?'])[0]}") from e
    try:
        try:
            target = make_target(model)
        except ValueError as e:
            raise _no_target(config, type(model), str(e)) from e
        attached = {
            kind: LoadedDrafter(one.attach(target), one.sha, drafter_id(one.sha, folders[kind]), one.frequent_sha)
            for kind, one in read.items()
        }
    except torch.OutOfMemoryError as e:
        raise _no_room(config, e) from e
    if target.device.type == "cpu" and not target.is_row_invariant:  # the native engine's weights lie in pages of its own
        share = pages.collapse_large()
        target.pages = pages.in_words(share) if pages.matter(target.model) else None
    if target.notice:
        say(f"{config.name}: {target.notice}")
    identity = _identity(config, folder, target_sha, tokenizer, template, target.engine)
    return Loaded(config, target, tokenizer, name, identity, attached, theirs)


def _identity(
    config: ModelConfig, folder: Path, weights: str, tokenizer: PreTrainedTokenizerBase, template: str, engine: str
) -> TargetIdentity:  # fmt: skip
    return TargetIdentity(
        weights=weights, config=config_sha(folder), tokenizer=tokenizer_sha(folder, how_read(tokenizer)),
        template=template,
        stop_ids=" ".join(map(str, sorted(set(config.stop_ids)))),
        engine=engine,
    )  # fmt: skip


def _sizes(config: ModelConfig, folder: Path) -> Any:
    """A model's config as transformers reads it.

    Raises:
        UserError: it does not.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:  # of a value of another type nearly any error may come
        said = in_one_line(ValueError(" ".join(str(e).split()))).removeprefix("ValueError: ")
        raise UserError(
            f"cannot load model {config.name} from {folder}: transformers does not take its config.json: {said}"
        ) from e


def _check_config(config: ModelConfig, folder: Path, sizes: Any) -> None:
    """
    Raises:
        UserError: by its config, what the model computes cannot be honoured, or is not a number.
    """
    import transformers

    kind: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(sizes), None)
    if kind is None or not all(isinstance(getattr(sizes, size, None), int) for size in ("vocab_size", "hidden_size")):
        raise _no_target(config, type(sizes), "it is no plain causal language model")
    if why := cannot_verify(sizes, kind):
        raise _no_target(config, kind, why)
    rope = getattr(sizes, "rope_parameters", None) or {}
    for name, value in [*((name, getattr(sizes, name, None)) for name in EPSILONS), ("rope_theta", rope.get("rope_theta"))]:
        if value is not None:
            positive(folder / "config.json", name, value)
    for scaling in SCALINGS:
        if getattr(sizes, scaling, None) not in (None, 1):
            changed = f"{scaling} = {getattr(sizes, scaling)}"
            raise _no_target(
                config, kind, f"it changes its logits after the LM head ({changed}), which decoding here would leave out"
            )


def _no_room(config: ModelConfig, e: BaseException) -> UserError:
    return UserError(f"model {config.name} and its drafters do not fit in the GPU's memory: {str(e).splitlines()[0]}")


def _no_target(config: ModelConfig, kind: type, why: str) -> UserError:
    return UserError(f"model {config.name}: {kind.__name__} cannot be a target here: {why}")


def _cut(config: ModelConfig, sizes: Any, layers: int) -> None:
    """Let a config of transformers have its first layers only.

    Raises:
        UserError: it does not have so many, or says not how many it has.
    """
    of = getattr(sizes, "num_hidden_layers", None)
    if not isinstance(of, int) or not 0 < layers <= of:
        raise UserError(f"layers is {layers}; {config.name} has {of}, and at least one is run")
    sizes.num_hidden_layers = layers
    if isinstance(kinds := getattr(sizes, "layer_types", None), list):
        sizes.layer_types = kinds[:layers]


def _placed(
    folder: Path, dtype: str, drafters: Mapping[str, Path], layers: int | None, context: int, on_one_gpu: bool = False
) -> dict[str, torch.device]:  # fmt: skip
    """Where the target's modules go: to the first GPU, or over several. drafters: folders of those that stand beside it.

    on_one_gpu: to torch's current one, and no other is looked at.
    The weights are read straight onto it: in float64 a target of 8B would take 64 GB of the machine's own memory on the way.

    Raises:
        UserError: it does not fit on all GPUs together, or on the one.
    """
    only = torch.cuda.current_device() if on_one_gpu else None
    here = device() if only is None else torch.device("cuda", only)
    sizes = Architecture.of(folder)
    if sizes is None:
        return {"": here}
    sizes = sizes.cut_to(layers)
    beside = sum(kind_of(kind).memory_bytes(path, sizes, dtype, context) for kind, path in drafters.items())
    room = placement.free_on_gpus() if only is None else [placement.free_on_gpu(only)]
    return placement.on_gpus(sizes, dtype, context, room, beside) or {"": here}


def _target_model(
    config: ModelConfig, folder: Path, dtype: str, placed: dict[str, torch.device] | None, cut: Any = None
) -> Any:  # fmt: skip
    """The target as transformers' module: on the CPU, or where `placed` says. cut: a config with its first layers only.

    Raises:
        UserError: keys that are missing, unexpected or of another shape.
    """
    import transformers

    with warnings.catch_warnings(), _memory_of_its_own():
        warnings.simplefilter("ignore")
        found: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map=placed,
            trust_remote_code=False,
            **({} if cut is None else {"config": cut}),
        )
        model, info = found
    if cut is not None:  # the other layers' weights are there and not read
        info["unexpected_keys"] = [k for k in info["unexpected_keys"] if not _is_beyond(k, cut.num_hidden_layers)]
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):  # transformers would fill missing and misshapen weights with random ones and go on
            keys = sorted(k if isinstance(k, str) else f"{k[0]} {list(k[1])} for {list(k[2])}" for k in info[what])
            raise UserError(f"model {config.name}: {what.replace('_', ' ')} in {folder}: {', '.join(keys[:5])}")
    return model


@contextmanager
def _memory_of_its_own() -> Iterator[None]:
    """Whatever transformers loads meanwhile gets a block of a GPU's memory for each weight, and not one for all.

    Of one block nothing goes back to the GPU before all does. The projections that are fused would leave holes in it, a tenth of
    the weights, and what little came to lie in a hole would keep the whole when the model is gone.
    """
    from transformers import modeling_utils

    taken = getattr(modeling_utils, WARM_UP, None)
    if taken is None:  # another version, which takes none
        yield
        return
    setattr(modeling_utils, WARM_UP, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        setattr(modeling_utils, WARM_UP, taken)


def _is_beyond(key: str, layers: int) -> bool:
    """Whether a weight is of a layer after the first `layers`."""
    found = re.match(r"model\.layers\.(\d+)\.", key)
    return found is not None and int(found[1]) >= layers


def _folder(config: ModelConfig, kind: str, head: Path | None) -> Path | None:
    return head if head is not None and drafter_kind(head) == kind else drafter_folder(config, kind)
