"""What an import shows: its figures, which files they are of, and what the files cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common.names import VANILLA
from harness.exchange.bench_figures import request_figures, run_figures
from harness.exchange.bench_file import FORMATS, BenchFormat
from harness.exchange.imported_figures import Questions, Row, figures, is_counted, told
from harness.forms.table import NOTHING, Section, Table, write_forms
from harness.ledger.ledger import Records, read, read_env
from harness.ledger.record import Record
from harness.metrics.definitions import Estimate

IMPORTED = "imported"  # the method of FILE's records; the baseline's is vanilla
OVERSHOOT = 16  # tokens past a limit that one step explains: no published tree is as deep
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


def report(folder: Path, *, strict: bool = False) -> Table:
    """The figures of a folder of imported records, each with its formula, and what the files cannot tell."""
    records = read(folder, imported=True, strict=strict)
    envs = {r["method"]: read_env(folder, r["env"]) or {} for r in records}
    if (bench := FORMATS.get(str(envs[records[0]["method"]].get("format")))) is not None:
        return bench_report(bench, records, envs)
    own, base = (_questions([r for r in records if r["method"] == method]) for method in (IMPORTED, VANILLA))
    has_base = VANILLA in envs
    shared = {q: own[q] for q in own if not has_base or (q in base and len(base[q]) == len(own[q]))}
    beside = {q: base[q] for q in shared} if has_base else None
    title = " against ".join(dict.fromkeys(str(r["model"]) for r in records))
    sections, numbers = [], []
    for group in _groups(shared):
        name = title if group is None else f"{group}, {title}"
        part = {q: turns for q, turns in shared.items() if group in (None, _task(turns))}
        rows = figures(part, None if beside is None else {q: beside[q] for q in part})
        facts = _facts(records, envs, len(shared)) if group is None else (f"{len(part)} questions",)
        sections.append(Section(name, tuple(facts), pd.DataFrame([_shown(*row) for row in rows])))
        numbers += [_number(group or "all", *row) for row in rows]
    return Table("imported", tuple(sections), (*_cannot_tell(shared, beside), *records.footnotes), pd.DataFrame(numbers))


def write_report(folder: Path, out: Path | None = None, *, strict: bool = False) -> list[Path]:
    """Write the report as Markdown and CSV into `out` (default: `tables` in the folder) -> the files."""
    return write_forms(report(folder, strict=strict), out or Path(folder) / "tables")


def bench_report(bench: BenchFormat, records: Records, envs: Mapping[str, Mapping[str, Any]]) -> Table:
    """The figures of benchmark files: a section a run; of single requests one."""
    own, base = ([r for r in records if r["method"] == method] for method in (IMPORTED, VANILLA))
    sections: list[Section] = []
    numbers: list[dict[str, Any]] = []
    title = " against ".join(dict.fromkeys(str(r["model"]) for r in records))
    for what, rows in _runs(bench, own, base).items():
        name = f"{what}, {title}" if what != "all" else title
        facts = [*_bench_facts(bench, records, envs), f"Tokens a step there: {bench.tau_means}"] if not sections else []
        if not bench.of_requests and (load := own[len(sections)]["options"]):
            facts.append("; ".join(f"{key}: {value}" for key, value in load.items()))
        sections.append(Section(name, tuple(facts), pd.DataFrame([_shown(*row) for row in rows])))
        numbers += [_number(what, *row) for row in rows]
    return Table("imported", tuple(sections), (BENCH_NOTE, *records.footnotes), pd.DataFrame(numbers))


BENCH_NOTE = (
    "Benchmark files hold no token ids: whether outputs are the target's cannot be asked. Where several requests run at once, "
    "tokens/s is throughput and not the speed of one answer."
)


def _runs(bench: BenchFormat, own: Sequence[Record], base: Sequence[Record]) -> dict[str, list[Row]]:
    """The figures by part: `all` of single requests, else a run's name. Runs of two files are compared in their order."""
    if bench.of_requests:
        fine = [[r for r in side if r["status"] == "ok"] for side in (own, base)]
        return {"all": request_figures(fine[0], fine[1] if base else None)}
    beside = [*base] if len(base) == len(own) else [*base] * len(own) if len(base) == 1 else [None] * len(own)
    names = [str(r["category"]) for r in own]
    named = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]
    return {name: run_figures(bench.name, r, b) for name, r, b in zip(named, own, beside, strict=True)}


