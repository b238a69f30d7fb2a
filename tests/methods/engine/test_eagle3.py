"""The EAGLE-3 head drafting with its cache, against its formula written out slowly and run over every path from the start."""

from __future__ import annotations

import copy
import random
from dataclasses import asdict
from typing import Any

import pytest
import torch
from drafting import close, expand_in_levels
from eagle3_formula import eagle3_logits
from random_llamas import eagle3_head_of, fresh_target, module_of, same_bits
from torch import Tensor

from harness.audit.probe.stand_ins import texts_of
from methods.engine.eagle3 import Eagle3Drafter, Eagle3Head, default_layers
from methods.engine.native import build
from methods.engine.native.drafters import NativeEagle3Drafter
from methods.engine.row_invariant.drafters import RowInvariantEagle3Drafter
from methods.engine.row_invariant.target import RowInvariantTarget
from methods.engine.target import HFTarget
from methods.engine.teacher_forced import teacher_forced
from methods.engine.tree import Tree, chain

CHOICES: dict[str, dict[str, Any]] = {
    "plain": {}, "norm_output": {"norm_output": True}, "fc_norm": {"fc_norm": True}, "norm_before_fc": {"norm_before_fc": True},
    "norm_before_residual": {"norm_before_residual": True}, "EAGLE-3.1": {"fc_norm": True, "norm_output": True},
    "two states": {"aux_layers": (0, 2)},
}  # fmt: skip
each_choice = pytest.mark.parametrize("choice", CHOICES)
MODEL = "72, three heads a group"
TREE = Tree([3, 7, 8, 9, 10, 11], [-1, 0, 0, 2, 3, 2])


def slow_logits(head: Eagle3Head, embedding: Tensor, tokens: list[int], features: Tensor, drafted: list[int]) -> Tensor:
    """`eagle3_logits` of a head in memory."""
    config = asdict(head.config) | {"eagle_config": {"norm_before_fc": head.config.norm_before_fc}}
    return eagle3_logits(head.state_dict(), config, embedding, tokens, features, drafted)


# ---- drafters ----


