"""The paper's tables and figures cell by cell: our number beside the paper's and others', and a verdict by fixed rules.

tau is reproduced where it is within 0.10 of the paper's, or the paper's within 0.10 of our interval. Speed is reproduced where
our interval covers the paper's. A number of the paper is compared with ours of the same definition only. Where only tau is
reproduced, decode speedup = tau / (c_verify + c_draft + c_other) says which part of a step took the speed. All of it is a pure
function of records and published numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tasks
from harness.common.names import SIX_TASKS, VANILLA
from harness.ledger.record import Record
from harness.metrics.by_definition import OF_QUESTIONS, POOLED, TOTALS, WORDS, speedup_of_questions, taus_of
from harness.metrics.cells import CellSummary, mean_estimates, six_task_mean, summarise
from harness.metrics.definitions import Estimate
from harness.metrics.groups import not_in_the_numbers, shown_cells, weights_and_machine
from harness.metrics.marks import joined
from harness.metrics.pairing import Side, compared, one_environment, one_source, side_of
from harness.metrics.steps import StepCosts
from harness.paper.published import MEAN, METHODS, OURS_DIFFER, Number, PaperCell
from harness.paper.replayed_taus import ReplayedTau, ReplayedTaus
from harness.replay.record import Replay
from tasks.paper_files import PAPER_FILES

TOLERANCE = 0.10  # in tau
PRESET = "paper"  # the only trees the paper's numbers are of


@dataclass(frozen=True, slots=True)
class ReportedModel:
    """The model that cells are judged for: our name, the paper's (None for a stand-in), and the paper's length budget."""

    name: str
    paper: str | None
    max_new_tokens: int
    facts: tuple[str, ...] = ()  # what its records were measured on
    departures: tuple[str, ...] = ()  # what in them is not as in the paper, in all cells alike
    altered: frozenset[str] = frozenset()  # tasks whose `paper` prompts are from files that are not the authors'
    machine: str = ""  # of a folder that holds the model from several: which of them

    @property
    def where(self) -> dict[str, str]:
        """The column `machine`, of a model that was measured on several."""
        return {"machine": self.machine} if self.machine else {}


@dataclass(frozen=True, slots=True)
class Ours:
    """What was measured for a cell."""

    speedup: Estimate
    tau: Estimate
    tau_no_loop: float | None
    decode_speedup: float | None
    costs: StepCosts | None
    source: str
    max_new_tokens: int
    is_apart: bool
    is_shared: bool
    signs: str = ""  # of its speed; see `harness.metrics.marks`
    speedup_of_questions: Estimate = Estimate(None, None, 0)  # by the reference's formula
    taus: Mapping[str, float] = field(default_factory=dict)  # by the definitions of others
    replayed: ReplayedTau | None = None  # of more prompts than were run

    def tau_as(self, definition: str) -> Estimate | None:
        """tau by a definition (`harness.metrics.by_definition`), or None where it is not known by that.

        That of the replays where there are any: a replay has a run's steps, and is of more prompts.
        """
        tau, taus = (self.replayed.tau, self.replayed.taus) if self.replayed else (self.tau, self.taus)
        if definition == POOLED:
            return tau if tau.value is not None else None
        return Estimate(taus[definition], None, tau.prompts) if definition in taus else None

    def speedup_as(self, definition: str) -> Estimate | None:
        """The same of the speedup."""
        found = {TOTALS: self.speedup, OF_QUESTIONS: self.speedup_of_questions}.get(definition)
        return found if found and found.value is not None else None


@dataclass(frozen=True, slots=True)
class Judged:
    """A cell with what was measured for it, if anything, and the verdict."""

    cell: PaperCell
    target: ReportedModel
    ours: Ours | None
    verdict: str


def of_the_paper(records: Iterable[Record], model: str, where: object) -> list[Record]:
    """A model's measured records that belong to cells of the paper.

    Raises:
        UserError: they were measured in several environments; names the key.
    """
    known = {VANILLA, *METHODS.values()}
    own = [r for r in records if r["model"] == model and r["preset"] == PRESET and r["method"] in known]
    return one_environment(own, where)


class Measurements:
    """One model's measured records of a folder, and replays of its answers, ready to be asked for a cell of the paper.

    Raises:
        UserError: they were measured in several environments; names the key.
    """

    def __init__(self, records: Iterable[Record], model: str, where: object, replays: Iterable[Replay] = ()):
        records = list(records)
        self.records = one_source(of_the_paper(records, model, where))
        known, taken = {VANILLA, *METHODS.values()}, {(r["task"], r["source"]) for r in self.records}
        asked = [r for r in records if r["model"] == model and r["preset"] == PRESET and r["method"] in known
                 and (r["task"], r["source"]) in taken]  # fmt: skip
        self._left_out = not_in_the_numbers(shown_cells(summarise(asked)))
        self.base = side_of(r for r in self.records if r["method"] == VANILLA)
        self.summaries = {(s.method, s.task, s.temperature): s for s in summarise(self.records)}
        runs = [r for r in self.records if r["method"] != VANILLA]
        self._replayed = ReplayedTaus(replays, (r["key"] for r in self.base.values()), runs, PRESET)

    def __call__(self, method: str, task: str, temperature: float) -> Ours | None:
        """What was run or replayed for a cell. None where nothing was, or for a mean where one of the six tasks is missing."""
        run, replayed = self._run(method, task, temperature), self._replayed(method, task, temperature)
        if replayed is None or (run and run.tau.prompts >= replayed.tau.prompts):
            return run
        if run:
            return replace(run, replayed=replayed)
        names, nothing = SIX_TASKS if task == MEAN else (task,), Estimate(None, None, 0)
        answers = [r for r in self.base.values() if r["task"] in names]
        source = "/".join(sorted({r["source"] for r in answers}))
        return Ours(nothing, nothing, None, None, None, source, answers[0]["max_new_tokens"], False, False, replayed=replayed)

    def _run(self, method: str, task: str, temperature: float) -> Ours | None:
        names = SIX_TASKS if task == MEAN else (task,)
        cells = [s for name in names if (s := self.summaries.get((method, name, temperature))) and s.prompts]
        if len(cells) < len(names):
            return None
        own = side_of(r for r in self.records if (r["method"], r["temperature"]) == (method, temperature) and r["task"] in names)
        used: dict[tuple[Any, ...], Record] = {}
        for name in names:  # as in the cells: a task's conversations that have a baseline, or all of them
            mine = {key: r for key, r in own.items() if r["task"] == name}
            used |= compared(mine, self.base) or mine
        made = self._mean(cells, own) if task == MEAN else _of(cells[0])
        return replace(made, speedup_of_questions=speedup_of_questions(used, self.base), taus=taus_of(used))

    def facts(self) -> tuple[str, ...]:
        """What measured it, and the weights; nothing where there are no records."""
        if not self.records:
            return ()
        r = self.records[0]
        how = f"Measured in {r['dtype']} with {r['threads']} threads, at most {r['max_new_tokens']} new tokens, seed {r['seed']}"
        return (how, *weights_and_machine(list(self.summaries.values())), *self._left_out)

    def of(self, cells: Sequence[PaperCell]) -> list[Record]:
        """The records of these cells and vanilla's on the same tasks."""
        wanted = {(name, c.task_here, c.temperature) for c in cells for name in (c.method_here, VANILLA)}
        return [r for r in self.records if (r["method"], r["task"], r["temperature"]) in wanted]

    def _mean(self, cells: Sequence[CellSummary], own: Side) -> Ours:
        """Unweighted over the six tasks, with intervals."""
        first, mean = cells[0], six_task_mean(cells)
        speed, length = mean_estimates(own, self.base)
        return Ours(
            speed, length, mean.tau_no_loop, mean.decode_speedup, mean.step_costs,
            "/".join(sorted({c.source for c in cells})), first.max_new_tokens, mean.is_apart, mean.is_shared,
            joined(c.signs for c in cells),
        )  # fmt: skip


