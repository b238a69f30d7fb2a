"""What methods really used, position by position, beside one plain forward over the finished text (layers 2, 3, 4).

A `Recording` stands in for the target and keeps the logits row behind every emitted token. Afterwards transformers' own
module runs once over prompt and output, without a cache and without a tree. Its rows are the reference. The control is the
target alone: it scores vanilla's text one row at a time and many at a time, and so shows what rounding does here.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import methods
from harness.audit.probe.scores import summands
from harness.audit.probe.stand_ins import texts_of
from harness.load.model import Loaded
from harness.watch.run import names_of, watched
from methods.base import Decode, SamplerParams
from methods.engine.sampling import probabilities, uniform
from methods.engine.teacher_forced import teacher_forced
from methods.engine.tree import Tree

Forward = tuple[Tensor, Tensor]
"""Features [n_prompt + n - 1, hidden] after the final norm, logits [n, vocab] before each of n output tokens."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A draft that was not accepted. `at`: how many output tokens there are, its tree's root the last; `path`: the tokens from
    below the root down to it; `logits`: [vocab], its own."""

    at: int
    path: Sequence[int]
    logits: Tensor


class Recording:
    """A target that keeps the logits rows that tokens were drawn from: the prefill's, each step's, and committed nodes'.

    `given`: what the target gave as features of the prompt [n_prompt, hidden], and of each row after the prefill's [hidden]; None
    where it gave none (`step`).
    `q`: output position -> the law that its draft was drawn from, if the tree brought one.
    `n_offside`: accepted paths that were not the first rows of their tree. Only these show a cache that keeps wrong rows.
    `n_branching`: trees in which there are such paths.
    `n_forwards`, `n_emitted`: target forwards after the prefill, and the tokens they gave, before any cutting.
    `deepest`: the most drafts that one of them accepted.
    `rejected`: one draft of each forward that was not accepted, if there was any, wherever in the tree.
    `aux_layers`: the hidden states that were asked for as features; none: the last.
    """

    def __init__(self, target: Any):
        self._target = target
        self.rows: list[Tensor] = []  # [vocab] each, in the order emitted
        self.given: list[Tensor | None] = []
        self.rejected: list[Rejected] = []
        self.q: dict[int, Tensor] = {}
        self.n_offside = self.n_branching = self.n_forwards = self.n_emitted = self.deepest = 0
        self._tree: Tree | None = None
        self._pending: Forward | None = None
        self.aux_layers: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def prefill(self, prompt_ids: list[int], room: int, aux_layers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        self.aux_layers = tuple(aux_layers)
        self.rows, self.given, self.rejected, self.q = [], [], [], {}
        self.n_offside = self.n_branching = self.n_forwards = self.n_emitted = self.deepest = 0
        features, logits = self._target.prefill(prompt_ids, room, *([aux_layers] if aux_layers else []))
        self.rows.append(logits.clone())
        self.given.append(features.clone())
        return features, logits

    def step(self, token: int) -> Tensor:
        logits: Tensor = self._target.step(token)
        self.rows.append(logits.clone())
        self.given.append(None)
        self.n_forwards, self.n_emitted = self.n_forwards + 1, self.n_emitted + 1
        return logits

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        features, logits = self._target.verify(tree)
        self._tree, self._pending = tree, (features, logits)
        return features, logits

    def commit(self, path: list[int]) -> None:
        assert self._pending is not None and self._tree is not None
        for i, node in enumerate(path):
            if self._tree.q is not None and node in self._tree.q:
                self.q[len(self.rows) + i] = self._tree.q[node].cpu()
        features, logits = self._pending
        if off := sorted(set(range(1, len(self._tree))) - set(path)):
            node = random.Random(self.n_forwards).choice(off)  # of every depth, and the same whenever it is run
            self.rejected.append(Rejected(len(self.rows), texts_of(self._tree)[node][1:], logits[node].clone()))
        self.rows += list(logits[path].clone())
        self.given += list(features[path].clone())
        self.n_forwards, self.n_emitted = self.n_forwards + 1, self.n_emitted + len(path)
        self.deepest = max(self.deepest, len(path) - 1)
        self.n_offside += path != list(range(len(path)))
        self.n_branching += self._tree.parents != list(range(-1, len(self._tree) - 1))
        self._target.commit(path)


@dataclass(frozen=True, slots=True)
class Replayed:
    """One generation. `used` [n, vocab]: the logits behind its tokens; the reference itself if the loop keeps none.
    `reference` [n, vocab] and `features` [n_prompt + n - 1, hidden]: the plain forward's. The rest: see `Recording`."""

    prompt: list[int]
    ids: list[int]
    used: Tensor
    reference: Tensor
    n_offside: int = 0
    n_branching: int = 0
    n_forwards: int = 0
    n_emitted: int = 0
    deepest: int = 0
    q: dict[int, Tensor] = field(default_factory=dict)
    given: Sequence[Tensor | None] = ()
    features: Tensor | None = None
    rejected: Sequence[Rejected] = ()
    aux_layers: tuple[int, ...] = ()

    @property
    def differences(self) -> list[float]:
        """The largest absolute difference of a logit, at each position."""
        return (self.used.double() - self.reference.double()).abs().amax(-1).tolist()

    @property
    def not_argmax(self) -> list[int]:
        """Positions whose token is not the argmax of the logits it was drawn from. In a greedy output these are faults."""
        best = self.used.max(-1).values
        own = self.used[torch.arange(len(self.ids)), torch.tensor(self.ids)]
        return (own < best).nonzero().flatten().tolist()

    def misdrawn(self, params: SamplerParams) -> list[int]:
        """Positions whose token is not the one that the position's random number names in the law of the logits it was drawn
        from. At T > 0 these are faults of every method that draws the target's own tokens: see `Chooser.draw`."""
        cdf = probabilities(self.used, params.temperature, params.top_p).cumsum(-1)
        u = torch.tensor([uniform(params.key, b"token", i) for i in range(len(self.ids))], dtype=cdf.dtype) * cdf[:, -1]
        own = torch.tensor(self.ids)[:, None]
        low = torch.where(own > 0, cdf.gather(-1, (own - 1).clamp(min=0)), 0.0)[:, 0]
        is_in = (low - ROUNDING <= u) & (u <= cdf.gather(-1, own)[:, 0] + ROUNDING)
        return (~is_in).nonzero().flatten().tolist()


