"""llama.cpp's server: token ids in and out by its own `/completion`, whose `timings` count accepted drafts token by token.

With `timings_per_token` every streamed token brings the number of drafts that were accepted so far, which rises at the first
token of a step. So the steps can be told one from another, those without a draft, too. Tokens that leave a character incomplete
are not streamed: their ids are asked for off the clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from methods.servers.answer import Answer, Asked, BadAnswer, Counts, EngineGone, Identity
from methods.servers.wire import Address, get, post, stream

NAME = "llama.cpp"
SIZES = ("ftype", "n_vocab", "n_embd", "n_params", "size", "n_ctx_train")
SPECULATIVE = "speculative."
HELD_BACK = "it streamed not every token (some left a character incomplete), and steps are told token by token"


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
    drafting = _drafting(found[0])  # no word of the draft model, nor of the sizes of n-grams
    return Identity(NAME, str(told.get("build_info") or "untold"), str(card["id"]), settings, drafting, tells="whether")


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
    wall, text, first, n_first, accepted, last = 0.0, "", None, None, list[int](), dict[str, Any]()
    for wall, event in stream(address, "/completion", body):
        text += event.get("content") or ""
        told = [] if event.get("stop") else event.get("tokens") or []
        if first is None and told:
            first, n_first = wall, len(told)
        ids += told
        accepted += [int((event.get("timings") or {}).get("draft_n_accepted") or 0)] * len(told)
        last = event if event.get("stop") else last
    if not last:
        raise BadAnswer(f"its answer broke off after {len(ids)} tokens")
    if last.get("truncated"):
        raise BadAnswer(f"it cut the answer at its own context after {len(ids)} tokens: start it with a larger one (-c)")
    timings, n_tokens, n_streamed = last.get("timings") or {}, last.get("tokens_predicted"), len(ids)
    if n_tokens is not None and n_tokens > n_streamed:
        whole = _with_held_back(ids, n_tokens, address, body)
        ids, n_first = whole, n_first if whole[:1] == ids[:1] else None
    counts = partial(_counts, accepted, timings, bool(who.drafting)) if len(ids) == n_streamed else partial(Counts, why=HELD_BACK)
    return Answer(ids, first or 0.0, n_first, text, last.get("model"), "ids", "engine", last.get("tokens_evaluated"),
                  n_tokens, timings.get("cache_n"), str(last.get("stop_type") or "it does not say why"),
                  wall, counts)  # fmt: skip


def _with_held_back(streamed: list[int], n_tokens: int, address: Address, body: Mapping[str, Any]) -> list[int]:
    """The ids of an answer, those that were not streamed included: a token that leaves a character incomplete is held back.

    The same is asked once more, off the clock, without streaming. Those ids are taken only if they are as many as were counted
    and have the streamed ones in their order; else the streamed ones are given back.
    """
    whole = post(address, "/completion", {**body, "stream": False, "timings_per_token": False}).get("tokens")
    if not isinstance(whole, list) or len(whole) != n_tokens:
        return streamed
    left = iter(whole)
    return whole if all(token in left for token in streamed) else streamed


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
