"""The oracle that stops: the shortest path over the positions of a known answer, against all ways there are."""

from __future__ import annotations

import itertools
import random
from functools import cache
from typing import Any

import pytest
import torch
from growing import rows_of
from tiny_model import STOP_IDS, shared_tiny_model

import methods
from harness.audit.probe.stand_ins import FakeDrafter
from harness.replay.known import KnownText
from harness.replay.replayed import replayed
from harness.replay.rounds import rounds_of
from harness.replay.rows import Rows, RowsDrafter
from harness.replay.texts import went_on
from methods import Arm
from methods.base import SamplerParams
from methods.engine.policy import Fixed, Here, best_nodes, drafted
from methods.engine.relative_costs import relative_costs
from methods.policies.oracle_stop import accepted_by_calls, shortest

TREE = {"top_k": 4, "depth": 4}


def test_the_shortest_path_beats_the_best_of_each_round() -> None:
    # From 1 three tokens for 1.5 or one for 1; from 2 all the rest for 1; from 4 two dear steps more. The end is 6.
    edges = [[], [(1.0, 2), (1.5, 4)], [(1.0, 6)], [(9.0, 4)], [(2.0, 5)], [(2.0, 9)]]
    assert shortest(edges)[1:3] == [1, 1]  # 2 in all; three tokens for 1.5 pay best in their round, and lead to 5.5
    assert shortest([[], [(1.0, 2), (1.0, 3)], [(0.0, 3)]])[1] == 1  # of equals the fewest calls


def test_the_shortest_path_is_that_of_all_ways() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        n, k = 6, 3
        edges = [[], *([(rng.random() + 0.1, p + 1 + rng.randrange(4)) for _ in range(k)] for p in range(1, n))]

        def total(ways: tuple[int, ...], edges: Any = edges, n: int = n) -> float:
            at, cost = 1, 0.0
            while at < n:
                step, at = edges[at][ways[at - 1]]
                cost += step
            return cost

        best = min(total(ways) for ways in itertools.product(range(k), repeat=n - 1))
        assert total(tuple(c - 1 for c in shortest(edges)[1:])) == pytest.approx(best)


@pytest.mark.parametrize("kind", ["distinct", "tied", "saturated"])
def test_what_each_number_of_calls_accepts_is_what_its_own_tree_does(kind: str) -> None:
    found = set()
    for seed in range(12):
        drafter: Any = FakeDrafter(rows_of(kind, 5, seed))
        here = Here(1, 3, lambda i: 0.0)
        whole = drafted(drafter, Fixed(3, 4, 6), here)
        deep = random.Random(seed).randrange(whole.levels[2], len(whole.tokens))
        then = [4]
        while deep >= 0:
            then, deep = [int(whole.tokens[deep]), *then], int(whole.parents[deep])
        for calls, accepted in enumerate(accepted_by_calls(whole, 6, then), start=1):
            cut = drafted(drafter, Fixed(3, calls, 6), here)
            kept, above, n = set(best_nodes(cut, 6).tolist()), -1, 0
            for token in then:
                at = [i for i in kept if int(cut.parents[i]) == above and int(cut.tokens[i]) == token]
                if not at:
                    break
                above, n = at[0], n + 1
            assert accepted == n
            found.add(n)
    assert len(found) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("costs", "size"), [("call=0.3,verify=1.5", 12), ("call=0.05,verify=2.5", 8), ("call=0,verify=1", 12)])
def test_no_rule_of_when_to_stop_is_faster_on_the_whole_answer(costs: str, size: int, temperature: float) -> None:
    tiny = shared_tiny_model("float32")
    params = SamplerParams(40, STOP_IDS, temperature=temperature, key=7)
    prompt = tiny.prompts[0]
    answer = tiny.vanilla(prompt, params).token_ids
    features, beyond = went_on(tiny.loaded, prompt, answer, params)
    text, rows, real = KnownText(prompt, answer, beyond), Rows(), tiny.loaded.drafter
    assert real is not None
    drafter = RowsDrafter(real, rows, text.ids, len(prompt), lambda: features)
    with tiny.loaded.target.decoding(), torch.inference_mode():
        drafter.draft(range(1, len(answer)), 4, 4)
    table, n = relative_costs(costs), len(answer)

    def cost(calls: list[int], nodes: int) -> float:
        return float(table.verifying[nodes]) + table.drafting(calls)

    def took(name: str, **options: Any) -> float:
        arm = Arm(methods.get(name), "paper", {**methods.get(name).options, **options})
        with tiny.loaded.target.decoding():
            made = replayed(arm, text, params, drafter)
        return sum(map(cost, made.calls, made.sizes))

    every = rounds_of(text, rows, 4, 4, size, every=True)

    @cache
    def left(position: int) -> float:
        if position >= n:
            return 0.0
        row = position - 1
        return min(
            cost([1] * (calls + 1), int(every.sizes[row, calls])) + left(position + int(every.accepted[row, calls]) + 1)
            for calls in range(4)
        )

    best = took("oracle-stop", costs=costs, total=size, **TREE)
    assert best == pytest.approx(left(1))
    others = [took("eagle2-grid", total=size, top_k=4, depth=d) for d in range(1, 5)]
    others += [took("ddd", total=size, first=1, threshold=-t, **TREE) for t in (0.5, 1.0, 2.0)]
    assert best <= min(others) + 1e-9
