"""Runs the planted faults of `mutants` through the layers: each must be noticed, the equivalent ones by none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import methods
from harness import metrics
from harness.audit import law, replay, verdicts
from harness.audit.law import FakeDrafter, FakeTarget, random_rows
from harness.audit.mutants import EQUIVALENT, MUTANTS, Mutant
from harness.audit.scores import ALPHA, FUNCTIONS, holm, score
from harness.loading import Loaded
from methods.base import Decode, SamplerParams
from methods.engine.sampling import stream_key

METRIC = "26"  # the baseline's tokens counted in another way: a fault of a metric, not of a method


@dataclass(frozen=True, slots=True)
class Outcome:
    """One mutant: the layer that noticed it first (None: none did), and what it saw."""

    number: str
    what: str
    expected: tuple[str, ...]
    killed_by: str | None
    seen: str

    @property
    def is_equivalent(self) -> bool:
        return not self.expected

    @property
    def right(self) -> bool:
        return (self.killed_by is None) == self.is_equivalent


@dataclass
class Bench:
    """A model in float32, prompts, and what healthy runs show on it; `n_tokens` sampled tokens a mutant in layer 4."""

    loaded: Loaded
    prompts: Sequence[list[int]]
    n_tokens: int
    new_tokens: int = 24
    width: int = 30

    def __post_init__(self) -> None:
        self.stop = frozenset(self.loaded.config.stop_ids)
        self.greedy = SamplerParams(self.new_tokens, self.stop)
        vanilla = methods.get("vanilla").build()
        self.plain = [vanilla(ids, self.loaded.target, None, self.greedy).token_ids for ids in self.prompts]
        differences, gaps = list[float](), list[float]()
        for ids in self.prompts:
            one = replay.replayed(self.loaded, vanilla, ids, self.greedy, None)
            many = replay.control(self.loaded, ids, one.ids, self.width, seed=len(ids))
            differences += replay.differences(one.used, one.reference)[0] + replay.differences(many, one.reference)[0]
            gaps += replay.gap_noise(one.used, many, one.reference)
        self.limit, self.gap_tol = verdicts.REPLAY_FACTOR * max(differences), verdicts.GAP_FACTOR * max(gaps)

    # each layer: None where nothing is wrong, else what it saw

    def l1(self, m: Mutant) -> str | None:
        for case in law.cases(2, "full"):
            try:
                found = law.decode_law(m.number, m.build(True), case)
            except AssertionError as e:
                return f"{e} ({case.name})"
            except law.NotEnumerable:
                return None
            if found.deviation > law.TOLERANCE:
                return f"probability of an output off by {found.deviation:.2g} ({case.name})"
        return None

    def l2(self, m: Mutant) -> str | None:
        decode = m.build(False)
        for ids in self.prompts:
            try:
                run = replay.replayed(self.loaded, decode, ids, self.greedy, self.loaded.drafter)
            except ValueError as e:
                return str(e)
            worst = max(replay.differences(run.used, run.reference)[0])
            if worst > self.limit:
                return f"a logit off by {worst:.2g}, allowed {self.limit:.2g}"
        return None

    def l3(self, m: Mutant) -> str | None:
        from harness.audit.command import gaps
        from harness.lossless import first_divergence

        decode = m.build(False)
        for ids, plain in zip(self.prompts, self.plain, strict=True):
            made = decode(ids, self.loaded.target, self.loaded.drafter, self.greedy).token_ids
            at = first_divergence(plain, made)
            if at is not None:
                both = [x[at] if at < len(x) else None for x in (plain, made)]
                finding = gaps(self.loaded, [*ids, *made[:at]], both) | {"before": 0.0}
                if verdicts.classify(finding, self.gap_tol) == "FAULT":
                    gap = max(finding["gap_vanilla"], finding["gap_method"])
                    return "an output of another length" if finding["ended"] else f"token {at} differs by a gap of {gap:.2g}"
        return None

    def l4(self, m: Mutant) -> str | None:
        decode = m.build(False)
        n, sums = 0, torch.zeros(2, len(FUNCTIONS), dtype=torch.float64)
        repeat = 0
        while n < self.n_tokens:
            for i, ids in enumerate(self.prompts):
                params = SamplerParams(self.new_tokens, self.stop, temperature=0.8, key=stream_key(3, f"{i}", 1, repeat))
                run = replay.replayed(self.loaded, decode, ids, params, self.loaded.drafter)
                q = replay.head_law(self.loaded, ids, run.ids, params)
                sums += torch.tensor(replay.score_sums(run, q, params), dtype=torch.float64)
                n += len(run.ids)
            repeat += 1
        scores = [score(f, n, float(sums[0, i]), float(sums[1, i]), len(FUNCTIONS)) for i, f in enumerate(FUNCTIONS)]
        adjusted = holm([s.p_value for s in scores])
        worst = min(range(len(scores)), key=lambda i: adjusted[i])
        return f"{scores[worst].function}: p = {adjusted[worst]:.1g} on {n} tokens" if adjusted[worst] < ALPHA else None

    def stop_rule(self, m: Mutant) -> str | None:
        """On models that agree, so that blocks are long: a stop id and the end of the budget fall inside them."""
        rows = random_rows(6, 31, 4.0)
        for stop_ids in (frozenset(), frozenset({2}), frozenset({0, 4})):
            for budget in range(1, 12):
                params = SamplerParams(budget, stop_ids)
                ids = m.build(False)([1, 2, 3], FakeTarget(rows), FakeDrafter(rows), params).token_ids
                plain = methods.get("vanilla").build()([1, 2, 3], FakeTarget(rows), None, params).token_ids
                if ids != plain:
                    return f"{len(ids)} tokens instead of {len(plain)} with a budget of {budget} and stop ids {sorted(stop_ids)}"
        return None

    def acceptance(self, m: Mutant) -> str | None:
        """tau on the same prompts against the healthy method's: every prompt is a pair."""

        def taus(decode: Decode) -> list[float]:
            found = []
            for ids in self.prompts:
                made = decode(ids, self.loaded.target, self.loaded.drafter, self.greedy)
                assert made.trace is not None
                found.append((len(made.token_ids) - 1) / max(len(made.trace.accepted), 1))
            return found

        healthy, mine = taus(methods.get("eagle2").build()), taus(m.build(False))
        drop = sum(healthy) / len(healthy) - sum(mine) / len(mine)
        allowed = 0.05 * sum(healthy) / len(healthy)
        return f"tau lower by {drop:.2f}, allowed {allowed:.2f}" if drop > allowed else None

    def layers(self) -> dict[str, Callable[[Mutant], str | None]]:
        return {"L1": self.l1, "stop": self.stop_rule, "L2": self.l2, "L3": self.l3, "L4": self.l4, "acceptance": self.acceptance}


