"""Findings -> verdicts, layer by layer. Pure functions of what the audit wrote down; nothing is run here.

A verdict is never a bare boolean: beside it stand the worst value seen, the threshold and where it comes from, and the
smallest fault that would have been noticed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from harness.audit.law import TOLERANCE
from harness.audit.scores import ALPHA, FUNCTIONS, Score, holm, more_often, rate_bound, score, tokens_needed

EXACT_DTYPES = ("float64", "float32")  # where layer 2 judges by the largest difference
REPLAY_FACTOR = 20.0  # times the control's largest difference
MEDIAN_FACTOR = 3.0  # times the control's median, in 16 bits
GAP_FACTOR = 1.5  # times the control's largest gap noise
# In float64 transformers' norms still round to float32: two forwards agree to 1e-14 until an element falls on the other side
# of a rounding boundary, and then to 1e-7. A fault moves logits by whole units.
FLOOR = {"float64": 1e-5}
# What rounding can do to the control itself (in 16 bits: to its median). A fault of the engine is in the control as well, and
# thresholds that are multiples of its noise would excuse it. Healthy, on SmolLM2-135M: 1e-7, 1e-4, 0.55 at most in bfloat16;
# wrong masks, positions and cache rows there move logits by 4 and more in the median.
MOST_NOISE = {"float64": 1e-4, "float32": 1e-2, "bfloat16": 1.0, "float16": 1.0}

Finding = Mapping[str, Any]
Cells = dict[tuple[str, str], list[Finding]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the audit's table. `passed` None: not judged, and `why` says why; then `blocks` tells whether something is
    missing (the audit does not hold) or the layer does not apply to the method.

    `cells`: the cases walked or outputs looked at, of a ledger its cells; `ratio`: the worst value over the threshold, over 1
    where it fails. Where nothing may differ it is 0, or 1 and the number of those that do.
    """

    layer: str
    method: str
    checked: str
    worst: str
    threshold: str
    detectable: str
    passed: bool | None
    why: str = ""
    blocks: bool = False
    raised: bool = False  # its code raised an error
    cells: int = 0
    ratio: float = 0.0

    @classmethod
    def not_applicable(cls, layer: str, method: str, why: str) -> Verdict:
        return cls(layer, method, "—", "—", "—", "—", None, why)

    @classmethod
    def missing(cls, layer: str, method: str, why: str) -> Verdict:
        return cls(layer, method, "—", "—", "—", "—", None, why, blocks=True)


def broken(layer: str, method: str, mine: Sequence[Finding]) -> Verdict | None:
    """The verdict where a run of the method raised an error."""
    errors = [f["error"] for f in mine if "error" in f]
    if not errors:
        return None
    return Verdict(layer, method, f"{len(mine)} runs", f"{len(errors)} raised {errors[0]}", "no errors", "—", False,
                   "the next run tries again", raised=True, cells=len(mine), ratio=beyond(len(errors)))  # fmt: skip


def beyond(n_wrong: int) -> float:
    """The ratio where nothing may be wrong."""
    return 1.0 + n_wrong if n_wrong else 0.0


def unlikely(p_value: float) -> float:
    """The ratio of a test: 1 at p = ALPHA, twice that at its square."""
    return abs(math.log(max(p_value, 1e-300)) / math.log(ALPHA))


def share(worst: float, limit: float) -> float:
    """The ratio of a worst value to its limit, which a control without any noise sets to 0."""
    return worst / limit if limit else beyond(int(worst > 0))


