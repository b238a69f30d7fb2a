"""Draft heads without attention or KV cache: one small residual MLP a level on the target's last feature.

Medusa (Cai et al., arXiv 2401.10774): head k looks at the feature alone, so all nodes of a level have the same children.
Hydra (Ankner et al., arXiv 2402.05109): head k sees the tokens drafted before it, too: [feature; embeddings of the root and
of the node's path]. The pair last observed, (f_i, t_{i+1}), is all they need of the text; head 0 predicts what follows t_{i+1}.

A head is f + down(silu(up(x))) through the target's own LM head. Departures from the authors' checkpoints: their head is
x + silu(W x + b) (Hydra's, whose x is wider than a feature: a linear map of x in place of x) through an LM head of its own, which
at 135M parameters would be most of the target again; `down` stands in for the freedom that gives. Heads in Medusa's own layout
(`PublishedHeads`) have theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.engine.clock import ForwardClock
from methods.engine.draft_head import LMHead
from methods.engine.layer import Linear, linear_beside
from methods.engine.transfer import sent

Accuracies = tuple[tuple[float, ...], ...]
"""[levels][ranks]: how often, on held-out text, a level's candidate of that rank is the target's token."""


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """`sees_tokens`: Hydra's heads, sequentially dependent; else Medusa's."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    vocab_size: int
    sees_tokens: bool

    def inputs(self, head: int) -> int:
        """Width of what a head is given: the feature and, where it sees tokens, those from the root to its node."""
        return self.hidden_size * (head + 2 if self.sees_tokens else 1)


class ResidualHead(nn.Module):
    def __init__(self, inputs: int, hidden: int, intermediate: int):
        super().__init__()
        self.up = nn.Linear(inputs, intermediate)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, feature: Tensor, x: Tensor) -> Tensor:
        """feature [.., hidden], x [.., inputs] -> a predicted feature [.., hidden]."""
        return feature + self.down(F.silu(self.up(x)))


class ResidualHeads(nn.Module):
    def __init__(self, config: HeadsConfig):
        super().__init__()
        self.config = config
        c = config
        self.heads = nn.ModuleList(
            [ResidualHead(c.inputs(k), c.hidden_size, c.intermediate_size) for k in range(c.num_heads)]
        )  # fmt: skip

    @property
    def each(self) -> list[ResidualHead]:
        return cast("list[ResidualHead]", list(self.heads))


class PublishedHeads(nn.Module):
    """Medusa's own checkpoints: `num_layers` blocks x + silu(W x + b) a head, then an LM head of the head's own."""

    def __init__(self, hidden: int, vocab: int, num_heads: int, num_layers: int):
        super().__init__()
        self.heads = nn.ModuleList()
        for _ in range(num_heads):
            blocks = [nn.Linear(hidden, hidden) for _ in range(num_layers)]
            self.heads.append(nn.ModuleList([*blocks, nn.Linear(hidden, vocab, bias=False)]))


class _Heads:
    """What these drafters have in common: sizes, the level they are at and the clock."""

    def __init__(self, n_heads: int, embedding: Tensor, accuracies: Accuracies):
        self.n_heads, self.embedding, self.accuracies = n_heads, embedding, accuracies
        self.device, self.dtype = embedding.device, embedding.dtype
        self._clock = ForwardClock(self.device)
        self._level = 0

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        if frequent is not None:
            raise ValueError(f"frequent={frequent}: these heads have no list of frequent tokens")

    def named(self, columns: Tensor) -> Tensor:
        return columns

    @property
    def forward_s(self) -> float:
        return self._clock.seconds

    def rewind(self, n: int) -> None:
        """Nothing is kept of pairs but the last."""

    def _next_level(self) -> int:
        self._level += 1
        if self._level >= self.n_heads:
            raise ValueError(f"the tree has more than {self.n_heads} levels, and there are {self.n_heads} heads")
        return self._level


