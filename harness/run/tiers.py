"""What each tier of `./run_all.sh` measures."""

from __future__ import annotations

from typing import Any

from harness.common.errors import unknown

# More trees of a method, timed along with the others: (method, preset, changes). EAGLE-2 with the 25 draft nodes and 5 levels of
# EAGLE-1's tree is the claim at equal budget; tuned options are left out where `harness tune` was not run.
EQUAL_BUDGET = (("eagle2", "paper", ("total=25", "depth=5")),)
TUNED = tuple((name, "tuned", ()) for name in ("sps", "pld", "lookahead", "medusa", "hydra", "eagle1", "eagle2", "eagle2-fr"))
# What Table 3 and the claims ledger are about.
CORE = tuple((name, "paper", ()) for name in ("eagle1", "eagle2", "eagle2-no-value", "eagle2-no-rerank", "eagle2-no-both"))
CLAIMS: tuple[dict[str, Any], ...] = (
    {"names": ("vanilla",), "temperature": 0.0, "limit": 40, "beside": CORE + EQUAL_BUDGET},
    {"names": ("vanilla",), "temperature": 1.0, "limit": 20, "beside": CORE},
)
# What a tier runs; a row's keys are options of `harness run`, and `beside`. The length budget of `full` and `claims` is the
# model's own. The last rows of `full` go on with the methods that the claims are about where the first two end: the prompts of a
# smaller limit are the first of a larger one.
TIERS: dict[str, tuple[dict[str, Any], ...]] = {
    "quick": ({"names": ("all",), "temperature": 0.0, "limit": 1, "max_new_tokens": 32},),
    "default": (
        {"names": ("all",), "temperature": 0.0, "limit": 5, "max_new_tokens": 128, "beside": EQUAL_BUDGET + TUNED},
        {"names": ("all",), "temperature": 1.0, "limit": 5, "max_new_tokens": 128, "beside": TUNED},
    ),
    "full": (
        {"names": ("all", "hf-generate"), "temperature": 0.0, "limit": 10, "beside": EQUAL_BUDGET + TUNED},
        {"names": ("all", "hf-generate"), "temperature": 1.0, "limit": 5, "beside": TUNED},
        *CLAIMS,
    ),
    "claims": CLAIMS,
}


def tier_rows(tier: str) -> tuple[dict[str, Any], ...]:
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    return TIERS[tier]