def counted(n: int, what: str) -> str:
    """`1 output`, `20 outputs`."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def by_cell(findings: Iterable[Finding], *kinds: str) -> Cells:
    """(dtype, method) -> its findings of these kinds."""
    cells: Cells = defaultdict(list)
    for f in findings:
        if f["kind"] in kinds:
            cells[f.get("dtype", ""), f["method"]].append(f)
    return cells


# ---- layer 1 ----


def law_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L1: the largest error of the probability of any output, over all cases."""
    found, layer = [], "L1 exact law"
    for (_, method), mine in by_cell(findings, "law").items():
        walked = [f for f in mine if "deviation" in f]
        wrong = [f for f in mine if "broken" in f]
        refused = [f for f in mine if "refused" in f]
        worst = max(walked, key=lambda f: f["deviation"], default=None)
        bad = worst is not None and not worst["deviation"] <= TOLERANCE
        trees = len({f.get("tree") for f in walked})
        checked = f"{counted(len(walked), 'case')} on {counted(trees, 'tree')}, {sum(f['branches'] for f in walked):,} branches"
        limit, seen = f"{TOLERANCE:.0e}", f"{TOLERANCE:.0e} in any output's probability"
        row = partial(Verdict, layer, method, checked, cells=len(walked) + len(wrong))
        if failed := broken(layer, method, mine):
            found.append(failed)
        elif worst and bad:
            ratio = worst["deviation"] / TOLERANCE
            found.append(row(f"{worst['deviation']:.2g} ({_case(worst)})", limit, seen, False, ratio=ratio))
        elif wrong:
            found.append(row(f"{wrong[0]['broken']} ({_case(wrong[0])})", limit, seen, False, ratio=beyond(len(wrong))))
        elif refused:
            found.append(row("—", limit, "—", None, refused[0]["refused"], blocks=True))
        elif worst:
            ratio = worst["deviation"] / TOLERANCE
            found.append(row(f"{worst['deviation']:.1e} ({_case(worst)})", limit, seen, True, ratio=ratio))
    return found


def _case(f: Finding) -> str:
    return f"{f['case']}; {f['tree']}" if f.get("tree") else str(f["case"])


# ---- layers 2 and 3 ----


def stop_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L1, the stop rule: ids equal plain decoding's with stop ids and the end of the budget inside accepted blocks."""
    found, layer = [], "L1 stop rule"
    for (_, method), mine in by_cell(findings, "stop").items():
        wrong = [f["wrong"] for f in mine if "wrong" in f]
        n = sum(f.get("n", 0) for f in mine)
        row = Verdict(layer, method, f"{n} budgets and sets of stop ids", wrong[0] if wrong else "all equal", "equal ids",
                      "one id", not wrong, cells=n, ratio=beyond(len(wrong)))  # fmt: skip
        found.append(broken(layer, method, mine) or row)
    return found


@dataclass(frozen=True, slots=True)
class Control:
    """What the target alone shows in one dtype over `n` scored positions: its largest and median difference from the plain
    forward and its largest gap noise; `flipped` of its texts show an argmax of many rows that is not one row's, within
    `exposed` positions."""

    dtype: str
    n: int
    largest: float
    median: float
    gap: float
    flipped: int
    exposed: int

    @property
    def gap_tol(self) -> float:
        return GAP_FACTOR * self.gap

    @property
    def replay_limit(self) -> float:
        return max(REPLAY_FACTOR * self.largest, FLOOR.get(self.dtype, 0.0))


def controls(findings: Iterable[Finding]) -> dict[str, Control]:
    """By dtype, over all control findings without errors."""
    found = {}
    for (dtype, _), mine in by_cell(findings, "control").items():
        whole = [f for f in mine if "error" not in f]
        differences = [d for f in whole for d in f["differences"]]
        gaps = [g for f in whole for g in f["gaps"]]
        if gaps:
            flipped, exposed = (sum(f[k] for f in whole) for k in ("flipped", "exposed"))
            found[dtype] = Control(dtype, len(gaps), max(differences), median(differences), max(gaps), flipped, exposed)
    return found


def control_verdicts(findings: Iterable[Finding], known: Mapping[str, Control]) -> list[Verdict]:
    """L2 of the target alone, for all methods: whether the control's noise is small enough to take thresholds from."""
    found = []
    for (dtype, _), mine in by_cell(findings, "control").items():
        # where the audit's own control raised nothing was run, and a row of its own says so
        if failed := broken(f"L3 control of a ledger, {dtype}", "all", [f for f in mine if "of" in f]):
            found.append(failed)
        if dtype not in known:
            continue
        control, most, is_exact = known[dtype], MOST_NOISE[dtype], dtype in EXACT_DTYPES
        noise = control.largest if is_exact else control.median
        what, seen = ("", f"{most:g} in any logit") if is_exact else ("median ", f"a shift of the median by {most - noise:.2g}")
        why = (
            "" if noise <= most else "no rounding is as large: the target's own forwards are at fault, and so is every threshold"
        )
        found.append(
            Verdict(f"L2 control, {dtype}", "all", f"the target alone, {counted(control.n, 'position')}", f"{what}{noise:.1e}",
                    f"{most:g} = more than rounding", seen, not why, why, cells=len(mine), ratio=noise / most)
        )  # fmt: skip
    return found


