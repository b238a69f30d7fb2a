"""Stand-ins for the models: their logits are a function of the text alone, over a handful of tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.engine.tree import Tree

Text = tuple[int, ...]


Rows = Callable[[Text], Sequence[float]]
"""Text -> logits [vocab] of what follows it."""


def random_rows(vocab: int, seed: int, spread: float = 1.5) -> Rows:
    """A model whose logits after different texts are unrelated."""

    def rows(text: Text) -> list[float]:
        rng = random.Random(f"{seed} {text}")
        return [rng.gauss(0, spread) for _ in range(vocab)]

    return rows


@dataclass
class FakeDrafter:
    """A drafter whose logits are `rows` of (text observed, path drafted). It checks what the grower says of its entries."""

    rows: Rows
    observed: list[int] = field(default_factory=list)
    paths: list[Text] = field(default_factory=list)
    above: list[set[int]] = field(default_factory=list)
    forward_s: float = 0.0
    names: list[int] | None = None  # of the columns, where the vocabulary is cut
    blocks: int = -1  # steps before `BlockEnded`; -1: any number

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        self.observed, self.names = [], None
        if frequent is not None:
            vocab = len(self.rows(()))
            self.names = sorted(range(vocab), key=lambda t: (-(t * 7 % vocab), t))[:frequent]

    def named(self, columns: Tensor) -> Tensor:
        return columns if self.names is None else torch.tensor(self.names)[columns]

    def observe(self, tokens: list[int], features: Tensor) -> None:
        """Take pairs (f_i, t_{i+1}). A feature of FakeTarget says which position and token it is of."""
        first = len(self.observed)
        assert features[:, 0].tolist() == list(range(first, first + len(tokens)))
        assert features[1:, 1].tolist() == tokens[:-1]
        assert not self.observed or int(features[0, 1]) == self.observed[-1]
        if self.blocks == 0:  # before the next step's drafts are drawn: they would only multiply the branches
            raise BlockEnded((PROMPT[0], *self.observed, *tokens))
        self.blocks -= 1
        self.observed += tokens

    def _logits(self, paths: list[Text]) -> Tensor:
        logits = torch.tensor([self.rows((*self.observed, *path)) for path in paths], dtype=torch.float64)
        return logits if self.names is None else logits[:, self.names]

    def root_logits(self) -> Tensor:
        self.paths, self.above = [], []
        return self._logits([()])

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        first, depths = len(self.paths), set()
        assert sees.shape == (len(tokens), first + len(tokens)) and sees.dtype == torch.bool
        for j, (token, parent) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
            assert parent < first, "a parent is an entry of an earlier level"
            above = {first + j} | (self.above[parent] if parent >= 0 else set())
            assert set(sees[j].nonzero().flatten().tolist()) == above, "an entry sees its ancestors and itself"
            self.paths.append((*(self.paths[parent] if parent >= 0 else ()), token))
            self.above.append(above)
            depths.add(len(self.paths[-1]))
        assert len(depths) == 1, "a level has one depth: positions depend on it"
        return self._logits(self.paths[first:])


@dataclass
class FakeTarget:
    """A target whose logits are `rows` of the text. The feature of a token is (its position, the token)."""

    rows: Rows
    text: list[int] = field(default_factory=list)
    pending: Tree | None = None
    forward_s: float = 0.0
    blocks: int = -1  # forwards over a tree before `BlockEnded`; -1: any number

    @property
    def length(self) -> int:
        return len(self.text)

    def prefill(self, prompt_ids: list[int], room: int) -> tuple[Tensor, Tensor]:
        self.text = list(prompt_ids)
        return torch.tensor(list(enumerate(prompt_ids))), self.logits_after([()])[0]

    def step(self, token: int) -> Tensor:
        self._next_block(token)
        self.text.append(token)
        return self.logits_after([()])[0]

    def _next_block(self, root: int) -> None:
        if self.blocks == 0:
            raise BlockEnded((*self.text, root))
        self.blocks -= 1

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        self._next_block(tree.tokens[0])
        self.pending = tree
        positions = [self.length + depth for depth in tree.depths()]
        return torch.tensor(list(zip(positions, tree.tokens, strict=True))), self.logits_after(texts_of(tree))

    def commit(self, path: list[int]) -> None:
        assert self.pending is not None and path[0] == 0
        assert all(self.pending.parents[b] == a for a, b in zip(path, path[1:], strict=False))
        self.text += [self.pending.tokens[i] for i in path]

    def logits_after(self, continuations: list[Text]) -> Tensor:
        return torch.tensor([self.rows((*self.text, *c)) for c in continuations], dtype=torch.float64)


class BlockEnded(Exception):
    """A step began that is not to be taken. `text`: the text before it, the step's root included."""

    def __init__(self, text: Text):
        super().__init__(text)
        self.text = text


def texts_of(tree: Tree) -> list[Text]:
    """For every node, the tokens from the root to it, the root's included."""
    texts: list[Text] = [(tree.tokens[0],)]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        texts.append((*texts[parent], token))
    return texts


PROMPT = (3, 1, 2, 3, 1)  # repeats itself, so that prompt lookup has something to look up


VOCAB, WIDE = 4, 6


def only(*tokens: int, rows: Rows = lambda _: [0.0] * VOCAB) -> Rows:
    """A model with these tokens alone: `rows` without the others, else the same mass for each of them after every text."""
    return lambda text: [logit if t in tokens else -math.inf for t, logit in enumerate(rows(text))]


def only_from(token: int, n: int, rows: Rows) -> Rows:
    """The same model, but `token` has no mass before output position n, and nearly all of it there. For a drafter's texts."""

    def changed(text: Text) -> list[float]:
        at = len(text) + 1 - len(PROMPT)
        own = list(rows(text))
        own[token] = -math.inf if at < n else max(own) + 20.0 if at == n else own[token]
        return own

    return changed


def without_first(rows: Rows) -> Rows:
    """The same model for a target: a drafter does not see the first token of the text, so the target must not either."""
    return lambda text: rows(text[1:])


def rounded(rows: Rows) -> Rows:
    """The same model with whole-number logits, which are full of ties."""
    return lambda text: [float(round(x)) for x in rows(text)]
