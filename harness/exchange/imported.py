"""Answer files of other harnesses as records: what they show, under which formula, and what they cannot tell.

An imported record has the counts of its file in `foreign` and null for everything the file is silent about; records measured
here never stand in the same folder. All figures are recomputed from the records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.common.errors import UserError, say
from harness.common.names import VANILLA
from harness.exchange.answer_file import AnswerFile, read_answers
from harness.forms.table import NOTHING, Section, Table, plain, write_forms
from harness.ledger.ledger import RECORDS, Ledger, read, read_env
from harness.ledger.record import SCHEMA, Record, StoredRecord, canonical_hash
from harness.load import config as model_configs
from harness.metrics.bootstrap import paired_bootstrap
from harness.metrics.definitions import Estimate
from harness.metrics.reference_formula import per_question, text_tokens

Array = NDArray[np.float64]
Tokenizer = Callable[[str], tuple[int, int]]  # text -> (tokens without special ones, special ones added)
Questions = Mapping[str, Sequence[Record]]  # id -> its turns in order

IMPORTED = "imported"  # the method of FILE's records; the baseline's is vanilla
OVERSHOOT = 16  # tokens past a limit that one step explains: no published tree is as deep
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


def import_answers(file: Path, baseline: Path | None, tokenizer: str | None, out: Path) -> Table:
    """Read answer files into records in `out`; -> what they show. The same command again adds nothing.

    Raises:
        UserError: a file that cannot be read (file, line, field), files that share no question, a tokenizer that is not to be
            had, or an `out` that holds other records.
    """
    own = read_answers(file)
    sides = [(own, IMPORTED)]
    if baseline is not None:
        base = read_answers(baseline)
        if not own.questions().items() & base.questions().items():
            raise UserError(f"{file} and {baseline} share no question: {_named(own)} against {_named(base)}; "
                            "give two files of the same benchmark")  # fmt: skip
        sides.append((base, VANILLA))
    count = load_counter(tokenizer) if tokenizer else None
    cell = canonical_hash([[answers.sha256, method] for answers, method in sides] + [tokenizer])
    with Ledger(out, imported=True) as ledger:
        if known := {r["cell"] for r in _recorded(out)} - {cell}:
            raise UserError(f"{out} holds another import ({', '.join(sorted(known))}); choose another --out")
        for answers, method in sides:
            env = ledger.write_env(
                {"answer_file": answers.name, "sha256": answers.sha256, "format": answers.format, "model_id": answers.model_id,
                 "n_repeated": answers.n_repeated, "tokenizer": tokenizer}
            )  # fmt: skip
            for record in imported_records(answers, method, cell, env, count):
                if record["key"] not in ledger.keys():
                    ledger.append(record)
    return report(out)


def _recorded(folder: Path) -> list[Record]:
    path = folder / RECORDS
    return read(folder, imported=True) if path.stat().st_size else []


def _named(answers: AnswerFile) -> str:
    ids = list(answers.questions().items())
    some = ", ".join(f"{name} ({n} turns)" for name, n in ids[:2])
    return f"{some} ... {len(ids)} in all" if len(ids) > 2 else some


def imported_records(answers: AnswerFile, method: str, cell: str, env: str, count: Tokenizer | None) -> list[dict[str, Any]]:
    """A record a turn of each choice; a turn that failed has no numbers, its file repeats those of the turn before."""
    temperature = re.search(r"temp(?:erature)?-(\d+(?:\.\d+)?)", answers.model_id)  # the scripts put it there
    records = []
    for a in answers.answers:
        n_text, n_special = count(a.text) if count and not a.failed else (None, None)
        record: dict[str, Any] = dict.fromkeys(StoredRecord.__annotations__)
        record |= {
            "schema": SCHEMA, "key": canonical_hash([cell, method, a.question_id, a.choice, a.turn]), "cell": cell,
            "run": answers.sha256[:12], "model": answers.model_id, "source": "file", "method": method,
            "sample_id": a.question_id, "category": a.category or "", "turn": a.turn, "n_turns": a.n_turns, "repeat": a.choice,
            "is_warmup": False, "temperature": float(temperature[1]) if temperature else None, "text": a.text,
            "n_text_tokens": n_text, "wall_s": a.wall_s, "status": "ok", "env": env,
            "foreign": {"line": a.line, "new_tokens": a.new_tokens, "steps": a.steps, "accept_lengths": a.accept_lengths},
        }  # fmt: skip
        if n_special is not None:
            record["n_special"] = n_special
        if a.failed:
            nothing = {"line": a.line, "new_tokens": None, "steps": None, "accept_lengths": None}
            why = "failed in its own harness, which repeats the counts of the turn before"
            record |= {"text": "", "wall_s": None, "status": "error", "error": why, "foreign": nothing}
        records.append(record)
    return records


def load_counter(name: str) -> Tokenizer:
    """A tokenizer by folder, by one of our models (its name or YAML), or by hub id.

    Raises:
        UserError: it is none of these.
    """
    from transformers.utils import logging

    from harness.load.prompt_text import load_tokenizer
    from harness.load.weights import tokenizer_folder

    logging.set_verbosity_error()  # texts longer than a model's context are no fault here
    is_model = name in model_configs.known_models() or Path(name).suffix in model_configs.SUFFIXES
    folder = tokenizer_folder(model_configs.model_config(name)) if is_model else Path(name)
    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as e:
        why = (str(e).splitlines() or ["?"])[0]
        known = ", ".join(model_configs.known_models())
        raise UserError(
            f"--tokenizer {name}: no tokenizer there ({why}); give its folder, a hub id, or a model: {known}"
        ) from None

    def count(text: str) -> tuple[int, int]:
        n = len(tokenizer(text, add_special_tokens=False).input_ids)
        return n, len(tokenizer(text).input_ids) - n

    return count


def holds_import(folder: Path) -> bool:
    """Whether the records of a folder are imported ones; a folder that cannot be read is not."""
    try:
        return bool(read(folder, imported=True))
    except UserError:
        return False


def report(folder: Path) -> Table:
    """The figures of an import, each with the formula it is under, and a statement of what the files cannot tell."""
    records = read(folder, imported=True)
    own, base = (_questions([r for r in records if r["method"] == method]) for method in (IMPORTED, VANILLA))
    envs = {r["method"]: read_env(folder, r["env"]) or {} for r in records}
    has_base = VANILLA in envs
    shared = {q: own[q] for q in own if not has_base or (q in base and len(base[q]) == len(own[q]))}
    beside = {q: base[q] for q in shared} if has_base else None
    title = " against ".join(dict.fromkeys(str(r["model"]) for r in records))
    sections, numbers = [], []
    for group in _groups(shared):
        name = title if group is None else f"{group}, {title}"
        part = {q: turns for q, turns in shared.items() if group in (None, _task(turns))}
        rows = _figures(part, None if beside is None else {q: beside[q] for q in part})
        facts = _facts(records, envs, len(shared)) if group is None else (f"{len(part)} questions",)
        sections.append(Section(name, tuple(facts), pd.DataFrame([_shown(*row) for row in rows])))
        for figure, e, formula in rows:
            low, high = e.ci95 or (None, None)
            numbers.append({"part": group or "all", "figure": figure, "value": e.value, "low": low, "high": high,
                            "questions": e.prompts, "from": formula})  # fmt: skip
    return Table("imported", tuple(sections), _cannot_tell(shared, beside), pd.DataFrame(numbers))


def write_report(folder: Path, out: Path | None = None) -> list[Path]:
    """Draw it as Markdown, CSV and LaTeX into `out` (default: `tables` in the folder)."""
    return write_forms(report(folder), out or Path(folder) / "tables")


def _questions(records: Sequence[Record]) -> Questions:
    """First choices, which alone count in both projects' speeds, without questions of which a turn failed."""
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
    """All together, then Spec-Bench's tasks where there are several."""
    tasks = sorted({_task(turns) for turns in questions.values()})
    return [None, *tasks] if len(tasks) > 1 else [None]


