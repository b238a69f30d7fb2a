"""Sampled drafts: what is drawn for a whole level at once are the tokens of one urn after the other, and has their law."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from growing import ROOT, rows_of
from hypothesis import given
from scipy import stats
from tiny_model import TinyModel, fresh_tiny_model
from torch import Tensor

from harness.audit.probe.stand_ins import FakeDrafter
from methods.base import SamplerParams
from methods.engine import sampling
from methods.engine.grow import static_tree
from methods.engine.loop import Context
from methods.engine.native import build, library
from methods.engine.sampling import Chooser, _Urn, draft_probabilities, draws

ALMOST_ONE = 1 - 2**-53
each_path = pytest.mark.parametrize("path", build.paths_here())


class Asked(Chooser):
    """The usual draws, but node by node: whatever is no plain `Chooser` is asked for each."""


def by_urns(q: Tensor, u: Tensor) -> list[list[int]]:
    """Today's loop: row by row, each row's tokens one after the other."""
    return [[urn.draw(one) for one in row] for urn, row in zip(map(_Urn, q), u.tolist(), strict=True)]


def peaked_logits(rows: int, vocab: int, seed: int) -> Tensor:
    """Some rows have nearly all mass on one token, some tokens have none."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=random) * torch.linspace(0, 12, rows)[:, None]
    logits[torch.rand(rows, vocab, generator=random) < 0.1] = -torch.inf
    return logits


# ---- the batch of urns that a GPU runs ----


@given(
    weights=st.lists(st.lists(st.sampled_from([0.0, 1e-300, 0.1, 1.0, 5.0]), min_size=7, max_size=7), min_size=1, max_size=4),
    gaps=st.integers(1, 120),
    u=st.lists(st.floats(0, ALMOST_ONE), min_size=4, max_size=4),
)
def test_a_batch_of_urns_draws_what_each_alone_draws(weights: list[list[float]], gaps: int, u: list[float]) -> None:
    """Also over several blocks, where nothing is left, and at both ends of the unit interval."""
    q = torch.zeros(len(weights), 7 * gaps, dtype=torch.float64)
    q[:, ::gaps] = torch.tensor(weights, dtype=torch.float64)
    numbers = torch.tensor([u] * len(weights), dtype=torch.float64)
    assert draws(q, numbers).tolist() == by_urns(q, numbers)


