"""Every cell of a ledger with all its numbers; the same under the reference's formulas; and MT-bench by category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import pandas as pd

from harness.common.names import BASELINES, SIX_TASKS
from harness.forms.table import NOTHING, Section, Table, bracketed, number, one_line
from harness.ledger.record import Record
from harness.metrics.cells import CellSummary, joint_mark, summarise
from harness.metrics.groups import (
    MEAN,
    by_setting,
    facts,
    interval_columns,
    labelled,
    labelled_cells,
    notes_of,
    shown_cells,
)
from harness.show.tables.cell_text import fraction_text, marked_text, speedup_and_tau_text, speedup_text

_CELLS_NOTE = one_line("""
    Square brackets: 95 % intervals (jackknife over conversations; none under 5). Decode: speedup without the prefill and
    its token. c: what one step costs inside the target's forward, inside the drafter's and outside both, in vanilla steps;
    decode = τ / (c_verify + c_draft + c_other). Identical: conversations that are vanilla's token for token, at T = 0 only.
    Official, official τ: what the reference's own scripts would have printed for these generations (table `official`).""")
_OFFICIAL_NOTE = one_line("""
    What the reference's own evaluation scripts would have printed for the same generations, and where the difference comes from:
    official = speedup × per question × past the end × re-tokenised. Per question: the scripts average per-question speeds over
    first repeats; we divide totals. Past the end: the scripts count the method's tokens past stop id and limit, but not its last
    bonus token. Re-tokenised: the scripts tokenise vanilla's text again and subtract one; we count vanilla's tokens. The one is
    for a BOS; where the tokenizer adds none, the baseline is a token a turn short. Bookkeeping: official / speedup - 1. Official
    τ: over the index of the last step, which starts at 0. Goes on: turns after which the reference would have made one forward
    more, because it sees a stop id drawn as bonus token only a step later and stops only past the limit. No number here has that
    forward, the last, unused forward of the reference's baseline, or its longer length limit.""")
_CATEGORIES_NOTE = "MT-bench by category. Each cell: speedup / τ; in brackets τ over outputs where neither arm looped."


def cells_table(summaries: Iterable[CellSummary]) -> Table:
    """Every cell with its intervals and checks."""
    summaries = shown_cells(summaries)
    sections = tuple(
        Section(setting.title(), facts(group), pd.DataFrame([_cell_row(name, c) for name, c in labelled_cells(group)]))
        for setting, group in by_setting(summaries)
    )
    return Table("cells", sections, (_CELLS_NOTE, *notes_of(summaries)), cell_numbers(summaries))


def official_table(summaries: Iterable[CellSummary]) -> Table:
    """Our speedup and τ beside the reference's formulas on the same generations, and what each difference amounts to."""
    summaries = [s for s in shown_cells(summaries) if s.method not in BASELINES]
    sections = []
    for setting, group in by_setting(summaries):
        rows = []
        for name, cells in labelled(group):
            rows += [_official_row(name, c.task, c.source, [c], c.official.lacks) for c in cells]
            if sorted(c.task for c in cells) == sorted(SIX_TASKS):
                rows.append(_official_row(name, MEAN, "", cells, ""))
        sections.append(Section(setting.title(), facts(group), pd.DataFrame(rows)))
    numbers = [
        {**asdict(s.setting), "method": s.method, "preset": s.preset, "task": s.task, "source": s.source,
         **_official_numbers([s]), "n_turns": s.official.n_turns, "lacks": s.official.lacks}
        for s in summaries
    ]  # fmt: skip
    return Table("official", tuple(sections), (_OFFICIAL_NOTE, *notes_of(summaries)), pd.DataFrame(numbers))


