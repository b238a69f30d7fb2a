"""The Jacobi window and its pool of n-grams (Fu et al., arXiv 2402.02057): drafts that the target makes itself.

Guesses for the next positions are run beside the root; what the target says after each is a better guess for the step after.
Cell (k, i) of the window guesses the token 1 + i + k places after the root: (0, i) hangs on (0, i - 1), and (k, i), which is k
steps younger, on (k - 1, i). Column i with the target's token after it is an n-gram of which each token followed the one
before in some step: it goes into the pool, and those that begin with the root are candidates.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from methods.base import Drafter
from methods.engine.loop import Context, Grow
from methods.engine.tree import Tree, Trie


@dataclass(slots=True)
class Pool:
    """For each token the `guesses` latest distinct (ngram - 1)-grams that followed it, the latest last."""

    guesses: int
    followers: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)

    def add(self, gram: Sequence[int]) -> None:
        known = self.followers.setdefault(gram[0], [])
        rest = tuple(gram[1:])
        if rest in known:
            known.remove(rest)
        known.append(rest)
        del known[: -self.guesses]

    def after(self, token: int) -> list[tuple[int, ...]]:
        return self.followers.get(token, [])


@dataclass(slots=True)
class Window:
    """`levels`: the cells of each level, oldest first, at most ngram - 1; `newest`: the last level's nodes in the tree."""

    levels: list[list[int]]
    n_levels: int
    newest: list[int] = field(default_factory=list)

    def advance(self, logits: Tensor, pool: Pool) -> None:
        """One Jacobi step: the target's tokens after the newest level become the next one. logits: [n, vocab]."""
        fresh: list[int] = logits[self.newest].max(-1).indices.tolist()  # the one host sync
        if len(self.levels) < self.n_levels:
            # the root moves on by one, and so does each level; once there are all, the oldest goes and that moves the others
            self.levels = [level[1:] for level in (*self.levels, fresh)]
            return
        for gram in zip(*self.levels, fresh, strict=True):
            pool.add(gram)
        self.levels = [*self.levels[1:], fresh]

    def add_to(self, trie: Trie) -> None:
        self.newest = trie.add_path(self.levels[0])
        for level in self.levels[1:]:
            self.newest = [trie.add(node, token) for node, token in zip(self.newest, level, strict=True)]


def jacobi_window(window: int = 7, ngram: int = 5, guesses: int = 7, prompt_pool: bool = True) -> Grow:
    """The window (`window` columns, `ngram` - 1 levels) and up to `guesses` n-grams of the pool that begin with the root.

    prompt_pool: the n-grams of the prompt are in the pool from the start. The window's first guesses are tokens of the prompt,
    drawn by a generator of its own: it depends on the prompt alone, and so does nothing to the law of what is emitted.
    """
    for name, value, least in (("window", window, 1), ("ngram", ngram, 2), ("guesses", guesses, 1)):
        if value < least:
            what = "the window would be empty" if name != "guesses" else "no n-gram would be verified"
            raise ValueError(f"{name}={value}: {what}; it must be at least {least}")
    n_levels = ngram - 1
    first = window + n_levels - 1  # columns at the start: each level that is added costs one

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        if context.kept is None:
            text, pool = context.tokens, Pool(guesses)
            for start in range(len(text) - ngram + 1 if prompt_pool else 0):
                pool.add(text[start : start + ngram])
            context.kept = Window([random.Random(0).choices(text, k=first)], n_levels), pool
        else:
            assert context.logits is not None
            kept_window, kept_pool = context.kept
            kept_window.advance(context.logits, kept_pool)
        cells, pool = context.kept
        trie = Trie(context.root)
        cells.add_to(trie)
        for gram in pool.after(context.root):
            trie.add_path(gram)
        return trie.tree()

    return Grow(tree, max((first - k) * (k + 1) for k in range(n_levels)) + guesses * n_levels)
