"""Answer files of other harnesses as records.

An imported record has the counts of its file in `foreign`, and null for everything that the file is silent about. Records
measured here never stand in the same folder. All figures are recomputed from the records (`imported_report`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.common.errors import UserError, in_one_line, say, unknown
from harness.common.hints import hinted
from harness.common.hub_client import limited_session
from harness.common.names import VANILLA
from harness.exchange.answer_file import AnswerFile, read_answers
from harness.exchange.imported_report import IMPORTED, report
from harness.forms.table import Table, plain
from harness.ledger.ledger import RECORDS, Ledger, read
from harness.ledger.record import SCHEMA, Record, StoredRecord, canonical_hash
from harness.load.config import SUFFIXES, known_models, model_config

TIMEOUT_S = 5.0  # for the hub to say whether it has a repository

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
        record: dict[str, Any] = dict.fromkeys(StoredRecord.__annotations__)
        record |= {
            "schema": SCHEMA, "key": canonical_hash([cell, method, a.question_id, a.choice, a.turn]), "cell": cell,
            "run": answers.sha256[:12], "model": answers.model_id, "source": "file", "method": method,
            "sample_id": a.question_id, "category": a.category or "", "turn": a.turn, "n_turns": a.n_turns, "repeat": a.choice,
            "is_warmup": False, "temperature": temperature, "text": a.text,
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
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    if Path(name).is_dir():
        return Path(name)
    try:
        cached = try_to_load_from_cache(name, "tokenizer_config.json")
        if isinstance(cached, str):
            return Path(cached).parent
        limited_session()  # for what transformers then fetches, too
        HfApi().model_info(name, timeout=TIMEOUT_S)
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.model", "*.jinja"]))
    except Exception as e:  # the hub's client and its HTTP library have many
        raise _no_tokenizer(name, e) from None


def _no_tokenizer(name: str, error: Exception) -> UserError:
    near, why = unknown("model", name, known_models()), in_one_line(error)
    return UserError(f"--tokenizer {name}: no tokenizer there ({why}); give its folder, a hub id, or a model: {near}")


def import_command(file: Path, baseline: Path | None, tokenizer: str | None, out: Path) -> str:
    """Import, and say where to -> the report as plain text."""
    text = plain(import_answers(file, baseline, tokenizer, out))
    say(f"records: {out / RECORDS}; {hinted('table', '--results', out)} writes this as Markdown and CSV")
    return text