def replay_verdicts(findings: Iterable[Finding], known: Mapping[str, Control]) -> list[Verdict]:
    """L2: the logits used, greedy and sampled, against the plain forward's, per position."""
    found, cells = [], by_cell(findings, "greedy", "sampled")
    seen = {
        (method, dtype)
        for (dtype, method), mine in cells.items()
        if dtype in EXACT_DTYPES and any(f.get("n_offside") for f in mine)
    }
    for (dtype, method), everything in cells.items():
        layer = f"L2 logit replay, {dtype}"
        if failed := broken(layer, method, everything):
            found.append(failed)
            continue
        mine = [f for f in everything if "differences" in f]
        if not mine:
            found.append(Verdict.not_applicable(layer, method, "another's loop keeps no logits"))
            continue
        control = known.get(dtype)
        if control is None:
            found.append(Verdict.missing(layer, method, f"no control in {dtype}"))
            continue
        differences = [d for f in mine for d in f["differences"]]
        offside, branching = (sum(f[k] for f in mine) for k in ("n_offside", "n_branching"))
        checked = counted(len(differences), "position") + (f", {offside:,} paths off the first rows" if branching else "")
        why, passed = "", None
        if dtype in EXACT_DTYPES:
            limit = control.replay_limit
            worst, detectable = f"{max(differences):.1e}", f"{limit:.1e} in any logit"
            source = "a rounding of float32 norms" if limit == FLOOR.get(dtype) else f"{REPLAY_FACTOR:g} x control's largest"
            threshold, holds = f"{limit:.1e} = {source}", max(differences) <= limit
            ratio = share(max(differences), limit)
        else:
            middle, limit = median(differences), MEDIAN_FACTOR * control.median
            worst, detectable = f"median {middle:.2g}", f"a shift of the median by {limit - middle:.2g}"
            threshold, holds = f"{limit:.2g} = {MEDIAN_FACTOR:g} x control's median", middle <= limit
            ratio = share(middle, limit)
            why = "16 bits: medians are compared"
        passed = holds
        if holds and branching and not offside:
            where = next((d for d in EXACT_DTYPES if (method, d) in seen), None)  # the same code keeps the rows in every dtype
            passed = True if where else None
            why = (
                f"that the right rows are kept was seen in {where}" if where
                else "no accepted path left the first rows: a cache that keeps wrong rows would not have shown"
            )  # fmt: skip
        found.append(Verdict(layer, method, checked, worst, threshold, detectable, passed, why, blocks=passed is None,
                             cells=len(mine), ratio=ratio))  # fmt: skip
    return found


def classify(divergence: Finding, gap_tol: float) -> str:
    """`benign_tie`, `near_tie` or `FAULT`: how far below the reference's best vanilla's and the method's token lie.

    An output that ended where the other went on is a fault.
    """
    gaps = divergence["gap_vanilla"], divergence["gap_method"]
    if divergence["ended"]:
        return "FAULT"
    if max(gaps) == 0:
        return "benign_tie"
    return "near_tie" if max(gaps) <= gap_tol else "FAULT"


def greedy_verdicts(findings: Iterable[Finding], known: Mapping[str, Control]) -> list[Verdict]:
    """L3: ids against vanilla's, from the audit's own runs (`greedy`) and from a ledger (`ledger`), as cells of their own."""
    found, tests = [], []
    for kind in ("greedy", "ledger"):
        for (dtype, method), mine in by_cell(findings, kind).items():
            layer = f"L3 greedy equality, {dtype}" + (", ledger" if kind == "ledger" else "")
            if failed := broken(layer, method, mine):
                found.append(failed)
                continue
            row, p = _greedy_verdict(layer, dtype, method, mine, known.get(dtype))
            found.append(row)
            if dtype != "float64":  # where ids must be equal there is no rate to test
                tests.append((len(found) - 1, p))
    for (place, _), p in zip(tests, holm([p for _, p in tests]), strict=True):
        row = found[place]
        if p < ALPHA and row.passed is not False:
            why = f"diverges more often than the control: Holm-adjusted p = {p:.2g}"
            found[place] = replace(row, passed=False, why=why, blocks=False, ratio=max(row.ratio, unlikely(p)))
    return found


