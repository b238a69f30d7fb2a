"""What a GPU's path does on a CPU: every draw of a step at once, read back once; what is decoded is the same."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tiny_model import TinyModel, fresh_tiny_model, shared_tiny_model
from torch.overrides import TorchFunctionMode

import methods
from methods.base import SamplerParams
from methods.engine import sampling, verify
from methods.engine.llama import LlamaTarget
from methods.engine.sampling import Chooser, inverse_cdf, inverse_cdfs
from methods.engine.tree import Tree

READS = ("tolist", "item", "numpy", "__int__", "__float__", "__bool__", "__index__", "cpu", "nonzero")


class Reads(TorchFunctionMode):
    """Counts what would stop a GPU: numbers that are read back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS and not (name == "numpy" and args[0].dtype == torch.bool):  # which masks of trees are, made on the host
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (verify, sampling):
        monkeypatch.setattr(module, "at_once", lambda device: True)


@given(
    weights=st.lists(st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0]), min_size=6, max_size=6).filter(any), min_size=1, max_size=5),
    u=st.floats(0, 1, exclude_max=True),
)
def test_rows_are_drawn_as_each_alone(weights: list[list[float]], u: float) -> None:
    p = torch.tensor(weights, dtype=torch.float64)
    p = p / p.sum(-1, keepdim=True)
    assert inverse_cdfs(p, torch.full((len(p),), u, dtype=torch.float64)).tolist() == [inverse_cdf(row, u) for row in p]


@st.composite
def sampled_trees(draw: st.DrawFn) -> tuple[Tree, torch.Tensor]:
    """A tree whose siblings were drawn without replacement from q, over six tokens, some of no mass; and the target's logits."""
    seed = draw(st.integers(0, 10_000))
    random = torch.Generator().manual_seed(seed)

    def law() -> torch.Tensor:
        weights = torch.rand(6, generator=random, dtype=torch.float64) * (torch.rand(6, generator=random) < 0.7)
        weights[int(torch.randint(6, (1,), generator=random))] += 0.5
        return weights / weights.sum()

    tokens, parents, q, level = [0], [-1], {}, [0]
    for _ in range(draw(st.integers(1, 3))):
        below = []
        for node in level[: draw(st.integers(1, 2))]:
            q[node] = law()
            n = min(draw(st.integers(1, 3)), int((q[node] > 0).sum()))
            for token in torch.multinomial(q[node], n, generator=random).tolist():
                below.append(len(tokens))
                tokens.append(token)
                parents.append(node)
        level = below
    return Tree(tokens, parents, q), torch.randn(len(tokens), 6, generator=random) * 3


@given(case=sampled_trees(), key=st.integers(0, 1000), greedy=st.booleans())
def test_what_is_accepted_is_what_is_accepted_draw_by_draw(case: tuple[Tree, torch.Tensor], key: int, greedy: bool) -> None:
    tree, logits = case
    chooser = Chooser(SamplerParams(9, temperature=0.0 if greedy else 0.9, top_p=0.95, key=key))
    for rule in (verify.walk, verify.rejection, verify.typical(0.09, 0.3)):
        one_by_one = rule(tree, logits, chooser, 4)
        with pytest.MonkeyPatch.context() as m:
            m.setattr(verify, "at_once", lambda device: True)
            assert rule(tree, logits, chooser, 4) == one_by_one


def test_a_chooser_of_another_kind_is_asked_draw_by_draw(as_on_a_gpu: None) -> None:
    class First(Chooser):
        def token(self, logits: torch.Tensor, position: int) -> int:
            return 3

    tree = Tree([0, 3, 1], [-1, 0, 1])
    assert verify.walk(tree, torch.zeros(3, 6), First(SamplerParams(3)), 0).path == [0, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "name",
    [
        "eagle1",
        "eagle2",
        "eagle2-fr",
        "eagle2-no-rerank",
        "eagle2-no-value",
        "medusa",
        "medusa-typical",
        "hydra",
        "pld",
        "lookahead",
        "sps",
        "vanilla",
    ],
)
def test_a_generation_is_the_same(name: str, temperature: float, as_on_a_gpu: None) -> None:
    tiny = shared_tiny_model("float32")
    options = {"frequent": 200} if name == "eagle2-fr" else {}
    for i, prompt in enumerate(tiny.prompts[:2]):
        params = SamplerParams(20, temperature=temperature, key=i)
        found = tiny.decode(name, prompt, params, **options)
        with pytest.MonkeyPatch.context() as m:
            for module in (verify, sampling):
                m.setattr(module, "at_once", lambda device: False)
            plain = tiny.decode(name, prompt, params, **options)
        assert found.token_ids == plain.token_ids and found.trace and plain.trace
        assert (found.trace.tree_size, found.trace.accepted) == (plain.trace.tree_size, plain.trace.accepted)


OURS = [name for name in methods.names() if not methods.is_external(name)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", OURS)
def test_a_step_reads_back_at_most_twice(
    name: str, temperature: float, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's engine, whose operations a GPU runs, too."""
    tiny = torchs_tiny_model()
    m, target = methods.get(name), tiny.loaded.target
    assert type(target) is LlamaTarget
    drafter, decode = tiny.loaded.drafter_of(m.drafter), m.build(**m.options)
    steps = []
    for n in (4, 24):
        with Reads() as reads:
            made = decode(tiny.prompts[0], target, drafter, SamplerParams(n, temperature=temperature, key=1))
        assert made.trace is not None
        steps.append((len(made.trace.accepted), sum(reads.found.values()), dict(reads.found)))
    (few, fewer_reads, _), (many, reads_of_many, kinds) = steps
    assert many > few and (reads_of_many - fewer_reads) / (many - few) <= 2, kinds  # the prefill's are taken away
    assert reads_of_many > fewer_reads  # or they would not be counted


@cache
def torchs_tiny_model() -> TinyModel:
    with pytest.MonkeyPatch.context() as m:
        m.setenv("HARNESS_ENGINE", "torch")
        return fresh_tiny_model("float32")
