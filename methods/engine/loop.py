"""The decoding loop of every drafting method (EAGLE-2, arXiv 2406.16858, section 4): draft, verify, accept, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from methods.base import Decode, Drafter, Generation, SamplerParams, Target, Trace
from methods.engine.clock import wait_for
from methods.engine.sampling import Chooser
from methods.engine.stopping import Output
from methods.engine.transfer import sent
from methods.engine.tree import Tree
from methods.engine.verify import Verify, walk


@dataclass(slots=True)
class Context:
    """What a grower may look at besides its drafter: `tokens` (prompt and output, the root last), output `position`.

    `logits` [n, vocab]: the target's, over the nodes of the tree grown last (None before the first); `kept`: whatever the grower
    keeps from step to step of this generation, None before its first. `keeps_trees`: the
    tree will be asked for its confidences.
    """

    tokens: list[int]
    position: int
    chooser: Chooser
    keeps_trees: bool = False
    logits: Tensor | None = None
    kept: Any = None

    @property
    def root(self) -> int:
        return self.tokens[-1]


@dataclass(frozen=True, slots=True)
class Grow:
    """How a method drafts: `tree(drafter, context) -> Tree`; `most` bounds its draft nodes and its drafter entries;
    `frequent`: the drafter predicts over so many frequent tokens only (None: over all)."""

    tree: Callable[[Drafter | None, Context], Tree]
    most: int
    frequent: int | None = None


def speculative(grow: Grow, verify: Verify = walk) -> Decode:
    """A decoding method from a grower and a verification rule. Exact for every grower `verify` is exact for."""

    def decode(prompt_ids: list[int], target: Target, drafter: Drafter | None, params: SamplerParams) -> Generation:
        started = time.perf_counter()
        chooser, output, trace = Chooser.of(params), Output(params), Trace()
        # the last step may start one token short of the budget and holds the tree besides
        room = params.max_new_tokens + grow.most + 1
        features, logits = prefilled(target, drafter, prompt_ids, room)
        context = Context([*prompt_ids, chooser.token(logits, 0)], 1, chooser, params.keep_trees)
        over = output.extend(context.tokens[-1:])
        if drafter is not None and not over:
            drafter.start(len(prompt_ids) + room, grow.frequent, prompt_ids[0])
            drafter.observe(context.tokens[1:], features)  # pair (f_i, t_{i+1}): the tokens one to the right of the features
        wait_for(features)  # the drafter's run over the prompt is the prefill's, not the first step's
        prefill_s = time.perf_counter() - started
        inside = target.forward_s, _forward_s(drafter)
        while not over:
            began = time.perf_counter()
            tree = grow.tree(drafter, context)
            drafted = time.perf_counter()
            features, logits = target.verify(tree)
            context.logits = logits
            accepted = verify(tree, logits, chooser, context.position)
            keeping_s = trace.keep(tree, accepted.path) if params.keep_trees else 0.0  # off every clock
            target.commit(accepted.path)
            new = [*(tree.tokens[i] for i in accepted.path[1:]), accepted.bonus]
            context.tokens.extend(new)
            context.position += len(new)
            over = output.extend(new)
            verified = time.perf_counter()
            if drafter is not None and not over:
                drafter.observe(new, features[sent(accepted.path, features.device)])
            ended = time.perf_counter()
            before, inside = inside, (target.forward_s, _forward_s(drafter))
            trace.add(
                tree.n_draft, len(new) - 1, drafted - began + ended - verified, verified - drafted - keeping_s,
                inside[0] - before[0], inside[1] - before[1],
            )  # fmt: skip
        assert output.finish is not None
        return Generation(output.token_ids, output.finish, output.n_cut, prefill_s, trace)

    return decode


def prefilled(target: Any, drafter: Drafter | None, prompt_ids: list[int], room: int) -> tuple[Tensor, Tensor]:
    """`target.prefill`, with those hidden states as features that the drafter observes."""
    aux_layers: tuple[int, ...] = getattr(drafter, "aux_layers", ())
    features, logits = target.prefill(prompt_ids, room, *([aux_layers] if aux_layers else ()))
    return features, logits


def _forward_s(drafter: Drafter | None) -> float:
    return drafter.forward_s if drafter is not None else 0.0
