"""Which findings count: those made by the code that is here, on this machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from harness.common.source_hash import Package, closure_sha


@cache
def audit_sha() -> str:
    """Of the audit's own code that makes findings: those made by other code are made anew."""
    return _sha("findings", "law", "ledger_pairs")


@cache
def abreast_sha() -> str:
    """Of the code that has several generations share forwards: it concerns the score test alone."""
    return _sha("lanes")


def _sha(*modules: str) -> str:
    probe = Path(__file__).parent / "probe"
    return closure_sha(tuple(probe / f"{name}.py" for name in modules), Package("harness.audit.probe", probe))
