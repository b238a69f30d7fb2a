"""Where the time of a decoding step goes, by a table of costs.

The decoding loop runs unchanged. What it asks of the drafter is counted, and the trees it verifies; their price is the table's.
The whole of a step is timed, too: what the table makes of it stands beside that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import methods
from harness.costs.outside import Decoded, decoded
from harness.costs.table import CostTable
from harness.load.model import Loaded
from harness.watch.run import names_of
from methods import Arm
from methods.base import SamplerParams

TARGET, ACCEPTED, LOOP = "target forward", "draft level 0 (accepted tokens)", "loop, acceptance, cache"
GROWTH, MASK = "growth (top-k, scores)", "tree and mask"


@dataclass(frozen=True, slots=True)
class Profile:
    """Milliseconds a step of one method by the table, by part, over `steps` steps of `tau` tokens each; `measured_ms`: what one
    took by the clock."""

    method: str
    preset: str
    steps: int
    tau: float
    parts: dict[str, float]
    measured_ms: float

    @property
    def total(self) -> float:
        """Milliseconds of a whole step by the table."""
        return sum(self.parts.values())


def profiled(
    loaded: Loaded, arms: Sequence[Arm], tables: Mapping[int | None, CostTable], prompts: Sequence[list[int]],
    params: SamplerParams,
) -> list[Profile]:  # fmt: skip
    """Decode prompts (token ids) with each arm in turn, and price its steps. The prefill is no step, and is left out.

    tables: by how many frequent tokens a draft head's logits are over; None: all. Each has the arms' drafters.
    """
    decodes = [arm.method.build(**arm.options) for arm in arms]
    found: list[list[tuple[list[int], Decoded]]] = [[] for _ in arms]
    for i, ids in enumerate([prompts[0], *prompts]):  # the first one warms up
        for arm, decode, own in zip(arms, decodes, found, strict=True):
            kind = arm.method.drafter
            made = decoded(decode, ids, loaded.target, loaded.drafter_of(kind), params, names_of(loaded, kind))
            if i and made.work.steps:
                own.append((ids, made))
    return [_profile(arm, tables[frequent_of(arm)], own) for arm, own in zip(arms, found, strict=True)]


def frequent_of(arm: Arm) -> int | None:
    """Over how many frequent tokens an arm's draft head predicts; None: all, or it has none."""
    return arm.options.get("frequent") if arm.method.drafter == methods.EAGLE else None


def _profile(arm: Arm, table: CostTable, found: Sequence[tuple[list[int], Decoded]]) -> Profile:
    ms: defaultdict[str, float] = defaultdict(float)
    o, plain = table.outside, arm.method.drafter is None and not any(any(d.sizes) for _, d in found)
    for ids, d in found:
        context = len(ids) + int(d.work.tokens) // 2
        for size in d.sizes:
            ms[TARGET] += (table.plain(context) if plain else table.verify(size + 1, context)).ms
        if plain:
            ms[LOOP] += o.plain * d.work.steps
            continue
        kind = arm.method.drafter or ""
        for (level, rows), times in sorted(d.calls.items()):
            if level == 0:
                ms[ACCEPTED] += times * table.observe(rows, context, kind).ms
            elif level == 1:
                ms["draft level 1"] += times * table.root(context, kind).ms
            else:
                ms[f"draft level {level}"] += times * table.level(rows, context, kind, level - 1).ms
        ms[GROWTH] += o.level * d.work.levels + o.row * d.work.rows
        ms[MASK] += o.node * d.work.nodes
        ms[LOOP] += o.step * d.work.steps + o.token * d.work.tokens
    steps, tokens = sum(d.work.steps for _, d in found), sum(d.work.tokens for _, d in found)
    seconds = sum(d.seconds for _, d in found)
    parts = {part: ms[part] / steps for part in sorted(ms, key=place)}
    return Profile(arm.name, arm.preset, int(steps), tokens / steps, parts, 1e3 * seconds / steps)


def _level(part: str) -> int:
    return int(part.split()[2]) if part.startswith("draft level") else -1


def place(part: str) -> float:
    """Sort key of a part in a bar: the target, the draft's levels, the rest."""
    if part == TARGET:
        return 0
    return 1 + _level(part) if part.startswith("draft level") else 1e3 + (GROWTH, MASK, LOOP).index(part)


def all_parts(profiles: Sequence[Profile]) -> list[str]:
    """Every part that any profile has."""
    return sorted({part for p in profiles for part in p.parts}, key=place)


def outside(p: Profile) -> float:
    """The share of a step that is spent in neither model."""
    return sum(ms for part, ms in p.parts.items() if part != TARGET and not part.startswith("draft level")) / p.total
