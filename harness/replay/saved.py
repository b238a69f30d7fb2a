"""What a policy saves over another tree, from replays of both on the same answers: draft calls, time, and the cost of a call from
which on it is the faster one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

import methods
from harness.common.plain_names import split_hash
from harness.forms.table import Section, Table, bracketed, number
from harness.ledger.record import canonical_hash
from harness.metrics.definitions import Estimate, estimated
from harness.metrics.intervals import Array, Statistic
from harness.replay.choices import Choice
from harness.replay.price import Prices, looks_of
from harness.replay.record import Replay, of_methods
from harness.replay.tables import CONTROL

STEPS, CALLS, TIME, VERIFYING, BEYOND, PLAIN, TOKENS = range(7)  # columns of one side
N = 7


def paired(a: Sequence[Replay], b: Sequence[Replay], price: Prices | None = None) -> list[Array]:
    """By task [2 N, conversations]: a's columns, then b's, over the answers that both replayed. Without a price times are 0.

    Columns: steps; calls of the drafter; time; time without calls beyond each step's first; those calls; time of plain decoding;
    tokens of it.
    """
    found: dict[str, dict[str, Array]] = {}
    mine, other = ({r.answer: r for r in side} for side in (a, b))  # of two by other code the later
    for answer, r in mine.items():
        if answer in other:
            sums = np.concatenate([_columns(side, price) for side in (r, other[answer])])
            own = found.setdefault(r.task, {})
            own[r.sample_id] = own.get(r.sample_id, 0) + sums
    return [np.stack(list(own.values()), axis=1) for own in found.values()]


def _columns(r: Replay, price: Prices | None) -> Array:
    sums, looks, context = np.zeros(N), looks_of(r.options), r.n_prompt + 1
    sums[STEPS], sums[CALLS], sums[TOKENS] = len(r.accepted), sum(map(len, r.calls)), r.tokens - 1
    sums[BEYOND] = sum(max(len(calls) - 1, 0) for calls in r.calls)
    if price is None:
        return sums
    sums[PLAIN] = sum(price.plain(r.n_prompt + 1 + j) for j in range(r.tokens - 1))
    for calls, nodes, accepted in zip(r.calls, r.sizes, r.accepted, strict=True):
        looked = price.look * looks(calls)
        sums[TIME] += price.step(calls, nodes, accepted, context) + looked
        sums[VERIFYING] += price.step(calls[:1], nodes, accepted, context) + looked
        context += accepted + 1
    return sums


def calls_saved(sums: Array) -> Array:
    """The share of draft calls a round that a saves: 0.187 in RADAR's paper."""
    return 1 - sums[CALLS] / sums[STEPS] / (sums[N + CALLS] / sums[N + STEPS])


def faster(sums: Array) -> Array:
    """How much faster a is, of decoding: 0.1 is 10 %. The tokens are the same."""
    return sums[N + TIME] / sums[TIME] - 1


def saved_a_round(sums: Array) -> Array:
    """By how much a's round is shorter, in the price's unit."""
    return sums[N + TIME] / sums[N + STEPS] - sums[TIME] / sums[STEPS]


def break_even(sums: Array) -> Array:
    """c_draft, of a call beyond a round's first in steps of plain decoding, at which both are equally fast. Above it the side
    with fewer of them is faster; at or under 0 that side always is. Not finite where both make as many."""
    plain = sums[PLAIN] / sums[TOKENS]
    return (sums[VERIFYING] - sums[N + VERIFYING]) / (sums[N + BEYOND] - sums[BEYOND]) / plain


def saved(
    a: Sequence[Replay], b: Sequence[Replay], statistic: Statistic, price: Prices | None = None
) -> Estimate:  # fmt: skip
    """The unweighted mean over tasks of one of the statistics above, with its interval over conversations."""
    return estimated(paired(a, b, price), statistic)


def predicted_saving(a: Sequence[Replay], b: Sequence[Replay], call: float, look: float) -> float:
    """What RADAR's model of time says that a saves a round: calls saved times T_d, less looks times T_p. In the unit of both."""
    n_a, n_b = (sum(len(r.calls) for r in side) for side in (a, b))
    calls_a, calls_b = (sum(map(len, (c for r in side for c in r.calls))) for side in (a, b))
    looks = sum(looks_of(r.options)(calls) for r in a for calls in r.calls)
    return (calls_b / n_b - calls_a / n_a) * call - looks / n_a * look


