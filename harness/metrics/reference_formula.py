"""What the reference's evaluation scripts would have printed for the same generations, beside what we print.

Facts: github SafeAILab/EAGLE, `eagle/evaluation/speed.py` and the `gen_*_answer` scripts at cb7e084. They divide means of
per-question speeds, count a method's tokens as `new_tokens` (past the stop id and the limit) and the baseline's as its
decoded text tokenised again, minus one; `idx` is the index of the last step, from 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.common.names import BASELINES
from harness.ledger.record import Record
from harness.ledger.reduced import steps_of

Counted = tuple[Hashable, float, float]  # one turn: its question, tokens, seconds


class Booked(NamedTuple):
    """One generation as the reference's loops count it."""

    new_tokens: int
    steps: int  # idx + 1; 0 where the prefill's token ended it, which the reference never lets happen


def booked(record: Record) -> Booked | None:
    """-> the counts of a measured generation, or None where there is no trace to count.

    The reference's drafting loop appends a step's root and accepted tokens, cuts nothing, and drops the last bonus token. Its
    plain loop appends a token a step, the first one included.
    """
    if record["method"] in BASELINES:
        return Booked(len(record["token_ids"]), len(record["token_ids"]))
    steps = steps_of(record)
    return Booked(steps.drafted + steps.forwards, steps.forwards) if steps else None


def goes_on(record: Record) -> bool:
    """Whether the reference would have made one forward more. Nothing is known of that forward.

    The reference sees a bonus token only in the next step, even a stop id, and goes on until `new_tokens` exceeds the limit.
    """
    return record["n_cut"] < (1 if record["finish"] == "stop" else 2)


def text_tokens(record: Record) -> int:
    """`len(tokenizer(text).input_ids) - 1`. The one is for a BOS; where the tokenizer adds none, the count is one short."""
    return record["n_text_tokens"] + record.get("n_special", 0) - 1


def mean_speed(turns: Iterable[Counted]) -> float:
    """The mean over questions of tokens / seconds, a question's turns together."""
    speeds = per_question(turns)
    return sum(speeds.values()) / len(speeds)


def per_question(turns: Iterable[Counted]) -> dict[Hashable, float]:
    sums: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for question, tokens, seconds in turns:
        sums[question][0] += tokens
        sums[question][1] += seconds
    return {question: tokens / seconds for question, (tokens, seconds) in sums.items()}


def zero_based_tau(turns: Iterable[tuple[float, float]]) -> float | None:
    """sum(new_tokens) / sum(idx) over (new_tokens, steps) a turn, as users of the reference's files divide them."""
    counts = list(turns)
    last = sum(max(steps - 1, 0) for _, steps in counts)
    return sum(tokens for tokens, _ in counts) / last if last else None


@dataclass(frozen=True, slots=True)
class Official:
    """The official formula for one cell, and what leads to it: speedup = ours x per_question x past_end x retokenised."""

    speedup: float | None = None
    per_question: float | None = None  # means of per-question speeds in place of totals, first repeats only
    past_end: float | None = None  # the method's tokens past stop id and limit, without its last bonus token
    retokenised: float | None = None  # vanilla's text tokenised again, minus one, in place of its tokens
    tau: float | None = None  # over the zero-based index
    n_turns: int = 0
    n_going_on: int = 0  # turns after which the reference would have made one forward more
    lacks: str = ""  # why there is no speedup


def official(turns: Sequence[tuple[Hashable, Record, Record | None]], ours: float | None) -> Official:
    """From (question, the method's record, vanilla's) a turn; `ours` is the ratio of seconds per token."""
    first = [turn for turn in turns if turn[1]["repeat"] == 0]  # it scores the first choice only
    if not first:
        return Official(lacks="no first repeat")
    if first[0][1]["method"] in BASELINES:
        return Official(lacks="the baseline")
    counts = [(question, booked(r), r["wall_s"] or 0.0) for question, r, _ in first]
    known = [(question, b, seconds) for question, b, seconds in counts if b]
    if len(known) < len(counts):
        return Official(lacks="no trace")
    tau = zero_based_tau((b.new_tokens, b.steps) for _, b, _ in known)
    n_going_on = sum(goes_on(r) for _, r, _ in first)
    base = [(question, r, r["wall_s"] or 0.0) for question, _, r in first if r]
    lacks = "no baseline" if len(base) < len(first) or ours is None else ""
    again = 0.0 if lacks else mean_speed((question, text_tokens(r), seconds) for question, r, seconds in base)
    if lacks or again <= 0:
        return Official(tau=tau, n_turns=len(first), n_going_on=n_going_on, lacks=lacks or "vanilla's text is empty")
    assert ours is not None
    own = mean_speed((question, len(r["token_ids"]), r["wall_s"] or 0.0) for question, r, _ in first)
    printed = mean_speed((question, b.new_tokens, seconds) for question, b, seconds in known)
    plain = mean_speed((question, len(r["token_ids"]), seconds) for question, r, seconds in base)
    return Official(printed / again, own / plain / ours, printed / own, plain / again, tau, len(first), n_going_on)
