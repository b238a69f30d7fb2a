"""A method decodes a known text again, from the drafter's kept rows: the same trees and accept lengths as live, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.common.errors import UserError, in_one_line
from harness.replay.known import BEYOND, KnownChooser, KnownTarget, KnownText
from harness.replay.rows import RowsDrafter
from methods import Arm, Method
from methods.base import DraftedTree, SamplerParams


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a method's steps did, a column entry each: `accepted` draft tokens, `sizes` of the trees, and `calls`: the rows of
    each call of the drafter, that after the root first. `tokens`: of the answer; `trees`: where they were asked for."""

    tokens: int
    accepted: list[int]
    sizes: list[int]
    calls: list[list[int]]
    trees: list[DraftedTree]
    asked: int
    lacking: int


def cannot_be_replayed(m: Method, temperature: float) -> str | None:
    """Why a method's steps do not follow from vanilla's answer; None where they do."""
    if m.external:
        return f"method {m.name} is another's loop, which a replay cannot run"
    if m.samples_drafts and temperature > 0:
        return f"method {m.name} draws its drafts at T = {temperature:g}: its answers are not vanilla's, so it has to be run"
    if not m.exact:
        return f"method {m.name} does not keep the target's law: its answers are not vanilla's, so it has to be run"
    if m.drafter is not None and not m.needs_head:
        return f"method {m.name} drafts with another drafter than the EAGLE head, whose rows are kept: it has to be run"
    if m.drafter is None:
        n = 16
        try:  # on a text that says the same again and again: whatever drafts from the text drafts here
            replayed(Arm(m, "paper", m.options), KnownText([1] * n, [1] * n, [1] * BEYOND), SamplerParams(n), None)
        except UserError as e:
            return str(e)
    return None


@torch.inference_mode()
def replayed(
    arm: Arm, text: KnownText, params: SamplerParams, drafter: RowsDrafter | None, *, trees: bool = False
) -> Replayed:  # fmt: skip
    """Decode `text` again by an arm. params: those of vanilla's answer, stop ids included.

    Raises:
        UserError: the method asks for what a replay cannot know, or its answer is another than vanilla's.
    """
    how = SamplerParams(
        params.max_new_tokens, params.stop_ids, params.temperature, params.top_p, params.key,
        lambda p: KnownChooser(p, text.tokens), trees,
    )  # fmt: skip
    target: Any = KnownTarget()
    if drafter:
        drafter.forget()
    try:
        made = arm.method.build(**arm.options)(text.prompt, target, drafter, how)
    except UserError as e:
        raise UserError(f"method {arm.name} cannot be replayed: {e}") from None
    except Exception as e:  # a method, perhaps a user's own, may raise anything
        why = str(e) if isinstance(e, ValueError) else f"its code in {arm.method.file} raised {in_one_line(e)}"
        raise UserError(f"method {arm.name} cannot be replayed: {why}") from None
    if made.token_ids != text.answer:
        raise UserError(f"method {arm.name} gave another answer in replay than vanilla's: it is not exact, or the "
                        "ledger's answer is of other stop ids")  # fmt: skip
    t = made.trace
    calls = [c for c in drafter.calls if c] if drafter else [[] for _ in (t.accepted if t else [])]
    if t is None or len(calls) != len(t.accepted):
        calls = [] if t is None else calls + [[] for _ in range(len(t.accepted) - len(calls))]
    asked, lacking = (drafter.asked, drafter.lacking) if drafter else (0, 0)
    return Replayed(len(made.token_ids), list(t.accepted) if t else [], list(t.tree_size) if t else [], calls,
                    list(t.trees) if t else [], asked, lacking)  # fmt: skip