def calls_histogram(replays: Sequence[Replay]) -> str:
    """How many steps made one call, two, ..: the option `histogram` of random-stop, which makes it the control of this policy."""
    counts = np.bincount([len(calls) for r in replays for calls in r.calls])[1:]
    return " ".join(map(str, counts.tolist()))


def as_often_as(choices: Sequence[Choice], replays: Sequence[Replay], method: str, control: str = "random-stop") -> list[Choice]:
    """For each choice of a method that stops drafting: the control that makes as many calls as often, but at random, on its tree.

    replays: of those choices. What the control gave on held-out conversations is not known: its speedup and tau are nan.
    """
    by_arm = {(t, name, sha): rs for (t, name, _, sha), rs in of_methods(replays)}
    found = []
    for c in choices:
        if c.method == method and (own := by_arm.get((c.temperature, method, canonical_hash(dict(c.options))))):
            options = {"histogram": calls_histogram(own), "top_k": c.options["top_k"], "total": c.options["total"]}
            found.append(Choice(control, c.temperature, c.costs, options, float("nan"), float("nan"), 0, c.conversations))
    return found


def saving_table(replays: Sequence[Replay], choices: Sequence[Choice], prices: Mapping[str, Prices]) -> Table:
    """What each policy of `radar` saves over its own tree with every call, and how it stands to the best fixed tree of the same
    costs: a row a temperature, policy and costs. prices: by the name that choices have them under."""
    by_arm = {(t, name, sha): rs for (t, name, _, sha), rs in of_methods(replays)}
    fixed = {(c.temperature, c.costs): by_arm.get((c.temperature, CONTROL, canonical_hash(dict(c.options))))
             for c in choices if c.method == CONTROL}  # fmt: skip
    sections, numbers = [], []
    for t in sorted({key[0] for key in by_arm}):
        rows = []
        for own in (by_arm[key] for key in sorted(by_arm) if key[:2] == (t, "radar")):
            options = own[0].options
            if {**options, "weights": ""} != {**methods.get("radar").options, "weights": ""}:
                continue  # on another tree than its own
            every = {**methods.get("eagle2").options, **{k: options[k] for k in ("top_k", "depth", "total")}}
            base = by_arm.get((t, "eagle2", canonical_hash(every)))
            if base is None:
                continue
            weights, calls = str(options["weights"]), [c for r in own for c in r.calls]
            for name, price in prices.items():
                control = fixed.get((t, name))
                shares = {
                    "calls saved": saved(own, base, calls_saved),
                    "over every call": saved(own, base, faster, price),
                    "over the best fixed tree": saved(own, control, faster, price) if control else Estimate(None, None, 0),
                }
                even = saved(own, base, break_even, price)
                rows.append({
                    "policy": split_hash(weights)[0], "costs": price.name,
                    "calls a step": number(sum(map(len, calls)) / len(calls), "{:.1f}"),
                    **{k: _as_share(e) for k, e in shares.items()}, "break-even c_draft": number(even.value, "{:.3f}"),
                })  # fmt: skip
                for k, e in {**shares, "break-even c_draft": even}.items():
                    low, high = e.ci95 or (None, None)
                    numbers.append({"temperature": t, "weights": weights, "costs": name, "statistic": k, "value": e.value,
                                    "value_low": low, "value_high": high, "conversations": e.prompts})  # fmt: skip
        if rows:
            sections.append(Section(f"T = {t:g}, RADAR over its own tree", (), pd.DataFrame(rows)))
    notes = (
        "Every call: EAGLE-2's tree of the same width, depth and size, which makes all calls of the drafter.",
        "Means over tasks, with 95 % intervals over conversations.",
        "Break-even c_draft: what a call beyond a round's first must cost, in plain steps, for the two to be equally fast.",
    )
    return Table("radar-saves", tuple(sections), notes, pd.DataFrame(numbers))


def _as_share(e: Estimate) -> str:
    return bracketed(number(None if e.value is None else 100 * e.value, "{:+.1f}%"),
                     e.ci95 and (100 * e.ci95[0], 100 * e.ci95[1]), "{:+.1f}")  # fmt: skip
