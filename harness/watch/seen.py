"""Stand-ins that a method gets for its models. They pass every call on, and count what the harness will check.

What they count lies in a `Seen` that the method has no name for. Nothing waits for a device: a logit's maximum is kept where it
was made, and read when the generation is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from methods.engine.tree import Tree

FEW = 2**14  # logits that one call looks at sooner than two


@dataclass(slots=True)
class Seen:
    """What the models were asked for in one generation.

    `n_prefills`: prefills of the target; `n_prompt`: tokens of the last. One entry a target forward after it: `sizes`, its rows;
    `accepted`, the draft nodes committed of it. `trees`: tokens and parents verified, root left out, and the path committed.
    `text`: tokens committed, prompt included. `used`: the largest logit of each row that an output token is drawn from, in order
    of position. `drafted`: the same of the drafter's, each after the number of the target's forwards before it.
    `n_drafter_calls`: of any kind.
    """

    n_prefills: int = 0
    n_prompt: int = 0
    sizes: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    trees: list[tuple[list[int], list[int], list[int]]] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    used: list[Tensor] = field(default_factory=list)
    drafted: list[tuple[int, Tensor]] = field(default_factory=list)
    n_drafter_calls: int = 0


def watched_target(target: Any, seen: Seen, keep_trees: bool) -> Any:
    """`target` as a method gets it. keep_trees: keep what is verified, to compare with the trees that a trace keeps."""
    pending: list[tuple[list[int], list[int], Tensor]] = []  # of the tree last verified: tokens, parents, logits

    class WatchedTarget:
        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            return getattr(target, name)

        def prefill(self, prompt_ids: list[int], room: int, *aux_layers: Any) -> tuple[Tensor, Tensor]:
            features, logits = target.prefill(prompt_ids, room, *aux_layers)
            seen.n_prefills += 1
            seen.n_prompt = len(prompt_ids)
            for column in (seen.sizes, seen.accepted, seen.trees, seen.used):
                column.clear()
            seen.text[:] = prompt_ids
            seen.used.append(logits.amax())
            return features, logits

        def step(self, token: int) -> Tensor:
            logits: Tensor = target.step(token)
            seen.sizes.append(1)
            seen.accepted.append(0)
            seen.text.append(token)
            seen.used.append(logits.amax())
            return logits

        def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
            features, logits = target.verify(tree)
            seen.sizes.append(len(logits))
            pending[:] = [(list(tree.tokens), list(tree.parents) if keep_trees else [], logits)]
            return features, logits

        def commit(self, path: list[int]) -> None:
            target.commit(path)
            tokens, parents, logits = pending.pop()
            for node in path:
                seen.text.append(tokens[node])
                seen.used.append(logits[node].amax())
            seen.accepted.append(len(path) - 1)
            if keep_trees:
                seen.trees.append((tokens[1:], parents[1:], list(path[1:])))

    return WatchedTarget()


def watched_drafter(drafter: Any, seen: Seen) -> Any:
    """`drafter` as a method gets it.

    Of many logits the last row and the first column are looked at: a hidden state that is not finite spoils a whole row, a weight
    of the LM head a whole column.
    """

    def kept(logits: Tensor) -> Tensor:
        seen.n_drafter_calls += 1
        drafted_for = len(seen.sizes)
        if len(logits) == 1 or logits.numel() <= FEW:
            seen.drafted.append((drafted_for, logits.amax()))
        else:
            seen.drafted += [(drafted_for, logits[-1].amax()), (drafted_for, logits[:, 0].amax())]
        return logits

    class WatchedDrafter:
        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            return getattr(drafter, name)

        def observe(self, tokens: list[int], features: Tensor) -> None:
            seen.n_drafter_calls += 1
            drafter.observe(tokens, features)

        def root_logits(self) -> Tensor:
            return kept(drafter.root_logits())

        def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
            return kept(drafter.expand(tokens, parents, sees))

    class WatchedWhole(WatchedDrafter):
        __slots__ = ()

        def drafted(self, key: Any, draft: Any) -> Any:
            """A draft that is made as a whole: its confidences are not finite where its logits are not."""
            pool, kept = drafter.drafted(key, draft)
            seen.n_drafter_calls += len(pool.levels)
            seen.drafted.append((len(seen.sizes), pool.confidence.amax()))
            return pool, kept

    return WatchedWhole() if hasattr(type(drafter), "drafted") else WatchedDrafter()


def first_not_finite(largest: list[Tensor]) -> tuple[int, float] | None:
    """The place and value of the first that is not finite. A row's largest logit is NaN, infinite or minus infinity exactly
    where a token cannot be drawn from it: a NaN, a plus infinity, or nothing but minus infinities."""
    if not largest:
        return None
    values = torch.stack(largest).double().cpu()
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    return (wrong[0], float(values[wrong[0]])) if wrong else None
