"""Layer 6: whether a method does the same when it is asked again, and whether a user's files left the harness as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.audit.verdicts.verdict import Finding, Verdict, beyond, broken, by_cell, counted
from harness.watch.pace import LIMIT, TRIES, Pace


def again_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L6: a prompt that the method saw before takes it the same steps, to the same tokens."""
    found = []
    for (dtype, method), mine in by_cell(findings, "again").items():
        layer = f"L6 conduct, asked again, {dtype}"
        if failed := broken(layer, method, mine):
            found.append(failed)
            continue
        other = [f for f in mine if not f["same"]]
        checked = f"{counted(len(mine), 'prompt')} twice, {counted(sum(f['forwards'][0] for f in mine), 'forward')}"
        remembers = "it remembers what it was asked: {} forwards, then {}"
        worst = remembers.format(*other[0]["forwards"]) if other else "the same steps"
        found.append(Verdict(layer, method, checked, worst, "the same steps", "one forward", not other, cells=len(mine),
                             ratio=beyond(len(other)), untrue=bool(other)))  # fmt: skip
    return found


def engine_verdict(replaced: Sequence[str]) -> Verdict:
    """L6: what a user's files replaced of this repository's code, a line each."""
    worst = replaced[0] if replaced else "nothing replaced"
    return Verdict("L6 conduct, the harness", "all", "every function of methods and harness", worst, "nothing replaced",
                   "one function", not replaced, cells=1, ratio=beyond(len(replaced)))  # fmt: skip


def pace_verdict(pace: Pace) -> Verdict:
    """L6: plain decoding's speed with a user's files loaded, and without, in fresh processes."""
    *first, last = (f"{ratio:.2f}" for ratio in pace.ratios)
    ratios = f"{', '.join(first)} and {last}" if first else last
    why = ""
    if pace.is_unclear:
        busy = f"the machine's load was {pace.load:.1f} on {counted(pace.n_cores, 'core')}"
        why = f"vanilla took {ratios} times as long, but {pace.cpu_ratio:.2f} times on a core: it waited, and {busy}"
    passed = None if pace.is_unclear else not pace.is_slowed
    return Verdict("L6 conduct, vanilla's speed", "all", f"{len(pace.ratios)} of up to {TRIES} tries in fresh processes",
                   f"vanilla takes {ratios} times as long with the files included", f"{LIMIT:g} times in one try",
                   f"{LIMIT:g} times", passed, why, blocks=passed is None, cells=len(pace.ratios),
                   ratio=min(pace.ratios) / LIMIT)  # fmt: skip
