"""The kinds of drafters: what each is called, how its folder is known and read, and what it takes.

A new kind is an engine in `methods/engine/`, an entry in `KINDS`, and, where it can be trained here, one in
`harness.train.trainers.TRAINERS`. Nothing here imports torch: readers do so when they are called.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
import tasks
from harness.common.errors import UserError, unknown
from harness.common.hints import hinted
from harness.load.layout import has_medusas_layout, lacking, stored_numbers, tensor_names
from harness.load.placement import BYTES, TREE_TOKENS
from harness.load.published import by_our_keys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.load.architecture import Architecture
    from methods.base import Drafter
    from methods.engine.target import HFTarget


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What a drafter must fit: the target's name, sizes, hash, tokenizer and dtype. `layers`: None where not known."""

    model: str
    vocab_size: int
    hidden_size: int
    sha: str
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class ReadDrafter:
    """A drafter's weights, read and checked before the target is there.

    `attach` makes them a drafter of the loaded target, in its dtype and beside its last layer. `sha` is of the weights and of
    whatever else decides what is drafted; `frequent_sha` of the list of frequent tokens beside them, where there is one.
    """

    attach: Callable[[HFTarget], Drafter]
    sha: str
    frequent_sha: str | None = None


@dataclass(frozen=True, slots=True)
class DrafterKind:
    """One kind of drafter.

    name: what methods, YAMLs and records call it. title: what texts call it. read: reads a folder; raises UserError where it is
    not there, altered, of another kind or size, or made for another target. memory_bytes: of one loaded, given its folder (None:
    not here), the target's sizes, the dtype and the context. download_bytes: on disk, of a published one for such a target.
    architectures, config_keys: names under "architectures", and keys, by which a config.json says that it is of this kind.
    shows_in: whether a folder's files show that it is of this kind, where its config.json says nothing. is_unnamed: whether a
    folder of which neither says anything is. check_config: raises UserError where a config.json shows that it does not fit the
    model named. train_command, train_makes: what `harness train` calls it, if it can train it, and what that makes.
    """

    name: str
    title: str
    read: Callable[[Path, TargetFacts], ReadDrafter]
    memory_bytes: Callable[[Path | None, Architecture, str, int], int]
    download_bytes: Callable[[Architecture], int]
    architectures: tuple[str, ...] = ()
    config_keys: tuple[str, ...] = ()
    shows_in: Callable[[Path], bool] = lambda folder: False
    is_unnamed: Callable[[Path], bool] = lambda folder: False
    check_config: Callable[[Path, str, Architecture], None] | None = None
    train_command: str | None = None
    train_makes: str = ""

    def names_itself(self, values: dict[str, Any]) -> bool:
        """Whether a config.json with these values says that it is of this kind."""
        named = values.get("architectures")
        first = str(named[0]) if isinstance(named, list) and named else None
        return first in self.architectures or any(key in values for key in self.config_keys)

    def how_to_train(self, model: str) -> str:
        """How to come by one for a model: the end of a message."""
        if self.train_command is None or tasks.own(model):  # `harness train` takes texts
            return "give its folder with --head"
        return f"{hinted(f'train {self.train_command}', '--out', 'DIR', model=model)} makes one"


KINDS: dict[str, DrafterKind] = {}


def _own_file(kind: DrafterKind) -> Path | None:
    """The file of a kind that is not one of ours."""
    code = getattr(kind.read, "__code__", None)
    file = Path(code.co_filename).resolve() if code else None
    return None if file is None or Path(__file__).resolve().parents[1] in file.parents else file


def add_kind(kind: DrafterKind) -> None:
    """Make a kind of drafter known; one of that name is replaced."""
    KINDS[kind.name] = kind
    methods.name_drafter(kind.name, kind.title, _own_file(kind))


def kind_of(name: str) -> DrafterKind:
    """
    Raises:
        UserError: there is no such kind.
    """
    if name not in KINDS:
        raise unknown("kind of drafter", name, KINDS)
    return KINDS[name]


def training(kind: str, model: str) -> str:
    """How to come by a drafter for a model: the end of a message."""
    return kind_of(kind).how_to_train(model)


def kind_named(values: object) -> str | None:
    """The kind of drafter that a config.json names. None: it names none, as those of published EAGLE heads and of LMs."""
    if not isinstance(values, dict):
        return None
    return next((kind.name for kind in KINDS.values() if kind.names_itself(values)), None)


def kind_shown(folder: Path, values: object) -> str | None:
    """The kind of drafter that a folder shows by its config.json's values or, where they name none, by its files."""
    return kind_named(values) or next((kind.name for kind in KINDS.values() if kind.shows_in(folder)), None)


