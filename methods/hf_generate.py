"""Hugging Face's own generation loop with its own cache and attention: an external baseline, no trace.

At T > 0 it draws from the same law with its own generator, so its tokens differ from vanilla's.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from methods import method
from methods.base import Decode, Generation, SamplerParams
from methods.engine.stopping import Output


@method("hf-generate", line="Hugging Face's own loop (external baseline)", external=True)
def hf_generate() -> Decode:
    return lambda prompt_ids, target, drafter, params: generated(prompt_ids, target, params)


def generated(prompt_ids: list[int], target: Any, params: SamplerParams, **how: Any) -> Generation:
    """One call of transformers' `generate`; `how`: what else it is told, an assistant model for instance."""
    started = time.perf_counter()
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if params.temperature > 0:
        torch.manual_seed(params.key)
        sampling = {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "top_k": 0}
    ids = torch.tensor([prompt_ids], device=target.device)
    with torch.inference_mode():
        out = target.stock_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=params.max_new_tokens,
            eos_token_id=sorted(params.stop_ids) or None, pad_token_id=0, use_cache=True, **sampling, **how,
        )  # fmt: skip
    output = Output(params)
    output.extend(out[0, len(prompt_ids) :].tolist())
    # its prefill is not timed apart: the whole generation is what compares
    return Generation(output.token_ids, output.finish or "length", 0, time.perf_counter() - started, None)
