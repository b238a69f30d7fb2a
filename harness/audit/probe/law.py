"""The exact law of a method's output: a chooser that walks every branch of chance, on stand-ins for the models (layer 1).

A method is run once for each branch of its random choices. The weights of the branches that end in the same tokens sum to
that output's probability. Nothing is sampled. If the law differs from plain decoding's by more than rounding, that is a fault.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

import methods
from harness.audit.probe.stand_ins import (
    PROMPT,
    VOCAB,
    WIDE,
    BlockEnded,
    FakeDrafter,
    FakeTarget,
    Rows,
    Text,
    only,
    random_rows,
    rounded,
    without_first,
)
from harness.watch.check import is_generation
from methods.base import Decode, SamplerParams
from methods.engine.sampling import Chooser, probabilities


class Branching(Chooser):
    """Follows `script` at its random choices. At each further one it takes the first possibility and notes the others.

    Choices are independent only if no two use one random number. That is checked too.
    """

    def __init__(self, params: SamplerParams, script: list[int]):
        super().__init__(params)
        self.script, self.taken = script, list[int]()
        self.weight = 1.0
        self.others: list[list[int]] = []
        self.used: set[tuple[Any, ...]] = set()

    def _choose(self, weights: Sequence[float], *key: Any) -> int:
        assert key not in self.used, f"the random number {key} was used before"
        self.used.add(key)
        assert all(math.isfinite(w) for w in weights), f"a probability is not finite: {list(weights)}"
        possible = [i for i, w in enumerate(weights) if w > 0]
        assert possible, "no token has any mass"
        at = len(self.taken)
        if at < len(self.script):
            choice = self.script[at]
        else:
            choice = possible[0]
            self.others += [[*self.taken, other] for other in possible[1:]]
        self.taken.append(choice)
        self.weight *= weights[choice] / sum(weights)
        return choice

    def draw(self, p: Tensor, position: int) -> int:
        return self._choose(p.tolist(), "token", position)

    def accept(self, probability: float, position: int, attempt: int) -> bool:
        assert 0 <= probability <= 1, f"accepted with a probability of {probability}"
        return bool(self._choose([1 - probability, probability], "accept", position, attempt))

    def children(self, q: Tensor, k: int, position: int, node: int) -> Any:
        return _Drawn(self, q.tolist(), k, ("draft", position, node))


class _Drawn(Sequence[int]):
    """Tokens drawn without replacement, each when it is first asked for. Branches that nobody looks at are not walked."""

    def __init__(self, chooser: Branching, q: list[float], k: int, key: tuple[Any, ...]):
        self.chooser, self.q, self.key, self.drawn = chooser, q, key, list[int]()
        self.n = min(k, sum(w > 0 for w in q))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> Any:
        while len(self.drawn) <= i:
            left = [0.0 if t in self.drawn else w for t, w in enumerate(self.q)]
            self.drawn.append(self.chooser._choose(left, *self.key, len(self.drawn)))
        return self.drawn[i]


def exact_law(run: Callable[[Branching], Any], params: SamplerParams) -> dict[Any, float]:
    """The law of `run(chooser)`. Every branch is walked, and weighs the product of its probabilities."""
    law: dict[Any, float] = defaultdict(float)
    waiting: list[list[int]] = [[]]
    while waiting:
        chooser = Branching(params, waiting.pop())
        law[run(chooser)] += chooser.weight
        waiting += chooser.others
    assert abs(sum(law.values()) - 1) < 1e-12, f"the probabilities of all outputs sum to {sum(law.values())}"
    return dict(law)


def plain_law(rows: Rows, text: Text, n: int, params: SamplerParams) -> dict[Text, float]:
    """The law of the next n tokens drawn one by one from the processed logits."""
    if n == 0:
        return {(): 1.0}
    p = probabilities(torch.tensor(rows(text), dtype=torch.float64), params.temperature, params.top_p).tolist()
    return {
        (token, *rest): w * v
        for token, w in enumerate(p)
        if w > 0
        for rest, v in plain_law(rows, (*text, token), n - 1, params).items()
    }


def completed(law: dict[Text, float], rows: Rows, text: Text, n: int, params: SamplerParams) -> dict[Text, float]:
    """The law of exactly n tokens from a law of blocks. Longer blocks are cut, shorter ones go on by plain decoding."""
    out: dict[Text, float] = defaultdict(float)
    for block, weight in law.items():
        for rest, v in plain_law(rows, (*text, *block[:n]), n - len(block[:n]), params).items():
            out[*block[:n], *rest] += weight * v
    return dict(out)


def distance(a: dict[Any, float], b: dict[Any, float]) -> float:
    """The largest difference of two laws."""
    return max(abs(a.get(x, 0.0) - b.get(x, 0.0)) for x in a.keys() | b.keys())


STEP_TOKENS = 5  # a single step's law is of so many tokens: the prefill's, three levels of a tree, the bonus


@dataclass(frozen=True, slots=True)
class Case:
    """Two models over the same few tokens, and how tokens are drawn. `step`: tokens of a single step's law. `is_deep`: no other
    law than that is walked."""

    name: str
    target: Rows
    draft: Rows
    params: SamplerParams
    step: int = STEP_TOKENS
    is_deep: bool = False


@dataclass(frozen=True, slots=True)
class LawResult:
    """`deviation`: the largest error in the probability of any output of `n_tokens`. `branches`: how many were walked."""

    method: str
    case: str
    n_tokens: int
    branches: int
    deviation: float


MOST_DRAFTED, MOST_BRANCHES = 8, 200_000
TOLERANCE = 1e-12  # healthy methods show 1e-16


LAWS = {"T=1": (1.0, 1.0), "T=0.5": (0.5, 1.0), "T=1.4 top-p 0.8": (1.4, 0.8), "T=0": (0.0, 1.0)}


def cases(n_tokens: int, level: str = "full", samples_drafts: bool = False) -> list[Case]:
    """Pairs of models at four ways of drawing. Level `quick` has each pair at T = 0 and at one T > 0, in turn.

    The models are unrelated, or a corner case of the protocol: disjoint support, one-hot, zeros, ties, equal laws, all mass
    among the candidates. Level `full` has six tokens too, but not for sampled drafts, whose branches explode.
    """
    models: dict[str, tuple[Rows, Rows]] = {
        "unrelated": (random_rows(VOCAB, 11), random_rows(VOCAB, 12)),
        "peaked": (random_rows(VOCAB, 13, 4.0), random_rows(VOCAB, 14, 4.0)),
        "equal": (without_first(random_rows(VOCAB, 15)), random_rows(VOCAB, 15)),
        "ties": (rounded(random_rows(VOCAB, 16)), rounded(random_rows(VOCAB, 17, 0.5))),
        "disjoint": (only(0, 1), only(2, 3)),
        "one-hot target": (only(2), random_rows(VOCAB, 18)),
        "one-hot draft": (random_rows(VOCAB, 19), only(1)),
        "all mass among the candidates": (only(1, 2), only(1, 2, 3)),
    }
    if level == "full" and not samples_drafts:
        models["six tokens"] = (random_rows(WIDE, 20), random_rows(WIDE, 21))
    found = []
    for i, (name, (target, draft)) in enumerate(models.items()):
        laws = list(LAWS.items())
        for label, (temperature, top_p) in laws if level == "full" else (laws[i % 3], laws[3]):
            found.append(Case(f"{name}, {label}", target, draft, SamplerParams(n_tokens, temperature=temperature, top_p=top_p)))
    return found


# Trees five levels deep, for methods with these options: few branches, if two tokens have all the mass.
_CHAIN = "0 00 000 0000 00000"
DEEP = {"top_k": 2, "depth": 5, "total": 7, "shape": _CHAIN, "tree": _CHAIN, "gamma": 5, "n_draft": 5, "window": 2, "ngram": 6}


def deep_cases() -> list[Case]:
    """What deep trees meet: two tokens with mass. At T = 1 a step is walked to its end; at T = 0 all that is drafted is right."""
    target, draft = only(1, 2, rows=random_rows(VOCAB, 22)), only(1, 2, rows=random_rows(VOCAB, 23))
    plain, all_tokens = SamplerParams(STEP_TOKENS, temperature=1.0), random_rows(VOCAB, 24, 4.0)
    return [
        Case("two tokens, T=1", target, draft, plain, step=7, is_deep=True),  # the prefill's, five levels, the bonus
        Case("equal, T=0", without_first(all_tokens), all_tokens, replace(plain, temperature=0.0), step=24, is_deep=True),
    ]


Shape = TypeVar("Shape")


def walks(shapes: Sequence[Shape], cases: Sequence[Case], level: str) -> Iterator[tuple[Shape, Case]]:
    """Which small trees each case is walked on: all of them at level `full`, one in turn at `quick`."""
    for i, case in enumerate(cases):
        for shape in shapes if level == "full" else [shapes[i // 2 % len(shapes)]]:  # // 2: of two neighbours one is greedy
            yield shape, case


def small_options(m: methods.Method) -> list[dict[str, Any]]:
    """Options under which every branch can be walked: those that the method names, else its own with numbers cut to 2."""
    cut = {k: min(v, 2) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in m.options.items()}
    return [cut | dict(small) for small in m.small or ({},)]


def deep_options(m: methods.Method) -> dict[str, Any] | None:
    """Options of a deep tree whose every branch can be walked on two tokens; None if the method has no options of such names."""
    deep = {name: value for name, value in DEEP.items() if name in m.options}
    return small_options(m)[0] | deep if deep else None


def decode_law(name: str, decode: Decode, case: Case, one_step: bool = False) -> LawResult:
    """Walk every branch of a decode on the case's models, and compare with plain decoding, drawn token by token.

    The law is the joint one of all `case.params.max_new_tokens` tokens, the prefill's first. With `one_step`, only one step of
    drafting is walked, and plain decoding goes on after it, for `case.step` tokens. Deep trees and sampled drafts have too
    many branches for more steps.

    Raises:
        NotEnumerable: there are too many branches, or the method draws without its params' chooser.
        AssertionError: two choices use one random number, something is no probability, or probabilities do not sum to one.
    """
    branches, n = 0, case.step if one_step else case.params.max_new_tokens
    ends = one_step and case.params.temperature > 0  # at T = 0 there is one branch, however many steps
    blocks, budget = (1, n + MOST_DRAFTED) if ends else (n, n)  # n: of a method that ignores the budget no more is walked

    def run(chooser: Branching) -> Text:
        nonlocal branches
        branches += 1
        if branches > MOST_BRANCHES:
            raise NotEnumerable(f"{name} has over {MOST_BRANCHES:,} branches; give it smaller options by small=")
        target, drafter = FakeTarget(case.target, blocks=blocks), FakeDrafter(case.draft, blocks=blocks)
        params = replace(case.params, max_new_tokens=budget, chooser=lambda _: chooser)
        try:
            return tuple(is_generation(decode(list(PROMPT), target, drafter, params)).token_ids)
        except BlockEnded as e:
            return e.text[len(PROMPT) :]

    law = exact_law(run, case.params)
    if ends:
        law = completed(law, case.target, PROMPT, n, case.params)
    plain = greedy_law(case, n) if case.params.temperature <= 0 else plain_law(case.target, PROMPT, n, case.params)
    if branches == 1 < len(plain):
        raise NotEnumerable(f"{name} draws without the chooser of its params: its law cannot be enumerated")
    return LawResult(name, case.name, n, branches, distance(law, plain))


def greedy_law(case: Case, n: int) -> dict[Text, float]:
    """The law with all mass on the argmaxes; on ties on the lowest token."""
    text: Text = PROMPT
    for _ in range(n):
        row = case.target(text)
        text = (*text, max(range(len(row)), key=lambda t: (row[t], -t)))
    return {text[len(PROMPT) :]: 1.0}


def laws_of(name: str, decode: Decode, case: Case, samples_drafts: bool) -> list[LawResult]:
    """The law of a single step, however deep its tree. And, unless drafts are sampled, of as many steps as the tokens need."""
    found = [decode_law(name, decode, case, one_step=True)]
    return found if samples_drafts or case.is_deep else [*found, decode_law(name, decode, case)]


class NotEnumerable(Exception):
    """A method whose random choices cannot be walked."""
