"""Lookahead decoding (Fu et al., ICML 2024, arXiv 2402.02057): n-grams from a Jacobi iteration of the target; no weights.

Window and candidates are one tree and one masked forward. Defaults are those of Spec-Bench's runs, the only ones published on
the paper's prompts: window 7, n-grams of 5, 7 candidates, nothing but the window's n-grams in the pool (`text_pool` puts the
text's own there as well, prompt and output, as the authors' POOL_FROM_PROMPT does). The window's first column begins at the root,
and the window shifts by one a step, however many tokens were accepted, both as theirs. Departures: the shared walk verifies, at
T > 0 too (their sampling has the same law), and may accept tokens of the window itself, where they verify n-grams of the pool
only; candidates are verified from the first step, theirs once the window is full; stop tokens stay in the window.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.jacobi import jacobi_window
from methods.engine.loop import speculative

# windows whose every branch of chance the audit walks: one level, full at once; two that fill up; more levels than columns
SMALL = (
    {"window": 2, "ngram": 2, "guesses": 1, "text_pool": True},
    {"window": 2, "ngram": 3, "guesses": 2, "text_pool": True},
    {"window": 1, "ngram": 4, "guesses": 2},
)


# windows of few nodes, where a forward's cost rises with its rows
SMALLER = ((2, 3, 2), (3, 3, 3), (3, 4, 3), (4, 4, 4), (5, 5, 5))


@method(
    "lookahead",
    line="lookahead decoding: n-grams from a Jacobi window of the target itself, no draft model",
    candidates=[
        {"window": w, "ngram": n, "guesses": g, "text_pool": text_pool} for w, n, g in SMALLER for text_pool in (False, True)
    ],
    small=SMALL,
)
def lookahead(window: int = 7, ngram: int = 5, guesses: int = 7, text_pool: bool = False) -> Decode:
    return speculative(jacobi_window(window, ngram, guesses, text_pool))