def _of(c: CellSummary) -> Ours:
    return Ours(
        Estimate(c.speedup, c.speedup_ci95, c.prompts), Estimate(c.tau, c.tau_ci95, c.prompts), c.tau_no_loop,
        c.decode_speedup, c.step_costs, c.source, c.max_new_tokens, c.is_apart, c.is_shared, c.signs,
    )  # fmt: skip


def reported_model(
    name: str, paper: str | None, max_new_tokens: int, records: Sequence[Record], facts: tuple[str, ...] = (), machine: str = ""
) -> ReportedModel:  # fmt: skip
    """A model as measured in one environment, with everything in it that is not as in the paper. machine: where it was measured
    on several."""
    departures = []
    for r in records[:1]:
        if (system := r.get("system", "paper")) != "paper":
            departures.append("no system prompt" if system == "none" else "another system prompt")
        if r["top_p"] < 1:
            departures.append(f"top-p {r['top_p']:g}")
    shas = {(r["task"], r["prompts_sha"]) for r in records if r["source"] == "paper" and r["task"] in SIX_TASKS}
    altered = {task for task, sha in shas if sha != PAPER_FILES[f"{tasks.get(task).paper_folder}/question.jsonl"]}
    return ReportedModel(name, paper, max_new_tokens, facts, tuple(departures), frozenset(altered), machine)


