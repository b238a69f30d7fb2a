"""Benchmark files of serving engines: what their own scripts measured, of whole runs or of single requests.

Fields and what they count, by the code of SpecForge 0.2.0, SGLang 0.5.23, vLLM 0.33.0 and AIPerf 0.13.0 (all on PyPI):

- `specforge benchmark --output-json`: a run. Acceptance is the mean over requests of SGLang's completion_tokens / verifications.
- SpecForge's earlier benchmarks: objects with latency, output_throughput, accept_length and accuracy, somewhere in a JSON file.
- `sglang.bench_serving`: a run a line. Acceptance is the server's own average since it was started.
- `vllm bench serve --save-result`: a run, or one after the other. Acceptance is from differences of the server's counters.
- AIPerf's `profile_export.jsonl`: a request a line. Acceptance is each request's, as vLLM reports it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.common.plain_names import made_plain
from harness.ledger.checked import is_count, is_number, shown

Object = Mapping[str, Any]
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0}  # AIPerf's units


@dataclass(frozen=True, slots=True)
class Measured:
    """One run, or one request. told: numbers by the file's own names. steps: verifications. error: why there are no numbers."""

    name: str
    tokens: int | None
    steps: int | None
    wall_s: float | None
    told: Mapping[str, float]
    line: int = 1
    turn: int = 1
    accept_lengths: list[int] | None = None
    error: str | None = None
    setting: Mapping[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BenchFormat:
    """One project's file. of_requests: whether its rows are single requests. tau_means: how tokens a step are counted there."""

    name: str
    title: str
    is_row: Callable[[Object], bool]
    row: Callable[[Object, str, int], Measured | None]
    tau_means: str
    of_requests: bool = False


@dataclass(frozen=True, slots=True)
class BenchFile:
    """A whole file. model_id: as it names it, `unnamed` where it does not."""

    name: str
    sha256: str
    format: BenchFormat
    model_id: str
    rows: tuple[Measured, ...]
    n_left_out: int = 0


def read_bench(path: Path) -> BenchFile | None:
    """A benchmark file of one of `FORMATS`; None where it is none of them.

    Raises:
        UserError: it cannot be read, or a field of such a file is missing or of the wrong kind: names file, line and field.
    """
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError:
        return None
    objects = list(_objects(text))
    known = [(format_of(row), number, row) for number, row in objects]
    formats = {kind.name: kind for kind, _, _ in known if kind is not None}
    if not formats:
        return None
    if len(formats) > 1 or any(kind is None for kind, _, _ in known):
        odd = next(number for kind, number, _ in known if kind is None or kind.name != next(iter(formats)))
        raise UserError(f"{path}:{odd}: another format than {next(iter(formats))}, which the file is; one file has one format")
    (kind,) = formats.values()
    found = [(number, row, kind.row(row, f"{path}:{number}", number)) for number, row in _rows_of(kind, objects)]
    rows = tuple(measured for _, _, measured in found if measured is not None)
    if not rows:
        raise UserError(f"{path}: no {'request' if kind.of_requests else 'run'} of {kind.title} in it but warm-ups")
    names = {str(name) for _, row, _ in found for key in ("model_id", "model") if isinstance(name := row.get(key), str)}
    model = next(iter(names)) if len(names) == 1 else "unnamed"
    return BenchFile(made_plain(path.name), sha256_file(path), kind, made_plain(model), rows, len(found) - len(rows))


def _objects(text: str) -> Iterator[tuple[int, Object]]:
    """(line, object) of a text that is one JSON object, or several of them, one after the other; nothing of any other text."""
    decoder, at, found = json.JSONDecoder(), len(text) - len(text.lstrip()), []
    try:
        while at < len(text):
            value, end = decoder.raw_decode(text, at)
            if not isinstance(value, dict):
                return
            found.append((text.count("\n", 0, at) + 1, value))
            at = end
            while at < len(text) and text[at].isspace():
                at += 1
    except (ValueError, RecursionError):
        return
    yield from found


def _rows_of(kind: BenchFormat, objects: list[tuple[int, Object]]) -> Iterator[tuple[int, Object]]:
    if kind is not SPECFORGE_OLD:
        yield from objects
        return
    for number, row in objects:
        for name, inner in _inside(row):
            yield number, {**inner, "_name": name}


def _inside(value: Any, name: str = "") -> Iterator[tuple[str, Object]]:
    """The objects with SpecForge's earlier fields, wherever they stand, and where."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, dict) and all(key in value for key in _OLD):
        yield name or "run", value
        return
    for key, one in inner:
        yield from _inside(one, f"{name}/{key}" if name else str(key))


def format_of(row: Object) -> BenchFormat | None:
    return next((kind for kind in FORMATS.values() if kind.is_row(row)), None)


# ---- fields -----------------------------------------------------------------------------------------------------------


def _wrong(where: str, name: str, value: object, wanted: str) -> UserError:
    return UserError(f"{where}: field {name!r} is {shown(value)}; it must be {wanted}")


def _count(row: Object, name: str, where: str, least: int = 0) -> int:
    if name not in row:
        raise UserError(f"{where}: field {name!r} is missing")
    if not is_count(row[name], least):
        raise _wrong(where, name, row[name], f"a whole number from {least}")
    return int(row[name])


def _seconds(row: Object, name: str, where: str) -> float:
    if name not in row:
        raise UserError(f"{where}: field {name!r} is missing")
    if not is_number(row[name]) or not row[name] > 0:
        raise _wrong(where, name, row[name], "a number of seconds over 0")
    return float(row[name])


def _told(row: Object, names: tuple[str, ...], where: str) -> dict[str, float]:
    """Those of the fields that are there and not null.

    Raises:
        UserError: one is no finite number from 0.
    """
    found = {name: row[name] for name in names if row.get(name) is not None}
    for name, value in found.items():
        if not is_number(value, most=1e15):
            raise _wrong(where, name, value, "a finite number from 0")
    return found


def _setting(row: Object, *names: str) -> dict[str, str | float | None]:
    return {
        name: row[name] for name in names if isinstance(row.get(name), str | int | float) or row.get(name) is None and name in row
    }


_TIMES = tuple(f"{of}_{what}_ms" for of in ("mean", "median") for what in ("ttft", "tpot", "itl"))


def _of_vllm(row: Object, where: str, line: int) -> Measured:
    counters = ("spec_decode_num_drafts", "spec_decode_draft_tokens", "spec_decode_accepted_tokens")
    counts = {name: _count(row, name, where) for name in counters} if counters[0] in row else {}
    told = counts | _told(
        row, ("completed", "failed", "spec_decode_acceptance_length", "spec_decode_acceptance_rate", *_TIMES), where
    )
    return Measured(
        str(row.get("label") or f"run {line}"), _count(row, "total_output_tokens", where), counts.get(counters[0]),
        _seconds(row, "duration", where), told, line,
        setting=_setting(row, "backend", "num_prompts", "request_rate", "max_concurrency"),
    )  # fmt: skip


def _of_sglang(row: Object, where: str, line: int) -> Measured:
    told = _told(row, ("completed", "accept_length", "total_output_tokens_retokenized", *_TIMES), where)
    return Measured(
        str(row.get("tag") or row.get("dataset_name") or f"run {line}"), _count(row, "total_output_tokens", where), None,
        _seconds(row, "duration", where), told, line, setting=_setting(row, "backend", "request_rate", "max_concurrency"),
    )  # fmt: skip


_SPECFORGE = ("backend", "dataset", "samples", "output_tokens", "latency_seconds", "throughput_tokens_per_second")
_OLD = ("latency", "output_throughput", "accept_length", "accuracy")


def _of_specforge(row: Object, where: str, line: int) -> Measured:
    steps = None if row.get("spec_verify_count") is None else _count(row, "spec_verify_count", where, 1)
    told = {"samples": _count(row, "samples", where, 1)} | _told(row, ("average_acceptance_length",), where)
    return Measured(
        str(row["dataset"]), _count(row, "output_tokens", where), steps, _seconds(row, "latency_seconds", where), told, line,
        setting=_setting(row, "backend"),
    )  # fmt: skip


def _of_specforge_old(row: Object, where: str, line: int) -> Measured:
    told = _told(row, ("output_throughput", "accept_length", "accuracy"), where)
    return Measured(str(row["_name"]), None, None, _seconds(row, "latency", where), told, line)


def _of_aiperf(row: Object, where: str, line: int) -> Measured | None:
    metadata, metrics, spec = row["metadata"], row["metrics"], row.get("spec_decode_acceptance") or {}
    for name, value in (("metadata", metadata), ("metrics", metrics), ("spec_decode_acceptance", spec)):
        if not isinstance(value, dict):
            raise _wrong(where, name, value, "an object")
    if str(metadata.get("benchmark_phase")).lower() == "warmup":
        return None
    name = str(_count(metadata, "session_num", where))
    turn = 1 if metadata.get("turn_index") is None else 1 + _count(metadata, "turn_index", where)
    if row.get("error"):
        error = row["error"]
        why = error.get("message") if isinstance(error, dict) else error
        return Measured(name, None, None, None, {}, line, turn, error=f"failed: {str(why)[:200]}")
    told = {}
    for metric in ("output_sequence_length", "request_latency", "time_to_first_token"):
        if (value := _metric(metrics, metric, where)) is not None:
            told[metric] = value
        elif metric != "time_to_first_token":  # both sides of a comparison have these, counted in one way
            raise UserError(f"{where}: metric {metric!r} is missing")
    counters = ("num_spec_steps", "num_accepted_draft_tokens", "num_draft_tokens")
    counts = {key: _count(spec, key, where) for key in counters} if spec else {}
    if spec.get("completion_tokens") is not None:
        counts["completion_tokens"] = _count(spec, "completion_tokens", where)
    lengths = spec.get("per_step_accepted")
    if lengths is not None and not (isinstance(lengths, list) and all(is_count(n) for n in lengths)):
        raise _wrong(where, "per_step_accepted", lengths, "a list of counts")
    if lengths is not None and (len(lengths), sum(lengths)) != (counts["num_spec_steps"], counts["num_accepted_draft_tokens"]):
        told_so = f"num_spec_steps is {counts['num_spec_steps']}, num_accepted_draft_tokens {counts['num_accepted_draft_tokens']}"
        raise UserError(f"{where}: per_step_accepted has {len(lengths)} steps and {sum(lengths)} tokens, {told_so}")
    return Measured(
        name, int(told["output_sequence_length"]), counts.get("num_spec_steps"), told["request_latency"], told | counts, line,
        turn, None if lengths is None else [n + 1 for n in lengths],
    )  # fmt: skip


def _metric(metrics: Object, name: str, where: str) -> float | None:
    """A metric of AIPerf, times in seconds; None where it is not there."""
    found = metrics.get(name)
    if found is None:
        return None
    value, unit = (found.get("value"), found.get("unit")) if isinstance(found, dict) else (found, None)
    if name == "output_sequence_length":
        if not is_count(value):
            raise _wrong(where, name, value, "a whole number from 0")
        return int(value)  # type: ignore[arg-type]
    if not is_number(value) or unit not in SECONDS:
        raise _wrong(where, name, found, f"a value from 0 and a unit of {', '.join(SECONDS)}")
    return float(value) * SECONDS[unit]  # type: ignore[arg-type]


# ---- the formats ------------------------------------------------------------------------------------------------------

VLLM = BenchFormat(
    "vllm-bench", "vLLM", lambda row: {"endpoint_type", "total_token_throughput"} <= row.keys(), _of_vllm,
    "1 + accepted drafts / drafts of the server during the run, all requests together; the prefill's token is not counted",
)  # fmt: skip
SGLANG = BenchFormat(
    "sglang-bench", "SGLang", lambda row: "total_output_tokens_retokenized" in row, _of_sglang,
    "tokens that verifications gave / verifications of the server since it was started, whatever it served; the prefill's token "
    "is not counted",
)  # fmt: skip
SPECFORGE = BenchFormat(
    "specforge-bench", "SpecForge", lambda row: row.keys() >= set(_SPECFORGE), _of_specforge,
    "mean over requests of completion tokens / verifications; the prefill's token is counted",
)  # fmt: skip
SPECFORGE_OLD = BenchFormat(
    "specforge-bench-old", "SpecForge's earlier benchmarks", lambda row: any(_inside(row)), _of_specforge_old,
    "accept_length as the file has it: it holds no counts, and does not say how it was counted",
)  # fmt: skip
AIPERF = BenchFormat(
    "aiperf", "AIPerf", lambda row: {"metadata", "metrics"} <= row.keys(), _of_aiperf,
    "1 + accepted drafts / verifications of a request; the prefill's token is not counted", of_requests=True,
)  # fmt: skip
FORMATS: dict[str, BenchFormat] = {kind.name: kind for kind in (AIPERF, VLLM, SGLANG, SPECFORGE, SPECFORGE_OLD)}
