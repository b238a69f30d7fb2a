"""Which options of each policy pay best under which costs: chosen on held-out conversations, on which nothing is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import methods
from harness.common.errors import UserError, say
from harness.common.progress import showing_progress
from harness.ledger.record import canonical_hash
from harness.load.model import Loaded
from harness.replay.choices import Choice
from harness.replay.known import KnownText
from harness.replay.price import Prices, looks_of
from harness.replay.prompts import LONGEST, Answer, Prompt, held_out_key, held_out_prompts, params, vanilla_answers
from harness.replay.replayed import Replayed, cannot_be_replayed, replayed
from harness.replay.rows import Rows, RowsDrafter
from harness.replay.store import Drawn, Store
from harness.replay.texts import went_on
from harness.run.arms import tell_other_heads
from methods import Arm
from tasks.overlap import checked_prompts


@dataclass(frozen=True, slots=True)
class _Held:
    """A held-out conversation with its drafted rows."""

    key: str
    answer: Answer
    text: KnownText
    rows: Rows
    features: torch.Tensor


def choose(
    loaded: Loaded, names: Sequence[str], prices: Mapping[str, Prices], temperatures: Sequence[float], *, conversations: int,
    max_new_tokens: int, folder: Path, top_k: int, depth: int, drafter: str = methods.EAGLE,
) -> list[Choice]:  # fmt: skip
    """The fastest candidates of each method under each costs. prices: by the name that options have them under. drafter: the kind
    of EAGLE head that policies draft with.

    Raises:
        UserError: a method that cannot be replayed, or no held-out prompts.
    """
    ids = held_out_prompts(loaded, conversations, LONGEST, checked_prompts())
    if not ids:
        raise UserError("no held-out prompt is short enough for this model")
    found: list[Choice] = []
    for t in temperatures:
        held: dict[str, list[_Held]] = {}  # by the kind of head
        for name in names:
            m = methods.get(name).on(drafter)
            if why := cannot_be_replayed(m, t):
                raise UserError(why)
            kind = m.drafter or drafter
            if kind not in held:
                asked = [Prompt(i, p) for i, p in enumerate(ids)]
                held[kind] = _drafted(loaded, asked, t, max_new_tokens, folder, top_k, depth, kind)
            found += _best(loaded, m, held[kind], prices, t)
    return found


def _drafted(
    loaded: Loaded, prompts: Sequence[Prompt], t: float, budget: int, folder: Path, top_k: int, depth: int, kind: str
) -> list[_Held]:  # fmt: skip
    real = head_of(loaded, kind)
    drawn = Drawn(loaded.config.name, loaded.identity.id, loaded.drafter_id(kind) or "", loaded.dtype, "")
    store = Store(folder, drawn)
    say(f"answering {len(prompts)} held-out prompts at T = {t:g} ...")
    found = []
    with showing_progress("held-out prompts") as progress:
        for answer in progress.each(vanilla_answers(loaded, prompts, t, budget), "prompt"):
            how = params(loaded, answer.prompt, t, budget)
            key = held_out_key(answer.prompt.number, t, budget)
            features, beyond = went_on(loaded, answer.prompt.ids, answer.ids, how, real)
            text = KnownText(answer.prompt.ids, answer.ids, beyond)
            there = store.read(key)
            if there is not None and there[0] == text:
                rows = there[1]
            else:
                rows = Rows()
                drafter = RowsDrafter(real, rows, text.ids, len(text.prompt), lambda f=features: f)  # type: ignore[misc]
                with loaded.target.decoding(), torch.inference_mode():
                    drafter.draft(range(1, len(text.answer)), top_k, depth)
                store.write(key, text, rows)
            found.append(_Held(key, answer, text, rows, features))
    return found


def head_of(loaded: Loaded, kind: str) -> Any:
    """The drafter with an EAGLE head of that kind.

    Raises:
        UserError: the model has none.
    """
    found = loaded.drafter_of(kind)
    if found is None:
        what = "EAGLE head" if kind == methods.EAGLE else methods.DRAFTERS[kind]
        raise UserError(f"{loaded.config.name} has no {what}, whose drafts are replayed")
    return found


def _best(loaded: Loaded, m: methods.Method, held: Sequence[_Held], prices: Mapping[str, Prices], t: float) -> list[Choice]:
    say(f"{m.name}: {len(m.candidates) + 1} sets of options on {len(held)} conversations at T = {t:g} ...")
    of_costs = "costs" in m.options
    sets = [m.pinned(options) for options in (m.options, *({**m.options, **c} for c in m.candidates))]
    tell_other_heads([Arm(m, "paper", options) for options in sets], loaded)
    kept: dict[str, list[Replayed]] = {}

    def steps(options: dict[str, Any]) -> list[Replayed]:
        key = canonical_hash(options)
        if key not in kept:
            kept[key] = [_replayed(loaded, Arm(m, "paper", options), h, t) for h in held]
        return kept[key]

    found = []
    for name, price in prices.items():
        best: Choice | None = None
        for options in ({**o, "costs": name} if of_costs else o for o in sets):
            made = steps(options)
            ours, plain, looks = 0.0, 0.0, looks_of(options)
            for h, r in zip(held, made, strict=True):
                context = len(h.text.prompt) + 1
                plain += sum(price.plain(context + j) for j in range(r.tokens - 1))
                for calls, size, accepted in zip(r.calls, r.sizes, r.accepted, strict=True):
                    ours += price.step(calls, size, accepted, context, m.drafter or methods.EAGLE) + price.look * looks(calls)
                    context += accepted + 1
            forwards, tokens = sum(len(r.accepted) for r in made), sum(r.tokens - 1 for r in made)
            if best is None or plain / ours > best.speedup:
                best = Choice(m.name, t, name, options, plain / ours, tokens / forwards, len(sets), len(held))
        assert best is not None
        found.append(best)
    return found


def _replayed(loaded: Loaded, arm: Arm, h: _Held, t: float) -> Replayed:
    kind, drafter = arm.method.drafter, None
    if kind is not None:
        drafter = RowsDrafter(head_of(loaded, kind), h.rows, h.text.ids, len(h.text.prompt), lambda: h.features)
    how = params(loaded, h.answer.prompt, t, max(len(h.answer.ids), 1))
    with loaded.target.decoding():
        return replayed(arm, h.text, how, drafter)