def judge(cell: PaperCell, target: ReportedModel, ours: Ours | None) -> Judged:
    return Judged(cell, target, ours, _verdict(cell, target, ours))


def _verdict(cell: PaperCell, target: ReportedModel, ours: Ours | None) -> str:
    if cell.method_here is None:
        return f"not comparable: {cell.method} is not among the methods here"
    if ours is None or (ours.speedup.value is None and ours.tau_as(POOLED) is None):
        return "not measured"
    if why := incomparable(target, ours.source, cell.task_here, ours.max_new_tokens):
        return why
    marks = "".join(f" {mark}" for mark, is_so in _marks(cell) if is_so)
    has_tau, has_speed = tau_agrees(cell, ours), speed_agrees(cell, ours)
    tau, speed = f"τ {_gap(cell.tau, ours.tau_as)}", f"speed {_gap(cell.speedup, ours.speedup_as)}"
    word = {
        (True, True): "τ and speed reproduced",
        (True, False): f"τ reproduced, speed {_speed_limit(cell, ours)}" if has_speed is False else "",
        (True, None): f"τ reproduced, speed not judged ({_no_speed(cell, ours)})",
        (False, True): f"not reproduced: {tau} the paper's (speed is)",
        (False, False): f"not reproduced: {tau} and {speed} the paper's",
        (False, None): f"not reproduced: {tau} the paper's; speed not judged ({_no_speed(cell, ours)})",
        (None, True): "speed reproduced",
        (None, False): f"not reproduced: {speed} the paper's",
        (None, None): f"not judged ({_no_speed(cell, ours)})",
    }[has_tau, has_speed]
    return f"{word}{_by_which(cell, ours)}{marks}"


def _by_which(cell: PaperCell, ours: Ours) -> str:
    """How tau was averaged where ours pooled is not the one that agrees; else nothing."""
    agreeing = tau_definitions(cell, ours)
    if not agreeing or POOLED in agreeing:
        return ""
    found = ours.tau_as(agreeing[0])
    assert found is not None and found.value is not None
    pooled = _gap(cell.tau, lambda _: ours.tau_as(POOLED))
    return f" (τ as {WORDS[agreeing[0]]}: {found.value:.2f}; pooled it is {pooled} the paper's)"


UNCONFIRMED, DIFFERS = "‡", "†"


def _marks(cell: PaperCell) -> list[tuple[str, bool]]:
    """The marks of a verdict, and whether the cell has each: a transcribed number, and a method that is not quite the paper's."""
    relied_on = any(not n.confirmed for n in cell.tau + cell.speedup)
    return [(UNCONFIRMED, relied_on), (DIFFERS, cell.method_here in OURS_DIFFER)]


def incomparable(target: ReportedModel, source: str, task: str, max_new_tokens: int) -> str:
    """`not comparable: ` and every reason; empty where it is comparable. task: our name, or the mean of the six."""
    why = []
    if target.paper is None:
        why.append(f"{target.name} is not a model of the paper")
    if source != "paper":
        why.append(f"{source} prompts")
    if target.altered & ({task} if task in SIX_TASKS else set(SIX_TASKS)):
        why.append("a prompt file that is not the authors'")
    if max_new_tokens != target.max_new_tokens:
        why.append(f"at most {max_new_tokens} new tokens, not {target.max_new_tokens}")
    why += target.departures
    return f"not comparable: {'; '.join(why)}" if why else ""


