"""What a drafter says after paths of drafted tokens, over one known text: kept, so that any tree is drafted from it.

A node's logits depend on its path only. So whatever tree asks for a node is told the same, and a node that was never asked for
is drafted when one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.common.errors import UserError
from methods.base import Drafter
from methods.engine.grow import best_children, draft_pool

CHILDREN = 10  # of each node that are kept
PLACES = 16  # drafted in one forward

Column = NDArray[Any]


class Rows:
    """Nodes that the drafter was run on, a row each, with the `CHILDREN` likeliest tokens after them.

    `n_pass`: the first so many are of the one drafting pass; those after them were drafted as trees asked for them.
    Columns [rows]: `position`, how many tokens of the answer stand before the draft; `parent`, the row of the node above, -1 for
    the root; `token`, the node's own, -1 for the root. [rows, CHILDREN]: `children`, tokens; `logs`, their log-probabilities.
    """

    def __init__(self, columns: Sequence[Column] | None = None, n_pass: int = 0) -> None:
        self._blocks: list[tuple[Column, ...]] = [tuple(columns)] if columns is not None else []
        self._joined: tuple[Column, ...] | None = None
        self._roots: dict[int, int] = {}
        self._below: dict[tuple[int, int], int] = {}
        self.n, self.n_pass = 0, n_pass
        for block in self._blocks:
            self._number(block)

    def _number(self, block: tuple[Column, ...]) -> None:
        for row, (position, parent, token) in enumerate(zip(*(c.tolist() for c in block[:3]), strict=True), start=self.n):
            if parent < 0:
                self._roots[position] = row
            else:
                self._below[parent, token] = row
        self.n += len(block[0])

    def add(self, position: int, parents: Sequence[int], tokens: Sequence[int], children: Tensor, logs: Tensor) -> list[int]:
        """`add_many` at one position."""
        return self.add_many([position] * len(parents), parents, tokens, children, logs)

    def add_many(
        self, positions: Sequence[int], parents: Sequence[int], tokens: Sequence[int], children: Tensor, logs: Tensor
    ) -> list[int]:  # fmt: skip
        """Rows, a position each; -> their numbers. children, logs: [m, at least CHILDREN if the vocabulary has them]."""
        m = len(parents)
        block = (np.array(positions, np.int32), np.array(parents, np.int32), np.array(tokens, np.int32),
                 children.to(torch.int32).numpy(force=True), logs.float().numpy(force=True))  # fmt: skip
        first = self.n
        self._blocks.append(block)
        self._joined = None
        self._number(block)
        return list(range(first, first + m))

    def root(self, position: int) -> int | None:
        return self._roots.get(position)

    def below(self, row: int, token: int) -> int | None:
        return self._below.get((row, token))

    def columns(self) -> tuple[Column, ...]:
        """position, parent, token, children, logs."""
        if self._joined is None:
            self._joined = tuple(np.concatenate(column) for column in zip(*self._blocks, strict=True))
            self._blocks = [self._joined]
        return self._joined

    def children(self, rows: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
        """(tokens, log-probabilities) [m, k] of the likeliest children of rows, best first."""
        _, _, _, children, logs = self.columns()
        return torch.from_numpy(children[rows, :k].astype(np.int64)), torch.from_numpy(logs[rows, :k])


class RowsDrafter:
    """A drafter over a known text that answers from `Rows`; the real one is run on what they lack, and they keep it.

    text: the token ids of prompt and answer. features: gives the target's over it [n, hidden], once they are needed.
    `calls`: of each step so far the rows of each call of the drafter, that after the root first. `asked`, `lacking`: rows that
    trees asked for since `start`, and those of them that are not of the drafting pass, whatever other trees asked for before.
    """

    forward_s = 0.0

    def __init__(
        self, real: Drafter, rows: Rows, text: Sequence[int], n_prompt: int, features: Callable[[], Tensor],
        frequent: int | None = None,
    ) -> None:  # fmt: skip
        self._real, self.rows, self._text, self._n_prompt, self._features = real, rows, text, n_prompt, features
        self.frequent = frequent
        self.reads_masks: bool = getattr(real, "reads_masks", True)
        self._best = getattr(real, "best_children", best_children)
        self._at_once = hasattr(real, "hang")
        self._real_pairs = -1  # that the real one has observed; -1: not started
        self._room = 0
        self.forget()

    def forget(self) -> None:
        """Count anew: what is decoded next may have no step, and start nothing."""
        self.calls: list[list[int]] = []
        self.asked = self.lacking = 0

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        if frequent != self.frequent:
            told = ["the whole vocabulary" if n is None else f"{n:,} frequent tokens" for n in (frequent, self.frequent)]
            raise UserError(f"a method drafts over {told[0]}, and the pool is over {told[1]}: it needs a pool of its own")
        self._room = max(room, self._room)
        self._pairs, self._real_pairs = 0, -1
        self.forget()
        self._step: list[tuple[Tensor, Tensor, Tensor]] = []

    def observe(self, tokens: list[int], features: Tensor) -> None:
        self._pairs += len(tokens)
        self._entries: list[int] = []
        # this step's calls, and how many of them the real one was given; -1: none, not even the root's
        self._step, self._issued = [], -1
        self.calls.append([])

    def named(self, columns: Tensor) -> Tensor:
        return columns

    @property
    def _position(self) -> int:
        return self._pairs - self._n_prompt + 1

    def root_logits(self) -> Tensor:
        row = self.rows.root(self._position)
        if row is None:
            row = self.rows.add(self._position, [-1], [-1], *self._issue())[0]
        self._count([row])
        self._root = row
        return torch.tensor([[row]])

    def best_children(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """logits: what `root_logits` or `expand` gave, rows by number."""
        held = self.rows.columns()[3].shape[1]
        if k > held and held == CHILDREN:
            raise UserError(f"a node is asked for {k} children, and the pool holds the {CHILDREN} likeliest")
        return self.rows.children(logits[:, 0].tolist(), k)

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        above = [self._entries[p] if p >= 0 else self._root for p in parents.tolist()]
        own = tokens.tolist()
        self._step.append((tokens, parents, sees))
        found = [self.rows.below(row, token) for row, token in zip(above, own, strict=True)]
        new = [i for i, row in enumerate(found) if row is None]
        if new:
            children, logs = self._issue()
            added = self.rows.add(self._position, [above[i] for i in new], [own[i] for i in new], children[new], logs[new])
            for i, row in zip(new, added, strict=True):
                found[i] = row
        rows = [row for row in found if row is not None]
        self._count(rows)
        self._entries += rows
        return torch.tensor(rows)[:, None]

    def _count(self, rows: Sequence[int]) -> None:
        """A call was made for these rows."""
        lacks = sum(row >= self.rows.n_pass for row in rows)
        self.calls[-1].append(len(rows))
        self.asked += len(rows)
        self.lacking += lacks

    def draft(self, positions: Sequence[int], top_k: int, depth: int) -> None:
        """The one drafting pass: EAGLE-2's whole pool at every position given, rising, each once.

        Where the drafter runs many places of a text in one forward, it does; else place after place.
        """
        if self._at_once:
            self._draft_at_once(positions, top_k, depth)
        else:
            self._draft_one_by_one(positions, top_k, depth)
        self.rows.n_pass = self.rows.n

    def _draft_one_by_one(self, positions: Sequence[int], top_k: int, depth: int) -> None:
        nothing = torch.empty(0, 0)
        self.start(top_k * depth, self.frequent)
        for position in positions:
            now = self._n_prompt + position - 1
            self.observe(list(self._text[self._pairs + 1 : now + 1]), nothing)
            draft_pool(self, top_k, depth)

    def _draft_at_once(self, positions: Sequence[int], top_k: int, depth: int) -> None:
        """The same trees, level by level over `PLACES` positions: the answer's pairs are entries, and drafts hang on them."""
        real: Any = self._real
        text, features = list(self._text), self._features()
        first = self._n_prompt + positions[0] - 1  # pairs before the first draft
        n = positions[-1] - positions[0]  # further ones, each an entry
        real.start(len(text), self.frequent, text[0])
        real.observe(text[1 : first + 1], features[:first])
        logits = real.root_logits()
        if n:
            logits = torch.cat([logits, real.hang(text[first + 1 : first + n + 1], features[first : first + n])])
        columns, logs = self._best(logits, CHILDREN)
        roots = {p: i for i, p in enumerate(range(positions[0], positions[-1] + 1))}
        for some in (positions[i : i + PLACES] for i in range(0, len(positions), PLACES)):
            at = torch.tensor([roots[p] for p in some])
            self._draft_some(some, at - 1, real.named(columns[at]), logs[at], top_k, depth)
            real.drop_entries(n)
        self._real_pairs = -1

    def _draft_some(self, positions: Sequence[int], roots: Tensor, tokens: Tensor, logs: Tensor, top_k: int, depth: int) -> None:
        """roots [b]: the entries that drafts hang on; tokens, logs [b, CHILDREN]: what follows them."""
        b = len(positions)
        numbers = torch.tensor(self.rows.add_many(positions, [-1] * b, [-1] * b, tokens, logs))[:, None]  # [b, m] rows
        entries = roots[:, None]  # [b, m]
        k = min(top_k, tokens.shape[1])
        level_tokens, values = tokens[:, None, :k], logs[:, None, :k]  # [b, m, k]
        for _ in range(depth - 1):
            flat = values.flatten(1)
            picked = flat.sort(dim=1, descending=True, stable=True).indices[:, :top_k]  # as `by_score`
            row, m = picked // k, picked.shape[1]
            own = level_tokens.flatten(1).gather(1, picked)
            first = self._real.n_entries  # type: ignore[attr-defined]
            logits = self._real.expand(own.flatten(), entries.gather(1, row).flatten(), torch.empty(0))
            columns, logs = self._best(logits, CHILDREN)
            names = self._real.named(columns)
            above = numbers.gather(1, row)
            where = [p for p in positions for _ in range(m)]
            numbers = torch.tensor(self.rows.add_many(where, above.flatten().tolist(), own.flatten().tolist(), names, logs))
            numbers, entries = numbers.view(b, m), torch.arange(first, first + b * m).view(b, m)
            level_tokens = names.view(b, m, -1)[:, :, :k]
            values = logs.view(b, m, -1)[:, :, :k] + flat.gather(1, picked)[:, :, None]

    def _issue(self) -> tuple[Tensor, Tensor]:
        """Run the real drafter through this step's calls that it was not given; -> the best children after the last of them."""
        if self._issued < 0:
            self._bring_here()
            logits, self._issued = self._real.root_logits(), 0
        for tokens, parents, sees in self._step[self._issued :]:
            logits, self._issued = self._real.expand(tokens, parents, sees), self._issued + 1
        columns, logs = self._best(logits, CHILDREN)
        return self._real.named(columns), logs

    def _bring_here(self) -> None:
        """The real drafter, with this step's text observed and nothing drafted."""
        features, text, there = self._features(), self._text, self._real_pairs
        if there < 0:
            self._real.start(len(text) + self._room, self.frequent, text[0])
            there = 0
        elif there == self._pairs:  # drafted here before: the last pair once more drops the entries
            self._real.rewind(1)  # type: ignore[attr-defined]
            there -= 1
        self._real.observe(list(text[there + 1 : self._pairs + 1]), features[there : self._pairs])
        self._real_pairs = self._pairs
