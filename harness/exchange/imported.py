"""Answer files and benchmark files of others as records.

An imported record has the counts of its file in `foreign`, and null for everything that the file is silent about. Records
measured here never stand in the same folder. All figures are recomputed from the records (`imported_report`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from harness.common.errors import UserError, in_one_line, say, unknown
from harness.common.files import hub_folder
from harness.common.hints import hinted
from harness.common.hub_client import unreachable
from harness.common.names import VANILLA
from harness.exchange.answer_file import AnswerFile, read_answers
from harness.exchange.bench_file import BenchFile, read_bench
from harness.exchange.imported_report import IMPORTED, report
from harness.forms.table import Table, plain
from harness.ledger.ledger import RECORDS, Ledger, read
from harness.ledger.record import SCHEMA, Record, StoredRecord, canonical_hash
from harness.load.config import SUFFIXES, known_models, model_config
from harness.load.hub import from_hub
from harness.load.sources import HubRepo

CountTokens = Callable[[str], tuple[int, int]]
"""Text -> (its tokens without special ones, how many special ones are added)."""


def import_answers(file: Path, baseline: Path | None, tokenizer: str | None, out: Path) -> Table:
    """Read answer files into records in `out` -> what they show. The same command again adds nothing.

    Raises:
        UserError: a file that cannot be read (file, line, field), files that share no question, no such tokenizer, or an `out`
            that holds other records.
    """
    own = read_answers(file)
    sides = [(own, IMPORTED)]
    if baseline is not None:
        base = read_answers(baseline)
        if not own.questions().items() & base.questions().items():
            raise UserError(f"{file} and {baseline} share no question: {_named(own)} against {_named(base)}; "
                            "give two files of the same benchmark")  # fmt: skip
        sides.append((base, VANILLA))
    count = token_counter(tokenizer) if tokenizer else None
    cell = canonical_hash([[answers.sha256, method] for answers, method in sides] + [tokenizer])
    with Ledger(out, imported=True) as ledger:
        if known := {r["cell"] for r in _recorded(out)} - {cell}:
            raise UserError(f"{out} holds another import ({', '.join(sorted(known))}); choose another --out")
        there = {r["key"] for r in _recorded(out)}
        for answers, method in sides:
            env = ledger.write_env(
                {"answer_file": answers.name, "sha256": answers.sha256, "format": answers.format, "model_id": answers.model_id,
                 "n_repeated": answers.n_repeated, "tokenizer": tokenizer}
            )  # fmt: skip
            for record in imported_records(answers, method, cell, env, count):
                if record["key"] not in there:
                    ledger.append(record)
    return report(out)


def import_bench(own: BenchFile, base: BenchFile | None, out: Path) -> Table:
    """Benchmark files into records in `out` -> what they show. The same command again adds nothing.

    Raises:
        UserError: two files of other formats, or an `out` that holds other records.
    """
    sides = [(own, IMPORTED), *([] if base is None else [(base, VANILLA)])]
    if base is not None and base.format.name != own.format.name:
        raise UserError(
            f"{own.name} is a file of {own.format.title}, {base.name} one of {base.format.title}; give two of one kind"
        )
    cell = canonical_hash([[bench.sha256, method] for bench, method in sides])
    with Ledger(out, imported=True) as ledger:
        if known := {r["cell"] for r in _recorded(out)} - {cell}:
            raise UserError(f"{out} holds another import ({', '.join(sorted(known))}); choose another --out")
        there = {r["key"] for r in _recorded(out)}
        for bench, method in sides:
            env = ledger.write_env({"answer_file": bench.name, "sha256": bench.sha256, "format": bench.format.name,
                                    "model_id": bench.model_id, "n_left_out": bench.n_left_out})  # fmt: skip
            for record in bench_records(bench, method, cell, env):
                if record["key"] not in there:
                    ledger.append(record)
    return report(out)


def bench_records(bench: BenchFile, method: str, cell: str, env: str) -> list[dict[str, Any]]:
    """A record a run, or a request. `foreign` has the file's own numbers in `told`, and in `tau_means` what it counts as a step's
    tokens."""
    n_turns: dict[str, int] = {}
    for i, row in enumerate(bench.rows):
        n_turns[_sample(bench, i)] = max(n_turns.get(_sample(bench, i), 1), row.turn)
    records = []
    for i, row in enumerate(bench.rows):
        sample = _sample(bench, i)
        record = _record(cell, method, sample, row.name[:200], row.turn, n_turns[sample], 0, bench.sha256, bench.model_id, env)
        record |= {
            "temperature": None, "text": "", "n_text_tokens": None, "wall_s": row.wall_s, "options": dict(row.setting),
            "foreign": {"line": row.line, "new_tokens": row.tokens, "steps": row.steps, "accept_lengths": row.accept_lengths,
                        "told": dict(row.told), "tau_means": bench.format.tau_means},
        }  # fmt: skip
        if row.error is not None:
            record |= {"status": "error", "error": row.error}
        records.append(record)
    return records


def _sample(bench: BenchFile, i: int) -> str:
    """What a row's record is called: a request by its session, a run by its place."""
    return bench.rows[i].name if bench.format.of_requests else str(i + 1)


