"""Lookahead decoding (Fu et al., ICML 2024, arXiv 2402.02057): n-grams from a Jacobi iteration of the target; no weights.

Window and candidates are one tree and one masked forward. Defaults are those of Spec-Bench's runs, which EAGLE-2's Table 1
rests on: window 7, n-grams of 5, 7 candidates, the prompt's n-grams in the pool. Two departures: the shared walk may also
accept tokens of the window itself (the authors verify n-grams of the pool only), and it makes the method exact at any
temperature. The window shifts by one a step, however many tokens were accepted, as the authors' does by default.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.jacobi import jacobi_window
from methods.engine.loop import speculative

# windows whose every branch of chance the audit walks: one level, full at once; two that fill up; more levels than columns
SMALL = (
    {"window": 2, "ngram": 2, "guesses": 1},
    {"window": 2, "ngram": 3, "guesses": 2},
    {"window": 1, "ngram": 4, "guesses": 2, "prompt_pool": False},
)


@method("lookahead", line="lookahead decoding: n-grams from a Jacobi window of the target itself, no draft model", small=SMALL)
def lookahead(window: int = 7, ngram: int = 5, guesses: int = 7, prompt_pool: bool = True) -> Decode:
    return speculative(jacobi_window(window, ngram, guesses, prompt_pool))