def tau_agrees(cell: PaperCell, ours: Ours) -> bool | None:
    """None where the paper has no tau, or none was measured by a definition that the paper's may be of."""
    known = [name for n in cell.tau[:1] for name in n.definitions if ours.tau_as(name)]
    return bool(tau_definitions(cell, ours)) if known else None


def tau_definitions(cell: PaperCell, ours: Ours) -> list[str]:
    """Those by which our tau and the paper's agree, of those that the paper's may be of."""
    agreeing = []
    for name in [name for n in cell.tau[:1] for name in n.definitions]:
        if (found := ours.tau_as(name)) and found.value is not None:
            ends = (found.value, *(found.ci95 or ()))  # a skewed interval need not hold the value
            # 1e-9 for binary rounding: 3.90 and 4.00 differ by 0.10 in the paper's digits
            if min(ends) - TOLERANCE - 1e-9 <= cell.tau[0].value <= max(ends) + TOLERANCE + 1e-9:
                agreeing.append(name)
    return agreeing


def speed_agrees(cell: PaperCell, ours: Ours) -> bool | None:
    """None where it cannot be judged: no interval, no number in the paper, none of ours that is of its definition, or a baseline
    from another process or busy machine."""
    found = _speed_as_there(cell, ours)
    if found is None or found.ci95 is None or ours.is_apart or ours.is_shared:
        return None
    low, high = found.ci95
    return low <= cell.speedup[0].value <= high


def _speed_as_there(cell: PaperCell, ours: Ours) -> Estimate | None:
    """Our speedup by the definition of the paper's."""
    return next((found for n in cell.speedup[:1] for name in n.definitions if (found := ours.speedup_as(name))), None)


def _no_speed(cell: PaperCell, ours: Ours) -> str:
    if not cell.speedup:
        return "the paper has none"
    if ours.speedup.value is None:
        return "replayed, not run" if ours.replayed and ours.tau.value is None else "no baseline was measured"
    if ours.is_shared:
        return "other work shared the machine"
    if ours.is_apart:
        return "its baseline was measured in another process"
    if not cell.speedup[0].definitions:
        return "how the published one is averaged is not stated"
    if _speed_as_there(cell, ours) is None:
        return f"none as {WORDS[cell.speedup[0].definitions[0]]}: a trace or vanilla's text is lacking"
    return "no interval under 5 prompts"


def _gap(published: Sequence[Number], ours_as: Callable[[str], Estimate | None]) -> str:
    """How far ours is from the published, by its first definition that ours is known by."""
    for name in [name for n in published[:1] for name in n.definitions]:
        if (found := ours_as(name)) and found.value is not None:
            return f"{found.value - published[0].value:+.2f} of"
    return "differs from"


PARTS = ("verify", "draft", "other")


def _speed_limit(cell: PaperCell, ours: Ours) -> str:
    """Which part of a step keeps the speed below the paper's: the largest one, beyond the one vanilla step that all need."""
    found, paper = _speed_as_there(cell, ours), cell.speedup[0].value
    assert found is not None and found.value is not None
    value = found.value
    if value > paper:
        return f"{value - paper:+.2f} above the paper's"
    if ours.costs is None or ours.tau.value is None:
        return "limited by an unknown part (no traces)"
    c = ours.costs
    if ours.decode_speedup is not None and ours.decode_speedup >= paper:
        return f"limited by the prefill (decode alone {ours.decode_speedup:.2f}×)"
    beyond = {"c_verify": c.verify - 1, "c_draft": c.draft, "c_other": c.other}
    part = max(beyond, key=lambda name: beyond[name])
    cost = f"{c.verify:.2f} + {c.draft:.2f} + {c.other:.2f} vanilla steps a step"
    implied = f", the paper's τ / speedup is {cell.tau[0].value / paper:.2f}" if cell.tau else ""
    return f"limited by {part} ({cost}{implied})"
