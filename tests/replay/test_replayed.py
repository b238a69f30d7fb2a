"""A replay decodes a known text again: the same trees and accept lengths as live decoding, step by step, whatever the method."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any

import pytest
import torch
from places import TINY
from tiny_model import STOP_IDS, TinyModel, shared_tiny_model

import methods
from harness.common.errors import UserError
from harness.load.config import model_config
from harness.load.model import load
from harness.replay import rows as rows_module
from harness.replay.known import KnownText
from harness.replay.replayed import cannot_be_replayed, replayed
from harness.replay.rows import Rows, RowsDrafter
from harness.replay.texts import went_on
from methods import Arm
from methods.base import SamplerParams
from methods.engine.grow import Grow, draft_pool
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Fixed, Here, Round, best_nodes, drafted, policy_tree
from methods.policies.opt_tree import OptTree

TOKENS = 24
EVERY = [m.name for m in sorted(methods.registered(), key=lambda m: m.name)]
ON_EITHER = ("opt-tree", "ema-depth")  # policies, which draft with an EAGLE-3 head, too
LIVE = [n for n in EVERY if cannot_be_replayed(methods.get(n), 0.0) is None and not methods.get(n).replay_only]


def known(
    tiny: TinyModel, prompt: list[int], params: SamplerParams, kind: str | None = methods.EAGLE
) -> tuple[KnownText, torch.Tensor]:
    answer = tiny.vanilla(prompt, params).token_ids
    features, beyond = went_on(tiny.loaded, prompt, answer, params, tiny.loaded.drafter_of(kind))
    return KnownText(prompt, answer, beyond), features


def drafter_of(
    tiny: TinyModel, text: KnownText, features: torch.Tensor, frequent: int | None = None, kind: str | None = methods.EAGLE
) -> RowsDrafter:
    drafter: Any = tiny.loaded.drafter_of(kind)
    return RowsDrafter(drafter, Rows(), text.ids, len(text.prompt), lambda: features, frequent)


def same(live: Any, made: Any) -> None:
    assert made.accepted == live.trace.accepted and made.sizes == live.trace.tree_size
    for one, other in zip(made.trees, live.trace.trees, strict=True):
        assert (one.tokens, one.parents, one.path) == (other.tokens, other.parents, other.path)
        if one.confidence is not None:
            assert one.confidence == pytest.approx(other.confidence, rel=1e-4)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "torch"])
def tiny(request: pytest.FixtureRequest) -> Any:
    """The engine of this CPU in both dtypes, and torch's in float32."""
    if request.param != "torch":
        return shared_tiny_model(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_ENGINE", "torch")
        return TinyModel(load(model_config(str(TINY)), dtype="float32", drafters=methods.DRAFTERS))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_method_replays_as_it_decodes(tiny: TinyModel, temperature: float) -> None:
    """Whatever the pool lacks is drafted, and then it is there."""
    params = SamplerParams(TOKENS, STOP_IDS, temperature=temperature, key=7)
    prompts = [tiny.prompts[0], tiny.prompts[4]][: 1 if tiny.loaded.identity.engine.startswith("torch") else 2]
    kinds = {kind: [known(tiny, prompt, params, kind) for prompt in prompts] for kind in methods.HEADS}
    by_rows: dict[Any, list[RowsDrafter]] = {}
    for m in (*map(methods.get, LIVE), *(methods.get(name).on(methods.EAGLE3) for name in ON_EITHER)):
        if cannot_be_replayed(m, temperature):
            continue
        frequent = m.options.get("frequent")
        kind = m.drafter or methods.EAGLE
        texts = kinds[kind]
        if (kind, frequent) not in by_rows:
            by_rows[kind, frequent] = [drafter_of(tiny, text, features, frequent, kind) for text, features in texts]
            for (text, _), drafter in zip(texts, by_rows[kind, frequent], strict=True):
                with tiny.loaded.target.decoding(), torch.inference_mode():
                    drafter.draft(range(1, len(text.answer)), 10, 6)
        for (text, _), drafter in zip(texts, by_rows[kind, frequent], strict=True):
            decode = m.build(**m.options)
            live = decode(text.prompt, tiny.loaded.target, tiny.loaded.drafter_of(m.drafter), replace(params, keep_trees=True))
            arm = Arm(m, "paper", m.options)
            lacking = []
            for again in (False, True):
                n = drafter.rows.n
                with tiny.loaded.target.decoding():
                    made = replayed(arm, text, params, drafter if m.drafter else None, trees=True)
                same(live, made)
                lacking.append(made.lacking)
                assert not again or drafter.rows.n == n
                if m.drafter:
                    assert made.asked == sum(map(sum, made.calls))
            assert lacking[0] == lacking[1]


def test_what_the_drafting_pass_lacked_hangs_on_no_order() -> None:
    """Rows that another tree had drafted are not the pass's; nor are those counted that were looked at in vain."""
    tiny = shared_tiny_model("float32")
    params = SamplerParams(TOKENS, STOP_IDS)
    text, features = known(tiny, tiny.prompts[0], params)
    found = []
    for names in (("best-first", "eagle1", "oracle-stop"), ("oracle-stop", "eagle1", "best-first")):
        drafter = drafter_of(tiny, text, features)
        with tiny.loaded.target.decoding(), torch.inference_mode():
            drafter.draft(range(1, len(text.answer)), 4, 3)
        made = {n: replayed(Arm(methods.get(n), "paper", methods.get(n).options), text, params, drafter) for n in names}
        assert all(r.asked == sum(map(sum, r.calls)) for r in made.values())
        found.append({name: (r.asked, r.lacking) for name, r in made.items()})
    assert found[0] == found[1] and all(lacking for _, lacking in found[0].values())


def test_an_answer_of_one_token_has_no_step_whatever_was_replayed_before() -> None:
    tiny = shared_tiny_model("float32")
    text, features = known(tiny, tiny.prompts[0], SamplerParams(TOKENS, STOP_IDS))
    drafter, arm = drafter_of(tiny, text, features), Arm(methods.get("eagle2"), "paper", methods.get("eagle2").options)
    assert replayed(arm, text, SamplerParams(TOKENS, STOP_IDS), drafter).calls
    made = replayed(arm, replace(text, answer=text.answer[:1]), SamplerParams(1, STOP_IDS), drafter)
    assert (made.accepted, made.calls, made.asked) == ([], [], 0)


def test_many_places_at_once_are_drafted_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = shared_tiny_model("bfloat16")
    text, features = known(tiny, tiny.prompts[2], SamplerParams(TOKENS, STOP_IDS))
    kept = []
    for at_once in (True, False):
        drafter = drafter_of(tiny, text, features)
        monkeypatch.setattr(drafter, "_at_once", at_once)
        with tiny.loaded.target.decoding(), torch.inference_mode():
            drafter.draft(range(1, len(text.answer)), 10, 5)
        position, parent, token, children, logs = drafter.rows.columns()
        path: list[tuple[int, ...]] = []
        for p, above, own in zip(position.tolist(), parent.tolist(), token.tolist(), strict=True):
            path.append((p,) if above < 0 else (*path[above], own))
        kept.append({one: (children[i].tolist(), logs[i].tolist()) for i, one in enumerate(path)})
    assert kept[0] == kept[1] and len(kept[0]) > 41 * (len(text.answer) - 2)


def test_what_a_replay_cannot_know_is_refused() -> None:
    tiny = shared_tiny_model("float32")
    why = {name: cannot_be_replayed(methods.get(name), 1.0) for name in EVERY}
    words = {
        "eagle1": "draws its drafts", "sps": "draws its drafts", "lookahead": "target's logits", "hydra": "another drafter",
        "medusa": "another drafter", "hf-generate": "another's loop", "medusa-typical": "target's law",
    }  # fmt: skip
    for name, word in words.items():
        assert word in (why[name] or ""), name
    assert cannot_be_replayed(methods.get("eagle1"), 0.0) is None
    text, features = known(tiny, tiny.prompts[0], SamplerParams(TOKENS, STOP_IDS))
    drafter = drafter_of(tiny, text, features)
    wide = Arm(methods.get("eagle2"), "paper", {**methods.get("eagle2").options, "top_k": rows_module.CHILDREN + 1})
    with pytest.raises(UserError, match="11 children, and the pool holds the 10"):
        replayed(wide, text, SamplerParams(TOKENS, STOP_IDS), drafter)
    frequent = Arm(methods.get("eagle2-fr"), "paper", {**methods.get("eagle2-fr").options, "frequent": 64})
    with pytest.raises(UserError, match="64 frequent tokens, and the pool is over the whole"):
        replayed(frequent, text, SamplerParams(TOKENS, STOP_IDS), drafter)
    other = replace(text, answer=[*text.answer[:-2], 5])
    with pytest.raises(UserError, match="another answer in replay than vanilla's"):
        replayed(Arm(methods.get("vanilla"), "paper", {}), other, SamplerParams(TOKENS, STOP_IDS), None)


@pytest.mark.parametrize(("error", "word"), [
    (IndexError("of its own"), "opt_tree.py raised IndexError: of its own"), (ZeroDivisionError(), "raised ZeroDivisionError"),
    (ValueError("lambda is -1"), "cannot be replayed: lambda is -1"),
])  # fmt: skip
def test_a_policy_that_raises_is_told_in_one_line(error: Exception, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(OptTree, "expand", raises)
    tiny, m = shared_tiny_model("float32"), methods.get("opt-tree")
    text, features = known(tiny, tiny.prompts[0], SamplerParams(TOKENS, STOP_IDS))
    with tiny.loaded.target.decoding(), pytest.raises(UserError, match=word) as found:
        replayed(Arm(m, "paper", m.options), text, SamplerParams(TOKENS, STOP_IDS), drafter_of(tiny, text, features))
    assert "\n" not in str(found.value) and "beyond what is known" not in str(found.value)


# ---- the loop of policies ----


def decoded(tiny: TinyModel, grow: Grow, temperature: float = 0.0, prompt: int = 0) -> Any:
    params = SamplerParams(TOKENS, STOP_IDS, temperature=temperature, key=3, keep_trees=True)
    return speculative(grow)(tiny.prompts[prompt], tiny.loaded.target, tiny.loaded.drafter, params)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(10, 6, 59), (3, 4, 7), (1, 1, 1)])