def test_thousands_of_draws_in_a_batch_are_those_of_urns() -> None:
    q = draft_probabilities(peaked_logits(1000, 3000, 0), 0.8, 1.0)
    u = torch.rand(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert draws(q, u).tolist() == by_urns(q, u)


def test_the_law_that_is_drawn_from_is_left_as_it_is() -> None:
    q = torch.full((2, 256), 1 / 256, dtype=torch.float64)
    draws(q, torch.zeros(2, 3, dtype=torch.float64))
    assert (q == 1 / 256).all()


# ---- the draws in C ----


@each_path
@pytest.mark.parametrize(("vocab", "temperature"), [(3000, 1.0), (49_152, 1.0), (513, 0.5), (7, 1.5), (1, 1.0)])
def test_draws_in_c_are_those_of_urns_with_its_law(path: str, vocab: int, temperature: float) -> None:
    lib, n = library.functions(path), 60 if vocab > 10_000 else 600
    logits = peaked_logits(n, vocab, vocab)
    u = torch.rand(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(vocab))
    u[:2], u[2:4] = 0.0, ALMOST_ONE
    laws = library.Laws(lib, logits, temperature)
    q = torch.stack([laws[row] for row in range(n)])
    found = library.draws(lib, logits, temperature, u)
    assert found.tolist() == by_urns(q, u)
    some = q.sum(-1) > 0  # of few tokens none may have any mass
    assert float((q - draft_probabilities(logits, temperature, 1.0))[some].abs().max()) < 1e-6
    assert float((q.sum(-1)[some] - 1).abs().max()) < 1e-12
    assert torch.equal(some, (logits > -torch.inf).any(-1)) and (q[logits == -torch.inf] == 0).all()


@each_path
def test_no_thread_and_no_row_beside_it_changes_a_draw(path: str) -> None:
    lib, logits = library.functions(path), peaked_logits(12, 40_001, 3)
    u = torch.rand(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    alone = [library.draws(lib, logits[i : i + 1], 1.0, u[i : i + 1]).tolist()[0] for i in range(12)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert library.draws(lib, logits, 1.0, u).tolist() == alone
    finally:
        torch.set_num_threads(before)


@each_path
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_draw_nothing_or_a_token_that_is_there(path: str, wrong: float) -> None:
    lib, u = library.functions(path), torch.full((1, 3), 0.5, dtype=torch.float64)
    for logits in (torch.full((1, 700), wrong), torch.zeros(1, 700).index_fill(1, torch.tensor([600]), wrong)):
        tokens = library.draws(lib, logits, 1.0, u)[0].tolist()
        assert all(-1 <= token < 700 for token in tokens)
        assert library.Laws(lib, logits, 1.0)[0].isfinite().all()


def test_other_numbers_than_the_c_functions_read_are_refused() -> None:
    lib, u = library.functions("portable"), torch.zeros(2, 3, dtype=torch.float64)
    for logits, numbers in ((torch.zeros(2, 9).double(), u), (torch.zeros(2, 9), u.float()), (torch.zeros(3, 9), u)):
        with pytest.raises(ValueError, match="draws from"):
            library.draws(lib, logits, 1.0, numbers)


# ---- the law ----


def _in_c(q: Tensor, u: Tensor) -> Tensor:
    return library.draws(library.functions(), q.log().float(), 1.0, u)


@pytest.mark.parametrize("draw", [draws, _in_c])
def test_children_have_the_law_of_drawing_without_replacement(draw: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Of 700 tokens four have mass, in three blocks."""
    places, p, n = [3, 300, 301, 699], [0.5, 0.25, 0.15, 0.1], 4000
    q = torch.zeros(n, 700, dtype=torch.float64)
    q[:, places] = torch.tensor(p, dtype=torch.float64)
    chooser = Chooser(SamplerParams(1, temperature=1.0, key=5))
    u = torch.tensor([[chooser.uniform_of_child(i, 3, rank) for rank in range(2)] for i in range(n)], dtype=torch.float64)
    pairs = [tuple(row) for row in draw(q, u).tolist()]
    orders = list(itertools.permutations(range(4), 2))
    observed = [pairs.count((places[a], places[b])) for a, b in orders]
    assert sum(observed) == n
    assert stats.chisquare(observed, [n * p[a] * p[b] / (1 - p[a]) for a, b in orders]).pvalue > 1e-3


# ---- whole drafts ----


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_draft_drawn_level_by_level_is_the_one_drawn_node_by_node(
    at_once: bool, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where laws have fewer tokens than nodes have children: what is lacking is left out, with all below it."""
    monkeypatch.setattr(sampling, "at_once", lambda device: at_once)
    grow = static_tree([(0,), (1,), (2,), (3,), (0, 0), (0, 1), (1, 0), (2, 0), (0, 1, 0), (2, 0, 0), (2, 0, 1)])
    sizes = set()
    for seed, vocab in itertools.product(range(40), (2, 3, 20)):
        trees = []
        for kind in (Chooser, Asked):
            params = SamplerParams(1, temperature=0.7, top_p=top_p, key=seed)
            trees.append(grow.tree(FakeDrafter(rows_of("distinct", vocab, seed)), Context([5, ROOT], 1, kind(params), True)))
        found, wanted = trees
        assert (found.tokens, found.parents) == (wanted.tokens, wanted.parents)
        assert found.q is not None and wanted.q is not None and found.q.keys() == wanted.q.keys()
        assert all(torch.equal(found.q[node], wanted.q[node]) for node in wanted.q)
        assert found.confidence is not None and wanted.confidence is not None
        assert np.allclose(found.confidence(), wanted.confidence())
        sizes.add(len(found))
    assert len(sizes) > 2


@pytest.fixture(scope="module", params=["native", "torch", "static"])
def tiny_on(request: pytest.FixtureRequest) -> TinyModel:
    with pytest.MonkeyPatch.context() as m:
        m.setenv("HARNESS_ENGINE", request.param)
        return fresh_tiny_model("float32")


@pytest.mark.parametrize("name", ["eagle1", "sps"])
def test_thousands_of_drafts_are_those_of_the_loop(name: str, tiny_on: TinyModel) -> None:
    n_drawn = 0
    for key, prompt in enumerate(tiny_on.prompts[:6]):
        params = SamplerParams(40, temperature=1.0, key=key)
        asked = SamplerParams(40, temperature=1.0, key=key, chooser=Asked)
        found, wanted = (tiny_on.decode(name, prompt, how) for how in (params, asked))
        assert found.token_ids == wanted.token_ids and found.trace and wanted.trace
        assert (found.trace.tree_size, found.trace.accepted) == (wanted.trace.tree_size, wanted.trace.accepted)
        n_drawn += sum(found.trace.tree_size)
    assert n_drawn >= (2000 if name == "eagle1" else 500)


def test_a_draft_lm_knows_its_entries_whether_it_is_told_or_reads_them(tiny_on: TinyModel) -> None:
    """Its keys and values of accepted drafts are kept, so what comes next depends on them."""
    drafter = tiny_on.loaded.drafter_of("lm")
    tokens, parents = torch.tensor([5, 7, 9]), torch.tensor([-1, -1, -1])

    def after(told: bool, accepted: Sequence[int]) -> Tensor:
        drafter.start(64, None, 1)
        drafter.observe([4, 6], torch.empty(0))
        drafter.root_logits()
        drafter.expand(tokens, parents, torch.eye(3, dtype=torch.bool))
        drafter.expand(torch.tensor([8]), torch.tensor([1]), torch.tensor([[False, True, False, True]]))
        if told:
            drafter.remember([5, 7, 9, 8], [-1, -1, -1, 1])
        drafter.observe(list(accepted), torch.empty(0))
        return drafter.root_logits().clone()  # type: ignore[no-any-return]

    for accepted in ([7, 8, 3], [9, 8, 3], [3]):
        assert torch.equal(after(True, accepted), after(False, accepted))
        drafter.start(64, None, 1)
        drafter.observe([4, 6, *accepted], torch.empty(0))
        assert torch.allclose(drafter.root_logits(), after(True, accepted), atol=1e-4)
