"""The figures of imported benchmark files, each with the formula it is under."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.exchange.bench_file import SGLANG, SPECFORGE, SPECFORGE_OLD, VLLM
from harness.exchange.imported_figures import Row
from harness.ledger.record import Record
from harness.metrics.definitions import Estimate, estimated

LEFT_OUT = "the prefill's token left out"
Value = Callable[[Record], float]


def run_figures(format_: str, record: Record, base: Record | None) -> list[Row]:
    """All figures of one run of a benchmark, and its speed beside the baseline's run."""
    said = said_of(record)
    told, tokens, steps, wall = said["told"], said["new_tokens"], said["steps"], record["wall_s"] or np.nan
    rows: list[Row] = []

    def add(figure: str, value: float | None, formula: str) -> None:
        rows.append((figure, Estimate(value, None, int(told.get("completed", told.get("samples", 1)))), formula))

    if format_ == VLLM.name:
        if steps:
            accepted, drafted = told["spec_decode_accepted_tokens"], told["spec_decode_draft_tokens"]
            add("τ, pooled", 1 + accepted / steps, f"1 + accepted drafts / drafts, from the server's counters: {LEFT_OUT}")
            add("drafts accepted", accepted / drafted if drafted else None, "accepted drafts / drafted tokens")
        else:
            add("τ", None, "no counters of speculative decoding in the file: none was done, or the server has none")
        if "spec_decode_acceptance_length" in told:
            add("spec_decode_acceptance_length", told["spec_decode_acceptance_length"], "as the file has it: τ, pooled")
    if format_ == SGLANG.name:
        accept = told.get("accept_length")
        why = "as the file has it: the server's average since it was started, over all that it served"
        add(
            "accept_length",
            accept,
            f"{why}; {LEFT_OUT}" if accept is not None else "null: no speculative decoding, or no counter",
        )
        add("τ", None, "the file has no count of verifications")
    if format_ == SPECFORGE.name:
        average = told.get("average_acceptance_length")
        if steps:
            add("τ, pooled", (tokens - told["samples"]) / steps, f"(output tokens - requests) / verifications: {LEFT_OUT}")
            add("τ, pooled, from the first token", tokens / steps, "output tokens / verifications: the prefill's token counted")
        else:
            add("τ", None, "no spec_verify_count: no speculative decoding")
        if average is not None:
            formula = "as the file has it: mean over requests of completion tokens / verifications: the prefill's token counted"
            add("average_acceptance_length", average, formula)
    if format_ == SPECFORGE_OLD.name:
        for name in ("accept_length", "output_throughput", "accuracy"):
            add(name, told.get(name), "as the file has it; how it was counted the file does not say")
    if tokens is not None:
        add("tokens/s", tokens / wall, "all output tokens / the run's seconds, all requests together")
    for name, what in (("ttft", "first token"), ("tpot", "a further token"), ("itl", "between two arrivals")):
        for of in ("mean", "median"):
            if f"{of}_{name}_ms" in told:
                add(f"ms, {what}, {of}", told[f"{of}_{name}_ms"], f"{of}_{name}_ms, as the file has it")
    if base is None:
        add("speed ratio", None, "no --baseline")
    elif differs := _why_not_beside(record, base):
        add("speed ratio", None, differs)
    else:
        there = said_of(base)["new_tokens"] / (base["wall_s"] or np.nan)
        add("speed ratio", tokens / wall / there if there else None, "tokens/s / the baseline's tokens/s")
    return rows


def _why_not_beside(record: Record, base: Record) -> str | None:
    """Why two runs are not to be compared; None where nothing in the files says so."""
    if said_of(record)["new_tokens"] is None:
        return "the file has no count of tokens"
    for part, names in (("told", ("completed", "samples")), ("options", ("num_prompts", "request_rate", "max_concurrency"))):
        for name in names:
            here, there = ((said_of(r)["told"] if part == "told" else r["options"] or {}).get(name) for r in (record, base))
            if here != there:
                return f"not the same work: {name} is {here} here and {there} there"
    return None


def said_of(record: Record) -> Mapping[str, Any]:
    """What the file says of a run or request."""
    said: Mapping[str, Any] = record["foreign"]
    return said


def request_figures(own: Sequence[Record], base: Sequence[Record] | None) -> list[Row]:
    """All figures of single requests (AIPerf), with 95% intervals over requests, and those beside a baseline's same requests."""
    rows: list[Row] = []

    def ratio(figure: str, of: Sequence[Record], above: Value, below: Value, formula: str) -> None:
        columns = np.array([[value(r) for r in of] for value in (above, below)], dtype=float)
        rows.append((figure, estimated([columns], lambda s: s[0] / s[1], 0.0) if of else Estimate(None, None, 0), formula))

    def told(name: str) -> Value:
        return lambda record: said_of(record)["told"][name]

    drafting = [r for r in own if said_of(r)["steps"]]
    accepted, drafted = told("num_accepted_draft_tokens"), told("num_draft_tokens")
    if drafting:
        ratio("τ, pooled", drafting, lambda r: accepted(r) + _steps(r), _steps,
              f"1 + accepted drafts / verifications, over all requests (AIPerf's token-weighted one): {LEFT_OUT}")  # fmt: skip
        ratio("τ, mean of requests", drafting, lambda r: 1 + accepted(r) / _steps(r), _one,
              f"mean of 1 + accepted drafts / verifications (AIPerf's mean one): {LEFT_OUT}")  # fmt: skip
        if all("completion_tokens" in said_of(r)["told"] for r in drafting):
            ratio("τ, by tokens", drafting, lambda r: told("completion_tokens")(r) - 1, _steps,
                  f"(completion_tokens - 1) / verifications: {LEFT_OUT}")  # fmt: skip
        ratio("drafts accepted", drafting, accepted, drafted, "accepted drafts / drafted tokens")
    else:
        rows.append(("τ", Estimate(None, None, len(own)), "no request has spec_decode_acceptance"))
    ratio(
        "tokens/s of a request, mean",
        own,
        lambda r: _tokens(r) / _wall(r),
        _one,
        "mean of output_sequence_length / request_latency",
    )
    timed = [r for r in own if "time_to_first_token" in said_of(r)["told"]]
    ratio("ms, first token, mean", timed, lambda r: 1e3 * told("time_to_first_token")(r), _one, "mean of time_to_first_token")
    if base is None:
        rows.append(("speed ratio, totals", Estimate(None, None, len(own)), "no --baseline"))
        return rows
    there = {(r["sample_id"], r["turn"]): r for r in base}
    both = [(r, b) for r in own if (b := there.get((r["sample_id"], r["turn"]))) is not None]
    totals = np.array([[_tokens(r), _wall(r), _tokens(b), _wall(b)] for r, b in both]).T
    found = estimated([totals], lambda s: s[0] / s[1] / (s[2] / s[3]), 0.0) if both else Estimate(None, None, 0)
    rows.append(("speed ratio, totals", found, "all tokens / all request_latency, over the requests that both files have"))
    return rows


def _steps(record: Record) -> float:
    return float(said_of(record)["steps"])


def _tokens(record: Record) -> float:
    return float(said_of(record)["new_tokens"])


def _wall(record: Record) -> float:
    return record["wall_s"] or np.nan


def _one(record: Record) -> float:
    return 1.0
