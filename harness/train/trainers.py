"""The kinds of drafters that can be trained here: an entry a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn
from transformers import LlamaConfig

from harness.common.errors import unknown
from harness.load.kinds import DrafterKind, kind_of
from harness.train import eagle, eagle3, heads, lm
from harness.train.batches import Batch
from harness.train.data import Conversation
from harness.train.loss import logits_of
from harness.train.settings import TrainSettings
from methods.engine.draft_head import EagleHead
from methods.engine.draft_lm import NarrowLM
from methods.engine.eagle3 import Eagle3Head
from methods.engine.heads import ResidualHeads

W = TypeVar("W", bound=nn.Module)
W_in = TypeVar("W_in", bound=nn.Module, contravariant=True)

NO_LIMIT = 1000  # levels, of weights that serve them all


class PredictedFeatures(Protocol[W_in]):
    """What weights predict of the target's features, level by level, as they would when drafting."""

    def __call__(
        self, head: W_in, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (predicted features [b, n-1, hidden], zero where not valid; which are valid [b, n-1]) for level 1 .. `levels`.

        Entry j of level s predicts f_{j+1} as a draft would that began at the pair (f_{j-s+1}, t_{j-s+2}): drafted tokens are
        the text's, and no later feature of the target is seen. It is valid where all of these pairs are trained.
        embedding: [vocab, hidden]. noise: true features are moved by up to so much, at random.
        """
        ...


def _no_figures(head: nn.Module, embedding: Tensor, lm_head: Tensor, held: list[Conversation]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class OwnLM(Generic[W]):
    """Of a kind whose LM head is trained, and over a part of the vocabulary. begin: gives it its first values from the target's
    [vocab, hidden]. of: (the LM head [rows, hidden], the tokens of its rows)."""

    begin: Callable[[W, Tensor], None]
    of: Callable[[W], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Trainer(Generic[W]):
    """How one kind of drafter is trained.

    kind: in `harness.load.kinds`. new: untrained weights for a target; raises UserError for sizes that cannot be. initialise:
    gives them their first values, in place, from the embedding and the training data. shipped: the weights as they are saved.
    n_levels: how many levels they can draft. defaults: of the settings; unused: settings that mean nothing to this kind.
    figures: what config.json says of the trained weights on held-out answers. subfolder: of a `--work` folder, for checkpoints.
    lists_frequent: whether the list of frequent tokens is saved beside the weights. own_lm: None where predicted features are
    read by the target's LM head. aux_layers: the target's hidden states that batches must have. config_values: a config as JSON.
    """

    kind: str
    new: Callable[[LlamaConfig, TrainSettings], W]
    initialise: Callable[[W, Tensor, list[Conversation], TrainSettings], None]
    predicted_features: PredictedFeatures[W]
    shipped: Callable[[W], W]
    defaults: TrainSettings
    unused: frozenset[str]
    subfolder: str
    n_levels: Callable[[W], int] = lambda head: NO_LIMIT
    figures: Callable[[W, Tensor, Tensor, list[Conversation]], Mapping[str, Any]] = _no_figures
    lists_frequent: bool = False
    own_lm: OwnLM[W] | None = None
    aux_layers: Callable[[W], tuple[int, ...]] = lambda head: ()
    config_values: Callable[[Any], dict[str, Any]] = asdict

    def logits_of(self, head: W, features: Tensor, lm_head: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """`logits_of` of what was predicted, over the whole vocabulary. lm_head: the target's."""
        if self.own_lm is None:
            return logits_of(features, lm_head)
        weight, tokens = self.own_lm.of(head)
        return logits_of(features, weight.to(lm_head.dtype), tokens, len(lm_head))

    @property
    def drafter(self) -> DrafterKind:
        """The kind of drafter that comes out."""
        return kind_of(self.kind)


def _n_heads(head: ResidualHeads) -> int:
    return len(head.heads)


def _accuracies(head: ResidualHeads, embedding: Tensor, lm_head: Tensor, held: list[Conversation]) -> Mapping[str, Any]:
    return {"accuracies": heads.held_out_accuracies(head, embedding, lm_head, held)}


EAGLE: Trainer[EagleHead] = Trainer(
    "eagle", eagle.new_head, eagle.initialise, eagle.predicted_features, eagle.shipped, TrainSettings(), eagle.UNUSED,
    subfolder="",  # the folder itself, where checkpoints lay before there were other kinds
    lists_frequent=True,
)  # fmt: skip
EAGLE3: Trainer[Eagle3Head] = Trainer(
    "eagle3", eagle3.new_head, eagle3.initialise, eagle3.predicted_features, eagle3.shipped, eagle3.DEFAULTS, eagle3.UNUSED,
    subfolder="eagle3", own_lm=OwnLM(eagle3.take_lm, eagle3.own_lm), aux_layers=eagle3.aux_layers,
    config_values=eagle3.config_values,
)  # fmt: skip
MEDUSA: Trainer[ResidualHeads] = Trainer(
    "medusa", heads.new_medusa, heads.initialise, heads.predicted_features, heads.shipped, heads.DEFAULTS, heads.UNUSED,
    subfolder="medusa", n_levels=_n_heads, figures=_accuracies,
)  # fmt: skip
HYDRA: Trainer[ResidualHeads] = Trainer(
    "hydra", heads.new_hydra, heads.initialise, heads.predicted_features, heads.shipped, heads.DEFAULTS, heads.UNUSED,
    subfolder="hydra", n_levels=_n_heads, figures=_accuracies,
)  # fmt: skip
SPS: Trainer[NarrowLM] = Trainer(
    "lm", lm.new_lm, lm.initialise, lm.predicted_features, lm.shipped, lm.DEFAULTS, lm.UNUSED, subfolder="sps"
)  # fmt: skip

TRAINERS: dict[str, Trainer[Any]] = {"eagle": EAGLE, "eagle3": EAGLE3, "medusa": MEDUSA, "hydra": HYDRA, "sps": SPS}
"""By what `harness train` calls them: `train_command` of `harness.load.kinds`."""


def trainer_of(command: str) -> Trainer[Any]:
    """
    Raises:
        UserError: there is no such trainer.
    """
    if command not in TRAINERS:
        raise unknown("kind of drafter to train", command, TRAINERS)
    return TRAINERS[command]
