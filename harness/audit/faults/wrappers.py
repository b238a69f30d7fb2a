"""Faults around a healthy method: in its target, in its drafter, or in its loop. Nothing here is registered as a method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.audit.faults.rules import Options, dynamic
from methods.base import Decode, Generation, SamplerParams
from methods.engine.loop import speculative
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree
from methods.engine.verify import walk


class WrongRows:
    """A target whose cache keeps other rows than it is told to. All else is the target's own."""

    def __init__(self, target: Any, fault: str):
        self._target, self._fault = target, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def commit(self, path: list[int]) -> None:
        if self._fault == "first rows":
            path = list(range(len(path)))
        elif self._fault == "one short" and len(path) > 1:
            path = path[:-1]
        elif self._fault == "not cropped":
            path = [*path, path[-1] + 1] if path[-1] + 1 < self._n_nodes() else path
        self._target.commit(path)

    def _n_nodes(self) -> int:
        n: int = getattr(self._target, "_n_pending", 0)
        return n


class LastBit:
    """A target that turns the last bit of one number in the row of each tree's first draft: of its logits, or its features."""

    def __init__(self, target: Any, of: str):
        self._target, self._of = target, of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def verify(self, tree: Tree) -> Any:
        features, logits = self._target.verify(tree)
        row = min(1, len(tree) - 1)
        return (with_last_bit(features, row), logits) if self._of == "features" else (features, with_last_bit(logits, row))


class RejectedBits:
    """A target that turns the last bit of one logit of each draft that a greedy walk does not accept."""

    def __init__(self, target: Any):
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def verify(self, tree: Tree) -> Any:
        features, logits = self._target.verify(tree)
        kept = walk(tree, logits, Chooser(SamplerParams(1)), 0).path
        for row in set(range(len(tree))) - set(kept):
            logits = with_last_bit(logits, row)
        return features, logits


@torch.inference_mode()
def with_last_bit(rows: Tensor, row: int) -> Tensor:
    """A copy of rows [n, d], in which the first number of one row has another last bit."""
    rows = rows.clone()
    rows[row : row + 1, :1].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]).bitwise_xor_(1)
    return rows


class StaleDrafter:
    """A drafter that gets each token with the feature of one token earlier than it should."""

    def __init__(self, drafter: Any):
        self._drafter = drafter
        self._last: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def observe(self, tokens: list[int], features: Tensor) -> None:
        before = features[:1] if self._last is None else self._last
        self._last = features[-1:]
        self._drafter.observe(tokens, torch.cat([before, features[:-1]]))


class WrongHead:
    """A drafter whose logits are those of another vocabulary: the columns are turned by one."""

    def __init__(self, drafter: Any):
        self._drafter = drafter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def root_logits(self) -> Tensor:
        return self._drafter.root_logits().roll(1, -1)

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        return self._drafter.expand(tokens, parents, sees).roll(1, -1)


def greedy_first(tree: Options) -> Decode:
    """The first token is the argmax at any temperature."""
    decode = speculative(dynamic(tree))

    class First(Chooser):
        def __init__(self, inner: Chooser):
            super().__init__(inner.params)
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def token(self, logits: Tensor, position: int) -> int:
            return int(logits.argmax()) if position == 0 else self.inner.token(logits, position)

        def draw(self, p: Tensor, position: int) -> int:
            return self.inner.draw(p, position)

        def accept(self, probability: float, position: int, attempt: int) -> bool:
            return self.inner.accept(probability, position, attempt)

        def children(self, q: Tensor, k: int, position: int, node: int) -> Any:
            return self.inner.children(q, k, position, node)

    def run(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        made = params.chooser
        return decode(ids, target, drafter, replace(params, chooser=lambda p: First(made(p) if made else Chooser(p))))

    return run


def ignores_stop(tree: Options) -> Decode:
    """A stop id ends the output only at the end of a block, not inside an accepted one."""
    decode = speculative(dynamic(tree))

    def run(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        made = decode(ids, target, drafter, replace(params, stop_ids=frozenset()))
        assert made.trace is not None
        end, at = len(made.token_ids), 1
        for accepted in made.trace.accepted:
            at += accepted + 1
            if at <= end and made.token_ids[at - 1] in params.stop_ids:
                return replace_ids(made, made.token_ids[:at], "stop")
        return made

    return run


def overshoots(tree: Options) -> Decode:
    """The budget is exceeded by three tokens."""
    decode = speculative(dynamic(tree))

    def run(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        return decode(ids, target, drafter, replace(params, max_new_tokens=params.max_new_tokens + 3))

    return run


def replace_ids(made: Generation, ids: list[int], finish: str) -> Generation:
    return Generation(ids, finish, made.n_cut, made.prefill_s, made.trace)
