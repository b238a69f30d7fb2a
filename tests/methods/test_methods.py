"""Contract tests: every registered method on a tiny trained target. A new method is tested by existing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_model import STOP_IDS, Spy, TinyModel
from torch import Tensor

import methods
from methods.base import Generation, SamplerParams
from methods.engine.sampling import probabilities, stream_key
from methods.engine.tree import Tree

OWN = methods.names(exact=True)
EXTERNAL = [name for name in methods.names() if methods.get(name).external]
SPECULATIVE = [name for name in OWN if name != "vanilla"]
WITH_DRAFTER = [name for name in OWN if methods.get(name).drafter]
WALKING = [name for name in SPECULATIVE if not methods.get(name).samples_drafts]

each_method = pytest.mark.parametrize("name", SPECULATIVE)
each_drafting = pytest.mark.parametrize("name", WITH_DRAFTER)
GREEDY = SamplerParams(64, STOP_IDS)


def check(generation: Generation, params: SamplerParams) -> None:
    """What holds of every generation with a trace, whatever the method."""
    ids, trace = generation.token_ids, generation.trace
    assert trace is not None
    columns = [trace.tree_size, trace.accepted, trace.draft_s, trace.verify_s, trace.target_s, trace.drafter_s]
    assert len({len(column) for column in columns}) == 1
    assert 1 + sum(a + 1 for a in trace.accepted) - generation.n_cut == len(ids)
    assert all(0 <= a <= n for a, n in zip(trace.accepted, trace.tree_size, strict=True))
    inside = [a + b for a, b in zip(trace.target_s, trace.drafter_s, strict=True)]
    assert all(f <= d + v for d, v, f in zip(trace.draft_s, trace.verify_s, inside, strict=True))
    assert 1 <= len(ids) <= params.max_new_tokens
    assert not params.stop_ids & set(ids[:-1])
    assert generation.finish == ("stop" if ids[-1] in params.stop_ids else "length")
    assert generation.finish == "stop" or len(ids) == params.max_new_tokens
    assert generation.prefill_s > 0


def check_trees(spy: Spy) -> None:
    """Parents come before their children, siblings differ, and what was committed is a path from the root."""
    for tree, path in zip(spy.trees, spy.paths, strict=True):
        assert tree.parents[0] == -1 and all(0 <= p < i for i, p in enumerate(tree.parents[1:], start=1))
        assert len(set(zip(tree.parents, tree.tokens, strict=True))) == len(tree)
        assert path[0] == 0 and all(tree.parents[b] == a for a, b in zip(path, path[1:], strict=False))


# ---- greedy: vanilla's ids ----


@each_method
def test_greedy_ids_are_vanillas(name: str, tiny_model_by_dtype: TinyModel) -> None:
    assert len(tiny_model_by_dtype.prompts) >= 12
    for prompt in tiny_model_by_dtype.prompts:
        generation = tiny_model_by_dtype.decode(name, prompt, GREEDY)
        check(generation, GREEDY)
        assert generation.token_ids == tiny_model_by_dtype.vanilla(prompt, GREEDY).token_ids


def test_vanilla_is_the_argmax_of_a_forward_without_cache(tiny: TinyModel) -> None:
    target = tiny.loaded.target
    for prompt in tiny.prompts[:8]:
        generation = tiny.vanilla(prompt, GREEDY)
        check(generation, GREEDY)
        ids = generation.token_ids
        with torch.inference_mode():
            logits = target.stock_model(torch.tensor([prompt + ids]), use_cache=False).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == ids


def test_vanillas_forwards_have_no_drafts(tiny: TinyModel) -> None:
    generation = tiny.vanilla(tiny.prompts[0], GREEDY)
    assert generation.trace is not None
    assert set(generation.trace.tree_size) == set(generation.trace.accepted) == {0}
    assert generation.n_cut == 0


@pytest.mark.parametrize("stop_ids", [STOP_IDS, frozenset(), frozenset({2})])
@pytest.mark.parametrize("name", EXTERNAL)
def test_hugging_faces_own_loops_give_vanillas_ids(name: str, stop_ids: frozenset[int], tiny: TinyModel) -> None:
    params = SamplerParams(64, stop_ids)
    for prompt in tiny.prompts[:6] if name == "hf-generate" else tiny.prompts[:3]:
        generation = tiny.decode(name, prompt, params)
        vanilla = tiny.vanilla(prompt, params)
        assert (generation.token_ids, generation.finish) == (vanilla.token_ids, vanilla.finish)
        assert generation.trace is None


@pytest.mark.parametrize("name", EXTERNAL)
def test_hugging_faces_own_loops_leave_the_target_as_it_was(name: str, tiny: TinyModel) -> None:
    before = tiny.decode("eagle2", tiny.prompts[0], GREEDY)
    tiny.decode(name, tiny.prompts[0], replace(GREEDY, temperature=1.0))
    assert tiny.decode("eagle2", tiny.prompts[0], GREEDY).token_ids == before.token_ids


def test_drafts_are_accepted_off_the_first_rows(tiny: TinyModel) -> None:
    """Without this the equalities above would say little: a cache that kept the first rows would pass."""
    moved, tokens, forwards = 0, 0, 0
    for prompt in tiny.prompts[:5]:
        spy = tiny.spy()
        generation = tiny.decode("eagle2", prompt, GREEDY, target=spy)
        assert generation.trace is not None
        check_trees(spy)
        moved += sum(path != list(range(len(path))) for path in spy.paths)
        tokens += len(generation.token_ids) - 1
        forwards += len(generation.trace.accepted)
    assert tokens / forwards > 2
    assert moved > 10


# ---- sampling ----

SAMPLING = {"T=1": (1.0, 1.0), "T=0.7 top-p 0.8": (0.7, 0.8)}
each_sampling = pytest.mark.parametrize(("temperature", "top_p"), SAMPLING.values(), ids=SAMPLING.keys())


def sampled(tiny: TinyModel, temperature: float, top_p: float, n: int = 32) -> Iterator[tuple[list[int], SamplerParams]]:
    """Each prompt with a stream of its own."""
    for i, prompt in enumerate(tiny.prompts):
        key = stream_key(0, str(i), 1, 0)
        yield prompt, SamplerParams(n, STOP_IDS, temperature=temperature, top_p=top_p, key=key)


@each_sampling
@pytest.mark.parametrize("name", WALKING)
def test_sampled_ids_of_walking_methods_are_vanillas(name: str, temperature: float, top_p: float, tiny: TinyModel) -> None:
    for prompt, params in list(sampled(tiny, temperature, top_p))[:4]:
        generation = tiny.decode(name, prompt, params)
        check(generation, params)
        assert generation.token_ids == tiny.vanilla(prompt, params).token_ids


@each_sampling
@pytest.mark.parametrize("name", [*(n for n in SPECULATIVE if methods.get(n).samples_drafts), "vanilla", *EXTERNAL])
def test_sampled_ids_follow_the_law_of_their_own_prefix(name: str, temperature: float, top_p: float, tiny: TinyModel) -> None:
    """Each id against the processed law after its prefix, from a forward without cache: none outside the nucleus, and
    the sums over all ids of log p and of `is the likeliest` are what the laws say (a martingale: z is standard normal)."""
    target = tiny.loaded.target
    z = {"log p": [0.0, 0.0], "likeliest": [0.0, 0.0]}
    for prompt, params in list(sampled(tiny, temperature, top_p))[:8]:
        generation = tiny.decode(name, prompt, params)
        if generation.trace is not None:
            check(generation, params)
        ids = generation.token_ids
        with torch.inference_mode():
            logits = target.stock_model(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        laws = probabilities(logits, temperature, top_p)
        for law, token in zip(laws, ids, strict=True):
            assert law[token] > 0
            scores = {"log p": torch.where(law > 0, law.log(), 0.0), "likeliest": (law == law.max()).double()}
            for statistic, g in scores.items():
                mean = float((law * g).sum())
                z[statistic][0] += float(g[token]) - mean
                z[statistic][1] += float((law * (g - mean) ** 2).sum())
    for total, variance in z.values():
        assert abs(total) < 3.5 * variance**0.5


@pytest.mark.parametrize("name", OWN)
def test_a_sample_depends_on_its_stream_alone(name: str, tiny: TinyModel) -> None:
    (prompt, params), (other, _) = list(sampled(tiny, 1.0, 1.0, n=16))[4:6]
    first = tiny.decode(name, prompt, params).token_ids
    tiny.decode(name, other, params)
    torch.manual_seed(99)
    assert tiny.decode(name, prompt, params).token_ids == first
    assert tiny.decode(name, prompt, replace(params, key=1)).token_ids != first


# ---- where generations end ----


@each_method
def test_the_budget_cuts_a_block_where_it_ends(name: str, tiny: TinyModel) -> None:
    prompt = tiny.prompts[4]
    whole = tiny.vanilla(prompt, SamplerParams(20)).token_ids
    n_cut = 0
    for budget in range(1, 21):
        params = SamplerParams(budget)
        generation = tiny.decode(name, prompt, params)
        check(generation, params)
        assert generation.token_ids == whole[:budget]
        n_cut += generation.n_cut
    assert n_cut > 0


def blocks(generation: Generation) -> Iterator[tuple[int, int]]:
    """(first output position, length) of what each target forward emitted."""
    assert generation.trace is not None
    at = 1
    for accepted in generation.trace.accepted:
        yield at, accepted + 1
        at += accepted + 1


@each_method
def test_a_stop_id_inside_an_accepted_block_ends_the_generation_there(name: str, tiny: TinyModel) -> None:
    tried = 0
    for prompt in tiny.prompts:
        free = tiny.decode(name, prompt, SamplerParams(40))
        ids = free.token_ids
        for at, n in blocks(free):
            for position in range(at, min(at + n, len(ids)) - 1):
                if ids.index(ids[position]) < position:
                    continue  # it would have stopped earlier
                params = SamplerParams(40, frozenset({ids[position], 383}))
                generation = tiny.decode(name, prompt, params)
                check(generation, params)
                assert generation.token_ids == ids[: position + 1]
                assert generation.finish == "stop" and generation.n_cut == at + n - 1 - position > 0
                tried += 1
        if tried > 5:
            return
    raise AssertionError(f"{name} accepted too few drafts to test this")


@pytest.mark.parametrize("name", [*OWN, *EXTERNAL])
def test_a_first_token_that_stops_or_a_budget_of_one_needs_no_step(name: str, tiny: TinyModel) -> None:
    prompt = tiny.prompts[0]
    first = tiny.vanilla(prompt, SamplerParams(1)).token_ids
    stopped = tiny.decode(name, prompt, SamplerParams(9, frozenset(first)))
    assert (stopped.token_ids, stopped.finish, stopped.n_cut) == (first, "stop", 0)
    both = tiny.decode(name, prompt, SamplerParams(1, frozenset(first)))
    assert (both.token_ids, both.finish) == (first, "stop")
    short = tiny.decode(name, prompt, SamplerParams(1))
    assert (short.token_ids, short.finish) == (first, "length")


@pytest.mark.parametrize("name", OWN)
def test_prompts_of_any_length_that_fits(name: str, tiny: TinyModel) -> None:
    text = [token for prompt in tiny.prompts for token in prompt]
    budget = 12
    params = SamplerParams(budget, STOP_IDS)
    for n in (1, 2, 255, 256, 257, tiny.loaded.config.context_length - budget):
        generation = tiny.decode(name, text[-n:], params)
        check(generation, params)
        assert generation.token_ids == tiny.vanilla(text[-n:], params).token_ids


# ---- odd trees ----

ODD = {
    "more children than the vocabulary": {"top_k": 500, "depth": 2, "total": 59},
    "more nodes than the pool": {"top_k": 2, "depth": 2, "total": 59},
    "fewer nodes than children": {"top_k": 10, "depth": 6, "total": 3},
    "one level": {"top_k": 10, "depth": 1, "total": 59},
    "a chain": {"top_k": 1, "depth": 5, "total": 59},
    "one node": {"top_k": 10, "depth": 6, "total": 1},
    "one node of one level": {"top_k": 1, "depth": 1, "total": 1},
}
DYNAMIC = [name for name in WITH_DRAFTER if "top_k" in methods.get(name).options]


@pytest.mark.parametrize("options", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("name", DYNAMIC)
def test_any_tree_options_keep_the_output(name: str, options: dict[str, int], tiny: TinyModel) -> None:
    params = SamplerParams(16, STOP_IDS)
    for prompt in tiny.prompts[:2]:
        spy = tiny.spy()
        generation = tiny.decode(name, prompt, params, target=spy, **options)
        check(generation, params)
        check_trees(spy)
        assert max(tree.n_draft for tree in spy.trees) <= options["total"]
        assert max(max(tree.depths()) for tree in spy.trees) <= options["depth"]
        assert generation.token_ids == tiny.vanilla(prompt, params).token_ids


@pytest.mark.parametrize("shape", ["0", "0 1", "0 00 000 0000", "0 1 2 10"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_static_shape_keeps_the_output(shape: str, temperature: float, tiny: TinyModel) -> None:
    params = SamplerParams(24, STOP_IDS, temperature=temperature, key=5)
    generation = tiny.decode("eagle1", tiny.prompts[0], params, shape=shape)
    check(generation, params)
    assert temperature or generation.token_ids == tiny.vanilla(tiny.prompts[0], params).token_ids


@pytest.mark.parametrize("options", [{"max_ngram": 1}, {"max_ngram": 8, "n_draft": 1}, {"n_draft": 40}])
def test_any_lookup_options_keep_the_output(options: dict[str, int], tiny: TinyModel) -> None:
    for prompt in tiny.prompts[:4]:
        generation = tiny.decode("pld", prompt, GREEDY, **options)
        check(generation, GREEDY)
        assert generation.token_ids == tiny.vanilla(prompt, GREEDY).token_ids


@each_drafting
def test_sizes_in_the_trace_are_those_of_the_trees(name: str, tiny: TinyModel) -> None:
    spy = tiny.spy()
    generation = tiny.decode(name, tiny.prompts[5], GREEDY, target=spy)
    assert generation.trace is not None
    assert generation.trace.tree_size == [tree.n_draft for tree in spy.trees]
    assert generation.trace.accepted == [len(path) - 1 for path in spy.paths]


# ---- logits that tie, heads that are sure of themselves ----


def rounded_logits(tiny: TinyModel) -> None:
    """Logits become whole numbers: the target's argmax ties, and so do drafts, by the dozen."""
    exact = tiny.loaded.target.lm_head

    def rounded(features: Tensor) -> Tensor:
        return exact(features).round()

    rounded.weight = exact.weight  # type: ignore[attr-defined]  # what a cut head takes its rows from
    tiny.loaded.target.lm_head = rounded
    assert tiny.loaded.drafter is not None
    tiny.loaded.drafter._lm_head = rounded  # type: ignore[assignment]