def _recorded(folder: Path) -> list[Record]:
    path = folder / RECORDS
    return read(folder, imported=True, quiet=True) if path.stat().st_size else []


def _named(answers: AnswerFile) -> str:
    ids = list(answers.questions().items())
    some = ", ".join(f"{name} ({n} turns)" for name, n in ids[:2])
    return f"{some} ... {len(ids)} in all" if len(ids) > 2 else some


def imported_records(answers: AnswerFile, method: str, cell: str, env: str, count: CountTokens | None) -> list[dict[str, Any]]:
    """A record a turn of each choice. A turn that failed has no numbers: its file repeats those of the turn before."""
    temperature = temperature_in(answers.model_id)
    records = []
    for a in answers.answers:
        n_text, n_special = count(a.text) if count and not a.failed else (None, None)
        record = _record(
            cell, method, a.question_id, a.category or "", a.turn, a.n_turns, a.choice, answers.sha256, answers.model_id, env
        )
        record |= {
            "temperature": temperature, "text": a.text, "n_text_tokens": n_text, "wall_s": a.wall_s,
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


def _record(
    cell: str, method: str, sample: str, category: str, turn: int, n_turns: int, repeat: int, sha256: str, model: str, env: str
) -> dict[str, Any]:
    """An imported record that went well: null but for what names it."""
    return dict.fromkeys(StoredRecord.__annotations__) | {
        "schema": SCHEMA, "key": canonical_hash([cell, method, sample, repeat, turn]), "cell": cell, "run": sha256[:12],
        "model": model, "source": "file", "method": method, "sample_id": sample, "category": category, "turn": turn,
        "n_turns": n_turns, "repeat": repeat, "is_warmup": False, "status": "ok", "env": env,
    }  # fmt: skip


def temperature_in(model_id: str) -> float | None:
    """The temperature that scripts put into the name of a model (`temperature-0.0`, `temp-1e-05`); None where there is none."""
    found = re.search(r"temp(?:erature)?-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\d.])", model_id, re.IGNORECASE)
    value = float(found[1]) if found else None
    return value if value is not None and math.isfinite(value) else None


def token_counter(name: str) -> CountTokens:
    """What counts tokens: the tokenizer in a folder, of one of our models (its name or YAML), or of a hub id.

    Raises:
        UserError: `name` is none of these.
    """
    from transformers.utils import logging

    from harness.load.prompt_text import load_tokenizer
    from harness.load.weights import tokenizer_folder

    logging.set_verbosity_error()  # texts longer than a model's context are no fault here
    is_model = name in known_models() or Path(name).suffix in SUFFIXES
    folder = tokenizer_folder(model_config(name)) if is_model else _folder_or_hub_id(name)
    try:
        tokenizer = load_tokenizer(folder)
    except UserError:
        raise
    except Exception as e:  # a spoilt file of a tokenizer may raise anything
        raise _no_tokenizer(name, e) from None

    def count(text: str) -> tuple[int, int]:
        n = len(tokenizer(text, add_special_tokens=False).input_ids)
        return n, len(tokenizer(text).input_ids) - n

    return count


def _folder_or_hub_id(name: str) -> Path:
    """A folder, also that of a repository in the hub's cache, or of the small files of one that the hub has. Takes seconds.

    Raises:
        UserError: it is none of these.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        repo = HubRepo(hub=name, revision="main")
        if not hub_folder(repo.hub, repo.revision).is_dir() and (why := unreachable(f"api/models/{name}")):
            raise UserError(why)  # asked once: a mistyped name is more likely than a hub that is away for a moment
        return from_hub(repo, f"the tokenizer {name}", tokenizer_only=True)
    except pydantic.ValidationError as e:
        raise _no_tokenizer(name, UserError(e.errors()[0]["msg"])) from None
    except UserError as e:
        raise _no_tokenizer(name, e) from None


def _no_tokenizer(name: str, error: Exception) -> UserError:
    near, why = unknown("model", name, known_models()), str(error) if isinstance(error, UserError) else in_one_line(error)
    return UserError(f"--tokenizer {name}: no tokenizer there ({why}); give its folder, a hub id, or a model: {near}")


def import_command(file: Path, baseline: Path | None, tokenizer: str | None, out: Path) -> str:
    """Import a file of answers or of a benchmark, and say where to -> the report as plain text.

    Raises:
        UserError: as `import_answers` and `import_bench`; or a tokenizer for a benchmark, which has no texts.
    """
    bench = read_bench(file)
    if bench is None:
        text = plain(import_answers(file, baseline, tokenizer, out))
    else:
        if tokenizer is not None:
            raise UserError(
                f"--tokenizer {tokenizer}: {file} is a benchmark of {bench.format.title}, whose texts are not counted"
            )
        base = None if baseline is None else read_bench(baseline)
        if baseline is not None and base is None:
            raise UserError(f"{baseline} is no benchmark of {bench.format.title}, which {file} is")
        text = plain(import_bench(bench, base, out))
    say(f"records: {out / RECORDS}; {hinted('table', '--results', out)} writes this as Markdown and CSV")
    return text
