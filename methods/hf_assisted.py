"""Hugging Face's assisted generation (speculative sampling) with the draft LM of `sps`: an external baseline, no trace.

As transformers ships it: up to 20 drafts a step, ended where the draft LM's confidence falls below 0.4 (where scikit-learn is
installed, below a threshold that each generation adapts to itself). EAGLE-2's SpS is this loop, in an older version.
"""

from __future__ import annotations

from typing import Any

from methods import method
from methods.base import Decode, Generation, SamplerParams
from methods.hf_generate import generated


@method("hf-assisted", line="Hugging Face's assisted generation, sps's draft LM (external baseline)", drafter="lm", external=True)
def hf_assisted() -> Decode:
    def decode(prompt_ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        return generated(prompt_ids, target, params, assistant_model=drafter.model)

    return decode
