"""Layer 4, sampled outputs: the same ids as vanilla's in float64, and score tests over many tokens in float32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from harness.audit.probe.scores import ALPHA, FUNCTIONS, Score, rate_bound, score, tokens_needed
from harness.audit.verdicts.greedy import on_smaller_trees
from harness.audit.verdicts.verdict import Finding, Verdict, beyond, broken, by_cell, counted, unlikely
from harness.metrics.intervals import holm


def coupled_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L4, identical ids at T > 0 in float64 and on a row-invariant engine, for methods that draw the target's own tokens."""
    found = []
    for (dtype, method), mine in by_cell(findings, "coupled").items():
        layer = f"L4 same ids at T = 1, {dtype}"
        if failed := broken(layer, method, mine):
            found.append(failed)
            continue
        wrong = [f for f in mine if f["at"] is not None]
        worst = f"{len(wrong)} differ, first at token {min(f['at'] for f in wrong)}" if wrong else "all identical"
        bound = f"fault rate under {rate_bound(len(wrong), len(mine)):.2%} of outputs (95 %)"
        checked = f"{counted(len(mine), 'output')}{on_smaller_trees(mine)}, {counted(sum(f['n'] for f in mine), 'token')}"
        why = "drafts that are themselves drawn at random are declared: samples_drafts=True" if wrong else ""
        found.append(
            Verdict(layer, method, checked, worst, "identical", bound, not wrong, why, cells=len(mine), ratio=beyond(len(wrong)))
        )
    return found


def drawn_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L4, token by token: each is the one that its position's random number names in the law of its logits, as vanilla's are."""
    found = []
    for (dtype, method), mine in by_cell(findings, "sampled").items():
        kept = [f for f in mine if "misdrawn" in f]
        if not kept:
            continue
        n, at = sum(f["n"] for f in kept), [i for f in kept for i in f["misdrawn"]]
        worst = f"{len(at)} others, the first at {min(at)}" if at else "all as named"
        bound = f"fault rate under {rate_bound(len(at), n):.2%} of tokens (95 %)"
        why = "drafts that are themselves drawn at random are declared: samples_drafts=True" if at else ""
        found.append(
            Verdict(f"L4 own draws, T > 0, {dtype}", method, f"{counted(len(kept), 'output')}, {counted(n, 'token')}", worst,
                    "the token that the random number names", bound, not at, why, cells=len(kept), ratio=beyond(len(at)))
        )  # fmt: skip
    return found


SHIFT = 0.02  # the shift of a mean that a cell of 80 prompts x 256 tokens finds


def _needed(scores: Sequence[Score]) -> int:
    """Tokens with which every function that is a probability finds a shift of SHIFT."""
    return max((tokens_needed(s.detectable, SHIFT, s.n) for s in scores if not s.function.startswith("log")), default=0)


def scores_of(mine: Sequence[Finding], n_tests: int) -> list[Score]:
    """The six tests over all tokens of one method."""
    n, (deviations, variances) = sum(f["n"] for f in mine), (
        [sum(f[column][i] for f in mine) for i in range(len(FUNCTIONS))] for column in ("deviations", "variances")
    )  # fmt: skip
    return [score(function, n, deviations[i], variances[i], n_tests) for i, function in enumerate(FUNCTIONS)]


def score_verdicts(findings: Iterable[Finding], wanted_tokens: int = 0) -> list[Verdict]:
    """L4: the martingale score test. Six functions a method, Holm over the whole family, vanilla's own tests included."""
    cells = by_cell(findings, "sampled")
    rows = {m: scores_of([f for f in mine if "n" in f], len(cells) * len(FUNCTIONS)) for (_, m), mine in cells.items()}
    flat = [(m, s) for m, scores in rows.items() for s in scores]
    adjusted = dict(zip(((m, s.function) for m, s in flat), holm([s.p_value for _, s in flat]), strict=True))
    found = []
    for (dtype, method), mine in cells.items():
        layer = f"L4 score test, T > 0, {dtype}"
        if failed := broken(layer, method, mine):
            found.append(failed)
            continue
        worst = min(rows[method], key=lambda s: (adjusted[method, s.function], s.p_value))
        p, n = adjusted[method, worst.function], worst.n
        finite = [s for s in rows[method] if math.isfinite(s.detectable)]
        short = f"{wanted_tokens - n:,} tokens are missing of {wanted_tokens:,}" if n < wanted_tokens else ""
        if not finite:
            short = "no function of the tokens varied: nothing was tested"
        passed = False if p < ALPHA else None if short else True
        found.append(
            Verdict(
                layer, method, f"{counted(n, 'token')}, {len(FUNCTIONS)} functions",
                f"p = {p:.2g} ({worst.function}: {worst.mean:+.2g} [{worst.ci95[0]:+.2g}, {worst.ci95[1]:+.2g}])",
                f"Holm-adjusted p {ALPHA:g}",
                "; ".join(f"{s.function} {s.detectable:.2g}" for s in finite) + f"; {SHIFT:g} needs {_needed(finite):,} tokens",
                passed, short, blocks=passed is None, cells=len(mine), ratio=unlikely(p),
            )
        )  # fmt: skip
    return found
