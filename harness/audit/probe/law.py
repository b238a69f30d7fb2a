"""The exact law of a method's output: stand-ins for the models, and a chooser that walks every branch (layer 1).

The stand-ins' logits are a function of the text alone, over a handful of tokens. A method is run once per branch of its
random choices; the weights of the branches that end in the same tokens sum to that output's probability. Nothing is
sampled: a law that differs from plain decoding's by more than rounding is a fault.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

import methods
from methods.base import Decode, SamplerParams
from methods.engine.sampling import Chooser, probabilities
from methods.engine.tree import Tree

Text = tuple[int, ...]
Rows = Callable[[Text], Sequence[float]]
"""Text -> logits [vocab] of what follows it."""


def random_rows(vocab: int, seed: int, spread: float = 1.5) -> Rows:
    """A model: unrelated logits after every text."""

    def rows(text: Text) -> list[float]:
        rng = random.Random(f"{seed} {text}")
        return [rng.gauss(0, spread) for _ in range(vocab)]

    return rows


@dataclass
class FakeDrafter:
    """Drafts by `rows` of (text observed, path drafted); checks what the grower says of its entries."""

    rows: Rows
    observed: list[int] = field(default_factory=list)
    paths: list[Text] = field(default_factory=list)
    above: list[set[int]] = field(default_factory=list)
    forward_s: float = 0.0
    names: list[int] | None = None  # of the columns, where the vocabulary is cut
    blocks: int = -1  # steps before `BlockEnded`; -1: any number

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        self.observed, self.names = [], None
        if frequent is not None:
            vocab = len(self.rows(()))
            self.names = sorted(range(vocab), key=lambda t: (-(t * 7 % vocab), t))[:frequent]

    def named(self, columns: Tensor) -> Tensor:
        return columns if self.names is None else torch.tensor(self.names)[columns]

    def observe(self, tokens: list[int], features: Tensor) -> None:
        """Pairs (f_i, t_{i+1}): a feature of FakeTarget says which position and token it is of."""
        first = len(self.observed)
        assert features[:, 0].tolist() == list(range(first, first + len(tokens)))
        assert features[1:, 1].tolist() == tokens[:-1]
        assert not self.observed or int(features[0, 1]) == self.observed[-1]
        if self.blocks == 0:  # before the next step's drafts are drawn: they would only multiply the branches
            raise BlockEnded((PROMPT[0], *self.observed, *tokens))
        self.blocks -= 1
        self.observed += tokens

    def _logits(self, paths: list[Text]) -> Tensor:
        logits = torch.tensor([self.rows((*self.observed, *path)) for path in paths], dtype=torch.float64)
        return logits if self.names is None else logits[:, self.names]

    def root_logits(self) -> Tensor:
        self.paths, self.above = [], []
        return self._logits([()])

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        first, depths = len(self.paths), set()
        assert sees.shape == (len(tokens), first + len(tokens)) and sees.dtype == torch.bool
        for j, (token, parent) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
            assert parent < first, "a parent is an entry of an earlier level"
            above = {first + j} | (self.above[parent] if parent >= 0 else set())
            assert set(sees[j].nonzero().flatten().tolist()) == above, "an entry sees its ancestors and itself"
            self.paths.append((*(self.paths[parent] if parent >= 0 else ()), token))
            self.above.append(above)
            depths.add(len(self.paths[-1]))
        assert len(depths) == 1, "a level has one depth: positions depend on it"
        return self._logits(self.paths[first:])


@dataclass
class FakeTarget:
    """A target by `rows` of the text; the feature of a token is (its position, the token)."""

    rows: Rows
    text: list[int] = field(default_factory=list)
    pending: Tree | None = None
    forward_s: float = 0.0
    blocks: int = -1  # forwards over a tree before `BlockEnded`; -1: any number

    @property
    def length(self) -> int:
        return len(self.text)

    def prefill(self, prompt_ids: list[int], room: int) -> tuple[Tensor, Tensor]:
        self.text = list(prompt_ids)
        return torch.tensor(list(enumerate(prompt_ids))), self.logits_after([()])[0]

    def step(self, token: int) -> Tensor:
        self._next_block(token)
        self.text.append(token)
        return self.logits_after([()])[0]

    def _next_block(self, root: int) -> None:
        if self.blocks == 0:
            raise BlockEnded((*self.text, root))
        self.blocks -= 1

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        self._next_block(tree.tokens[0])
        self.pending = tree
        positions = [self.length + depth for depth in tree.depths()]
        return torch.tensor(list(zip(positions, tree.tokens, strict=True))), self.logits_after(texts_of(tree))

    def commit(self, path: list[int]) -> None:
        assert self.pending is not None and path[0] == 0
        assert all(self.pending.parents[b] == a for a, b in zip(path, path[1:], strict=False))
        self.text += [self.pending.tokens[i] for i in path]

    def logits_after(self, continuations: list[Text]) -> Tensor:
        return torch.tensor([self.rows((*self.text, *c)) for c in continuations], dtype=torch.float64)


class BlockEnded(Exception):
    """Carries the text at the start of a step that is not to be taken, its root included."""

    def __init__(self, text: Text):
        super().__init__(text)
        self.text = text


def texts_of(tree: Tree) -> list[Text]:
    """For every node the tokens from the root to it, the root's included."""
    texts: list[Text] = [(tree.tokens[0],)]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        texts.append((*texts[parent], token))
    return texts