def zeroed_rows(tiny: TinyModel) -> None:
    """All logits but eight are exactly 0, for target and head alike."""
    weight = tiny.loaded.target.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[[i for i in range(len(weight)) if i % 48]] = 0


def saturated_head(tiny: TinyModel) -> None:
    """Confidences of 1 and of 0: values tie between parent and child."""
    assert tiny.loaded.drafter is not None
    with torch.no_grad():
        tiny.loaded.drafter.head.fc.weight *= 1e3


def sharp_target(tiny: TinyModel) -> None:
    with torch.no_grad():
        tiny.loaded.target.model.get_output_embeddings().weight *= 50


ALTERATIONS = [rounded_logits, zeroed_rows, saturated_head, sharp_target]


@pytest.mark.parametrize("alter", ALTERATIONS, ids=lambda f: f.__name__)
def test_ties_and_saturation_keep_trees_closed_and_the_output_vanillas(
    alter: Callable[[TinyModel], None], altered_tiny_model: TinyModel
) -> None:
    alter(altered_tiny_model)
    plain, drawn = SamplerParams(20, STOP_IDS), SamplerParams(20, STOP_IDS, temperature=1.0, key=3)
    for name in SPECULATIVE:
        for prompt in (altered_tiny_model.prompts[0], altered_tiny_model.prompts[4]):
            for params in (plain, drawn):
                spy = altered_tiny_model.spy()
                generation = altered_tiny_model.decode(name, prompt, params, target=spy)
                check(generation, params)
                check_trees(spy)
                if params is plain or name in WALKING:
                    assert generation.token_ids == altered_tiny_model.vanilla(prompt, params).token_ids


