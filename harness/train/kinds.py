"""What a kind of drafter tells the trainer: its predicted features, its first values, its weights as shipped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

from torch import Tensor, nn

from harness.train.batches import Batch
from harness.train.data import Conversation
from harness.train.settings import TrainSettings
from methods.engine.heads import ResidualHeads


@singledispatch
def predicted_features(
    head: nn.Module, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (predicted features [b, n-1, hidden], zero where not valid, which are valid [b, n-1]) for level 1 .. `levels`.

    Entry j of level s predicts f_{j+1} as a draft would that was begun at the pair (f_{j-s+1}, t_{j-s+2}): no feature of the
    target's after that is seen, drafted tokens are the text's. Valid where all of these pairs are trained.
    """
    raise TypeError(f"there is no trainer for {type(head).__name__}")


@singledispatch
def initialise(head: nn.Module, embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> None:
    """Give untrained weights their first values, in place."""
    raise TypeError(f"there is no trainer for {type(head).__name__}")


def n_levels(head: nn.Module) -> int:
    """How many levels these weights can draft: one a head, as many as one likes where there is a single one."""
    return len(head.heads) if isinstance(head, ResidualHeads) else 1000


@singledispatch
def plain_head(head: nn.Module) -> nn.Module:
    """The weights as they are shipped."""
    return head