def _bench_facts(bench: BenchFormat, records: Sequence[Record], envs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    facts, unit = [], "request" if bench.of_requests else "run"
    for method, what in ((IMPORTED, "File"), (VANILLA, "Baseline")):
        if mine := [r for r in records if r["method"] == method]:
            env, failed = envs[method], sum(r["status"] == "error" for r in mine)
            line = f"{what}: {env.get('answer_file')} ({bench.title}), sha256 {str(env.get('sha256'))[:16]}: {len(mine)} {unit}s"
            left = {f"{unit}s failed and are left out": failed, "warm-ups are left out": env.get("n_left_out", 0)}
            facts.append("; ".join([line, *(f"{n} {text}" for text, n in left.items() if n)]))
    return facts


def _number(part: str, figure: str, e: Estimate, formula: str) -> dict[str, Any]:
    """A figure as a row of numbers."""
    low, high = e.ci95 or (None, None)
    return {"part": part, "figure": figure, "value": e.value, "low": low, "high": high, "questions": e.prompts, "from": formula}


def _questions(records: Sequence[Record]) -> Questions:
    """First choices, which alone count in both projects' speeds. Questions of which a turn failed are left out."""
    by: dict[str, list[Record]] = {}
    for r in records:
        if r["repeat"] == 0:
            by.setdefault(r["sample_id"], []).append(r)
    whole = {q: sorted(turns, key=lambda r: r["turn"]) for q, turns in by.items()}
    return {q: turns for q, turns in whole.items() if all(r["status"] == "ok" for r in turns)}


def _task(turns: Sequence[Record]) -> str:
    category = turns[0]["category"]
    return "mt_bench" if category in MT_BENCH else category


def _groups(questions: Questions) -> list[str | None]:
    """None for all together, then the tasks where there are several (Spec-Bench)."""
    tasks = sorted({_task(turns) for turns in questions.values()})
    return [None, *tasks] if len(tasks) > 1 else [None]


def _shown(figure: str, e: Estimate, formula: str) -> dict[str, str]:
    value = NOTHING if e.value is None else f"{e.value:.3f}"
    return {
        "figure": figure,
        "value": value,
        "95 %": f"[{e.ci95[0]:.3f}, {e.ci95[1]:.3f}]" if e.ci95 else NOTHING,
        "from": formula,
    }


def _facts(records: Sequence[Record], envs: Mapping[str, Mapping[str, Any]], n_shared: int) -> list[str]:
    """Which files the figures are of, and what of them is left out."""
    facts = []
    for method, what in ((IMPORTED, "File"), (VANILLA, "Baseline")):
        mine = [r for r in records if r["method"] == method]
        if not mine:
            continue
        env = envs[method]
        questions = {r["sample_id"] for r in mine}
        line = f"{what}: {env.get('answer_file')} ({env.get('format')}), sha256 {str(env.get('sha256'))[:16]}: "
        line += f"{len(questions)} questions, {sum(r['repeat'] == 0 for r in mine)} turns"
        failed = len({r["sample_id"] for r in mine if r["status"] == "error"})
        n_choices = len({(r["sample_id"], r["repeat"]) for r in mine})
        left_out = {
            "questions stand in it more than once, the last counts": env.get("n_repeated", 0),
            "questions with a turn that failed are left out": failed,
            "questions are not in the other file, or with other turns": len(questions) - failed - n_shared,
            "further choices are left out, as both projects do": n_choices - len(questions),
        }
        facts.append("; ".join([line, *(f"{n} {text}" for text, n in left_out.items() if n > 0)]))
    temperatures = {r["model"]: r["temperature"] for r in records}
    known = ", ".join("not known" if t is None else f"{t:g}" for t in temperatures.values())
    tokenizer = next(iter(envs.values())).get("tokenizer")
    return [*facts, f"Temperature by the model_id: {known}. Tokenizer: {tokenizer or 'none'}"]


def _cannot_tell(own: Questions, base: Questions | None) -> tuple[str, ...]:
    notes = [
        "The files hold no token ids, no stop ids, no length limit, no prefill times, no tree, no weights' hash and no machine: "
        "tokens cut off or counted past the end cannot be told apart, decoding alone cannot be timed, and whether outputs agree "
        "can be asked of the text alone."
    ]
    if base is None or not own:
        return tuple(notes)
    return (*notes, _first_answers(own, base), _limits(own, base))


def _first_answers(own: Questions, base: Questions) -> str:
    """How first answers compare. Turn 1 only: later turns follow other first answers."""
    equal, cut, longer, differ = 0, 0, 0, []
    for q, turns in own.items():
        a, b = turns[0]["text"], base[q][0]["text"]
        if a == b:
            equal += 1
        elif a.startswith(b):
            cut += 1
        elif b.startswith(a):
            longer += 1
        else:
            differ.append(q)
    n = len(own)
    parts = [
        f"{equal} are the baseline's",
        f"{cut} go on where the baseline's ends",
        f"{longer} end where the baseline's goes on",
    ]
    text = f"Of {n} first answers {', '.join(parts)}, {len(differ)} of {n} differ mid-text"
    if differ:
        text += f" ({', '.join(differ[:20])}{', ...' if len(differ) > 20 else ''}); the files cannot tell why"
    later = any(len(turns) > 1 for turns in own.values())
    return text + ("." + (" Later turns follow each side's own first answer and are not compared." if later else ""))


def _limits(own: Questions, base: Questions) -> str:
    """Whether one side was cut where the other went on: told by the longest turns."""
    counts = {"file": _by_turn(own), "baseline": _by_turn(base)}
    (short, few), (long, many) = sorted(counts.items(), key=lambda side: max(side[1]))
    most, n_at = max(few), few.count(max(few))
    if n_at > 1 and max(many) > most + OVERSHOOT:
        n_over = sum(n > most for n in many)
        return (
            f"Unequal length limits: {n_at} of the {short}'s {len(few)} turns have exactly {most} tokens and none has more, "
            f"while {n_over} of the {long}'s have more, up to {max(many)}. Speed falls with length: the work is not equal."
        )
    longest = f"{max(counts['file'])} tokens in the file, {max(counts['baseline'])} in the baseline"
    return f"Longest turns: {longest}; the limits are not told."


def _by_turn(questions: Questions) -> list[int]:
    field = "new_tokens" if is_counted(questions) else "steps"
    return [told(r, field) or 0 for turns in questions.values() for r in turns]
