"""Layer 5: whether a method's tau fell since it was last recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.audit.verdicts.verdict import EXACT_DTYPES, Finding, Verdict, by_cell, counted
from harness.metrics.intervals import jackknife

LEAST_TAU = 1.05  # a method with a draft head that drafts nothing right is broken, whatever its law
DRAFTS_OFF = 1e-3  # in the probability of a first draft; rounding shows under 1e-5 in float32
LOST = 0.02  # the share of a recorded tau that may be lost unnoticed
FEWEST = 3  # prompts: with fewer the change itself is judged, without an interval
# A change beyond a limit is found 95 times in 100 if it is so many half widths of a 95 % interval: (1.96 + 1.64) / 1.96.
FOUND = 1.84


def acceptance_verdicts(findings: Iterable[Finding], recorded: Mapping[tuple[str, str], Finding]) -> list[Verdict]:
    """L5: tau beside a recorded figure on the same prompts. Faults that leave the law alone show nowhere else.

    recorded: (method, prompt) -> an earlier greedy finding in float32, with the same weights and options and other code.
    """
    found, layer = [], "L5 acceptance, float32"
    for method, whole in drafted(findings).items():
        tau = sum(f["emitted"] for f in whole) / sum(f["forwards"] for f in whole)
        pairs = paired_taus(whole, recorded)
        checked = f"{counted(len(whole), 'output')}, {counted(sum(f['forwards'] for f in whole), 'forward')}"
        if not pairs:
            if whole[0]["has_head"]:
                found.append(Verdict(layer, method, checked, f"tau {tau:.2f}", f"over {LEAST_TAU}", f"tau under {LEAST_TAU}",
                                     tau > LEAST_TAU, "no recorded figure to compare with", cells=len(whole),
                                     ratio=LEAST_TAU / tau))  # fmt: skip
            continue
        t = tau_change(pairs)
        limit = -LOST * t.recorded
        worst = f"tau {t.tau:.2f} against {t.recorded:.2f}: {t.change:+.3f} [{t.low:+.3f}, {t.high:+.3f}]"
        holds = t.high >= limit and (tau > LEAST_TAU or not whole[0]["has_head"])
        allowed, seen = f"not below {limit:+.3f} with 95 %", f"a loss of {FOUND * (t.change - t.low) - limit:.3f}"
        ratio = max(t.high / limit, LEAST_TAU / tau if whole[0]["has_head"] else 0.0)
        found.append(Verdict(layer, method, checked, worst, allowed, seen, holds, cells=len(pairs), ratio=ratio))
    return found


def drafts_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L5: the EAGLE head's first drafts, step by step, beside those of one pass over the finished text.

    A stale feature, or a wrong row in the head's cache, changes no output.
    """
    found = []
    for (dtype, method), mine in by_cell(findings, "greedy").items():
        values = [x for f in mine for x in f.get("drafts", [])]
        if not values or dtype not in EXACT_DTYPES:
            continue
        worst = max(values)
        found.append(
            Verdict(f"L5 first drafts, {dtype}", method, counted(len(values), "step"), f"{worst:.1e}",
                    f"{DRAFTS_OFF:g} in the probability of a token", f"a feature that moves a first draft by {DRAFTS_OFF:g}",
                    worst <= DRAFTS_OFF, cells=sum("drafts" in f for f in mine), ratio=worst / DRAFTS_OFF)
        )  # fmt: skip
    return found


def drafted(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """method -> its greedy float32 findings with forwards to count. Vanilla drafts nothing and is left out; so is what a guided
    drafter was told, and what ran on a target's first layers alone, for which no drafter was trained."""
    cells = {m: mine for (dtype, m), mine in by_cell(findings, "greedy").items() if dtype == "float32" and m != "vanilla"}
    whole = {m: [f for f in mine if f.get("forwards") and not f.get("guided") and "layers" not in f] for m, mine in cells.items()}
    return {m: mine for m, mine in whole.items() if mine}


@dataclass(frozen=True, slots=True)
class TauChange:
    """Over the prompts that both have: tau, the recorded tau, and the change with its 95 % interval (jackknife over prompts)."""

    tau: float
    recorded: float
    change: float
    low: float
    high: float


def tau_change(pairs: Sequence[tuple[Finding, Finding]]) -> TauChange:
    """pairs: (finding, recorded counts) by prompt."""
    counts = np.array([[a["emitted"], a["forwards"], b["emitted"], b["forwards"]] for a, b in pairs], dtype=float).T

    def change(sums: np.ndarray) -> np.ndarray:
        return sums[0] / sums[1] - sums[2] / sums[3]

    emitted, forwards, before, forwards_before = sums = counts.sum(axis=1)
    value, spread = float(change(sums)), jackknife([counts], change, least=FEWEST)
    low, high = spread.interval() if spread else (value, value)
    return TauChange(float(emitted / forwards), float(before / forwards_before), value, low, high)


def paired_taus(mine: Sequence[Finding], recorded: Mapping[tuple[str, str], Finding]) -> list[tuple[Finding, Finding]]:
    return [(f, recorded[f["method"], f["prompt"]]) for f in mine if (f["method"], f["prompt"]) in recorded]
