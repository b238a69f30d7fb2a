"""What is outside both models: the fit of its prices, and the counts that it rests on."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from tiny_model import shared_tiny_model

import methods
from harness.costs import outside
from harness.costs.outside import Decoded, Work, fitted, plain_outside, probed
from harness.watch.check import Names
from methods.base import SamplerParams


@given(
    prices=st.lists(st.floats(0, 1e-3), min_size=5, max_size=5).filter(any),
    works=st.lists(st.tuples(*[st.integers(1, 60)] * 5), min_size=12, max_size=12),
)
def test_the_fit_gives_back_what_decodes_took_and_no_price_under_nothing(
    prices: list[float], works: list[tuple[int, ...]]
) -> None:
    decodes = [
        Decoded(work, 0.5 + float(np.dot(prices, work.counts)), 0.5) for work in (Work(*map(float, counts)) for counts in works)
    ]
    found = fitted(decodes)
    assert min(found) >= 0
    for d in decodes:
        assert np.dot(found, d.work.counts) == pytest.approx(d.seconds - d.inside_s, rel=1e-3, abs=1e-9)


def test_whole_decodes_are_counted_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of top_k 3 and depth 2, drafted whole: two levels, and rows of logits for the root and three nodes."""
    tiny = shared_tiny_model("float32")
    monkeypatch.setattr(outside, "PROBES", ((3, 2, 5),))
    m, target, names = methods.get("eagle2"), tiny.loaded.target, Names("the target", "the head")
    prompts = [(ids, SamplerParams(12, key=i)) for i, ids in enumerate(tiny.prompts[:2])]
    vanilla, (made, _) = probed(target, tiny.loaded.drafter_of("eagle"), names, m, m.options, prompts)
    steps = made.work.steps
    assert made.work == Work(steps, 2 * steps, 4 * steps, 5 * steps, 11) and 0 < made.inside_s < made.seconds
    assert [d.work for d in vanilla] == [Work(11, 0, 0, 0, 11)] * 2 and plain_outside(vanilla) > 0
    assert probed(target, None, names, m, m.options, prompts)[1] == []
