"""tau and speedup as others define them, of the same generations: what a published number of that definition is compared with.

The names are those of the column `definition` in `harness/paper/published.csv`. Ours are `pooled` and `totals`
(`harness/metrics/definitions.py`). Those here count tokens and steps as the reference's scripts do (`reference_formula.booked`),
of first repeats. `from_0` divides by the index of the last step, which begins at 0, so by one step less a turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from harness.common.names import BASELINES
from harness.ledger.record import Record
from harness.metrics.definitions import Estimate, estimated
from harness.metrics.pairing import Conversation, Side, conversation_of
from harness.metrics.reference_formula import Booked, booked, per_question, text_tokens

POOLED, TOTALS = "pooled", "totals"
OF_QUESTIONS, OF_QUESTIONS_FROM_0 = "mean_of_questions", "mean_of_questions_from_0"
POOLED_FROM_0, OF_TURNS_FROM_0 = "pooled_from_0", "mean_of_turns_from_0"
OTHER_TAUS = (POOLED_FROM_0, OF_QUESTIONS, OF_QUESTIONS_FROM_0, OF_TURNS_FROM_0)
NOT_STATED = "not_stated"
WORDS = {
    POOLED: "pooled", POOLED_FROM_0: "pooled, index from 0", OF_QUESTIONS: "mean of questions",
    OF_QUESTIONS_FROM_0: "mean of questions, index from 0", OF_TURNS_FROM_0: "mean of turns, index from 0",
    TOTALS: "of totals", NOT_STATED: "definition not stated",
}  # fmt: skip


def taus(turns: Sequence[tuple[Hashable, Booked]]) -> dict[str, float]:
    """tau by the name of its definition, from (question, what the reference counts) a turn.

    A quotient whose index is 0 is divided by 1: that step was the only one.
    """
    questions: dict[Hashable, list[Booked]] = defaultdict(list)
    for question, turn in turns:
        questions[question].append(turn)
    if not questions:
        return {}
    everything = [turn for _, turn in turns]
    return {
        POOLED_FROM_0: _quotient(everything, 1),
        OF_QUESTIONS: _mean([_quotient(own, 0) for own in questions.values()]),
        OF_QUESTIONS_FROM_0: _mean([_quotient(own, 1) for own in questions.values()]),
        OF_TURNS_FROM_0: _mean([_quotient([turn], 1) for turn in everything]),
    }


def _quotient(turns: Sequence[Booked], first: int) -> float:
    """Tokens / steps, where each turn's steps are counted from `first`."""
    return sum(turn.new_tokens for turn in turns) / max(sum(turn.steps - first for turn in turns), 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def taus_of(own: Side) -> dict[str, float]:
    """The same of a method's records: the unweighted mean over their tasks. Empty where a record has no trace."""
    by_task: dict[str, list[tuple[Conversation, Booked]]] = defaultdict(list)
    for record in _first_repeats(own):
        counts = booked(record)
        if counts is None or counts.steps == 0:
            return {}
        by_task[record["task"]].append((conversation_of(record), counts))
    found = [taus(turns) for turns in by_task.values()]
    return {name: _mean([one[name] for one in found]) for name in (found[0] if found else {})}


def speedup_of_questions(own: Side, base: Side) -> Estimate:
    """The mean over questions of the method's tokens a second / vanilla's, tokens counted as the reference does.

    Of several tasks the unweighted mean. No value where a baseline or a trace is lacking, or where vanilla's text is empty.
    """
    records = _first_repeats(own)
    pairs = [(r, booked(r), base.get(key)) for key, r in own.items() if r["repeat"] == 0]
    if not records or any(r["method"] in BASELINES or counts is None or plain is None for r, counts, plain in pairs):
        return Estimate(None, None, 0)
    speeds: dict[str, tuple[Mapping[Hashable, float], Mapping[Hashable, float]]] = {}
    for task in sorted({r["task"] for r in records}):
        mine = [(r, counts, plain) for r, counts, plain in pairs if r["task"] == task and counts and plain]
        speeds[task] = (
            per_question((conversation_of(r), counts.new_tokens, r["wall_s"] or 0.0) for r, counts, _ in mine),
            per_question((conversation_of(r), text_tokens(plain), plain["wall_s"] or 0.0) for r, _, plain in mine),
        )
    strata = [np.array([[fast[q], plain[q]] for q in sorted(fast, key=str)]).T for fast, plain in speeds.values()]
    if any(columns[1].sum() <= 0 for columns in strata):
        return Estimate(None, None, 0)
    return estimated(strata, lambda sums: sums[0] / sums[1], least=0.0)  # sums of the method's speeds and of vanilla's


def _first_repeats(own: Side) -> list[Record]:
    """The scripts score the first choice only."""
    return [own[key] for key in sorted(own) if own[key]["repeat"] == 0]
