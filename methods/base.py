"""Types every method shares: what it is given, what it gives back, and the target and drafter it may call. Types only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from methods.engine.tree import Tree


@dataclass(frozen=True, slots=True)
class SamplerParams:
    """How tokens are drawn and when generation ends: the same for every method and the baseline.

    `key` names the random stream: a hash of (run seed, sample id, turn, repeat). T = 0 is argmax, lowest index on ties.
    `chooser` makes the source of all randomness from these params: the audit puts one there that walks every branch.
    `keep_trees`: every drafted tree goes into the trace.
    """

    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    key: int = 0
    chooser: Callable[[SamplerParams], Any] | None = None
    keep_trees: bool = False


@dataclass(frozen=True, slots=True)
class DraftedTree:
    """What one target forward verified, nodes numbered as in `Tree` and the root, node 0, left out of every column.

    `tokens`, `parents` [n]; `confidence` [n]: the draft's own probability of each node given its parent, untempered, None where
    it has none (prompt lookup); `path`: the nodes accepted, from the top; `sampled`: the draft was drawn, not picked, and
    verified by rejection.
    """

    tokens: list[int]
    parents: list[int]
    confidence: list[float] | None
    path: list[int]
    sampled: bool


@dataclass(slots=True)
class Trace:
    """Columns with one entry per target forward after prefill; times in seconds.

    `tree_size`: draft nodes verified (root excluded); `accepted`: draft tokens accepted, before any cutting at a stop id
    or the budget; `target_s`, `drafter_s`: the part of draft_s + verify_s inside either model, LM head included. The first
    run of the drafter over the prompt belongs to the prefill; its run over a step's accepted tokens to that step's draft_s.
    `trees`: an entry a forward where they are kept, else empty; `keeping_s`: what keeping them took, which is in no other time.
    """

    tree_size: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    draft_s: list[float] = field(default_factory=list)
    verify_s: list[float] = field(default_factory=list)
    target_s: list[float] = field(default_factory=list)
    drafter_s: list[float] = field(default_factory=list)
    trees: list[DraftedTree] = field(default_factory=list)
    keeping_s: float = 0.0

    def add(
        self, tree_size: int, accepted: int, draft_s: float, verify_s: float, target_s: float, drafter_s: float = 0.0
    ) -> None:
        self.tree_size.append(tree_size)
        self.accepted.append(accepted)
        self.draft_s.append(draft_s)
        self.verify_s.append(verify_s)
        self.target_s.append(target_s)
        self.drafter_s.append(drafter_s)

    def keep(self, tree: Tree, path: list[int]) -> float:
        """Keep a drafted tree and what was accepted of it (root first); -> the seconds that took."""
        started = time.perf_counter()
        confidence = tree.confidence() if tree.confidence is not None else None
        self.trees.append(DraftedTree(tree.tokens[1:], tree.parents[1:], confidence, path[1:], tree.q is not None))
        took = time.perf_counter() - started
        self.keeping_s += took
        return took


@dataclass(slots=True)
class Generation:
    """`token_ids`: new tokens, a stop id included; 1 + sum(accepted + 1) - n_cut == len(token_ids) where there is a trace."""

    token_ids: list[int]
    finish: str  # 'stop' | 'length'
    n_cut: int
    prefill_s: float
    trace: Trace | None


class Target(Protocol):
    """The model whose output counts. It owns its KV cache; batch is 1.

    The tokens in the cache are those passed to `prefill`, `step` or committed; `length` counts them.
    """

    length: int

    @property
    def forward_s(self) -> float:
        """Seconds spent inside forwards so far."""
        ...

    def prefill(self, prompt_ids: list[int], room: int, aux_layers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Empty the cache, run the prompt; -> features [n, hidden], logits [vocab] after the last token.

        `room`: tokens that may follow, uncommitted tree nodes included. `aux_layers`: until the next prefill features are these
        hidden states side by side [n, len(aux_layers) * hidden], by the numbers of transformers' `hidden_states`: i is what
        layer i is given, the number of layers what comes after the final norm (in vLLM: before it). None named: that last one
        alone.
        """
        ...

    def step(self, token: int) -> Tensor:
        """Append one token -> logits [vocab]: plain decoding."""
        ...

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        """Run all nodes under the tree mask -> features [nodes, ..] as of `prefill`, logits [nodes, vocab]. Commits nothing."""
        ...

    def commit(self, path: list[int]) -> None:
        """Keep the nodes of `path` (root first) of the tree last verified; drop the others."""
        ...


class Drafter(Protocol):
    """What a grower may ask of a draft head, or of a draft LM.

    Entries: nodes run in this step, in order; dropped by the next `observe`. It may have more: `aux_layers`, the target's hidden
    states that it observes (`Target.prefill`; else the last); `best_children` and `drawn_children`, its own ways to pick and to
    draw (else those of `engine.grow` and `engine.sampling`); and `remember(tokens, parents)`, which tells it what its entries
    are once a draft was read back.
    """

    @property
    def forward_s(self) -> float: ...

    def observe(self, tokens: list[int], features: Tensor) -> None:
        """New pairs (f_i, t_{i+1}): tokens [m], true target features [m, ..] as of `Target.prefill`. Starts a new step."""
        ...

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        """Forget everything; `room` bounds the pairs and entries to come.

        `frequent`: predict over at most so many frequent tokens, all that are listed if there are fewer; None: over the whole
        vocabulary. Raises ValueError where the drafter has no list. `first`: the text's first token, which is in no pair and
        which a language model reads all the same.
        """
        ...

    def named(self, columns: Tensor) -> Tensor:
        """Columns of its logits -> token ids."""
        ...

    def root_logits(self) -> Tensor:
        """[1, columns]: the head's prediction of what follows the last observed token."""
        ...

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        """Run m nodes of the next level, called level by level from the top -> logits [m, columns], or [1, columns] where they
        are the same for all: the drafter does not look at drafted tokens.

        tokens [m]; parents [m]: each node's parent as an entry number, -1 for the root; sees [m, entries + m] bool: the
        entries (this level's included) each node attends to, all observed pairs besides. A drafter whose `reads_masks` is False
        finds them by `parents`, and may be given any `sees`.
        """
        ...


Decode = Callable[[list[int], Any, Any, SamplerParams], Generation]
"""(prompt_ids, target, drafter or None, params) -> Generation. Models are arguments: a method holds no weights."""
