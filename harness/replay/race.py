"""A race: every set of options decodes the same prompts, interleaved with vanilla. The hopeless leave early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import methods
from harness.common.errors import UserError, say
from harness.load.model import Loaded
from harness.replay.prompts import params
from harness.watch.run import names_of, watched

# after so many prompts options leave the race that are this far behind the best
FAIR_TRIAL = 2
HOPELESS = 0.8


@dataclass(frozen=True, slots=True)
class Raced:
    """Options, and what decoding with them gave: tau and decode speedup over vanilla, pooled over prompts."""

    options: Mapping[str, Any]
    tau: float
    speedup: float


def race(
    loaded: Loaded, m: methods.Method, tried: Sequence[Mapping[str, Any]], *, temperature: float, prompts: Sequence[list[int]],
    max_new_tokens: int,
) -> list[Raced]:  # fmt: skip
    """Have vanilla and all sets of options decode prompt after prompt, in an order that rotates -> the sets, best first.

    Sets that left early come last. tried: the sets of options; prompts: token ids.

    Raises:
        UserError: no prompt has an answer of more than one token.
    """
    drafter, names = loaded.drafter_of(m.drafter), names_of(loaded, m.drafter)
    decodes = [methods.get("vanilla").build(), *(m.build(**options) for options in tried)]
    n = len(decodes)
    running = np.ones(n, bool)
    seconds, tokens, forwards, speedups = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    for i, prompt in enumerate([prompts[0], *prompts]):  # the first one warms up
        say(f"decoding prompt {max(i, 1)} of {len(prompts)} with {running.sum() - 1} sets of options and without drafts ...")
        for j in np.roll(np.flatnonzero(running), i):
            how = params(loaded, i, temperature, max_new_tokens)
            seen = watched(decodes[j], prompt, loaded.target, drafter if j else None, how, names)
            made, spent = seen.generation, seen.wall_s - seen.generation.prefill_s
            if i and made.trace is not None:
                seconds[j], tokens[j] = seconds[j] + spent, tokens[j] + len(made.token_ids) - 1
                forwards[j] += len(made.trace.accepted)
        if forwards.all():
            rates = tokens / seconds
            speedups[running] = rates[running] / rates[0]  # of those out of the race as they stood when they left it
            if i >= FAIR_TRIAL:
                running[1:] &= speedups[1:] >= HOPELESS * speedups[1:][running[1:]].max()
    if not forwards.all():
        raise UserError("none of the held-out prompts has an answer of more than one token: there is nothing to tune on")
    # what left has decoded fewer prompts, at which its speed is no rival to that of the others
    ranked = sorted(range(1, n), key=lambda j: (not running[j], -speedups[j]))
    return [Raced(tried[j - 1], tokens[j] / forwards[j], speedups[j]) for j in ranked]
