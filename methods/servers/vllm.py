"""vLLM: token ids in and out by `/v1/completions`; steps by differences of `/metrics`, whose waits count all of them.

Facts: vLLM 0.33.0. Per-request metrics are there with `--per-request-spec-decode-metrics summary` (or `detailed`), and
count the steps that verified a draft. `/metrics` counts those, draft tokens, accepted ones, new tokens, and the waits between two
steps' tokens: all steps after the prefill.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

from methods.servers.answer import Answer, Asked, BadAnswer, Counts, EngineGone, Identity, from_text, steps_by_drafts
from methods.servers.wire import Address, get, stream, total

NAME = "vllm"
COUNTERS = {
    "drafts": ("vllm:spec_decode_num_drafts_total",),
    "drafted": ("vllm:spec_decode_num_draft_tokens_total",),
    "accepted": ("vllm:spec_decode_num_accepted_tokens_total",),
    "tokens": ("vllm:generation_tokens_total",),
    "steps": ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count"),
}
PATIENCE_S = 2.0  # until the counters have the tokens of an answer that is whole

_Metrics = dict[str, float | None]
_before: dict[Address, _Metrics] = {}


def identity(address: Address, card: Mapping[str, Any]) -> Identity:
    """What it tells of itself. card: the model's entry in `/v1/models`."""
    told = get(address, "/version")
    version = str(told.get("version", "untold")) if isinstance(told, dict) else "untold"
    settings = {key: str(card[key]) for key in ("root", "max_model_len") if card.get(key) is not None}
    drafting = {} if _metrics(address)["drafts"] is None else {"counters": "spec_decode"}
    return Identity(NAME, version, str(card["id"]), settings, drafting, "whether")


def ready(address: Address) -> None:
    """Read the counters, from which those of one request are the difference."""
    _before.pop(address, None)
    with suppress(EngineGone):  # whether it is, the request will show
        _before[address] = _metrics(address)


def ask(address: Address, who: Identity, asked: Asked) -> Answer:
    params = asked.params
    body: dict[str, Any] = {
        "model": who.model, "prompt": asked.prompt_ids, "max_tokens": params.max_new_tokens, "stream": True,
        "stream_options": {"include_usage": True}, "return_token_ids": True, "temperature": params.temperature,
        "top_p": params.top_p, "seed": asked.seed,
        # the stop ids given, and no others that a model's generation_config.json adds; nor its changes to the law
        "stop_token_ids": asked.stop_ids, "ignore_eos": True, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        "frequency_penalty": 0.0, "presence_penalty": 0.0,
        "cache_salt": uuid4().hex,  # no prompt's prefill is another's
    }  # fmt: skip
    ids: list[int] = []
    wall, text, first, n_first, model, has_ids = 0.0, "", None, None, None, False
    usage, reason, ended_at, spec = dict[str, Any](), "", None, None
    for wall, event in stream(address, "/v1/completions", body):
        model = event.get("model", model)
        usage = event.get("usage") or usage
        spec = (event.get("metrics") or {}).get("speculative_decoding", spec)
        for choice in event.get("choices") or ():
            told = choice.get("token_ids")
            read = choice.get("prompt_token_ids")
            if read is not None and list(read) != asked.prompt_ids:
                raise BadAnswer("it says that it read other token ids than it was given")
            has_ids = has_ids or told is not None
            ids += told or ()
            text += choice.get("text") or ""
            if first is None and (told or choice.get("text")):
                first, n_first = wall, len(told) if told else None
            reason, ended_at = _reason(choice) or reason, choice.get("stop_reason", ended_at)
    n_tokens, n_cached = usage.get("completion_tokens"), (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if not has_ids:
        ids = from_text(text, n_tokens, reason.startswith("stop"), asked, ended_at)
    counter = partial(_counts, address, len(ids), spec)
    return Answer(ids, first or 0.0, n_first, text, model, "ids", "engine" if has_ids else "text", usage.get("prompt_tokens"),
                  n_tokens, n_cached, reason or "it does not say why", wall, counter)  # fmt: skip


def _reason(choice: Mapping[str, Any]) -> str:
    """`stop`, `stop 151645`, `length`; empty before the end."""
    reason, at = choice.get("finish_reason"), choice.get("stop_reason")
    return f"{reason} {at}" if reason and at is not None else str(reason or "")


def _counts(address: Address, n_tokens: int, spec: Mapping[str, Any] | None) -> Counts:
    """Drafts by the answer's own metrics, where it has them; all steps by /metrics alone."""
    found, why = _since(address, n_tokens)
    counter = "/metrics"
    if spec is not None:
        drafts, drafted, accepted = (spec.get(f"num_{name}") for name in ("spec_steps", "draft_tokens", "accepted_draft_tokens"))
        counter = "metrics.speculative_decoding, /metrics"
    elif not why:
        drafts, drafted, accepted = (found[name] for name in ("drafts", "drafted", "accepted"))
    else:
        return Counts(why=why)
    if drafts is None or drafted is None or accepted is None:
        return Counts(why=f"its {counter} lacks some of the counters of drafts")
    counts = steps_by_drafts(n_tokens, int(drafts), int(drafted), int(accepted), counter, found["steps"])
    return replace(counts, why=f"{counts.why}: {why}") if why else counts


def _since(address: Address, n_tokens: int) -> tuple[dict[str, int | None], str]:
    """(what was counted since `ready`, by name; why that is not the answer's, or empty: then all is None)."""
    nothing = dict.fromkeys(COUNTERS)
    before = _before.get(address)
    if before is None:
        return nothing, "nothing was read of its /metrics before"
    after = _metrics(address)
    if after["drafts"] is None:
        return nothing, "its /metrics has no spec_decode counters"
    until = time.monotonic() + PATIENCE_S
    while (_difference(before, after, "tokens") or 0) < n_tokens and time.monotonic() < until:
        time.sleep(0.02)  # they are written after the answer
        after = _metrics(address)
    if (n := _difference(before, after, "tokens")) != n_tokens:
        return nothing, f"its /metrics counted {n} new tokens, and the answer has {n_tokens}: other requests ran"
    return {name: _difference(before, after, name) for name in COUNTERS}, ""


def _metrics(address: Address) -> _Metrics:
    text = get(address, "/metrics")
    return {name: next((n for one in names if (n := total(text, one)) is not None), None) for name, names in COUNTERS.items()}


def _difference(before: _Metrics, after: _Metrics, name: str) -> int | None:
    a, b = before[name], after[name]
    return None if b is None else round(b - (a or 0.0))