def drafter_kind(folder: Path) -> str:
    """The kind of drafter in a folder, by its config.json or, where that says nothing, by the files beside it."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return methods.EAGLE  # whose reader says what is wrong with the folder
    with suppress(UserError):  # which its reader raises again
        values = by_our_keys(folder / "config.json", values) if isinstance(values, dict) else values
    return kind_shown(folder, values) or next(kind.name for kind in KINDS.values() if kind.is_unnamed(folder))


# ---- the entries ------------------------------------------------------------------------------------------------------

STORED = 2  # bytes a parameter, as nearly everything is published
PUBLISHED_HEADS = 5  # in Medusa's repositories, each with an LM head of its own
PUBLISHED_DRAFT_VOCAB = 32_000  # tokens that EAGLE-3 heads draft over
PUBLISHED_LM = 68_000_000  # parameters of the draft LM that the paper's Vicuna targets have


def _read_eagle(folder: Path, target: TargetFacts) -> ReadDrafter:
    from harness.load.eagle_head import read_eagle

    return read_eagle(folder, target)


def _check_eagle(folder: Path, model: str, sizes: Architecture) -> None:
    from harness.load.eagle_head import check_fit, head_config

    check_fit(head_config(folder, model)[0], folder, model, (sizes.vocab_size, sizes.hidden_size))


def eagle_parameters(sizes: Architecture) -> int:
    """Parameters of an EAGLE head with bias, without its copy of the embedding: fc and a layer with one norm."""
    h = sizes.hidden_size
    return 2 * h * h + h + sizes.n_layer - h


def _eagle_memory(folder: Path | None, sizes: Architecture, dtype: str, context: int) -> int:
    return BYTES[dtype] * (eagle_parameters(sizes) + sizes.n_kv(context + TREE_TOKENS))


def _eagle_download(sizes: Architecture) -> int:
    """Some are stored in 32 bits, with a copy of the embedding; pickles are converted once more."""
    return 4 * 2 * (eagle_parameters(sizes) + sizes.n_embedding)


def _read_eagle3(folder: Path, target: TargetFacts) -> ReadDrafter:
    from harness.load.eagle3_head import read_eagle3

    return read_eagle3(folder, target)


def _check_eagle3(folder: Path, model: str, sizes: Architecture) -> None:
    from harness.load.eagle3_head import head_config
    from harness.load.eagle_head import check_fit

    check_fit(head_config(folder, model, sizes.num_hidden_layers)[0], folder, model, (sizes.vocab_size, sizes.hidden_size))


def _eagle3_numbers(sizes: Architecture) -> int:
    """Parameters of an EAGLE-3 head as published: fc of three states, a layer whose attention reads 2H, an LM head."""
    h = sizes.hidden_size
    return 3 * h * h + sizes.n_layer + h * (h + 2 * sizes.kv_size) + 2 * h + h * min(PUBLISHED_DRAFT_VOCAB, sizes.vocab_size)


def _eagle3_memory(folder: Path | None, sizes: Architecture, dtype: str, context: int) -> int:
    weights = as_stored(_eagle3_numbers)(folder, sizes, dtype, context)
    return weights + BYTES[dtype] * sizes.n_kv(context + TREE_TOKENS)


def _read_medusa(folder: Path, target: TargetFacts) -> ReadDrafter:
    from harness.load.heads import read_heads

    return read_heads("medusa", folder, target)


def _read_hydra(folder: Path, target: TargetFacts) -> ReadDrafter:
    from harness.load.heads import read_heads

    return read_heads("hydra", folder, target)


def _heads_numbers(sizes: Architecture) -> int:
    return PUBLISHED_HEADS * (sizes.n_embedding + sizes.hidden_size**2)


def _read_lm(folder: Path, target: TargetFacts) -> ReadDrafter:
    from harness.load.draft_lm import read_lm

    return read_lm(folder, target)


def _lm_numbers(sizes: Architecture) -> int:
    return PUBLISHED_LM


def as_stored(published: Callable[[Architecture], int]) -> Callable[[Path | None, Architecture, str, int], int]:
    """A `memory_bytes`: of as many numbers as the folder's files have; where they are not here, as a published one has."""

    def memory_bytes(folder: Path | None, sizes: Architecture, dtype: str, context: int) -> int:
        is_here = folder is not None and folder.is_dir() and lacking(folder) is None
        return BYTES[dtype] * (stored_numbers(folder) if folder is not None and is_here else published(sizes))

    return memory_bytes


def _has_tokenizer(folder: Path) -> bool:
    """Whole LMs have one; published EAGLE heads, which call themselves LLaMAs too, have none."""
    return any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))


add_kind(DrafterKind(
    methods.EAGLE, "draft head", _read_eagle, _eagle_memory, _eagle_download, architectures=("EagleHead",),
    is_unnamed=lambda folder: not _has_tokenizer(folder), check_config=_check_eagle,
    train_command="eagle", train_makes="an EAGLE head",
))  # fmt: skip
add_kind(DrafterKind(
    methods.EAGLE3, "draft head of EAGLE-3", _read_eagle3, _eagle3_memory, lambda sizes: 2 * STORED * _eagle3_numbers(sizes),
    architectures=("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3Speculator", "Eagle3DraftModel"),
    shows_in=lambda folder: any(name.startswith("midlayer.") for name in tensor_names(folder)), check_config=_check_eagle3,
    train_command="eagle3", train_makes="an EAGLE-3 head",
))  # fmt: skip
add_kind(DrafterKind(
    "medusa", "set of Medusa heads", _read_medusa, as_stored(_heads_numbers), lambda sizes: 2 * STORED * _heads_numbers(sizes),
    architectures=("MedusaHeads", "MedusaModel"), config_keys=("medusa_num_heads",), shows_in=has_medusas_layout,
    train_command="medusa", train_makes="Medusa heads",
))  # fmt: skip
add_kind(DrafterKind(
    "hydra", "set of Hydra heads", _read_hydra, as_stored(_heads_numbers), lambda sizes: 2 * STORED * _heads_numbers(sizes),
    architectures=("HydraHeads",), train_command="hydra", train_makes="Hydra heads",
))  # fmt: skip
add_kind(DrafterKind(
    "lm", "draft LM", _read_lm, as_stored(_lm_numbers), lambda sizes: 2 * STORED * _lm_numbers(sizes),
    architectures=("NarrowLM",), is_unnamed=_has_tokenizer, train_command="sps", train_makes="a draft LM (speculative sampling)",
))  # fmt: skip
