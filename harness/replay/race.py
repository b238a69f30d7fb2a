"""A race: every set of options decodes the same prompts, interleaved with vanilla. The hopeless leave early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import methods
from harness.common.errors import UserError, say
from harness.load.model import Loaded
from harness.metrics.definitions import Estimate, estimated
from harness.metrics.intervals import Array
from harness.replay.prompts import Prompt, params
from harness.watch.run import names_of, settled
from methods.engine.engines import begin, prepare

# after so many prompts options leave the race that are this far behind the best
FAIR_TRIAL = 2
HOPELESS = 0.8


@dataclass(frozen=True, slots=True)
class Raced:
    """Options, and what decoding with them gave.

    `columns` [6, prompts]: seconds after the prefill, tokens after the prefill's one, and target forwards, of the options and
    then of vanilla on the same prompts.
    """

    options: Mapping[str, Any]
    columns: Array

    @property
    def tau(self) -> Estimate:
        """Tokens a target forward, pooled over prompts, with its interval where there are enough prompts."""
        return estimated([self.columns], lambda sums: sums[1] / sums[2], 0.0)

    @property
    def speedup(self) -> Estimate:
        """Decode speedup over vanilla, as `tau`."""
        return estimated([self.columns], lambda sums: sums[1] / sums[0] / (sums[4] / sums[3]), 0.0)

    @property
    def rank(self) -> float:
        """The speedup as a number, to sort by."""
        return self.speedup.value or 0.0

    @property
    def prompts(self) -> int:
        return self.columns.shape[1]

    @property
    def vanilla_step(self) -> float:
        """Seconds of a step of vanilla."""
        return float(self.columns[3].sum() / self.columns[4].sum())


def race(
    loaded: Loaded, m: methods.Method, tried: Sequence[Mapping[str, Any]], *, temperature: float, prompts: Sequence[Prompt],
    max_new_tokens: int,
) -> list[Raced]:  # fmt: skip
    """Have vanilla and all sets of options decode prompt after prompt, in an order that rotates -> the sets, best first.

    Sets that left early come last. tried: the sets of options.

    Raises:
        UserError: no prompt has an answer of more than one token.
    """
    drafter, names = loaded.drafter_of(m.drafter), names_of(loaded, m.drafter)
    decodes = [methods.get("vanilla").build(), *(m.build(**options) for options in tried)]
    n = len(decodes)
    running = np.ones(n, bool)
    runs: list[list[tuple[float, ...]]] = [[] for _ in decodes]

    def raced(j: int) -> Raced:
        base = runs[0][: len(runs[j])]  # who left early is held against vanilla as it stood then
        return Raced(tried[j - 1], np.array([[*own, *other] for own, other in zip(runs[j], base, strict=True)]).T)

    begin(loaded.target, [drafter])  # nothing is recorded for what a race before this one asked for
    for i, prompt in enumerate([prompts[0], *prompts]):  # the first one warms up
        say(f"decoding prompt {max(i, 1)} of {len(prompts)} with {running.sum() - 1} sets of options and without drafts ...")
        for j in np.roll(np.flatnonzero(running), i):
            how = params(loaded, prompt, temperature, max_new_tokens)
            seen = settled(partial(decodes.__getitem__, j), prompt.ids, loaded.target, drafter if j else None, how, names)
            made, spent = seen.generation, seen.wall_s - seen.generation.prefill_s
            if i:  # an answer of one token has no step: it adds nothing
                runs[j].append((spent, len(made.token_ids) - 1, len(made.trace.accepted) if made.trace else 0))
        if not i:  # what all have warmed up with
            prepare(loaded.target, [drafter], max(len(p.ids) for p in prompts) + max_new_tokens)
        if i >= FAIR_TRIAL and _have_steps(runs):
            ranks = np.array([raced(j).rank if running[j] else 0.0 for j in range(1, n)])
            running[1:] &= ranks >= HOPELESS * ranks.max()
    if not _have_steps(runs):
        raise UserError("none of the held-out prompts has an answer of more than one token: there is nothing to tune on")
    # what left has decoded fewer prompts, at which its speed is no rival to that of the others
    ranked = sorted(range(1, n), key=lambda j: (not running[j], -raced(j).rank))
    return [raced(j) for j in ranked]


def _have_steps(runs: Sequence[Sequence[tuple[float, ...]]]) -> bool:
    return all(sum(forwards for _, _, forwards in own) for own in runs)