def test_a_policy_that_never_stops_is_eagle2(shape: tuple[int, int, int], temperature: float) -> None:
    tiny = shared_tiny_model("float32")
    top_k, depth, total = shape
    paper = methods.get("eagle2").build(top_k=top_k, depth=depth, total=total)
    params = SamplerParams(TOKENS, STOP_IDS, temperature=temperature, key=3, keep_trees=True)
    live = paper(tiny.prompts[0], tiny.loaded.target, tiny.loaded.drafter, params)
    made = decoded(tiny, policy_tree(lambda: Fixed(top_k, depth, total), 600), temperature)
    assert made.token_ids == live.token_ids and made.trace.accepted == live.trace.accepted
    assert [(t.tokens, t.parents, t.confidence) for t in made.trace.trees] == [
        (t.tokens, t.parents, t.confidence) for t in live.trace.trees
    ]


class _Stops(Fixed):
    def expand(self, draft: Draft) -> torch.Tensor:
        return NONE


def test_a_policy_that_stops_at_once_verifies_the_best_of_the_first_level() -> None:
    tiny = shared_tiny_model("float32")
    made = decoded(tiny, policy_tree(lambda: _Stops(10, 6, 4), 600))
    assert all(t.parents == [0] * 4 for t in made.trace.trees)
    live = decoded(tiny, policy_tree(lambda: Fixed(10, 1, 4), 600))
    assert [t.tokens for t in made.trace.trees] == [t.tokens for t in live.trace.trees]