Row = tuple[str, Estimate, str]  # what it is, its value, the formula or why there is none


def _figures(own: Questions, base: Questions | None) -> list[Row]:
    n = len(own)
    tokens, counted = _tokens(own)
    rows: list[Row] = []

    def none(figure: str, why: str) -> None:
        rows.append((figure, Estimate(None, None, n), why))

    def ratio(figure: str, above: Sequence[float], below: Sequence[float], formula: str) -> None:
        rows.append((figure, _estimate(above, below), formula))

    turns = [r for q in own for r in own[q]]
    lengths = [_foreign(r, "accept_lengths") for r in turns]
    if not _is_counted(own):
        none("τ", "its new_tokens are all 0: the file of a baseline")
    elif any(_foreign(r, "steps") is None for r in turns):
        none("τ", "accept_lengths has another number of steps than the file names")
    else:
        steps = _sums(own, lambda r: _foreign(r, "steps"))
        ratio("τ, pooled", tokens, steps, "new_tokens / forwards (idxs + 1)")
        each = _sums(own, lambda r: _foreign(r, "new_tokens") / max(_foreign(r, "steps"), 1))
        ratio("τ, mean of turns", each, [len(own[q]) for q in own], "the same, a turn at a time")
        index = _sums(own, lambda r: max(_foreign(r, "steps") - 1, 0))
        ratio("τ, index from 0", tokens, index, "new_tokens / idxs, as users of the files divide them")
        if all(length is not None for length in lengths):
            sums = _sums(own, lambda r: sum(_foreign(r, "accept_lengths")))
            ratio("mean accept length", sums, steps, "mean of accept_lengths, as Spec-Bench prints it")
    seconds = _sums(own, _seconds)
    speeds = _speeds(own, tokens)
    one = [1.0] * n
    ratio("tokens/s, mean of questions", speeds, one, counted)
    if base is None:
        for figure in ("speed ratio, mean of questions", "speed ratio, totals", "official formula"):
            none(figure, "no --baseline")
        return rows
    base_tokens, base_counted = _tokens(base)
    base_speeds, base_seconds = _speeds(base, base_tokens), _sums(base, _seconds)
    ratio("tokens/s, baseline's", base_speeds, one, base_counted)
    ratio("speed ratio, mean of questions", speeds, base_speeds, f"mean of per-question speeds; baseline: {base_counted}")
    totals = np.array([tokens, seconds, base_tokens, base_seconds])
    rows.append(("speed ratio, totals", _bootstrap(totals, lambda s: s[0] / s[1] / (s[2] / s[3])),
                 f"all tokens / all seconds; baseline: {base_counted}"))  # fmt: skip
    if any(r["n_text_tokens"] is None for q in base for r in base[q]):
        none("official formula", "counts the baseline's text tokenised again, minus one: needs --tokenizer")
    elif not any(again := _sums(base, text_tokens)):
        none("official formula", "the baseline's text is empty")
    else:
        formula = "mean of per-question speeds; baseline: its text tokenised again, minus one"
        ratio("official formula", speeds, _speeds(base, again), formula)
    return rows


