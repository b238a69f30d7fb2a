"""Layer 1: the exact law of the output, from every branch of chance, and where generation stops."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from harness.audit.probe.law import TOLERANCE
from harness.audit.verdicts.verdict import Finding, Verdict, beyond, broken, by_cell, counted


def law_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L1: the largest error in the probability of any output, over all cases."""
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


def stop_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L1, the stop rule: ids equal plain decoding's, with stop ids and the end of the budget inside accepted blocks."""
    found, layer = [], "L1 stop rule"
    for (_, method), mine in by_cell(findings, "stop").items():
        wrong = [f["wrong"] for f in mine if "wrong" in f]
        n = sum(f.get("n", 0) for f in mine)
        row = Verdict(layer, method, f"{n} budgets and sets of stop ids", wrong[0] if wrong else "all equal", "equal ids",
                      "one id", not wrong, cells=n, ratio=beyond(len(wrong)))  # fmt: skip
        found.append(broken(layer, method, mine) or row)
    return found