def pairs_of(n: int, head: Eagle3Head, seed: int = 0) -> tuple[list[int], Tensor]:
    """Tokens [n] and the target's states for them, made up."""
    rng = random.Random(seed)
    wide = len(head.config.aux_layers) * head.config.hidden_size
    states = 3 * torch.randn(n, wide, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [rng.randrange(head.config.vocab_size) for _ in range(n)], states


@each_choice
@torch.inference_mode()
def test_drafting_in_steps_and_levels_is_the_head_over_every_whole_path(choice: str) -> None:
    head = eagle3_head_of(MODEL, torch.float64, **CHOICES[choice])
    target = HFTarget(module_of(MODEL, torch.float64))
    drafter = Eagle3Drafter(head, target.embedding, target.lm_head)
    tokens, states = pairs_of(26, head)
    drafter.start(80)
    seen = 0
    for n in (17, 3, 1, 5):
        drafter.observe(tokens[seen : seen + n], states[seen : seen + n])
        seen += n
        pairs = tokens[:seen], states[:seen]
        wanted = slow_logits(head, target.embedding, *pairs, [])
        assert close(drafter.root_logits()[0], wanted)
        for node, logits in expand_in_levels(drafter, TREE).items():
            assert close(logits, slow_logits(head, target.embedding, *pairs, list(texts_of(TREE)[node][1:])))
        assert close(drafter.root_logits()[0], wanted)  # still the root's


@torch.inference_mode()
def test_every_choice_is_another_head() -> None:
    """Else a test of a choice would show nothing."""
    first = [slow_logits(head, module_of(MODEL, torch.float64).model.embed_tokens.weight, *pairs_of(9, head), [5, 6])
             for choice in CHOICES for head in [eagle3_head_of(MODEL, torch.float64, **CHOICES[choice])]]  # fmt: skip
    for i, a in enumerate(first):
        assert all((a - b).abs().max() > 1e-2 for b in first[:i])


@each_choice
@torch.inference_mode()
def test_a_level_of_training_time_test_is_what_drafting_computes_there(choice: str) -> None:
    head = eagle3_head_of(MODEL, torch.float64, **CHOICES[choice])
    embedding, (tokens, states) = module_of(MODEL, torch.float64).model.embed_tokens.weight, pairs_of(12, head)
    ids, levels = torch.tensor([[0, *tokens]]), 5
    valid = torch.ones(1, 12, dtype=torch.bool)
    features = torch.cat([states, states[-1:]])[None]  # of the last token there is no pair
    for s, (out, here) in enumerate(teacher_forced(head, embedding, ids, features, valid, levels)):
        assert here[0].tolist() == [i >= s for i in range(12)]
        for i in range(s, 12):
            wanted = slow_logits(head, embedding, tokens[: i - s + 1], states[: i - s + 1], tokens[i - s + 1 : i + 1])
            found = head.lm_head(head.readable(out[0, i]))
            assert close(found, wanted)


@each_choice
@torch.inference_mode()
def test_other_engines_draft_what_torchs_does(choice: str) -> None:
    head, module = eagle3_head_of(MODEL, torch.float32, **CHOICES[choice]), module_of(MODEL, torch.float32)
    tokens, states = pairs_of(140, head)  # more than the native engine runs at once
    embedding, found = module.model.embed_tokens.weight, []
    natives = [NativeEagle3Drafter(head, embedding, fresh_target(MODEL, torch.float32, p).lm_head) for p in build.paths_here()]
    assert not any(hasattr(native, "_layer") for native in natives)  # a copy of q, k and v that C does not read
    others = [RowInvariantEagle3Drafter(head, embedding, module.lm_head)]
    for drafter in (Eagle3Drafter(head, embedding, module.lm_head), *others, *natives):
        drafter.start(300)
        drafter.observe(tokens[:130], states[:130].float())
        drafter.observe(tokens[130:], states[130:].float())
        rows = expand_in_levels(drafter, TREE)
        found.append(torch.stack([drafter.root_logits()[0], *(rows[i] for i in sorted(rows))]))
        assert torch.equal(drafter.named(torch.arange(len(head.tokens))), head.tokens)
    assert all((found[0] - other).abs().max() < 1e-3 for other in found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@each_choice
@torch.inference_mode()
def test_on_the_row_invariant_engine_a_node_does_not_depend_on_what_is_drafted_beside_it(choice: str, dtype: torch.dtype) -> None:
    head, target = eagle3_head_of(MODEL, dtype, **CHOICES[choice]), RowInvariantTarget(copy.deepcopy(module_of(MODEL, dtype)))
    tokens, states = pairs_of(70, head)

    def observed(at_once: int) -> Any:
        drafter = RowInvariantEagle3Drafter(head, target.embedding, target.lm_head)
        drafter.start(200)
        for i in range(0, len(tokens), at_once):
            drafter.observe(tokens[i : i + at_once], states[i : i + at_once].to(dtype))
        return drafter

    whole, parts = observed(70), observed(9)
    assert same_bits(whole.root_logits().float(), parts.root_logits().float())
    levels = expand_in_levels(whole, TREE)
    line = expand_in_levels(parts, chain(TREE.tokens[0], [TREE.tokens[i] for i in (2, 3, 4)]))
    for place, node in enumerate((2, 3, 4), start=1):
        assert same_bits(levels[node].float(), line[place].float())


# ---- what it is ----


def test_columns_are_named_by_offsets_and_the_vocabulary_is_marked() -> None:
    head = eagle3_head_of(MODEL, torch.float32)
    tokens = head.tokens
    assert (tokens.diff() > 0).all() and torch.equal(tokens, head.t2d.nonzero()[:, 0])
    assert torch.equal(tokens - head.d2t, torch.arange(len(tokens))) and len(tokens) == 517 // 3


def test_a_cut_to_frequent_tokens_is_refused() -> None:
    head, module = eagle3_head_of(MODEL, torch.float32), module_of(MODEL, torch.float32)
    drafter = Eagle3Drafter(head, module.model.embed_tokens.weight, module.lm_head)
    with pytest.raises(ValueError, match="frequent=9: an EAGLE-3 head drafts over its own vocabulary of 172 tokens"):
        drafter.start(40, 9)


def test_the_usual_states_are_early_middle_and_late() -> None:
    assert default_layers(32) == (2, 16, 29) and default_layers(30) == (2, 15, 27) and default_layers(8) == (2, 4, 5)
    for n in (1, 2, 5, 6):
        with pytest.raises(ValueError, match=f"a target of {n} layers has no usual three"):
            default_layers(n)
