"""Lanes: several generations share the target's forwards. Layer 4's twenty thousand tokens a method take half the time.

A lane is a thread. It runs one generation through the method's own loop, grower and verification. When it asks the target for
a forward, it waits until every other lane asks for something too. One forward then serves all of them: their rows share the
matmuls, and each lane attends to a cache of its own. Between forwards the lanes draft and verify at the same time. They share
nothing there. A plain forward replays the logits used (layer 2), as for any other generation.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.audit.probe import findings
from harness.audit.probe.findings import Finding
from harness.audit.probe.gathering import Gathering
from harness.audit.probe.replay import Recording, beside_plain
from harness.audit.probe.subject import Subject
from harness.load.model import Loaded
from harness.watch.run import names_of, watched
from methods.base import SamplerParams
from methods.engine.attention import grouped_attention
from methods.engine.cache import TreeCache
from methods.engine.clock import ForwardClock
from methods.engine.engines import target_type
from methods.engine.layer import rotary_rows
from methods.engine.llama import LlamaTarget

# In float32, with 9 rows a tree, on one core of an AMD EPYC: 28 ms a lane and step instead of 52. 16 lanes gain nothing more.
LANES = 8


class _GatheredHead:
    """The target's LM head, run for all lanes at once. Drafters that use it get this in its place."""

    def __init__(self, lm_head: Any, gathering: Gathering):
        self.weight: Tensor = lm_head.weight
        self._gathering = gathering

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self._gathering("lm_head", x)
        return logits


class _Lane(LlamaTarget):
    """A target that shares another's weights and has a cache of its own."""

    def __init__(self, target: LlamaTarget, gathering: Gathering):  # super's is not called: it would pack the weights again
        self.__dict__.update(vars(target))
        old = target.cache
        self.cache = TreeCache(old.devices, old.kv_heads, old.head_dim, old.dtype)
        self._clock = ForwardClock(self.device)
        self._cos = self._sin = torch.empty(0)
        self.lm_head: Any = _GatheredHead(target.lm_head, gathering)
        self._gathering = gathering

    @property
    def rotary(self) -> tuple[Tensor, Tensor]:
        if len(self._cos) < self.cache.capacity:
            cos, sin = self.body.rotary_emb(self.embedding[:0], torch.arange(self.cache.capacity)[None])
            self._cos, self._sin = rotary_rows(cos[0], sin[0])
        return self._cos, self._sin

    def _forward(self, ids: list[int], positions: Tensor, mask: Tensor | None) -> Tensor:
        features: Tensor = self._gathering("forward", (self, ids, positions, mask))
        return features


def _drafter_of_lane(drafter: Any, target: LlamaTarget, lane: _Lane) -> Any:
    """A drafter with the same weights and buffers of its own."""
    if drafter is None:
        return None
    mine = copy.copy(drafter)
    for name, value in vars(drafter).items():
        if value is target.lm_head:
            setattr(mine, name, lane.lm_head)
        elif isinstance(value, dict):
            setattr(mine, name, dict(value))
    if hasattr(mine, "_capacity"):
        mine._capacity = 0  # `start` makes buffers
    mine._clock = ForwardClock(mine.device)
    return mine


def _forwards(calls: list[tuple[_Lane, list[int], Tensor, Tensor | None]]) -> Sequence[Tensor]:
    """`LlamaTarget._forward` of several lanes at once: their rows lie one below the other."""
    first = calls[0][0]
    sizes = [len(ids) for _, ids, _, _ in calls]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    rotary = (
        torch.cat([lane.rotary[0][positions] for lane, _, positions, _ in calls]),
        torch.cat([lane.rotary[1][positions] for lane, _, positions, _ in calls]),
    )
    x = F.embedding(torch.tensor([t for _, ids, _, _ in calls for t in ids]), first.embedding)
    states: dict[int, Tensor] = {}
    for i, layer in enumerate(first._layers):
        if any(i in lane.aux_layers for lane, *_ in calls):
            states[i] = x

        def attend(q: Tensor, k: Tensor, v: Tensor, i: int = i) -> Tensor:
            out = []
            for (lane, _, _, mask), n, end in zip(calls, sizes, ends, strict=True):
                here = slice(end - n, end)
                keys, values = lane.cache.update(k[None, :, here], v[None, :, here], i)
                out.append(grouped_attention(None, q[None, :, here], keys, values, mask, lane._scale)[0].view(n, -1))
            return torch.cat(out)

        x = layer(x, rotary, attend)
    last, parts = first._norm(x).split(sizes), {i: state.split(sizes) for i, state in states.items()}
    return [lane._beside(last[j], {i: part[j] for i, part in parts.items()}) for j, (lane, *_) in enumerate(calls)]


