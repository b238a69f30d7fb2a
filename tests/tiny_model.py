"""What tests do with the tiny model of tests/tiny: decode by a method's name, keep vanilla's answers, watch the trees."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import torch
from places import TINY

import methods
import tasks
from harness.load.config import model_config
from harness.load.model import Loaded, load
from methods.base import Generation, SamplerParams
from methods.engine.tree import Tree

STOP_IDS = frozenset({0, 2})


class Spy:
    """A target that keeps the trees it was asked to verify and the paths committed; all else is the target's own."""

    def __init__(self, target: Any):
        self._target = target
        self.trees: list[Tree] = []
        self.paths: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def verify(self, tree: Tree) -> Any:
        self.trees.append(tree)
        return self._target.verify(tree)

    def commit(self, path: list[int]) -> None:
        self.paths.append(path)
        self._target.commit(path)


class TinyModel:
    """A loaded model and what tests ask of it."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        self._known: dict[tuple[tuple[int, ...], SamplerParams], Generation] = {}

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Twelve prompts, two of each task, rendered with the chat template: 33 to 1,485 tokens."""
        sets = [tasks.load(name, source="bundled", limit=2) for name in tasks.names()]
        return [self.encode(prompt.turns[0]) for prompts in sets for prompt in prompts.prompts]

    def encode(self, text: str) -> list[int]:
        return self.loaded.encode(self.loaded.render([("user", text)]))

    def decode(self, method: str, prompt: list[int], params: SamplerParams, *, target: Any = None, **options: Any) -> Generation:
        """`method` with its default options, except those given, on this model or on `target` in its place."""
        found = methods.get(method)
        decode = found.build(**{**found.options, **options})
        return decode(prompt, target or self.loaded.target, self.loaded.drafter_of(found.drafter), params)

    def vanilla(self, prompt: list[int], params: SamplerParams) -> Generation:
        key = (tuple(prompt), params)
        if key not in self._known:
            self._known[key] = self.decode("vanilla", prompt, params)
        return self._known[key]

    def spy(self) -> Spy:
        return Spy(self.loaded.target)


def fresh_tiny_model(dtype: str) -> TinyModel:
    # two models of a few hundred kB gain nothing from more threads, and a busy machine loses
    torch.set_num_threads(1)
    return TinyModel(load(model_config(str(TINY)), dtype=dtype, drafters=methods.DRAFTERS))


shared_tiny_model = cache(fresh_tiny_model)