def _is_counted(questions: Questions) -> bool:
    return any(_foreign(r, "new_tokens") for turns in questions.values() for r in turns)


def _tokens(questions: Questions) -> tuple[list[float], str]:
    """Tokens a question and where they are from: the reference's plain loops never count `new_tokens`."""
    if _is_counted(questions):
        return _sums(questions, lambda r: _foreign(r, "new_tokens")), "tokens = new_tokens"
    return _sums(questions, _steps), "tokens = idxs + 1, because its new_tokens are 0"


def _foreign(record: Record, field: str) -> Any:
    told: Mapping[str, Any] = record["foreign"]
    return told[field]


def _steps(record: Record) -> float:
    """nan where the file contradicts itself: what rests on it has no value then."""
    steps = _foreign(record, "steps")
    return np.nan if steps is None else steps


def _seconds(record: Record) -> float:
    return record["wall_s"] or 0.0


def _sums(questions: Questions, value: Callable[[Record], float]) -> list[float]:
    """[n_questions]: a question's turns together."""
    return [sum(map(value, turns)) for turns in questions.values()]


def _speeds(questions: Questions, tokens: Sequence[float]) -> list[float]:
    seconds = _sums(questions, _seconds)
    return list(per_question(zip(questions, tokens, seconds, strict=True)).values())


def _estimate(above: Sequence[float], below: Sequence[float]) -> Estimate:
    return _bootstrap(np.array([above, below], dtype=float), lambda s: s[0] / s[1])


def _bootstrap(columns: Array, statistic: Callable[[Array], Array]) -> Estimate:
    """columns: [n_columns, n_questions]; the question is the unit that is drawn again."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(columns.sum(axis=1)))
    if not np.isfinite(value):
        return Estimate(None, None, columns.shape[1])
    return Estimate(value, paired_bootstrap([columns], statistic, np.random.default_rng(0)), columns.shape[1])


def _shown(figure: str, e: Estimate, formula: str) -> dict[str, str]:
    value = NOTHING if e.value is None else f"{e.value:.3f}"
    return {
        "figure": figure,
        "value": value,
        "95 %": f"[{e.ci95[0]:.3f}, {e.ci95[1]:.3f}]" if e.ci95 else NOTHING,
        "from": formula,
    }


def _facts(records: Sequence[Record], envs: Mapping[str, Mapping[str, Any]], n_shared: int) -> list[str]:
    """Which files, and what of them is not in the figures."""
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
    """Turn 1 only: what follows is asked about other first answers."""
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
    """Whether one side was cut where the other went on, by the longest turns."""
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
    field = "new_tokens" if _is_counted(questions) else "steps"
    return [_foreign(r, field) or 0 for turns in questions.values() for r in turns]


def import_command(file: Path, baseline: Path | None, tokenizer: str | None, out: Path) -> str:
    """Import, and say where to; -> the report as plain text."""
    text = plain(import_answers(file, baseline, tokenizer, out))
    say(f"records: {out / RECORDS}; `harness table --results {out}` writes this as Markdown, CSV and LaTeX")
    return text
