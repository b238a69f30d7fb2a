"""What a method returned, checked before it is recorded: its form, and that it agrees with what the harness counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from harness.common.errors import UserError
from harness.common.stopping import Stopped
from harness.watch.seen import Seen, first_not_finite
from methods.base import DraftedTree, Generation, SamplerParams, Trace

COUNTS, TIMES = ("tree_size", "accepted"), ("draft_s", "verify_s", "target_s", "drafter_s")
# Clocks are read one after another, and events of a GPU are rounded: what they may differ by.
SLACK_S, SLACK = 1e-3, 0.02
# Time between steps that no column has: garbage is collected there. Beyond it, and what the thread waited, the columns are wrong.
UNTOLD_S, UNTOLD = 0.1, 0.1
# A progress line is drawn meanwhile, and clocks of processes tick coarsely.
CORES, CORES_S = 1.2, 0.1


class BadGeneration(UserError):
    """What a method returned or did cannot be recorded. The text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Names:
    """What texts call the models."""

    target: str
    drafter: str


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds by the harness's own clocks: of the whole generation, and inside the forwards of either model.

    `waited_s`: of the whole, what the thread did not run: another process had the core, or a device was waited for.
    `n_forwards`: how often the target's clock of forwards was started; None where it has none. `n_module`: how often the
    target's module was run on top of what its forwards need.
    """

    wall_s: float
    target_s: float
    drafter_s: float
    waited_s: float = 0.0
    n_forwards: int | None = None
    n_module: int = 0


def is_generation(made: object) -> Generation:
    """Raises BadGeneration where a method returned something else."""
    if type(made) is not Generation:  # a subclass may tell the check one thing and the record another
        raise BadGeneration(f"it returned {_shown(made)}; a method returns a Generation")
    return made


def check_form(made: object, params: SamplerParams, vocab_size: int, external: bool = False) -> Generation:
    """What can be said of a generation without having seen it: ids, the end, the trace's columns and their arithmetic.

    Raises:
        BadGeneration: it cannot be recorded.
    """
    made = is_generation(made)
    ids, stop_ids, budget = made.token_ids, params.stop_ids, params.max_new_tokens
    if type(ids) is not list:
        raise BadGeneration(f"token_ids is {_shown(ids)}; it must be a list of ints")
    for token in ids:
        if type(token) is not int:
            raise BadGeneration(f"token_ids holds {_shown(token)}; ids are ints")
        if not 0 <= token < vocab_size:
            raise BadGeneration(f"token_ids holds {token}; the vocabulary has {vocab_size:,} tokens")
    if not 1 <= len(ids) <= budget:
        raise BadGeneration(f"it returned {len(ids):,} tokens; the budget is {budget:,}, and the prefill gives one")
    beyond = next((i for i, token in enumerate(ids[:-1]) if token in stop_ids), None)
    if beyond is not None:
        raise BadGeneration(f"{len(ids) - beyond - 1} tokens follow the stop id {ids[beyond]}; the output ends there")
    ends = "stop" if ids[-1] in stop_ids else "length"
    if made.finish != ends:
        raise BadGeneration(f"finish is {_shown(made.finish)}; with these ids it is {ends!r}")
    if ends == "length" and len(ids) < budget and not external:
        raise BadGeneration(f"it ended after {len(ids)} of {budget} tokens without a stop id")
    if type(made.n_cut) is not int or made.n_cut < 0:
        raise BadGeneration(f"n_cut is {_shown(made.n_cut)}; it must be an int of 0 or more")
    _time("prefill_s", made.prefill_s)
    if made.trace is not None:
        _check_trace(made.trace, len(ids), made.n_cut, params.keep_trees)
    return made


def _check_trace(trace: Trace, n_ids: int, n_cut: int, keep_trees: bool) -> None:
    if type(trace) is not Trace:
        raise BadGeneration(f"trace is {_shown(trace)}; it must be a Trace or None")
    n = None
    for name in (*COUNTS, *TIMES):
        column = getattr(trace, name)
        if type(column) is not list:
            raise BadGeneration(f"the trace's {name} is {_shown(column)}; it must be a list")
        n = len(column) if n is None else n
        if len(column) != n:
            raise BadGeneration(f"the trace's columns differ in length: tree_size has {n} entries, {name} {len(column)}")
        for value in column:
            if name in TIMES:
                _time(f"the trace's {name}", value)
            elif type(value) is not int or value < 0:
                raise BadGeneration(f"the trace's {name} holds {_shown(value)}; counts are ints of 0 or more")
    for step, (size, accepted) in enumerate(zip(trace.tree_size, trace.accepted, strict=True), 1):
        if accepted > size:
            raise BadGeneration(f"in step {step} the trace has {accepted} draft tokens accepted of {size}")
    drawn = 1 + sum(trace.accepted) + len(trace.accepted)
    if drawn - n_cut != n_ids:
        raise BadGeneration(f"1 + sum(accepted + 1) - n_cut is {drawn} - {n_cut}, and there are {n_ids} tokens")
    _time("the trace's keeping_s", trace.keeping_s)
    if trace.keeping_s and not keep_trees:
        raise BadGeneration(f"keeping_s is {trace.keeping_s:g}, and no trees were to be kept")
    if type(trace.trees) is not list or not all(type(tree) is DraftedTree for tree in trace.trees):
        raise BadGeneration("the trace's trees are not a list of DraftedTree")


def check_seen(made: Generation, seen: Seen, prompt_ids: list[int], params: SamplerParams, external: bool = False) -> None:
    """That every token was covered by a forward, and that the trace tells what the engine saw. Another's loop is exempt.

    Raises:
        BadGeneration: it is not so.
    """
    if external:
        return
    if seen.n_prefills != 1:
        raise BadGeneration(f"the target ran {seen.n_prefills} prefills; a generation has one")
    if seen.text[: seen.n_prompt] != prompt_ids:
        raise BadGeneration("the target's prefill was of another prompt")
    if len(seen.accepted) != len(seen.sizes):
        raise BadGeneration(f"the target verified {len(seen.sizes)} trees and {len(seen.accepted)} of them were committed")
    text, ids = seen.text[len(prompt_ids) :], made.token_ids
    if text[: len(ids) - 1] != ids[:-1]:
        at = next((i for i, (a, b) in enumerate(zip(text, ids[:-1], strict=False)) if a != b), len(text))
        raise BadGeneration(f"output token {at} ({ids[at]}) was in no forward of the target: {len(text)} of the {len(ids) - 1} "
                            "tokens that must be were committed")  # fmt: skip
    drafted, trace = [size - 1 for size in seen.sizes], made.trace
    if trace is None:
        if len(text) < len(ids) - 1 or sum(seen.accepted) + len(seen.accepted) + 1 - made.n_cut != len(ids):
            raise BadGeneration(f"the target drew {sum(seen.accepted) + len(seen.accepted) + 1} tokens, and {len(ids)} came out")
        return
    if len(trace.tree_size) != len(drafted):
        raise BadGeneration(
            f"the trace tells of {len(trace.tree_size)} forwards after the prefill; the target ran {len(drafted)}"
        )
    for what, told, counted in (("drafted", trace.tree_size, drafted), ("accepted", trace.accepted, seen.accepted)):
        for step, (a, b) in enumerate(zip(told, counted, strict=True), 1):
            if a != b:
                raise BadGeneration(f"in step {step} the trace has {a} tokens {what}; the target saw {b}")
    if params.keep_trees and any(drafted):
        kept = [(tree.tokens, tree.parents, tree.path) for tree in trace.trees]
        if len(kept) != len(drafted):
            raise BadGeneration(f"the trace keeps {len(kept)} trees; the target verified {len(drafted)}")
        for step, (tree, verified) in enumerate(zip(kept, seen.trees, strict=True), 1):
            if tree != verified:
                raise BadGeneration(f"the tree that the trace keeps of step {step} is not the one that the target verified")


def check_cores(wall_s: float, cpu_s: float, threads: int) -> None:
    """That it took no more cores than it was given. cpu_s: of the whole process meanwhile.

    Raises:
        BadGeneration: it did.
    """
    if cpu_s > wall_s * threads * CORES + CORES_S:
        raise BadGeneration(f"it took {cpu_s:.3g} CPU seconds in {wall_s:.3g} s, which is more than {threads} threads can")


def check_times(made: Generation, clocks: Clocks, seen: Seen) -> None:
    """That the times told fit into those that the harness took, and add up to them.

    Raises:
        BadGeneration: they do not.
    """
    trace, wall = made.trace, clocks.wall_s
    if trace is None:
        _at_most("prefill_s", made.prefill_s, "the whole generation", wall)
        return
    told = made.prefill_s + sum(trace.draft_s) + sum(trace.verify_s) + trace.keeping_s
    _at_most("prefill_s and the steps of the trace", told, "the whole generation", wall)
    if wall - told > UNTOLD * wall + UNTOLD_S + clocks.waited_s:
        raise BadGeneration(f"prefill_s and the steps of the trace take {told:.3g} s; the whole generation took {wall:.3g} s")
    inside, steps = sum(trace.target_s) + sum(trace.drafter_s), sum(trace.draft_s) + sum(trace.verify_s)
    _at_most("target_s and drafter_s", inside, "draft_s and verify_s", steps)
    if sum(trace.drafter_s) > 0 and not seen.n_drafter_calls:
        raise BadGeneration(f"drafter_s is {sum(trace.drafter_s):.3g} s; the drafter was never called")
    for name, column, clocked in (
        ("target_s", trace.target_s, clocks.target_s), ("drafter_s", trace.drafter_s, clocks.drafter_s),
    ):  # fmt: skip
        _at_most(name, sum(column), "the model's forwards", clocked)
        _at_most("the model's forwards", clocked, f"prefill_s and {name}", sum(column) + made.prefill_s)


def check_hidden(clocks: Clocks, seen: Seen, external: bool = False) -> None:
    """That the target ran no forward that it was not asked for by its own interface. Another's loop is exempt.

    Raises:
        BadGeneration: it ran some.
    """
    n = seen.n_prefills + len(seen.sizes)
    hidden = max((clocks.n_forwards or n) - n, clocks.n_module)
    if hidden > 0 and not external:
        raise BadGeneration(f"the target ran {hidden} forwards besides the {n} that it was asked for by prefill, step and "
                            "verify (another's loop declares external=True)")  # fmt: skip


def check_finite(seen: Seen, names: Names) -> None:
    """That no token was drawn from logits that are not finite, and none drafted.

    Raises:
        BadGeneration: names the model, the forward and the position.
    """
    if wrong := first_not_finite(seen.used):
        position, value = wrong
        ends = [1, *(1 + sum(seen.accepted[: i + 1]) + i + 1 for i in range(len(seen.accepted)))]
        forward = sum(position >= end for end in ends)
        where = "the prefill" if forward == 0 else f"forward {forward} after the prefill"
        raise BadGeneration(f"the logits of {names.target} are not finite (a row's largest is {value}): {where}, output position "
                            f"{position}")  # fmt: skip
    if wrong := first_not_finite([largest for _, largest in seen.drafted]):
        place, value = wrong
        raise BadGeneration(f"the logits of {names.drafter} are not finite (a row's largest is {value}): drafts for "
                            f"forward {seen.drafted[place][0] + 1} after the prefill")  # fmt: skip


def _at_most(what: str, value: float, of: str, limit: float) -> None:
    if value > limit * (1 + SLACK) + SLACK_S:
        raise BadGeneration(f"{what} take {value:.3g} s, which is more than {of}: {limit:.3g} s")


def _time(name: str, value: Any) -> None:
    if type(value) not in (float, int) or not math.isfinite(value) or value < 0:
        raise BadGeneration(f"{name} is or holds {_shown(value)}; times are finite numbers of 0 or more")


def _shown(value: Any) -> str:
    """A value of whatever type, short, and what it is."""
    try:
        text = " ".join(repr(value).split())
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException:  # a user's own class, whatever its `__repr__` does
        text = "?"
    return f"{text[:40]}{'...' if len(text) > 40 else ''} ({type(value).__name__})"
