"""SGLang: token ids in and out by its own `/generate`, whose `meta_info` counts the verifications.

Facts: SGLang 0.5.23, and the names that counters had before: `spec_accept_token_num` (to 0.5.10.post1), `spec_accepted_drafts`
(0.5.11). `spec_verify_ct` is the same in all. `spec_accept_length` counts the prefill's token, so it is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from methods.servers.answer import Answer, Asked, BadAnswer, Counts, Identity, from_text
from methods.servers.wire import Address, get, stream

NAME = "sglang"
SETTINGS = ("model_path", "dtype", "quantization", "kv_cache_dtype", "tp_size", "attention_backend")
ACCEPTED = ("spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
DRAFTED = ("spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")


def identity(address: Address, card: Mapping[str, Any]) -> Identity:
    """What it tells of itself. card: the model's entry in `/v1/models`."""
    told = next((found for path in ("/server_info", "/get_server_info") if isinstance(found := get(address, path), dict)), {})
    settings = {key: str(told[key]) for key in SETTINGS if told.get(key) is not None}
    drafting = {key: str(value) for key, value in sorted(told.items()) if key.startswith("speculative_") and value is not None}
    is_on = told.get("speculative_algorithm") is not None
    return Identity(NAME, str(told.get("version", "untold")), str(card["id"]), settings, drafting if is_on else {})


def ready(address: Address) -> None:
    """It counts request by request: nothing is to be read before one."""


def ask(address: Address, who: Identity, asked: Asked) -> Answer:
    params = asked.params
    body: dict[str, Any] = {
        "input_ids": asked.prompt_ids, "stream": True,
        "sampling_params": {
            "max_new_tokens": params.max_new_tokens, "temperature": params.temperature, "top_p": params.top_p,
            "stop_token_ids": asked.stop_ids, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
        },
    }  # fmt: skip
    ids: list[int] = []
    wall, text, first, n_first, has_ids, meta, is_new = 0.0, "", None, None, False, dict[str, Any](), None
    for wall, event in stream(address, "/generate", body):
        meta = event.get("meta_info") or meta
        told, n = event.get("output_ids"), meta.get("completion_tokens")
        if told is not None and ids and is_new is None:  # an engine sends all so far, or only what is new: the whole answer long
            if n in (len(ids) + len(told), len(told)):
                is_new = n != len(told)
            else:
                is_new = list(told[: len(ids)]) != ids
        is_all = told is None or not is_new
        text = str(event.get("text") or "") if is_all else text + str(event.get("text") or "")
        if told is not None:
            ids, has_ids = list(told) if is_all else [*ids, *told], True
        if first is None and n:
            first, n_first = wall, n
    finish = meta.get("finish_reason") or {}
    reason, at = str(finish.get("type") or "it does not say why"), finish.get("matched")
    if reason == "abort":
        raise BadAnswer(f"it gave up: {finish.get('message') or 'it does not say why'}")
    n_tokens = meta.get("completion_tokens")
    if not has_ids:
        ids = from_text(text, n_tokens, reason == "stop", asked, at)
    elif isinstance(at, int) and n_tokens == len(ids) + 1 and ids[-1:] != [at]:
        ids.append(at)  # the stop id is counted, and some versions cut it off what they stream
    return Answer(ids, first or 0.0, n_first, text, None, "ids", "engine" if has_ids else "text", meta.get("prompt_tokens"),
                  n_tokens, meta.get("cached_tokens"), reason if at is None else f"{reason} {at}", wall,
                  partial(_counts, meta))  # fmt: skip


def _counts(meta: Mapping[str, Any]) -> Counts:
    """A verification is a target forward, and after the prefill there are no others: steps need no arithmetic."""
    accepted, drafted = (next((int(meta[name]) for name in names if meta.get(name) is not None), None)
                         for names in (ACCEPTED, DRAFTED))  # fmt: skip
    steps = meta.get("spec_verify_ct")
    if steps is None:
        return Counts(None, drafted, accepted, why="its meta_info has no spec_verify_ct")
    return Counts(int(steps), drafted, accepted, "meta_info")
