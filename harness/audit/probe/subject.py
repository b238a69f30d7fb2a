"""What is audited: a registered method as tables measure it, or a fault planted on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import methods
from harness.audit.probe.law import deep_options, small_options
from harness.load.config import ModelConfig
from harness.load.model import Loaded
from methods.base import Decode


@dataclass(frozen=True, slots=True)
class Subject:
    """A method under audit. `full()` decodes with the options that tables measure. `small`: by their options, the same method on
    trees whose every branch can be walked.

    `deep`: the same on a tree five levels deep, if the method has one.

    `external`: another's loop, which keeps no logits. `samples_drafts`: at T > 0 its law is the target's, but its tokens are not
    vanilla's. `kind`: of its drafter. `spoilt`, `misled`: a fault planted in the target or in the drafter.
    """

    name: str
    full: Callable[..., Decode]
    small: Mapping[str, Callable[[], Decode]]
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    external: bool = False
    samples_drafts: bool = False
    kind: str | None = methods.EAGLE
    needs_frequent: bool = False
    code: str = ""
    spoilt: Callable[[Any], Any] | None = None
    misled: Callable[[Any], Any] | None = None
    deep: Mapping[str, Callable[[], Decode]] = field(default_factory=dict)

    @classmethod
    def of(cls, m: methods.Method, config: ModelConfig) -> Subject:
        options = m.resolve("paper", {}, config.presets if m.needs_head else {})
        small = {_words(small): partial(m.build, **small) for small in small_options(m)}
        deep = deep_options(m)
        return cls(
            m.name, lambda **changes: m.build(**options | changes), small, options, m.exact, m.external,
            m.samples_drafts, m.drafter, m.needs_frequent, methods.code_sha(m.name),
            deep={_words(deep): partial(m.build, **deep)} if deep else {},
        )  # fmt: skip

    def with_options(self, changes: Mapping[str, Any]) -> Self:
        """The same method with those of `changes` that are options of its own."""
        mine = {name: value for name, value in changes.items() if name in self.options}
        return replace(self, full=partial(self.full, **mine), options={**self.options, **mine}) if mine else self

    def lacks(self, loaded: Loaded) -> str | None:
        """What the model lacks that the method needs; None for nothing."""
        if self.kind is not None and loaded.drafter_of(self.kind) is None:
            return f"{loaded.config.name} has no {methods.DRAFTERS[self.kind]}"
        if self.needs_frequent and loaded.frequent_sha_of(self.kind) is None:
            return "there is no list of frequent tokens beside the head"
        return None

    def drafter(self, loaded: Loaded) -> Any:
        drafter = loaded.drafter_of(self.kind)
        return self.misled(drafter) if self.misled and drafter is not None else drafter

    def target(self, loaded: Loaded) -> Any:
        return self.spoilt(loaded.target) if self.spoilt else loaded.target


def _words(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())
