"""What each tier of `./run_all.sh` measures."""

from __future__ import annotations

from harness.common.errors import unknown
from harness.run.request import MoreTrees, RunRequest

# EAGLE-2 with the 25 draft nodes and 5 levels of EAGLE-1's tree: the claim at equal budget.
EQUAL_BUDGET = (MoreTrees("eagle2", "paper", ("total=25", "depth=5"), is_asked=False),)
# Tuned options are left out where `harness tune` was not run.
TUNED = tuple(
    MoreTrees(name, "tuned", is_asked=False)
    for name in ("sps", "pld", "lookahead", "medusa", "hydra", "eagle1", "eagle2", "eagle2-fr")
)
# What Table 3 and the paper's claims are about.
CORE = tuple(
    MoreTrees(name, is_asked=False) for name in ("eagle1", "eagle2", "eagle2-no-value", "eagle2-no-rerank", "eagle2-no-both")
)

CLAIMS = (
    RunRequest(methods=("vanilla",), temperature=0.0, limit=40, beside=CORE + EQUAL_BUDGET, on_overflow="skip"),
    RunRequest(methods=("vanilla",), temperature=1.0, limit=20, beside=CORE, on_overflow="skip"),
)
# The length budget of `full` and `claims` is the model's own. The claims' runs go on where the first two runs of `full` end: the
# prompts of a smaller limit are the first of a larger one.
TIERS: dict[str, tuple[RunRequest, ...]] = {
    "quick": (RunRequest(temperature=0.0, limit=1, max_new_tokens=20, on_overflow="skip"),),
    "default": (
        RunRequest(temperature=0.0, limit=5, max_new_tokens=128, beside=EQUAL_BUDGET + TUNED, on_overflow="skip"),
        RunRequest(temperature=1.0, limit=5, max_new_tokens=128, beside=TUNED, on_overflow="skip"),
    ),
    "full": (
        RunRequest(methods=("all", "hf-generate"), limit=10, beside=EQUAL_BUDGET + TUNED, on_overflow="skip"),
        RunRequest(methods=("all", "hf-generate"), temperature=1.0, limit=5, beside=TUNED, on_overflow="skip"),
        *CLAIMS,
    ),
    "claims": CLAIMS,
}


def requests_of(tier: str) -> tuple[RunRequest, ...]:
    """Raises UserError where there is no such tier."""
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    return TIERS[tier]
