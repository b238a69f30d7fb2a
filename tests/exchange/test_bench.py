"""Benchmark files of SpecForge, SGLang, vLLM and AIPerf: each figure by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import files, harness, isolate, refused

from harness.exchange.bench_file import FORMATS, read_bench
from harness.exchange.imported_report import report
from harness.forms.table import Table
from harness.ledger.ledger import RECORDS, read
from harness.ledger.record import validate

VLLM: dict[str, Any] = {
    "date": "20261101-120000", "endpoint_type": "openai", "backend": "openai", "label": None, "model_id": "org/m",
    "num_prompts": 4, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 1, "duration": 8.0, "completed": 4,
    "failed": 0,
    "total_input_tokens": 100, "total_output_tokens": 400, "request_throughput": 0.5, "output_throughput": 50.0,
    "total_token_throughput": 62.5, "mean_ttft_ms": 20.0, "median_ttft_ms": 19.0, "mean_tpot_ms": 18.0, "std_ttft_ms": 1.0,
    "spec_decode_acceptance_rate": 30.0, "spec_decode_acceptance_length": 2.5, "spec_decode_num_drafts": 160,
    "spec_decode_draft_tokens": 800, "spec_decode_accepted_tokens": 240, "spec_decode_per_position_acceptance_rates": [0.7, 0.4],
}  # fmt: skip
PLAIN = {k: v for k, v in VLLM.items() if not k.startswith("spec_")} | {"duration": 16.0}
SGLANG: dict[str, Any] = {
    "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": "inf", "max_concurrency": 8,
    "server_info": {"a": [1]}, "duration": 10.0, "completed": 5, "total_output_tokens": 500,
    "total_output_tokens_retokenized": 498, "output_throughput": 50.0, "mean_ttft_ms": 30.0, "mean_tpot_ms": 9.0,
    "mean_itl_ms": 21.0, "accept_length": 2.75,
}  # fmt: skip
SPECFORGE: dict[str, Any] = {
    "backend": "sglang", "dataset": "gsm8k", "samples": 10, "output_tokens": 1010, "latency_seconds": 20.0,
    "throughput_tokens_per_second": 50.5, "average_acceptance_length": 3.1, "spec_verify_count": 400,
}  # fmt: skip
OLD = {"model": "org/m", "mtbench": [{"batch_size": 1, "metrics": [
    {"latency": 10.0, "output_throughput": 40.0, "accept_length": 1.0, "accuracy": None},
    {"latency": 5.0, "output_throughput": 80.0, "accept_length": 2.9, "accuracy": 0.5}]}]}  # fmt: skip


def request(
    session: int, tokens: int, ms: float, steps: int = 0, accepted: int = 0, drafted: int = 0, **more: Any
) -> dict[str, Any]:
    metrics = {
        "request_latency": {"value": ms, "unit": "ms"}, "output_sequence_length": {"value": tokens + 1, "unit": "tokens"},
        "time_to_first_token": {"value": 50.0, "unit": "ms"},
    }  # fmt: skip
    spec = {
        "engine": "vllm", "mean_acceptance_length": 9.9, "draft_acceptance_rate": 0.5, "acceptance_histogram": {},
        "num_accepted_draft_tokens": accepted, "num_draft_tokens": drafted, "num_spec_steps": steps, "completion_tokens": tokens,
    }  # fmt: skip
    metadata = {"session_num": session, "conversation_id": "c", "turn_index": None, "benchmark_phase": "profiling",
                "request_start_ns": 1, "request_end_ns": 2}  # fmt: skip
    row = {"metadata": metadata | more.pop("metadata", {}), "metrics": metrics, "spec_decode_acceptance": spec if steps else None}
    return row | {"error": None} | more


def in_hours(row: dict[str, Any]) -> dict[str, Any]:
    row["metrics"]["request_latency"]["unit"] = "h"
    return row


AIPERF = [
    request(0, 31, 2000.0, 10, 20, 50), request(1, 21, 1000.0, 10, 10, 50),
    request(2, 9, 500.0, metadata={"benchmark_phase": "warmup"}), request(3, 1, 1.0, error={"message": "timeout"}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def imported(tmp_path: Path, *rows: Any, baseline: tuple[Any, ...] = ()) -> Table:
    """What an import by the command line shows."""
    words: list[Any] = ["--baseline", written(tmp_path / "base.json", *baseline)] if baseline else []
    outcome = harness("import", written(tmp_path / "own.json", *rows), *words, "--out", tmp_path / "i")
    assert outcome.code == 0, outcome.err
    for record in read(tmp_path / "i", imported=True):
        validate(record)
    return report(tmp_path / "i")


def values(table: Table, part: str) -> dict[str, float]:
    numbers = table.numbers[table.numbers["part"] == part].dropna(subset=["value"])
    return dict(zip(numbers["figure"], numbers["value"], strict=True))


def formula(table: Table, figure: str) -> str:
    return str(dict(zip(table.numbers["figure"], table.numbers["from"], strict=True))[figure])


def test_vllms_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    table = imported(tmp_path, VLLM, baseline=(PLAIN,))
    assert values(table, "run 1") == pytest.approx({
        "τ, pooled": 1 + 240 / 160, "drafts accepted": 0.3, "spec_decode_acceptance_length": 2.5, "tokens/s": 50.0,
        "ms, first token, mean": 20.0, "ms, first token, median": 19.0, "ms, a further token, mean": 18.0, "speed ratio": 2.0,
    })  # fmt: skip
    assert "the prefill's token left out" in formula(table, "τ, pooled")
    (own, base) = read(tmp_path / "i", imported=True)
    assert own["model"] == "org_m" and own["foreign"]["steps"] == 160 and own["foreign"]["told"]["completed"] == 4
    assert "the prefill's token is not counted" in own["foreign"]["tau_means"] and base["foreign"]["steps"] is None
    assert "max_concurrency: 1" in str(table.sections[0].facts) and FORMATS["vllm-bench"].tau_means in str(
        table.sections[0].facts
    )


def test_runs_of_another_load_are_not_compared(tmp_path: Path) -> None:
    for name, change in (
        ("max_concurrency", {"max_concurrency": 8}),
        ("completed", {"completed": 3}),
        ("request_rate", {"request_rate": 2.0}),
    ):
        (tmp_path / name).mkdir()
        table = imported(tmp_path / name, VLLM, baseline=(PLAIN | change,))
        assert "speed ratio" not in values(table, "run 1") and f"not the same work: {name} is" in formula(table, "speed ratio")


def test_several_runs_in_one_file_have_a_section_each(tmp_path: Path) -> None:
    table = imported(
        tmp_path, VLLM | {"label": "eagle3"}, PLAIN | {"label": "plain"}, VLLM | {"label": "eagle3", "duration": 4.0}
    )
    assert [section.title for section in table.sections] == ["eagle3 (1), org_m", "plain, org_m", "eagle3 (3), org_m"]
    assert values(table, "eagle3 (3)")["tokens/s"] == 100.0 and "no counters" in formula(table, "τ")


def test_space_before_the_first_object_is_none_of_it(tmp_path: Path) -> None:
    file = written(tmp_path / "own.json", VLLM)
    file.write_text(f"\n  {file.read_text()}")
    outcome = harness("import", file, "--out", tmp_path / "i")
    assert outcome.code == 0, outcome.err


def test_sglangs_average_is_called_what_it_is(tmp_path: Path) -> None:
    table = imported(tmp_path, SGLANG)
    assert values(table, "random") == pytest.approx({
        "accept_length": 2.75, "tokens/s": 50.0, "ms, first token, mean": 30.0, "ms, a further token, mean": 9.0,
        "ms, between two arrivals, mean": 21.0,
    })  # fmt: skip
    assert "since it was started" in formula(table, "accept_length") and "no count of verifications" in formula(table, "τ")
    (tmp_path / "b").mkdir()
    assert "null" in formula(imported(tmp_path / "b", SGLANG | {"accept_length": None}), "accept_length")


def test_specforges_mean_counts_the_prefills_token_and_tau_does_not(tmp_path: Path) -> None:
    table = imported(tmp_path, SPECFORGE)
    assert values(table, "gsm8k") == pytest.approx({
        "τ, pooled": 1000 / 400, "τ, pooled, from the first token": 1010 / 400, "average_acceptance_length": 3.1,
        "tokens/s": 50.5,
    })  # fmt: skip
    assert "mean over requests" in formula(table, "average_acceptance_length")
    assert read(tmp_path / "i", imported=True)[0]["foreign"]["tau_means"].endswith("the prefill's token is counted")


def test_specforges_earlier_files_are_read_wherever_the_numbers_stand(tmp_path: Path) -> None:
    table = imported(tmp_path, OLD)
    first, second = (section.title.split(",")[0] for section in table.sections)
    assert (first, second) == ("mtbench/0/metrics/0", "mtbench/0/metrics/1")
    assert values(table, second) == {"accept_length": 2.9, "output_throughput": 80.0, "accuracy": 0.5}
    assert "does not say" in formula(table, "accept_length")


def test_aiperfs_requests_give_pooled_and_mean_figures_with_intervals(tmp_path: Path) -> None:
    plain = [request(0, 31, 3000.0), request(1, 21, 3000.0)]
    table = imported(tmp_path, *AIPERF, baseline=tuple(plain))
    assert values(table, "all") == pytest.approx({
        "τ, pooled": 1 + 30 / 20, "τ, mean of requests": (3 + 2) / 2, "τ, by tokens": (30 + 20) / 20, "drafts accepted": 0.3,
        "tokens/s of a request, mean": (32 / 2 + 22) / 2, "ms, first token, mean": 50.0, "speed ratio, totals": 6 / 3,
    })  # fmt: skip
    facts = " ".join(table.sections[0].facts)
    assert "1 requests failed and are left out; 1 warm-ups are left out" in facts
    records = read(tmp_path / "i", imported=True)
    assert [r["status"] for r in records if r["method"] == "imported"] == ["ok", "ok", "error"]
    assert records[0]["foreign"]["told"]["num_accepted_draft_tokens"] == 20 and records[0]["wall_s"] == 2.0


def test_steps_told_one_by_one_are_kept_and_must_add_up(tmp_path: Path) -> None:
    row = request(0, 7, 1000.0, 3, 3, 6)
    row["spec_decode_acceptance"]["per_step_accepted"] = [2, 0, 1]
    imported(tmp_path, row)
    assert read(tmp_path / "i", imported=True)[0]["foreign"]["accept_lengths"] == [3, 1, 2]
    row["spec_decode_acceptance"]["per_step_accepted"] = [2, 0]
    said = "per_step_accepted has 2 steps and 2 tokens, num_spec_steps is 3"
    refused(harness("import", written(tmp_path / "odd.json", row), "--out", tmp_path / "j"), "odd.json:1", said)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (VLLM | {"duration": 0}, "field 'duration' is 0; it must be a number of seconds over 0"),
        ({k: v for k, v in VLLM.items() if k != "total_output_tokens"}, "field 'total_output_tokens' is missing"),
        (VLLM | {"spec_decode_num_drafts": 1.5}, "field 'spec_decode_num_drafts' is 1.5; it must be a whole number from 0"),
        (VLLM | {"mean_ttft_ms": "fast"}, "field 'mean_ttft_ms' is 'fast'; it must be a finite number from 0"),
        (VLLM | {"mean_ttft_ms": float("nan")}, "field 'mean_ttft_ms' is nan"),
        (SGLANG | {"accept_length": -1}, "field 'accept_length' is -1"),
        (SPECFORGE | {"samples": 0}, "field 'samples' is 0; it must be a whole number from 1"),
        (request(0, 9, 10.0) | {"metrics": {}}, "metric 'output_sequence_length' is missing"),
        (
            in_hours(request(0, 9, 10.0)),
            "field 'request_latency' is {'unit': 'h', 'value': 10.0}; it must be a value from 0 and a unit",
        ),
        (request(0, 9, 10.0, metadata={"session_num": "a"}), "field 'session_num' is 'a'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_field_that_is_wrong_is_named_with_its_line(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(harness("import", written(tmp_path / "f.json", row), "--out", tmp_path / "i"), "f.json:1: ", said)
    assert not (tmp_path / "i" / RECORDS).exists()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    vllm, sglang = written(tmp_path / "v.json", VLLM), written(tmp_path / "s.json", SGLANG)
    out = ("--out", tmp_path / "i")
    refused(harness("import", vllm, "--baseline", sglang, *out), "v.json is a file of vLLM, s.json one of SGLang")
    refused(harness("import", written(tmp_path / "m.json", VLLM, SGLANG), *out), "m.json:2: another format than vllm-bench")
    refused(harness("import", vllm, "--tokenizer gpt2", *out), "whose texts are not counted")
    odd = written(tmp_path / "odd.json", {"question_id": 1})
    refused(harness("import", vllm, "--baseline", odd, *out), "odd.json is no benchmark of vLLM")
    refused(harness("import", written(tmp_path / "w.json", AIPERF[2]), *out), "no request of AIPerf in it but warm-ups")
    assert read_bench(odd) is None


def test_the_same_import_again_adds_nothing_and_its_table_is_written(tmp_path: Path) -> None:
    imported(tmp_path, *AIPERF)
    before = files(tmp_path / "i")
    imported(tmp_path, *AIPERF)
    assert files(tmp_path / "i") == before
    done = harness("table --results", tmp_path / "i")
    assert done.code == 0 and (tmp_path / "i" / "tables" / "imported.md").is_file()
