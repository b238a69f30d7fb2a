"""Options have upper bounds, each with its reason, wherever they are given."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SMALL, harness, isolate, refused, run
from places import TINY

import harness as api
from harness.common.bounds import BOUNDS, bounded
from harness.common.errors import UserError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_beyond_its_bound_is_refused_with_the_reason(name: str) -> None:
    most, why = BOUNDS[name]
    bounded(f"--{name.replace('_', '-')}", most, least=0)
    for value in (most + 1, 10**400):
        with pytest.raises(UserError, match=f"^{name} is .*; it may be at most {most:,}: ") as refused:
            bounded(name, value)
        assert str(refused.value).endswith(why) and len(str(refused.value)) < 200
    for wrong in ("5", 5.0, True):
        with pytest.raises(UserError, match=f"{name} is {wrong!r}; it must be a whole number"):
            bounded(name, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--threads 1000000000000", "--threads is 1,000,000,000,000; it may be at most"),
        ("--threads 999", "this machine has no more cores"),
        ("--threads -1", "--threads is -1; it must be at least 1"),
        ("--limit 1000000000", "no task has as many prompts"),
        ("--max-new-tokens 1000000000", "no model here has a longer context"),
        ("--max-new-tokens 2560", "--max-new-tokens is 2,560; the context of tiny is 2,560 tokens, the prompt included"),
        ("--repeats 1000000", "each measures every prompt again"),
        (f"--seed {'9' * 400}", "--seed is a number of 400 digits"),
        ("--seed -1", "--seed is -1; it must be at least 0"),
        ("--temperature 1e308", "--temperature is 1e+308; it may be at most 1000"),
        ("--temperature 1e-300", "it must be 0 (greedy) or from 0.001"),
        (
            "--set total=1000000000",
            "method eagle2: total is 1,000,000,000; it may be at most 4,096: verifying a tree takes memory",
        ),
        ("--set depth=100000", "depth is 100,000; it may be at most 256"),
        ("--set top_k=100000", "top_k is 100,000; it may be at most 256"),
        ("--method pld --set n_draft=10000000", "method pld: n_draft is 10,000,000"),
        ("--method lookahead --set window=10000", "method lookahead: window is 10,000"),
        ("--top-p 0.9", "--top-p is 0.9; at --temperature 0, which takes the likeliest token, it does nothing"),
        ("--prompts tests", "--prompts tests is a folder of the paper's files, which --source bundled does not read"),
    ],
)
def test_the_command_line_refuses_what_cannot_be_meant_before_anything_is_loaded(options: str, part: str, tmp_path: Path) -> None:
    for dry in ("--dry-run", ""):
        refused(run(tmp_path / "out", "--method eagle2 --task alpaca", options, dry), part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("tune --conversations 1000000000000", "--conversations is 1,000,000,000,000"),
        ("tune --threads 1000000000000", "--threads is 1,000,000,000,000"),
        ("profile --sweep --context 1000000000000", "--context is 1,000,000,000,000; it may be at most 1,048,576"),
        ("profile --sweep --tree 1000000", "--tree is 1,000,000; it may be at most 4,096"),
        ("profile --context 64", "--context is for --sweep, which is not asked for"),
        ("profile --tree 8", "--tree is for --sweep, which is not asked for"),
        ("localise --rows 1,100000", "--rows is 100,000; it may be at most 4,096"),
        ("localise --threads 999", "--threads is 999"),
        ("verify --threads 999", "--threads is 999"),
        ("verify --prompts tests", "--prompts tests is where a ledger's prompts are looked up, and no --results is given"),
        ("train eagle --out x --threads 999", "--threads is 999"),
        ("train eagle --out x --tokens 99999999999999", "--tokens is 99,999,999,999,999"),
        ("matrix --tier quick --out x --repeats 99999", "--repeats is 99,999"),
        ("reproduce --limit 99999999", "--limit is 99,999,999"),
        ("report --results tests/data/ledger --generations 99999999", "--generations is 99,999,999"),
    ],
)
def test_every_command_has_the_same_bounds(command: str, part: str) -> None:
    model = () if command.startswith(("report", "reproduce")) else ("--model", TINY)
    refused(harness(command, *model), part)


def test_top_p_leaves_the_greedy_half_of_a_run_alone_and_says_so(tmp_path: Path) -> None:
    done = harness("run --dry-run --method vanilla --task alpaca --temperature 0 --temperature 1 --top-p 0.9", *SMALL)
    assert done.code == 0 and "--top-p 0.9 does not touch T = 0" in done.err


def test_the_python_api_has_them_too() -> None:
    with pytest.raises(UserError, match="threads is 1,000,000"):
        api.load_model(str(TINY), threads=10**6)
    with pytest.raises(UserError, match="limit is '5'; it must be a whole number"):
        api.RunRequest(limit="5")  # type: ignore[arg-type]
