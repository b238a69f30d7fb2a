"""Level quick walks long contexts, deep trees, late positions and many steps, whatever a drafter's own luck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tiny_model import shared_tiny_model
from torch import Tensor

import methods
from harness.audit.faults import forwards, late
from harness.audit.faults.bench import Bench, run_mutant
from harness.audit.faults.faults import MUTANTS, Mutant, healthy, spoilt
from harness.audit.faults.forwards import Misgiven
from harness.audit.faults.rules import Options, dynamic
from harness.audit.layers import greedy_params
from harness.audit.levels import LEVELS, LONG, Case, Prompts
from harness.audit.probe import findings, law
from harness.audit.probe.guided import GuidedDrafter
from harness.audit.probe.subject import Subject
from harness.audit.verdicts.replay import controls, replay_verdicts
from methods.base import Decode, Generation, SamplerParams
from methods.engine.loop import speculative
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree
from methods.engine.verify import Accepted, walk

TINY = shared_tiny_model("float32")
BENCH = Bench(TINY.loaded, LEVELS["quick"])
OWN = [name for name in methods.names() if not methods.get(name).external]
DRAFTING = [name for name in OWN if name != "vanilla"]


def subject(name: str) -> Subject:
    return Subject.of(methods.get(name), TINY.loaded.config)


def long_case() -> Case:
    (case,) = (case for case in BENCH.prompts.usual if case.guided)
    return case


def found(s: Subject) -> dict[str, Any]:
    """A method's finding in the long case."""
    return next(f for f in BENCH.runs(s) if f["guided"])


def test_level_quick_reaches_over_256_positions_over_20_tokens_and_five_levels() -> None:
    level, case = LEVELS["quick"], long_case()
    assert len(case.prompt[1]) == LONG > 300 and case.new_tokens == level.score_length == level.score_tokens == 64
    params = greedy_params(case, frozenset({0, 2}))
    assert not params.stop_ids and not level.score_stops  # so that no output ends early
    assert case.tree["depth"] == level.score_tree["depth"] == level.exact_tree["depth"] == 6
    assert all(case.guided for case in Prompts.of(TINY.loaded, level).exact)


@pytest.mark.parametrize("name", DRAFTING)
def test_every_method_takes_over_16_steps_and_paths_as_deep_as_its_tree(name: str) -> None:
    f = found(subject(name))
    assert f["n"] == 64 and f["divergence"] is None and not f["not_argmax"]
    assert f["forwards"] > 16
    levels = {"eagle": 5, "lm": 5, "medusa": 4, "hydra": 4}  # of a drafter's kind, on the level's narrow trees
    if methods.get(name).drafter in levels:
        assert f["deepest"] >= levels[methods.get(name).drafter or ""]


class _Constant:
    """A drafter that says the same after every text."""

    forward_s = 0.0

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None: ...

    def observe(self, tokens: list[int], features: Tensor) -> None: ...

    def named(self, columns: Tensor) -> Tensor:
        return columns

    def root_logits(self) -> Tensor:
        return torch.zeros(1, 9)

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        return torch.zeros(len(tokens), 9)


def test_a_guided_drafter_is_told_the_text_at_some_steps_and_misled_at_others() -> None:
    ids = [5, 3, 8, 1] * 8
    drafter = GuidedDrafter(_Constant(), [7, 7, 2], ids)
    drafter.start(99)
    drafter.observe([7, 2, ids[0]], torch.zeros(3, 1))
    first = []
    for i in range(1, 6):
        logits = drafter.root_logits()[0]
        first.append("told" if logits.argmax() == ids[i] and logits.max() > 1 else "own" if logits.std() == 0 else "misled")
        drafter.observe([ids[i]], torch.zeros(1, 1))
    assert first == ["own", "told", "own", "own", "own"]  # a drafter without an opinion cannot be misled
    assert [at for at, _ in drafter.first] == [1, 2, 3, 4, 5]
    drafter.observe(ids[6:27], torch.zeros(21, 1))
    assert drafter.root_logits()[0].argmax() == ids[27]  # the block that holds the end
    told = drafter.expand(torch.tensor([ids[27], 0]), torch.tensor([-1, -1]), torch.ones(2, 2, dtype=torch.bool))
    assert told[0].argmax() == ids[28] and told[1].std() == 0  # on the text's path alone
    drafter.observe([6], torch.zeros(1, 1))
    assert drafter.root_logits().std() == 0  # another text: there is nothing to tell


# ---- faults of the engine are seen through every kind of drafter ----

ENGINE: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "mask beyond 256": (partial(Misgiven, change=forwards.blind_beyond), DRAFTING),
    "positions beyond 256": (forwards.one_further_beyond, DRAFTING),
    "long paths in the cache": (late.LongPathsKeepParent, ["sps", "eagle1", "eagle2", "eagle2-fr"]),
    "siblings five levels down": (partial(Misgiven, change=forwards.deep_see_each_other), ["eagle1", "eagle2", "eagle2-fr"]),
}


@pytest.mark.parametrize(("fault", "name"), [(fault, name) for fault, (_, names) in ENGINE.items() for name in names])
def test_a_fault_of_the_engine_is_seen_through_each_method(fault: str, name: str) -> None:
    s = replace(subject(name), name=f"{name} with {fault}", spoilt=ENGINE[fault][0])
    runs = BENCH.runs(s)
    assert any(v.passed is False for v in replay_verdicts(runs, controls(BENCH.control))), fault
    short = [f for f in runs if not f["guided"]]
    if "256" in fault:  # paths of the tiny model are deep without guiding, too
        assert not any(v.passed is False for v in replay_verdicts(short, controls(BENCH.control)))