class _Draws(Fixed):
    """Draws numbers for nothing."""

    seen: list[list[float]] = []

    def begin(self, here: Here, last: Round | None) -> int:
        self.seen.append([here.random(i) for i in range(3)])
        return super().begin(here, last)


def test_a_policys_numbers_are_a_stream_of_their_own() -> None:
    tiny = shared_tiny_model("float32")
    _Draws.seen.clear()
    made = decoded(tiny, policy_tree(lambda: _Draws(4, 3, 8), 100), 1.0)
    assert made.token_ids == decoded(tiny, policy_tree(lambda: Fixed(4, 3, 8), 100), 1.0).token_ids
    drawn = [u for own in _Draws.seen for u in own]
    assert len(set(drawn)) == len(drawn) and all(0 <= u < 1 for u in drawn)
    first, _Draws.seen = list(_Draws.seen), []
    decoded(tiny, policy_tree(lambda: _Draws(4, 3, 8), 100), 1.0)
    assert _Draws.seen == first  # by the stream and the position alone


def test_a_policy_sees_nothing_of_the_round_under_way() -> None:
    """Its interface has no target, no logits and no chooser; of a round it hears when it is over."""
    fields = {f for kind in (Draft, Round, Here) for f in kind.__slots__}
    assert fields == {"tokens", "parents", "confidence", "value", "levels", "expanded", "accepted", "size", "calls", "deepest",
                      "position", "length", "random"}  # fmt: skip
    heard: list[Round | None] = []

    class Listens(Fixed):
        def begin(self, here: Here, last: Round | None) -> int:
            heard.append(last)
            return super().begin(here, last)

    made = decoded(shared_tiny_model("float32"), policy_tree(lambda: Listens(4, 3, 8), 100))
    assert heard[0] is None
    assert [r.accepted for r in heard[1:] if r] == made.trace.accepted[:-1]
    assert {(r.size, r.calls) for r in heard[1:] if r} == {(8, 3)}