def can_run_in_lanes(loaded: Loaded, subject: Subject, dtype: str) -> bool:
    """Whether the subject's generations can share forwards in the score test's dtype.

    They can on the lean forward of a CPU, in loops that ask the target for forwards; any other engine is judged by its own
    forwards, one generation at a time. The dtype of `loaded` does not matter: plans are made before the model is loaded in the
    score test's.
    """
    is_planted = subject.spoilt is not None or subject.misled is not None  # a lane cannot have a copy of these wrappers
    is_lean = target_type(loaded.target.model, getattr(torch, dtype)) is LlamaTarget and loaded.target.device.type == "cpu"
    return is_lean and not subject.external and not is_planted


@dataclass(frozen=True, slots=True)
class LaneJob:
    """One sampled output of a method. Jobs of several methods may share forwards."""

    subject: Subject
    prompt: list[int]
    params: SamplerParams


def sampled_in_lanes(
    loaded: Loaded, jobs: Sequence[LaneJob], made: Callable[[int, Finding], None], n_lanes: int = LANES
) -> None:  # fmt: skip
    """Make `findings.sampled_finding` of each job, up to `n_lanes` of them at once.

    `made(i, finding)` is called as each is done, one at a time. If a job raises, its finding says so (`error`), and no further
    job of that method is begun.

    Raises:
        UserError: the user can mend it. Whatever `made` raises is raised too.
    """
    target = loaded.target
    assert isinstance(target, LlamaTarget)
    n_lanes = min(n_lanes, len(jobs))
    waiting, failed = deque(range(len(jobs))), list[BaseException]()
    n_threads = torch.get_num_threads()

    def lm_heads(rows: list[Tensor]) -> Sequence[Tensor]:
        return target.lm_head(torch.cat(rows)).split([len(x) for x in rows])

    runs: dict[str, Callable[[list[Any]], Sequence[Any]]] = {
        "apart": lambda todo: [do() for do in todo], "lm_head": lm_heads, "forward": _forwards,
    }  # fmt: skip
    gathering = Gathering(n_lanes, runs)

    def run_lane() -> None:
        try:
            torch.set_num_threads(n_threads)  # a setting of each thread
            lane, drafters = _Lane(target, gathering), dict[str | None, Any]()
            while (i := next_job()) is not None:
                s = jobs[i].subject
                if s.kind not in drafters:
                    drafters[s.kind] = _drafter_of_lane(s.drafter(loaded), target, lane)
                gathering("apart", generation(i, lane, drafters[s.kind]))
        except BaseException as e:
            failed.append(e)
            waiting.clear()
        finally:
            gathering.leave()

    def next_job() -> int | None:
        try:
            return waiting.popleft()
        except IndexError:
            return None

    def generation(i: int, lane: _Lane, drafter: Any) -> Callable[[], None]:
        """Decode in this thread; -> what scores the output, to be called while the other lanes wait."""
        job, seen = jobs[i], Recording(lane)

        def decoded() -> Finding:
            names = names_of(loaded, job.subject.kind)
            made = watched(job.subject.full(), job.prompt, seen, drafter, job.params, names, alone=False)
            return {"ids": made.generation.token_ids}

        run = findings.guarded(decoded)

        def score() -> Finding:
            replayed = beside_plain(loaded, job.prompt, run["ids"], seen)
            return findings.scored(loaded, job.subject, replayed, job.params)

        def finish() -> None:
            found = run if "error" in run else findings.guarded(score)
            if "error" in found:
                for other in [j for j in waiting if jobs[j].subject.name == job.subject.name]:
                    waiting.remove(other)
            made(i, found)

        return finish

    threads = [threading.Thread(target=run_lane, daemon=True) for _ in range(n_lanes)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C: generations under way are dropped, and nothing more is written
        waiting.clear()
        gathering.end()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise
    if failed:
        raise failed[0]
