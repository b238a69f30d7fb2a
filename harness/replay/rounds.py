"""Rounds of EAGLE-2's tree over known text, cut off after each number of calls: what a policy that stops learns from, exactly.

A position of an answer is where a round could start. Its whole draft is grown from the kept rows, without a forward of either
model. The draft after fewer calls is a prefix of it, and what a tree accepts is read off the answer. So one row holds what would
have come of every decision: a table with nothing estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from harness.common.errors import UserError
from harness.common.progress import showing_progress
from harness.replay import record
from harness.replay.known import KnownText
from harness.replay.pools import path_ranks
from harness.replay.prompts import of_held_out
from harness.replay.rows import Rows, RowsDrafter
from harness.replay.store import Drawn, kept_texts, read_pool
from methods.engine.policy import Fixed, Here, drafted


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds, a row each. D: the most calls of the drafter, that after the root among them.

    `states` [n, D - 1, top_k] float32: after each call but the last the frontier's cumulative log-probabilities, highest first.
    `accepted` [n, D]: draft tokens that the tree after 1 .. D calls accepts; `sizes` [n, D]: its nodes. `position` [n]: output
    position of the first token drafted; `length` [n]: tokens of the text before it; `text`, `conversation` [n]: which;
    `visited` [n]: whether a decode with the whole tree starts a round there.
    """

    states: NDArray[np.float32]
    accepted: NDArray[np.int64]
    sizes: NDArray[np.int64]
    position: NDArray[np.int64]
    length: NDArray[np.int64]
    text: NDArray[np.int64]
    conversation: NDArray[np.int64]
    visited: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.accepted)

    @property
    def most(self) -> int:
        """The most calls, D."""
        return self.accepted.shape[1]

    def take(self, which: NDArray[Any]) -> Rounds:
        """Those rows only: a mask or numbers."""
        return Rounds(*(getattr(self, name)[which] for name in self.__slots__))


class _NoDrafter:
    """In place of the drafter whose rows are kept: nothing is drafted for a table."""

    def start(self, *given: Any) -> NoReturn:
        raise UserError("a pool lacks nodes of this tree: it was drafted with a smaller top_k or depth. Replay eagle2 with these "
                        "options over it, and they are added")  # fmt: skip


@torch.inference_mode()
def rounds_of(
    text: KnownText, rows: Rows, top_k: int, depth: int, total: int, number: int = 0, conversation: int = 0, every: bool = False
) -> Rounds:  # fmt: skip
    """The rounds that a decode with the whole tree starts. every: those at all other positions of the answer, too.

    Raises:
        UserError: the rows lack nodes of this tree.
    """
    nothing: Any = _NoDrafter()
    drafter = RowsDrafter(nothing, rows, text.ids, len(text.prompt), lambda: torch.empty(0))
    drafter.start(top_k * depth)
    seen, visit, states, columns = 0, 1, list[NDArray[np.float32]](), list[list[Any]]()
    for position in range(1, len(text.answer)):
        is_visited = position == visit
        if not (is_visited or every):
            continue
        now = len(text.prompt) + position - 1
        drafter.observe(text.ids[seen + 1 : now + 1], torch.empty(0))
        seen = now
        draft = drafted(drafter, Fixed(top_k, depth, total), Here(position, now + 1, lambda i: 0.0))
        states.append(np.stack([draft.value[nodes].numpy() for nodes in draft.expanded]))
        nodes = (draft.tokens.numpy(), draft.parents.numpy(), draft.value.numpy())
        ranks = path_ranks(*nodes, draft.levels, text.tokens[position : position + depth])
        accepted = (ranks < total).cumprod(axis=0).sum(axis=0)
        columns.append([*accepted, *np.minimum(draft.levels, total), position, now + 1, number, conversation, is_visited])
        if is_visited:
            visit += int(accepted[-1]) + 1
    found = np.array(columns, np.int64).reshape(len(states), 2 * depth + 5)
    positions, lengths, numbers, conversations, visited = found[:, 2 * depth :].T
    return Rounds(np.array(states, np.float32).reshape(len(states), depth - 1, -1 if states else top_k), found[:, :depth],
                  found[:, depth : 2 * depth], positions, lengths, numbers, conversations, visited.astype(bool))  # fmt: skip


def joined(parts: Sequence[Rounds]) -> Rounds:
    return Rounds(*(np.concatenate([getattr(part, name) for part in parts]) for name in Rounds.__slots__))


def recorded(
    folder: Path, temperatures: Iterable[float], top_k: int, depth: int, total: int, every: bool = False
) -> tuple[Rounds, Drawn]:  # fmt: skip
    """The rounds over all texts that `harness replay` drafted in a folder, and who drafted them; also those of `--choose`. Pools
    over frequent tokens alone are left out, and those of answers without a replay.

    temperatures: of the answers that are wanted; none named: all. every: as in `rounds_of`.

    Raises:
        UserError: there are none, of several drafters, or of another tree.
    """
    wanted, known = set(temperatures), {r.answer: ((r.task, r.sample_id), r.temperature) for r in record.read(folder)}
    parts, drawn, numbers = list[Rounds](), set[Drawn](), dict[tuple[Any, ...], int]()
    with showing_progress("rounds") as progress:
        for who, key, path in progress.each(list(kept_texts(folder)), "text"):
            held_out = of_held_out(key)
            if who.frequent or (held_out is None and key not in known):
                continue  # of another drafter; or a kill left it before its replays were written, which the next replay makes
            whose, t = ((held_out[0],), held_out[1]) if held_out else known[key]
            if not wanted or t in wanted:
                drawn.add(who)
                of = numbers.setdefault(whose, len(numbers))
                parts.append(rounds_of(*read_pool(path), top_k, depth, total, len(parts), of, every))
    if not parts:
        where = f" at T = {', '.join(f'{t:g}' for t in sorted(wanted))}" if wanted else ""
        raise UserError(f"{folder} holds no pools{where}: `harness replay` drafts them")
    if len(drawn) > 1:
        raise UserError(f"{folder} holds pools of {len(drawn)} drafters ({', '.join(sorted(d.folder for d in drawn))}): a policy "
                        "learns from one; keep one of these folders")  # fmt: skip
    return joined(parts), drawn.pop()