ROUNDING = 1e-9  # of cumulated probabilities in float64, many rows at a time and one


KNOWN_TEXTS = 4
_Known = WeakKeyDictionary[Any, OrderedDict[tuple[tuple[int, ...], int, tuple[int, ...]], Forward]]
_known: _Known = WeakKeyDictionary()
_known_steps: _Known = WeakKeyDictionary()


def plain_forward(loaded: Loaded, prompt: Sequence[int], ids: Sequence[int]) -> Forward:
    """One cache-free forward of transformers' own module over prompt and output.

    The last few texts of a target are kept: methods that are right emit one text, one method after another.
    """
    return _once(_known, _forward, loaded, prompt, ids)


def plain_steps(loaded: Loaded, prompt: Sequence[int], ids: Sequence[int], aux_layers: tuple[int, ...] = ()) -> Forward:
    """The same from the target's own forwards: logits of plain decoding, one token a forward, and features of a prefill of the
    whole text: its hidden states `aux_layers`, where they are named. On a row-invariant engine every forward gives these bits.
    The last few texts are kept, as in `plain_forward`."""
    return _once(_known_steps, partial(_stepped, aux_layers), loaded, prompt, ids, aux_layers)


def _once(
    all_known: _Known, make: Callable[[Loaded, Sequence[int], Sequence[int]], Forward], loaded: Loaded, prompt: Sequence[int],
    ids: Sequence[int], aux_layers: tuple[int, ...] = (),
) -> Forward:  # fmt: skip
    known = all_known.setdefault(loaded.target, OrderedDict())
    text = (*prompt, *ids), len(prompt), aux_layers
    if text not in known:
        known[text] = make(loaded, prompt, ids)
        if len(known) > KNOWN_TEXTS:
            known.popitem(last=False)
    known.move_to_end(text)
    return known[text]


@torch.inference_mode()
def _stepped(aux_layers: tuple[int, ...], loaded: Loaded, prompt: Sequence[int], ids: Sequence[int]) -> Forward:
    target, text = loaded.target, [*prompt, *ids[:-1]]
    features = target.prefill(text, 0, aux_layers)[0].cpu().clone()
    rows = [target.prefill(list(prompt), len(ids))[1].cpu().clone()]
    rows += [target.step(token).cpu().clone() for token in ids[:-1]]
    return features, torch.stack(rows)


@dataclass(frozen=True, slots=True)
class OtherBits:
    """Rows of one generation whose bits are not those of plain decoding. `logits`: output positions; `features`: places in the
    text; `rejected`: output positions of the trees that rejected drafts hung in. `n`: how many rows were looked at, of the first
    two kinds; `n_rejected`: of the third."""

    n: int
    logits: list[int]
    features: list[int]
    n_rejected: int
    rejected: list[int]