def on_smaller_trees(mine: Sequence[Finding]) -> str:
    """How many of a method's outputs have other options than its first, which are those that tables measure."""
    n = sum(f.get("options") != mine[0].get("options") for f in mine)
    return f" ({n} on smaller trees)" if n else ""


def _greedy_verdict(
    layer: str, dtype: str, method: str, mine: Sequence[Finding], control: Control | None
) -> tuple[Verdict, float]:
    """The row, and the p-value that the method's ids differ more often than one row's argmax differs from many rows'."""
    diverged = [f["divergence"] for f in mine if f["divergence"]]
    # after a divergence outputs are not comparable: the positions looked at end there
    positions = sum(f["divergence"]["at"] + 1 if f["divergence"] else f["n"] for f in mine)
    smaller = on_smaller_trees(mine)
    checked = f"{counted(len(mine), 'output')}{smaller}, {counted(positions, 'token')}"
    cells = len({f.get("cell", i) for i, f in enumerate(mine)})
    if dtype == "float64":
        seen = f"fault rate under {rate_bound(len(diverged), len(mine)):.2%} of outputs (95 %)"
        worst = f"{len(diverged)} differ" if diverged else "all identical"
        return Verdict(
            layer, method, checked, worst, "identical", seen, not diverged, cells=cells, ratio=beyond(len(diverged))
        ), 1.0
    if control is None:
        return Verdict.missing(layer, method, f"no control in {dtype}"), 1.0
    kinds = [kind_of(f, dtype, control) for f in mine if f["divergence"] or f.get("not_argmax")]
    counts = "".join(f", {kinds.count(kind)} {kind}" for kind in ("benign_tie", "near_tie", "FAULT") if kind in kinds)
    largest = max((max(d["gap_vanilla"], d["gap_method"]) for d in diverged), default=0.0)
    p = more_often(len(diverged), positions, control.flipped, control.exposed)
    short = f"the control has {control.n:,} positions, {positions:,} were checked" if control.n < positions else ""
    passed = False if "FAULT" in kinds else None if short else True
    row = Verdict(
        layer, method, checked,
        f"{len(mine) - len(kinds)} identical{counts}; largest gap {largest:.2g}",
        f"gap {control.gap_tol:.2g} = {GAP_FACTOR:g} x control's largest; as rare as the control's {control.flipped} in "
        f"{control.exposed:,} (p = {p:.2g})",
        f"fault rate under {rate_bound(kinds.count('FAULT'), len(mine)):.2%} of outputs (95 %)",
        passed, short, blocks=passed is None, cells=cells,
        ratio=max(share(largest, control.gap_tol), beyond(kinds.count("FAULT"))),
    )  # fmt: skip
    return row, p


def kind_of(f: Finding, dtype: str, control: Control) -> str:
    """The class of one output's first divergence; a token that is not its own logits' argmax, or logits beyond layer 2's
    limit up to there, are faults whatever the gap."""
    at = f["divergence"]["at"] if f["divergence"] else f["n"]
    if any(position <= at for position in f.get("not_argmax", ())):
        return "FAULT"
    if dtype in EXACT_DTYPES and max(f.get("differences", [])[: at + 1], default=0.0) > control.replay_limit:
        return "FAULT"
    return classify(f["divergence"], control.gap_tol) if f["divergence"] else "identical"


# ---- layer 4 ----


def coupled_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L4, identical ids at T > 0 in float64: for methods that draw the target's own tokens."""
    found, layer = [], "L4 same ids at T = 1, float64"
    for (_, method), mine in by_cell(findings, "coupled").items():
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


SHIFT = 0.02  # of a mean: what a cell of 80 prompts x 256 tokens finds


def _needed(scores: Sequence[Score]) -> int:
    """Tokens with which every function that is a probability would find a shift of SHIFT."""
    return max((tokens_needed(s.detectable, SHIFT, s.n) for s in scores if not s.function.startswith("log")), default=0)


