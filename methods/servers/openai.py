"""Any other engine with OpenAI's `/v1/completions`: text in and out. It has no counters of steps that could be relied on.

Prompts go as text, whose token count the engine must confirm; answers are tokenised here, and the counts must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods.servers.answer import Answer, Asked, Counts, Identity, from_text
from methods.servers.wire import Address, stream

NAME = "openai"
WHY = "it tells of no steps"


def identity(address: Address, card: Mapping[str, Any]) -> Identity:
    """What it tells of itself. card: the model's entry in `/v1/models`."""
    return Identity(str(card.get("owned_by") or "unnamed engine"), "untold", str(card["id"]), tells="nothing")


def ready(address: Address) -> None:
    """It counts request by request: nothing is to be read before one."""


def ask(address: Address, who: Identity, asked: Asked) -> Answer:
    params = asked.params
    body: dict[str, Any] = {
        "model": who.model, "prompt": asked.prompt_text(), "max_tokens": params.max_new_tokens, "stream": True,
        "stream_options": {"include_usage": True}, "temperature": params.temperature, "top_p": params.top_p, "seed": asked.seed,
        "frequency_penalty": 0.0, "presence_penalty": 0.0,  # the API has no other switches
    }  # fmt: skip
    wall, text, first, first_text, model, reason, usage = 0.0, "", None, "", None, "", dict[str, Any]()
    for wall, event in stream(address, "/v1/completions", body):
        model = event.get("model", model)
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            if first is None and choice.get("text"):
                first, first_text = wall, choice["text"]
            text += choice.get("text") or ""
            reason = choice.get("finish_reason") or reason
    n_tokens = usage.get("completion_tokens")
    ids = from_text(text, n_tokens, reason == "stop", asked)
    n_first = 1 if first is not None and len(asked.texts.ids_of(first_text)) == 1 else None
    return Answer(ids, first or 0.0, n_first, text, model, "text", "text", usage.get("prompt_tokens"), n_tokens,
                  (usage.get("prompt_tokens_details") or {}).get("cached_tokens"), reason or "it does not say why", wall,
                  lambda: Counts(why=WHY))  # fmt: skip