def other_bits(loaded: Loaded, run: Replayed, most_rejected: int = 0) -> OtherBits:
    """The logits that a generation's tokens were drawn from and the features that came with them, beside `plain_steps`, bit by
    bit, and the logits of up to `most_rejected` rejected drafts beside plain decoding of their paths. It says something of a
    row-invariant engine alone."""
    features, rows = plain_steps(loaded, run.prompt, run.ids, run.aux_layers)
    logits = [i for i, same in enumerate(same_bits(run.used, rows)) if not same]
    n_prompt, n_features, off = len(run.prompt), 0, list[int]()
    for i, given in enumerate(run.given[: len(run.ids)]):
        if given is not None:
            given = given.cpu().reshape(-1, given.shape[-1])
            first = 0 if i == 0 else n_prompt + i - 1
            same = same_bits(given, features[first : first + len(given)])
            off += [first + j for j, is_same in enumerate(same) if not is_same]
            n_features += len(given)
    drafts = [r for r in run.rejected if r.at <= len(run.ids)]
    if len(drafts) > most_rejected:
        drafts = [drafts[i * len(drafts) // most_rejected] for i in range(most_rejected)]
    return OtherBits(len(run.ids) + n_features, logits, off, len(drafts), _other_drafts(loaded, run, drafts))


@torch.inference_mode()
def _other_drafts(loaded: Loaded, run: Replayed, drafts: Sequence[Rejected]) -> list[int]:
    """`at` of those drafts, in ascending order of it, whose logits are not those of plain decoding of their paths."""
    if not drafts:
        return []
    target, wrong = loaded.target, list[int]()
    target.prefill([*run.prompt, *run.ids], max(len(draft.path) for draft in drafts))
    for draft in reversed(drafts):  # so that what the cache holds before each is the text
        target.cache.length = len(run.prompt) + draft.at
        rows = [target.step(token) for token in draft.path]
        wrong += [] if same_bits(draft.logits[None], rows[-1][None])[0] else [draft.at]
    return wrong[::-1]


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> list[bool]:
    """Whether each row of a, [n, d], is b's to the last bit. They have one dtype."""
    if a.dtype != b.dtype or a.shape != b.shape:
        raise ValueError(f"rows of {a.dtype} {list(a.shape)} are compared with rows of {b.dtype} {list(b.shape)}")
    whole = _INTEGERS[a.element_size()]
    return (a.contiguous().view(whole) == b.contiguous().view(whole)).all(-1).tolist()


@torch.inference_mode()
def _forward(loaded: Loaded, prompt: Sequence[int], ids: Sequence[int]) -> Forward:
    model = loaded.target.stock_model
    text = torch.tensor([[*prompt, *ids[:-1]]], device=loaded.target.device)
    features: Tensor = model.model(text, use_cache=False).last_hidden_state[0]
    logits: Tensor = model.get_output_embeddings()(features[-len(ids) :])
    return features, logits.cpu()


@torch.inference_mode()
def plain_states(loaded: Loaded, prompt: Sequence[int], ids: Sequence[int], aux_layers: Sequence[int]) -> Tensor:
    """Hidden states of the plain forward side by side [n_prompt + n - 1, states * hidden], as transformers numbers them."""
    model = loaded.target.stock_model
    text = torch.tensor([[*prompt, *ids[:-1]]], device=loaded.target.device)
    states = model.model(text, use_cache=False, output_hidden_states=True).hidden_states
    return torch.cat([states[i][0].to(states[-1].device) for i in aux_layers], dim=-1)


def replayed(
    loaded: Loaded, decode: Decode, prompt: list[int], params: SamplerParams, drafter: Any, target: Any = None,
    kind: str | None = None,
) -> Replayed:  # fmt: skip
    """Run a method with its target (or another in its place) recorded, then the plain forward over what it emitted.

    kind: of the drafter.

    Raises:
        BadGeneration: what the method returned or did cannot be recorded.
    """
    seen = Recording(target or loaded.target)
    made = watched(decode, prompt, seen, drafter, params, names_of(loaded, kind))
    return beside_plain(loaded, prompt, made.generation.token_ids, seen)


def beside_plain(loaded: Loaded, prompt: list[int], ids: list[int], seen: Recording) -> Replayed:
    """What was recorded of a generation, beside the plain forward over it.

    Raises:
        ValueError: more tokens were emitted than logits were asked for.
    """
    n = len(ids)
    if len(seen.rows) < n:
        raise ValueError(f"{n} tokens were emitted but only {len(seen.rows)} rows of logits were asked for")
    used = torch.stack(seen.rows[:n]).cpu()
    features, reference = plain_forward(loaded, prompt, ids)
    return Replayed(prompt, ids, used, reference, seen.n_offside, seen.n_branching, seen.n_forwards, seen.n_emitted, seen.deepest,
                    seen.q, seen.given, features, seen.rejected, seen.aux_layers)  # fmt: skip


def replayed_external(
    loaded: Loaded, decode: Decode, prompt: list[int], params: SamplerParams, drafter: Any = None
) -> Replayed:  # fmt: skip
    """Run a loop that keeps no logits. The plain forward's take their place."""
    made = watched(decode, prompt, loaded.target, drafter, params, names_of(loaded, None), external=True)
    ids = made.generation.token_ids
    features, reference = plain_forward(loaded, prompt, ids)
    return Replayed(prompt, ids, reference, reference, features=features)


def below_best(logits: Tensor, token: int) -> float:
    """How far a token lies below the best. logits: [vocab]."""
    return float(logits.double().max() - logits[token].double())


@torch.inference_mode()
def head_law(loaded: Loaded, run: Replayed, params: SamplerParams, kind: str = methods.EAGLE) -> Tensor:
    """[n, vocab] float64: a drafter's law before each token.

    If the tree brought the law that the token's draft was drawn from, it is that. Else it is the draft head's, teacher-forced on
    the target's own features; without a head, or where no pair predicts a token, it is uniform. The score test is valid whatever
    q is, if q does not depend on the token drawn; q decides the test's power. kind: of the head.
    """
    (n, vocab), drafter = run.used.shape, loaded.drafter_of(kind)
    law = torch.full((n, vocab), 1 / vocab, dtype=torch.float64)
    if drafter is not None:
        target, text = loaded.target, [*run.prompt, *run.ids]
        aux_layers: tuple[int, ...] = getattr(drafter, "aux_layers", ())
        features = plain_states(loaded, run.prompt, run.ids, aux_layers) if aux_layers else run.features
        assert features is not None
        head, embedding = drafter.head, drafter.embedding
        where = embedding.device  # the target's last one: a copy elsewhere of a large vocabulary's embedding takes gigabytes
        features = torch.cat([features, features[-1:]])[None].to(where, embedding.dtype)
        wanted = torch.ones(1, len(text) - 1, dtype=torch.bool, device=where)  # every pair is predicted
        out, _ = next(teacher_forced(head, embedding, torch.tensor([text], device=where), features, wanted, levels=1))
        # pair i (f_i, t_{i+1}) predicts what follows token i + 1; the first new token is predicted by pair n_prompt - 2
        first = max(len(run.prompt) - 2, 0)
        predicted = out[0, first : len(text) - 2].to(target.lm_head.weight.device, target.dtype)
        told = law[n - len(predicted) :]  # after a prompt of one token no pair predicts the first
        if kind == methods.EAGLE3:
            of_its_own = head.lm_head(head.readable(predicted.to(where)))
            told.zero_()[:, head.tokens.cpu()] = probabilities(of_its_own, params.temperature, params.top_p).cpu().double()
        else:
            told.copy_(probabilities(target.lm_head(predicted), params.temperature, params.top_p))
    for position, q in run.q.items():
        if position < len(law):
            law[position] = q
    return law


def drafts_off(
    loaded: Loaded, run: Replayed, first: Sequence[tuple[int, Tensor]], names: Tensor, kind: str = methods.EAGLE
) -> list[float]:
    """How far the draft head's first drafts are, in the probability of a token, from those of the head over the finished text.

    first: (output position, logits [columns]) of each step; names [columns]: their tokens. The head's cache and the features that
    it was given are thereby checked, which the law of the output is silent about.
    """
    plain = replace(run, q={})
    law = head_law(loaded, plain, SamplerParams(len(run.ids), temperature=1.0), kind)[:, names]
    law = law / law.sum(-1, keepdim=True)
    return [float((logits.double().softmax(-1) - law[at]).abs().max()) for at, logits in first if at < len(law)]


def score_sums(run: Replayed, q: Tensor, params: SamplerParams) -> tuple[list[float], list[float]]:
    """Layer 4's sums of deviations and variances, under the laws that verification itself used."""
    p = probabilities(run.used, params.temperature, params.top_p)
    deviations, variances = summands(p, q, torch.tensor(run.ids))
    return deviations.sum(0).tolist(), variances.sum(0).tolist()