def _official_numbers(cells: Sequence[CellSummary]) -> dict[str, float | None]:
    """Means over cells, None where one lacks the value; factors are of the means, so that they multiply to the whole."""

    def mean(values: Iterable[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(cells) if len(known) == len(cells) else None

    def along(*factors: str) -> float | None:
        values = []
        for c in cells:
            value = c.speedup
            for factor in factors:
                part = getattr(c.official, factor)
                value = None if value is None or part is None else value * part
            values.append(value)
        return mean(values)

    steps = [along(*_WAY[:n]) for n in range(len(_WAY) + 1)]
    numbers: dict[str, float | None] = {"speedup": steps[0]}
    for name, before, after in zip(_WAY, steps, steps[1:], strict=False):
        numbers[name] = after / before if after is not None and before else None
    numbers |= {"official_speedup": steps[-1], "tau": mean(c.tau for c in cells)}
    numbers |= {"official_tau": mean(c.official.tau for c in cells)}
    return numbers | {"goes_on": mean(c.official.n_going_on / c.official.n_turns if c.official.n_turns else None for c in cells)}


_WAY = ("per_question", "past_end", "retokenised")


def _official_row(name: str, task: str, source: str, cells: Sequence[CellSummary], lacks: str) -> dict[str, str]:
    n = _official_numbers(cells)
    ours, theirs = n["speedup"], n["official_speedup"]
    mark = joint_mark(cells)
    return {
        "method": name,
        "task": task,
        "source": source,
        "speedup": marked_text(ours, mark),
        "per question": number(n["per_question"], "{:.3f}"),
        "past the end": number(n["past_end"], "{:.3f}"),
        "re-tokenised": number(n["retokenised"], "{:.3f}"),
        "official": f"{NOTHING} ({lacks})" if lacks else marked_text(theirs, mark),
        "bookkeeping": number(theirs / ours - 1 if theirs and ours else None, "{:+.1%}"),
        "τ": number(n["tau"]),
        "official τ": number(n["official_tau"]),
        "goes on": number(n["goes_on"], "{:.0%}"),
    }


def cell_numbers(summaries: Iterable[CellSummary]) -> pd.DataFrame:
    """All numbers of the cells, a row each; what does not apply is None."""
    rows = []
    for s in summaries:
        row = {**asdict(s.setting), "method": s.method, "preset": s.preset, "exact": s.exact, "task": s.task,
               "source": s.source, "head_sha": s.head_sha, "code": s.variant[4], "prompts": s.prompts}  # fmt: skip
        row |= {name: getattr(s, name) for name in _TIDY_VALUES}
        row |= interval_columns("speedup", s.speedup, s.speedup_ci95) | interval_columns("tau", s.tau, s.tau_ci95)
        split = s.time_split
        row |= {f"{part}_s_per_token": split and getattr(split, part) for part in ("draft", "verify", "prefill", "other")}
        row |= {"official_speedup": s.official.speedup, "official_tau": s.official.tau}
        costs = s.step_costs
        row |= {f"c_{part}": costs and getattr(costs, part) for part in ("verify", "draft", "other")}
        rows.append(row)
    return pd.DataFrame(rows)


_TIDY_VALUES = ("new_tokens", "seconds", "tokens_per_s", "baseline_tokens_per_s", "decode_speedup", "tau_no_loop",
                "identical", "n_compared", "looped", "mean_tree_size", "n_errors", "n_skipped", "n_unpaired",
                "n_elsewhere", "is_shared", "n_incomplete", "mark")  # fmt: skip


def categories_table(records: Iterable[Record], summaries: Iterable[CellSummary]) -> Table:
    """MT-bench's categories apart: what a method gains depends on how predictable the answers are."""
    of_category: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        if r["task"] == "mt_bench":
            of_category[r["category"]].append(r)
    summaries = shown_cells(s for s in summaries if s.task == "mt_bench")
    by_category = {category: shown_cells(summarise(own)) for category, own in sorted(of_category.items())}
    by_row = [cell_numbers(group).assign(category=category) for category, group in by_category.items()]
    sections = []
    for setting, whole in by_setting(summaries):
        rows: dict[str, dict[str, str]] = {}
        in_setting = {category: [s for s in group if s.setting == setting] for category, group in by_category.items()}
        for category, group in in_setting.items():
            for name, cell in labelled_cells(group):
                rows.setdefault(name, {"method": name})[f"{category} ({cell.source})"] = speedup_and_tau_text(cell)
        shown = pd.DataFrame(list(rows.values())).fillna("")
        sections.append(Section(setting.title(), facts(whole), shown))
    numbers = pd.concat(by_row) if by_row else pd.DataFrame()
    return Table("mt_bench_by_category", tuple(sections), (_CATEGORIES_NOTE, *notes_of(summaries)), numbers)


def _cell_row(name: str, c: CellSummary) -> dict[str, str]:
    costs = c.step_costs
    return {
        "method": name,
        "task": c.task,
        "speedup": bracketed(speedup_text(c), c.speedup_ci95),
        "decode": marked_text(c.decode_speedup, c.mark),
        "τ": bracketed(number(c.tau), c.tau_ci95),
        "τ, no loops": number(c.tau_no_loop),
        "source": c.source,
        "prompts": str(c.prompts),
        "tokens": str(c.new_tokens),
        "tokens/s": number(c.tokens_per_s, "{:.1f}"),
        "vanilla's": number(c.baseline_tokens_per_s, "{:.1f}"),
        "official": f"{NOTHING} ({c.official.lacks})" if c.official.lacks else marked_text(c.official.speedup, c.mark),
        "official τ": number(c.official.tau),
        "looped": number(c.looped, "{:.0%}"),
        "identical": fraction_text(c),
        "tree": number(c.mean_tree_size, "{:.1f}"),
        "c_verify": number(costs.verify if costs else None),
        "c_draft": number(costs.draft if costs else None),
        "c_other": number(costs.other if costs else None),
    }