# ---- one loaded target serves all ----


class Failing(Spy):
    """A target that dies in its third verification."""

    def verify(self, tree: Tree) -> Any:
        if len(self.trees) == 2:
            raise KeyboardInterrupt
        return super().verify(tree)


@each_method
def test_generations_on_one_target_do_not_know_of_each_other(name: str, tiny: TinyModel) -> None:
    long, short, params = tiny.prompts[8], tiny.prompts[10], SamplerParams(24)
    first = tiny.decode(name, short, params)
    tiny.decode(name, long, params)
    tiny.decode("vanilla", long, SamplerParams(5))
    with pytest.raises(KeyboardInterrupt):
        tiny.decode(name, long, params, target=Failing(tiny.loaded.target))
    again = tiny.decode(name, short, params)
    assert again.token_ids == first.token_ids
    assert again.trace is not None and first.trace is not None
    assert (again.trace.accepted, again.trace.tree_size) == (first.trace.accepted, first.trace.tree_size)


def test_a_method_built_once_serves_any_number_of_prompts(tiny: TinyModel) -> None:
    decode, params = methods.get("eagle2").build(), SamplerParams(24)
    for prompt in (tiny.prompts[0], tiny.prompts[9], tiny.prompts[0]):
        generation = decode(prompt, tiny.loaded.target, tiny.loaded.drafter, params)
        assert generation.token_ids == tiny.vanilla(prompt, params).token_ids


def test_all_methods_are_exact_ones_external_ones_or_typical_acceptance() -> None:
    assert EXTERNAL == ["hf-assisted", "hf-generate", "hf-prompt-lookup"]
    assert methods.names(exact=False) == ["medusa-typical"]
    assert set(methods.names()) == {*OWN, *EXTERNAL, "medusa-typical"}
    assert {"sps", "pld", "lookahead", "medusa", "hydra", "eagle1", "eagle2"} <= set(OWN)