def test_what_a_short_output_on_a_short_prompt_shows_of_the_new_faults_is_little() -> None:
    """14 tokens after the shortest prompt, without guiding: what level quick was."""
    was = replace(LEVELS["quick"], prompts=2, score_tokens=48, score_length=48, score_prompts=2, score_tree={}, score_stops=True)
    bench = Bench(TINY.loaded, was)
    bench.prompts = replace(bench.prompts, usual=[case for case in bench.prompts.usual if not case.guided])
    new = [m for m in MUTANTS if int(m.number) > 26]
    assert len(new) == 10
    seen = set()
    for m in new:
        s = replace(m.subject(), deep={})
        layers = bench.layers() | {"L4": partial(bench.l4, draws=False)}
        if any(layers[layer](s).what is not None for layer in m.killers):
            seen.add(m.number)
    assert seen <= {"35"}, seen


# ---- faults of the same kinds that are not among those planted by the command ----


def rotary_reused(target: Any) -> Any:
    """The rotary table has 256 rows, and positions beyond begin again."""
    return forwards.at_other_positions(target, lambda positions: positions % 256)


def stops_late(tree: Options) -> Decode:
    """From token 20 on stop ids are not looked at."""
    decode = speculative(dynamic(tree))

    def run(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        made = decode(ids, target, drafter, replace(params, stop_ids=frozenset()))
        at = next((i for i, t in enumerate(made.token_ids[:20]) if t in params.stop_ids), None)
        return made if at is None else Generation(made.token_ids[: at + 1], "stop", 0, 0.0, None)

    return run


def overshoots_by_a_long_path(tree: Options) -> Decode:
    """The budget cuts no block of over five tokens."""
    decode = speculative(dynamic(tree))

    def run(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        made = decode(ids, target, drafter, params)
        if made.trace is None or not made.trace.accepted or made.trace.accepted[-1] < 5 or made.finish == "stop":
            return made
        return decode(ids, target, drafter, replace(params, max_new_tokens=params.max_new_tokens + 2))

    return run


DEEP = {"top_k": 2, "depth": 5, "total": 7}


@pytest.mark.parametrize(
    "mutant",
    [
        spoilt("rotary", "rotary table reused after the cache grows", rotary_reused),
        Mutant("stop", "stop ids ignored late", ("stop",), stops_late, deep=DEEP),
        Mutant("budget", "budget overshot by a long path", ("stop",), overshoots_by_a_long_path, deep=DEEP),
        Mutant("stale", "the first features stale, never again", ("L5",), healthy, misled=lambda d: _StaleOnce(d)),
    ],
    ids=lambda m: m.what,
)
def test_more_faults_of_these_kinds_are_seen(mutant: Mutant) -> None:
    outcome = run_mutant(BENCH, mutant)
    assert outcome.right, outcome.seen


class _StaleOnce(late.StaleAtTimes):
    def observe(self, tokens: list[int], features: Tensor) -> None:
        self._n += 1
        self._drafter.observe(tokens, features.roll(1, 0) if self._n == 1 else features)


# ---- layer 1 on deep trees ----


def wrong_five_levels_down(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    found = walk(tree, logits, chooser, position)
    return found if len(found.path) < 6 else Accepted(found.path, int(logits[found.path[-1]].argmin()))


def test_a_rule_that_is_wrong_five_levels_down_is_seen_on_deep_trees_alone() -> None:
    m = methods.get("eagle2")
    deep = law.deep_options(m)
    assert deep is not None
    for case in law.deep_cases():
        (result,) = law.laws_of("right", m.build(**deep), case, samples_drafts=False)
        assert result.deviation <= law.TOLERANCE
        (result,) = law.laws_of("wrong", speculative(dynamic({k: deep[k] for k in DEEP}), wrong_five_levels_down), case, False)
        assert result.deviation > 1e-3, case.name
    for small, case in law.walks(law.small_options(m), law.cases(3, "quick"), "quick"):
        for result in law.laws_of("wrong", speculative(dynamic(small), wrong_five_levels_down), case, False):
            assert result.deviation <= law.TOLERANCE


@pytest.mark.parametrize("name", [n for n in OWN if methods.get(n).exact and law.deep_options(methods.get(n))])
def test_every_method_has_the_targets_law_on_a_tree_five_levels_deep(name: str) -> None:
    s = subject(name)
    for tree in s.deep:
        for case in law.deep_cases():
            assert findings.law_finding(s, tree, case)["deviation"] <= law.TOLERANCE


def test_a_token_that_its_random_number_does_not_name_is_told_by_its_place() -> None:
    s, prompt = subject("eagle2"), TINY.prompts[0]
    params = SamplerParams(12, temperature=1.0, key=5)
    run = findings.run_of(TINY.loaded, s, prompt, params, s.drafter(TINY.loaded))
    assert run.misdrawn(params) == []
    other = [(t + 1) % 384 if i == 7 else t for i, t in enumerate(run.ids)]
    assert replace(run, ids=other).misdrawn(params) == [7]
    assert run.misdrawn(replace(params, key=6)) != []