def counts_differently() -> Outcome:
    """Fault 26: two equal arms, one counted by the tokens of its text tokenised again, must not have a speedup."""
    base: dict[str, Any] = {"token_ids": [1, 2, 3, 4], "wall_s": 1.0, "prefill_s": 0.1, "trace": None, "n_text_tokens": 3}
    honest = metrics.Totals(*map(torch.tensor, metrics.totals(base)))  # type: ignore[arg-type]
    wrong = honest._replace(tokens=torch.tensor(float(base["n_text_tokens"])))
    healthy = float(metrics.speed_ratio(honest, honest))
    ratio = float(metrics.speed_ratio(honest, wrong))
    killed = "metric" if healthy == 1.0 != ratio else None
    return Outcome(
        METRIC, "the baseline's tokens counted differently", ("metric",), killed, f"equal arms get a speedup of {ratio:.2f}"
    )


def run_mutants(bench: Bench) -> Iterator[Outcome]:
    """Each mutant through the layers that should notice it, each equivalent one through those that look at the law."""
    layers = bench.layers()
    for m in (*MUTANTS, *EQUIVALENT):
        killed_by, seen = None, "nothing"
        for name in m.killers or ("L1", "stop", "L2", "L3", "L4"):
            found = layers[name](m)
            if found is not None:
                killed_by, seen = name, found
                break
        yield Outcome(m.number, m.what, m.killers, killed_by, seen)
    yield counts_differently()
