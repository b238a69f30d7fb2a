"""The Jacobi window and its pool of n-grams (Fu et al., arXiv 2402.02057): drafts that the target makes itself.

Guesses for the next positions are run beside the root; what the target says after each is a better guess for the step after.
Cell (k, i) of the window guesses the token i + k places after the root, and (0, 0) is the root itself: (0, i) hangs on
(0, i - 1), and (k, i), which is k steps younger, on (k - 1, i). Column i with the target's token after it is an n-gram of which
each token followed the one before in some step: it goes into the pool, and those that begin with the root are candidates.
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
class NgramPool:
    """For each token the `guesses` latest distinct (ngram - 1)-grams that followed it, the latest last.

    `n_read`: n-grams of the text taken in so far.
    """

    guesses: int
    n_read: int = 0
    followers: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)

    def add(self, gram: Sequence[int]) -> None:
        known = self.followers.setdefault(gram[0], [])
        rest = tuple(gram[1:])
        if rest in known:
            known.remove(rest)
        known.append(rest)
        del known[: -self.guesses]

    def read(self, text: Sequence[int], ngram: int) -> None:
        """Take in the n-grams of a text that has grown since the last time."""
        n = max(len(text) - ngram + 1, 0)
        for start in range(self.n_read, n):
            self.add(text[start : start + ngram])
        self.n_read = n

    def after(self, token: int) -> list[tuple[int, ...]]:
        return self.followers.get(token, [])


@dataclass(slots=True)
class Window:
    """`levels`: the cells of each level, oldest first, at most ngram - 1; the first cell of the oldest stands for the root.

    `newest`: the last level's nodes in the tree.
    """

    levels: list[list[int]]
    n_levels: int
    newest: list[int] = field(default_factory=list)

    def advance(self, logits: Tensor, pool: NgramPool) -> None:
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
        self.levels[0][0] = trie.root  # guessed before, known now
        self.newest = [0, *trie.add_path(self.levels[0][1:])]
        for level in self.levels[1:]:
            self.newest = [trie.add(node, token) for node, token in zip(self.newest, level, strict=True)]


def jacobi_window(window: int = 7, ngram: int = 5, guesses: int = 7, text_pool: bool = False) -> Grow:
    """The window (`window` columns, `ngram` - 1 levels) and up to `guesses` n-grams of the pool that begin with the root.

    text_pool: the n-grams of the text, prompt and output, are in the pool as well. The window's first guesses are tokens of the
    prompt, drawn by a generator of its own: it depends on the prompt alone, and so does nothing to the law of what is emitted.
    """
    for name, value, least in (("window", window, 1), ("ngram", ngram, 2), ("guesses", guesses, 1)):
        if value < least:
            what = "the window would be empty" if name != "guesses" else "no n-gram would be verified"
            raise ValueError(f"{name}={value}: {what}; it must be at least {least}")
    n_levels = ngram - 1
    first = window + n_levels - 1  # columns at the start: each level that is added costs one

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        if context.kept is None:
            context.kept = Window([random.Random(0).choices(context.tokens, k=first)], n_levels), NgramPool(guesses)
        cells, pool = context.kept
        if context.logits is not None:
            cells.advance(context.logits, pool)
        if text_pool:
            pool.read(context.tokens, ngram)
        trie = Trie(context.root)
        cells.add_to(trie)
        for gram in pool.after(context.root):
            trie.add_path(gram)
        return trie.tree()

    return Grow(tree, max((first - k) * (k + 1) for k in range(n_levels)) - 1 + guesses * n_levels)
