"""llama.cpp's server: token ids in and out by its own `/completion`, whose `timings` count accepted drafts token by token.

With `timings_per_token` every streamed token brings the number of drafts that were accepted so far, which rises at the first
token of a step. So the steps can be told one from another, those without a draft, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from methods.servers.answer import Answer, Asked, BadAnswer, Counts, EngineGone, Identity
from methods.servers.wire import Address, get, stream

NAME = "llama.cpp"
SIZES = ("ftype", "n_vocab", "n_embd", "n_params", "size", "n_ctx_train")
SPECULATIVE = "speculative."


def identity(address: Address, card: Mapping[str, Any]) -> Identity:
    """What it tells of itself. card: the model's entry in `/v1/models`."""
    told = get(address, "/props")
    told = told if isinstance(told, dict) else {}
    meta = card.get("meta") or {}
    settings = {key: str(meta[key]) for key in SIZES if meta.get(key) is not None}
    # what speculates stands in the settings of an answer, and not in /props
    body = {"prompt": "a", "n_predict": 1, "stream": True, "model": str(card["id"])}
    found = [event.get("generation_settings") for _, event in stream(address, "/completion", body) if event.get("stop")]
    if not found:
        raise EngineGone(f"{address.url}/completion answers nothing")
    if not isinstance(found[0], dict):
        raise EngineGone(f"{address.url}/completion answers without generation_settings: whether it speculates cannot be told "
                         "(--set engine=openai asks it as any other engine)")  # fmt: skip
    drafting = _drafting(found[0])
    tells: Literal["how", "whether"] = "whether" if "draft" in drafting.get("types", "") else "how"  # no word of the draft model
    return Identity(NAME, str(told.get("build_info") or "untold"), str(card["id"]), settings, drafting, tells)


def _drafting(settings: Mapping[str, Any]) -> dict[str, str]:
    """Its settings of speculation; empty where it says that there is none."""
    found = {key.removeprefix(SPECULATIVE): str(value) for key, value in sorted(settings.items()) if key.startswith(SPECULATIVE)}
    types = [word for word in found.get("types", "none").split(",") if word != "none"]  # `none,ngram-simple`
    return found | {"types": ",".join(types)} if types else {}


def ready(address: Address) -> None:
    """It counts request by request: nothing is to be read before one."""


def ask(address: Address, who: Identity, asked: Asked) -> Answer:
    params = asked.params
    body: dict[str, Any] = {
        "model": who.model, "prompt": asked.prompt_ids, "n_predict": params.max_new_tokens, "stream": True,
        "return_tokens": True, "timings_per_token": True, "cache_prompt": False, "seed": asked.seed,
        "temperature": params.temperature, "top_p": params.top_p, "top_k": 0 if params.temperature > 0 else 1, "min_p": 0.0,
        "typical_p": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0,
        "xtc_probability": 0.0,
        # no others, and in our order: the nucleus is of the tempered law; at T = 0 the likeliest token alone
        "samplers": ["temperature", "top_p"] if params.temperature > 0 else ["top_k"],
    }  # fmt: skip
    ids: list[int] = []
    text, first, n_first, accepted, last = "", None, None, list[int](), dict[str, Any]()
    for seconds, event in stream(address, "/completion", body):
        text += event.get("content") or ""
        told = [] if event.get("stop") else event.get("tokens") or []
        if first is None and told:
            first, n_first = seconds, len(told)
        ids += told
        accepted += [int((event.get("timings") or {}).get("draft_n_accepted") or 0)] * len(told)
        last = event if event.get("stop") else last
    if not last:
        raise BadAnswer(f"its answer broke off after {len(ids)} tokens")
    if last.get("truncated"):
        raise BadAnswer(f"it cut the answer at its own context after {len(ids)} tokens: start it with a larger one (-c)")
    timings = last.get("timings") or {}
    return Answer(ids, first or 0.0, n_first, text, last.get("model"), "ids", "engine", last.get("tokens_evaluated"),
                  last.get("tokens_predicted"), timings.get("cache_n"), str(last.get("stop_type") or "it does not say why"),
                  partial(_counts, accepted, timings, bool(who.drafting)))  # fmt: skip


def _counts(accepted: Sequence[int], timings: Mapping[str, Any], drafts: bool) -> Counts:
    """accepted: at each token, how many drafts were accepted up to its step. drafts: whether it says that it speculates; then
    timings without `draft_n` tell of none."""
    if "draft_n" not in timings and not drafts:
        return Counts(why="its timings have no draft_n")
    drafted, n_accepted = int(timings.get("draft_n", 0)), int(timings.get("draft_n_accepted", 0))
    if accepted and accepted[-1] != n_accepted:
        return Counts(None, drafted, n_accepted, "timings", "its timings are not told token by token")
    return Counts(len(accepted_by_step(accepted)), drafted, n_accepted, "timings")


def accepted_by_step(accepted: Sequence[int]) -> list[int]:
    """The drafts that each step after the prefill accepted, from the sum at each token.

    The first token is the prefill's. A step that accepted n drafts emits n + 1 tokens, all with the sum that it left; the last
    step's may be cut.
    """
    steps, before, left = list[int](), accepted[0] if accepted else 0, 0
    for now in accepted[1:]:
        if left and now == before:
            left -= 1
            continue
        steps.append(now - before)
        before, left = now, now - before
    return steps