def scores_of(mine: Sequence[Finding], n_tests: int) -> list[Score]:
    """The six tests over all tokens of one method."""
    n, (deviations, variances) = sum(f["n"] for f in mine), (
        [sum(f[column][i] for f in mine) for i in range(len(FUNCTIONS))] for column in ("deviations", "variances")
    )  # fmt: skip
    return [score(function, n, deviations[i], variances[i], n_tests) for i, function in enumerate(FUNCTIONS)]


def score_verdicts(findings: Iterable[Finding], wanted_tokens: int = 0) -> list[Verdict]:
    """L4: the martingale score test, six functions a method, Holm over the whole family, vanilla's own tests among it."""
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


# ---- layer 5 ----

LEAST_TAU = 1.05  # of a method with a draft head: one that drafts nothing right is broken, whatever its law
LOST = 0.02  # share of a recorded tau that may be lost without notice
RESAMPLES = 2000
FOUND = 1.84  # half widths of a 95 % interval beyond a limit that are found 95 times in 100: (1.96 + 1.64) / 1.96


def acceptance_verdicts(findings: Iterable[Finding], recorded: Mapping[tuple[str, str], Finding]) -> list[Verdict]:
    """L5: tau against a recorded figure on the same prompts: faults that leave the law alone show nowhere else.

    recorded: (method, prompt) -> an earlier greedy finding in float32, of the same weights and options and other code.
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


def drafted(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Greedy float32 findings with forwards to count, by method; vanilla drafts nothing."""
    cells = {m: mine for (dtype, m), mine in by_cell(findings, "greedy").items() if dtype == "float32" and m != "vanilla"}
    whole = {m: [f for f in mine if f.get("forwards")] for m, mine in cells.items()}
    return {m: mine for m, mine in whole.items() if mine}


@dataclass(frozen=True, slots=True)
class TauChange:
    """Of the prompts that both have: tau, the recorded tau, and the 95 % interval of the change (bootstrap over prompts)."""

    tau: float
    recorded: float
    change: float
    low: float
    high: float


def tau_change(pairs: Sequence[tuple[Finding, Finding]]) -> TauChange:
    """pairs: (finding, recorded counts) by prompt."""
    counts = np.array([[a["emitted"], a["forwards"], b["emitted"], b["forwards"]] for a, b in pairs], dtype=float)
    picks = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))

    def change(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]

    emitted, forwards, before, forwards_before = counts.sum(0)
    low, high = np.quantile(change(counts[picks].sum(1)), [0.025, 0.975])
    return TauChange(
        float(emitted / forwards), float(before / forwards_before), float(change(counts.sum(0))), float(low), float(high)
    )


def paired_taus(mine: Sequence[Finding], recorded: Mapping[tuple[str, str], Finding]) -> list[tuple[Finding, Finding]]:
    return [(f, recorded[f["method"], f["prompt"]]) for f in mine if (f["method"], f["prompt"]) in recorded]


# ---- all ----


def overall(verdicts: Sequence[Verdict], exact: Mapping[str, bool]) -> list[str]:
    """What is wrong, a line each; empty where all holds.

    A method that declares itself exact fails by any layer; one that does not, fails where no layer caught it; either fails
    where something that applies to it could not be judged.
    """
    problems = []
    for v in verdicts:
        is_exact = exact.get(v.method.split(" (")[0], True)
        if v.passed is False and (is_exact or v.raised):
            who = f"{v.method} fails" if v.method != "all" else "what every method is judged by fails:"
            problems.append(f"{who} {v.layer}: {v.worst}, allowed {v.threshold}" + (f" ({v.why})" if v.why else ""))
        elif v.passed is None and v.blocks:
            who = f"{v.method} is not judged by" if v.method != "all" else "not judged:"
            problems.append(f"{who} {v.layer}: {v.why}")
    for method, is_exact in exact.items():
        if not is_exact and not any(caught(v) for v in verdicts if v.method == method):
            problems.append(f"{method} declares itself inexact and no layer caught it")
    return problems


def caught(v: Verdict) -> bool:
    """Whether a layer found the method's law or ids to deviate: an error or a low tau is no such finding."""
    return v.passed is False and not v.raised and v.layer[:2] in ("L1", "L2", "L3", "L4")