class IndependentHeadsDrafter(_Heads):
    """Implements methods.base.Drafter. All heads run at once: the LM head is read once for all levels."""

    def __init__(
        self, heads: ResidualHeads, embedding: Tensor, lm_head: LMHead, accuracies: Accuracies = (), packed: bool = True
    ):
        super().__init__(len(heads.heads), embedding, accuracies)
        self.heads, self._lm_head = heads.eval(), lm_head
        self._linears = _linears(heads, lm_head, packed)
        self._feature = self._logits = torch.empty(0)

    def observe(self, tokens: list[int], features: Tensor) -> None:
        self._feature, self._logits = features[-1:].to(self.device), torch.empty(0)

    @torch.inference_mode()
    def root_logits(self) -> Tensor:
        self._level = 0
        if not len(self._logits):
            f = self._feature
            with self._clock:
                self._logits = self._lm_head(torch.cat([down(up(f, silu=True), plus=f) for up, down in self._linears]))
        return self._logits[:1]

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        level = self._next_level()
        return self._logits[level : level + 1]


def _linears(heads: ResidualHeads, lm_head: LMHead, packed: bool) -> list[tuple[Linear, Linear]]:
    return [
        (linear_beside(lm_head, h.up.weight, h.up.bias, packed), linear_beside(lm_head, h.down.weight, packed=packed))
        for h in heads.each
    ]


class PublishedHeadsDrafter(_Heads):
    """Implements methods.base.Drafter: every head has an LM head to read, so those that the tree does not reach are not run."""

    def __init__(self, heads: PublishedHeads, embedding: Tensor, accuracies: Accuracies = (), packed: bool = True):
        super().__init__(len(heads.heads), embedding, accuracies)
        self._linears = [
            [Linear(x.weight, x.bias, packed=packed) for x in head if isinstance(x, nn.Linear)]
            for head in heads.heads if isinstance(head, nn.ModuleList)
        ]  # fmt: skip
        self._feature = torch.empty(0)

    def observe(self, tokens: list[int], features: Tensor) -> None:
        self._feature = features[-1:].to(self.device, self.dtype)  # the native engine's are float32

    @torch.inference_mode()
    def _run(self, head: int) -> Tensor:
        *blocks, lm_head = self._linears[head]
        x = self._feature
        with self._clock:
            for block in blocks:
                x = x + block(x, silu=True)
            return lm_head(x)

    def root_logits(self) -> Tensor:
        self._level = 0
        return self._run(0)

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        return self._run(self._next_level())


class SequentialHeadsDrafter(_Heads):
    """Implements methods.base.Drafter: head k runs over the nodes of level k, each with its own path's tokens."""

    def __init__(
        self, heads: ResidualHeads, embedding: Tensor, lm_head: LMHead, accuracies: Accuracies = (), packed: bool = True
    ):
        super().__init__(len(heads.heads), embedding, accuracies)
        self.heads, self._lm_head = heads.eval(), lm_head
        self._linears = _linears(heads, lm_head, packed)
        self._feature = torch.empty(0)  # [1, hidden]
        self._inputs = self._root = torch.empty(0)  # [nodes of the level run last, inputs]; the root's
        self._first = 0  # entry number of the first of them

    @torch.inference_mode()
    def observe(self, tokens: list[int], features: Tensor) -> None:
        self._feature = features[-1:].to(self.device)
        self._root = torch.cat([self._feature, self.embedding[tokens[-1:]]], dim=-1)

    def _run(self, head: int, inputs: Tensor) -> Tensor:
        up, down = self._linears[head]
        return self._lm_head(down(up(inputs, silu=True), plus=self._feature.expand(len(inputs), -1).contiguous()))

    @torch.inference_mode()
    def root_logits(self) -> Tensor:
        self._level, self._first, self._inputs = 0, -1, self._root
        with self._clock:
            return self._run(0, self._root)

    @torch.inference_mode()
    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        level, n = self._next_level(), len(self._inputs)
        with self._clock:
            # parents stand in the level above: entries are numbered level by level
            above = self._inputs[sent(parents, self.device) - self._first]
            self._inputs = torch.cat([above, F.embedding(sent(tokens, self.device), self.embedding)], dim=-1)
            self._first += n
            return self._run(level, self._inputs)
