"""Hugging Face's prompt lookup decoding: an external baseline, no trace. Defaults are the method's author's (Saxena 2023)."""

from __future__ import annotations

from typing import Any

from methods import method
from methods.base import Decode, Drafter, Generation, SamplerParams
from methods.hf_generate import generated


@method("hf-prompt-lookup", line="Hugging Face's prompt lookup (external baseline)", external=True)
def hf_prompt_lookup(max_ngram: int = 3, n_draft: int = 10) -> Decode:
    if min(max_ngram, n_draft) < 1:
        raise ValueError(f"max_ngram={max_ngram}, n_draft={n_draft}: each must be at least 1")

    def decode(prompt_ids: list[int], target: Any, drafter: Drafter | None, params: SamplerParams) -> Generation:
        return generated(prompt_ids, target, params, prompt_lookup_num_tokens=n_draft, max_matching_ngram_size=max_ngram)

    return decode
