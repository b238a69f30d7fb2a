"""Plain autoregressive decoding: the baseline and the independent reference. It never goes through the speculative loop."""

from __future__ import annotations

import time

from methods import method
from methods.base import Decode, Drafter, Generation, SamplerParams, Target, Trace
from methods.engine.sampling import Chooser
from methods.engine.stopping import Output


@method("vanilla", line="plain decoding, one token a target forward (the baseline)")
def vanilla() -> Decode:
    def decode(prompt_ids: list[int], target: Target, drafter: Drafter | None, params: SamplerParams) -> Generation:
        started = time.perf_counter()
        chooser, output, trace = Chooser.of(params), Output(params), Trace()
        _, logits = target.prefill(prompt_ids, params.max_new_tokens)
        token = chooser.token(logits, 0)
        prefill_s = time.perf_counter() - started
        over = output.extend([token])
        while not over:
            began, inside = time.perf_counter(), target.forward_s
            token = chooser.token(target.step(token), len(output.token_ids))
            over = output.extend([token])
            trace.add(0, 0, 0.0, time.perf_counter() - began, target.forward_s - inside)
        assert output.finish is not None
        return Generation(output.token_ids, output.finish, 0, prefill_s, trace)

    return decode
