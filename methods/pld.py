"""Prompt lookup decoding (Saxena 2023): drafts copied from earlier text after the same n-gram; no weights."""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.grow import prompt_lookup
from methods.engine.loop import speculative


@method(
    "pld",
    line="prompt lookup: a chain copied from earlier text, no draft model",
    candidates=[{"n_draft": n, "max_ngram": ngram} for n in (3, 5, 7, 15) for ngram in (2, 3)],
    small={"n_draft": 3},
)
def pld(max_ngram: int = 3, n_draft: int = 10) -> Decode:
    return speculative(prompt_lookup(max_ngram, n_draft))