def test_best_first_drafts_what_a_heap_pops() -> None:
    """Against the algorithm as papers write it: a heap over path values, one node a pop, each pop a call of the drafter."""
    tiny = shared_tiny_model("float32")
    total, depth, k = 12, 5, 4
    text, features = known(tiny, tiny.prompts[1], SamplerParams(TOKENS, STOP_IDS))
    made = methods.get("best-first").build(total=total, depth=depth, children=k)
    params = SamplerParams(TOKENS, STOP_IDS, keep_trees=True)
    trees = made(tiny.prompts[1], tiny.loaded.target, tiny.loaded.drafter, params).trace.trees
    drafter = drafter_of(tiny, text, features)
    drafter.start(600, None)
    seen, at = 0, 0
    for tree in trees[:-1]:
        now = len(text.prompt) + at
        drafter.observe(text.ids[seen + 1 : now + 1], torch.empty(0, 0))
        seen = now
        pool = draft_pool(drafter, k, 1)
        heap = [(-float(v), i, (int(t),)) for i, (v, t) in enumerate(zip(pool.value, pool.tokens, strict=True))]
        heapq.heapify(heap)
        popped: set[tuple[int, ...]] = set()
        n = len(heap)
        while heap and len(popped) < total:
            value, _, path = heapq.heappop(heap)
            popped.add(path)
            if len(path) == depth:
                continue
            tokens, logs = _children(drafter, at + 1, path, k)
            for token, log in zip(tokens, logs, strict=True):
                heapq.heappush(heap, (value - log, n, (*path, token)))
                n += 1
        kept = set()
        for i in range(len(tree.tokens)):
            path, node = [], i + 1
            while node:
                path.insert(0, tree.tokens[node - 1])
                node = tree.parents[node - 1]
            kept.add(tuple(path))
        assert kept == popped
        at += len(tree.path) + 1


def _children(drafter: RowsDrafter, position: int, path: tuple[int, ...], k: int) -> tuple[list[int], list[float]]:
    """What follows a path, drafted as a chain."""
    row = drafter.rows.root(position)
    drafter.observe([], torch.empty(0, 0))
    drafter.root_logits()
    handle, entry = None, -1
    for i, token in enumerate(path):
        sees = torch.tril(torch.ones(i + 1, i + 1, dtype=torch.bool))[-1:]
        handle = drafter.expand(torch.tensor([token]), torch.tensor([entry]), sees)
        entry = i
    assert handle is not None and row is not None
    tokens, logs = drafter.best_children(handle, k)
    return tokens[0].tolist(), logs[0].tolist()


def test_a_draft_is_whole_after_each_call() -> None:
    """`Draft` is on the CPU and whole after each call: levels end where they say, values never rise along a path."""
    tiny = shared_tiny_model("float32")
    text, features = known(tiny, tiny.prompts[0], SamplerParams(TOKENS, STOP_IDS))
    drafter = drafter_of(tiny, text, features)
    drafter.start(600, None)
    drafter.observe(text.ids[1 : len(text.prompt) + 1], torch.empty(0, 0))
    draft = drafted(drafter, Fixed(4, 4, 9), Here(1, len(text.prompt) + 1, lambda i: 0.0))
    assert list(draft.levels) == [4, 20, 36, 52] and draft.calls == 4 and draft.newest == slice(36, 52)
    above = draft.value[draft.parents.clamp_min(0)]
    assert bool(((draft.value <= above) | (draft.parents < 0)).all())
    kept = set(best_nodes(draft, 9).tolist())
    assert all(int(draft.parents[i]) in kept | {-1} for i in kept)