class Branching(Chooser):
    """Follows `script` at its random choices, then takes the first of every further one and notes the others.

    Choices are independent of each other only if none uses a random number twice: that is checked too.
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
    """Tokens drawn without replacement, each when it is first asked for: branches nobody looks at are not walked."""

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
    """The law of `run(chooser)`: every branch walked, with the product of its probabilities."""
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
    """The law of exactly n tokens from a law of blocks: longer ones are cut, shorter ones go on by plain decoding."""
    out: dict[Text, float] = defaultdict(float)
    for block, weight in law.items():
        for rest, v in plain_law(rows, (*text, *block[:n]), n - len(block[:n]), params).items():
            out[*block[:n], *rest] += weight * v
    return dict(out)


def distance(a: dict[Any, float], b: dict[Any, float]) -> float:
    """The largest difference of two laws."""
    return max(abs(a.get(x, 0.0) - b.get(x, 0.0)) for x in a.keys() | b.keys())


@dataclass(frozen=True, slots=True)
class Case:
    """Two models over the same few tokens, and how tokens are drawn."""

    name: str
    target: Rows
    draft: Rows
    params: SamplerParams


@dataclass(frozen=True, slots=True)
class LawResult:
    """`deviation`: the largest error of the probability of any output of `n_tokens`; `branches` were walked."""

    method: str
    case: str
    n_tokens: int
    branches: int
    deviation: float


MOST_DRAFTED, MOST_BRANCHES = 8, 200_000
TOLERANCE = 1e-12  # healthy methods show 1e-16
STEP_TOKENS = 5  # of which a single step's law is taken: the prefill's, three levels of a tree, the bonus
PROMPT = (3, 1, 2, 3, 1)  # repeats itself, so that prompt lookup has something to look up
VOCAB, WIDE = 4, 6


def only(*tokens: int) -> Rows:
    """A model that gives the same mass to some tokens and none to the others, after every text."""
    return lambda text: [0.0 if t in tokens else -math.inf for t in range(VOCAB)]


def without_first(rows: Rows) -> Rows:
    """The same model for a target: a drafter has not seen the first token of the text."""
    return lambda text: rows(text[1:])


def rounded(rows: Rows) -> Rows:
    """The same model with whole-number logits: full of ties."""
    return lambda text: [float(round(x)) for x in rows(text)]


LAWS = {"T=1": (1.0, 1.0), "T=0.5": (0.5, 1.0), "T=1.4 top-p 0.8": (1.4, 0.8), "T=0": (0.0, 1.0)}


def cases(n_tokens: int, level: str = "full", samples_drafts: bool = False) -> list[Case]:
    """The corner cases of the protocol (disjoint support, one-hot, zeros, ties, equal laws, all mass among the candidates)
    and unrelated models, at four ways of drawing; `quick` has each model at T = 0 and at one T > 0, in turn.

    Six tokens at level `full`, too, but not for sampled drafts: their branches explode.
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


Shape = TypeVar("Shape")


def walks(shapes: Sequence[Shape], cases: Sequence[Case], level: str) -> Iterator[tuple[Shape, Case]]:
    """Which small tree each case is walked on: every one of them at level `full`, one in turn at `quick`."""
    for i, case in enumerate(cases):
        for shape in shapes if level == "full" else [shapes[i // 2 % len(shapes)]]:  # // 2: of two neighbours one is greedy
            yield shape, case


def small_options(m: methods.Method) -> list[dict[str, Any]]:
    """Options under which every branch can be walked: those the method names for it, else whole numbers cut to 2."""
    cut = {k: min(v, 2) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in m.options.items()}
    return [cut | dict(small) for small in m.small or ({},)]


def decode_law(name: str, decode: Decode, case: Case, one_step: bool = False) -> LawResult:
    """Walk every branch of a decode on the case's models and compare with plain decoding, drawn token by token.

    The law is the joint one of all `case.params.max_new_tokens` tokens, the prefill's first. `one_step` walks a single step
    of drafting and lets plain decoding go on after it, for `STEP_TOKENS` tokens: deep trees and sampled drafts have too many
    branches for more steps.

    Raises:
        NotEnumerable: its randomness does not come from its params' chooser.
        AssertionError: two of its choices hang on one random number, a probability is none, or they do not sum to one.
    """
    branches, n = 0, STEP_TOKENS if one_step else case.params.max_new_tokens
    ends = one_step and case.params.temperature > 0  # at T = 0 there is one branch, however many steps
    blocks, budget = (1, n + MOST_DRAFTED) if ends else (-1, n)

    def run(chooser: Branching) -> Text:
        nonlocal branches
        branches += 1
        if branches > MOST_BRANCHES:
            raise NotEnumerable(f"{name} has over {MOST_BRANCHES:,} branches; give it smaller options by small=")
        target, drafter = FakeTarget(case.target, blocks=blocks), FakeDrafter(case.draft, blocks=blocks)
        params = replace(case.params, max_new_tokens=budget, chooser=lambda _: chooser)
        try:
            return tuple(decode(list(PROMPT), target, drafter, params).token_ids)
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
    """All mass on the argmaxes, lowest token on ties."""
    text: Text = PROMPT
    for _ in range(n):
        row = case.target(text)
        text = (*text, max(range(len(row)), key=lambda t: (row[t], -t)))
    return {text[len(PROMPT) :]: 1.0}


def laws_of(name: str, decode: Decode, case: Case, samples_drafts: bool) -> list[LawResult]:
    """A single step of a decode, however deep its tree; and, unless its drafts are sampled, as many steps as tokens need."""
    found = [decode_law(name, decode, case, one_step=True)]
    return found if samples_drafts else [*found, decode_law(name, decode, case)]


class NotEnumerable(Exception):
    """A method whose random choices cannot be walked."""
