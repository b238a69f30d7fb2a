"""The paper's models: what their YAMLs say, what a dry run finds missing, and one line for a licence that was not accepted."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from command_line import harness, isolate, measured, reason, refused, run, tiny_copy
from hub_stand_in import COMMIT, stand_in
from places import TINY

from harness.common.errors import UserError
from harness.common.files import hub_folder
from harness.load import placement, preflight
from harness.load.config import HubRepo, model_config, paper_model, paper_models
from harness.load.layout import lacking

NODES = {"7B": 59, "8B": 59, "13B": 49, "70B": 47}
CONTEXT = {"Vicuna": 2048, "LLaMA2": 4096, "LLaMA3": 8192}
TEMPLATES = {"Vicuna": "vicuna_v1.1", "LLaMA2": "llama-2", "LLaMA3": "llama-3"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def dry(model: object, *words: object) -> list[str]:
    outcome = harness("run --method eagle2 --task gsm8k --source bundled --limit 1 --dry-run --model", model, *words)
    assert outcome.code == 0, outcome.err
    return outcome.out.splitlines()


# ---- the seven YAMLs ------------------------------------------------------------------------------------------------


def test_the_papers_seven_targets_have_its_trees_contexts_and_templates() -> None:
    assert len(paper_models()) == 7
    for paper, name in paper_models().items():
        config, (family, *_, size) = model_config(name), paper.split("-")
        assert config.presets == {"paper": {"top_k": 10, "depth": 6, "total": NODES[size]}}
        assert (config.context_length, config.template) == (CONTEXT[family], TEMPLATES[family])
        assert (config.dtype, config.system, config.name) == ("float16", "paper", name)
        assert isinstance(config.weights, HubRepo) and isinstance(config.head, HubRepo) and config.weights.is_pinned
        assert config.weights.gated is (family != "Vicuna") and config.head.hub.startswith("yuhuili/EAGLE-")
        assert size.lower() in config.weights.hub.lower() and size.lower() in config.head.hub.lower()
        assert config.stop_ids == ([128001, 128009] if family == "LLaMA3" else [2])


@pytest.mark.parametrize("name", ["smollm2-135m", str(TINY)])
def test_a_model_that_is_not_in_the_paper_is_told_which_are(name: str) -> None:
    with pytest.raises(UserError, match="is not in the paper; its targets are: .*vicuna-7b .Vicuna-7B.") as told:
        paper_model(name)
    assert all(ours in str(told.value) for ours in paper_models().values())
    assert paper_model("Vicuna-7B").name == paper_model("vicuna-7b").name == "vicuna-7b"
    with pytest.raises(UserError, match="unknown model 'vicuna-7'; did you mean 'vicuna-7b'"):
        paper_model("vicuna-7")


def test_the_list_of_models_marks_what_is_gated_and_what_is_not_official(tmp_path: Path) -> None:
    rows = {row.split()[0]: row for row in harness("list models").out.splitlines()}
    assert "gated" in rows["llama2-chat-7b"] and "gated" not in rows["vicuna-7b"] and "unofficial" not in rows["llama2-chat-7b"]
    mirror = tiny_copy(tmp_path / "m", name="mirror", weights="{hub: a/b, revision: main, official: false}")
    assert "unofficial" in next(
        row for row in harness("list models --include", mirror).out.splitlines() if row.startswith("mirror")
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("head: {hub: a/b}", ["head", "revision: Field required"]),
        ("template: llama-4", ["template", "'llama-3'"]),
        ("system: ''", ["system", "at least 1 character"]),
        ("template: plain\nsystem: Be brief.", ["template plain has no place for a system prompt"]),
        ("architecture: {hidden_size: 4096}", ["architecture", "Field required"]),
    ],
    ids=reason,
)
def test_what_is_wrong_in_a_models_yaml_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    yaml = tmp_path / "m.yaml"
    yaml.write_text(f"name: m\ntitle: M\nweights: {{path: target}}\ncontext_length: 9\nstop_ids: [0]\n{text}\n")
    refused(harness("run --method vanilla --task gsm8k --dry-run --model", yaml), str(yaml), *parts)


# ---- what is missing ------------------------------------------------------------------------------------------------


def test_a_dry_run_of_a_gated_70b_says_all_that_is_missing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 30 * 10**9))
    monkeypatch.setattr(preflight, "free_memory", lambda: 16 * 10**9)
    lines = dry("llama2-chat-70b", "--out", tmp_path / "out")
    missing = [line for line in lines if line.startswith("missing: ")]
    for part in (
        "weights of llama2-chat-70b (meta-llama/Llama-2-70b-chat-hf@e9149a12)",
        "licence and token for meta-llama/Llama-2-70b-chat-hf: accept it at https://huggingface.co/meta-llama/Llama-2-70b-chat-hf",
        "draft head of llama2-chat-70b (yuhuili/EAGLE-llama2-chat-70B@main)",
        "disk: up to 148.0 GB to fetch",
        "memory: 141.4 GB needed in float16, 16.0 GB free on this machine, which has no GPU",
    ):
        assert sum(line.startswith(f"missing: {part}") for line in missing) == 1, missing
    assert len(missing) == 5 and "note: yuhuili/EAGLE-llama2-chat-70B is not pinned to a commit" in "\n".join(lines)
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_seen_and_enough_room_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10**13))
    monkeypatch.setattr(preflight, "free_memory", lambda: 10**12)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    told = "\n".join(dry("llama3-instruct-8b"))
    assert "there is a token" in told and "missing: disk" not in told and "missing: memory" not in told
    assert "hf_of_a_test" not in told  # a token is never printed
    alone = harness("run --method vanilla --task gsm8k --source bundled --dry-run --model llama3-instruct-8b").out
    assert "draft head" in told and "draft head" not in alone


def test_memory_on_gpus_says_how_many_of_them_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(placement, "free_on_gpus", lambda: [79 * 10**9] * 4)
    config = model_config("llama2-chat-70b")
    lines = list(preflight.report(config, kinds=["eagle"], head=None, dtype="auto"))
    assert lines[0] == (
        "memory: about 141.4 GB in float16 with a KV cache over 4096 tokens; "
        "79.0 GB + 79.0 GB + 79.0 GB + 79.0 GB free on 4 GPUs, 2 used"
    )
    monkeypatch.setattr(placement, "free_on_gpus", lambda: [23 * 10**9] * 2)
    lines = list(preflight.report(config, kinds=["eagle"], head=None, dtype="auto"))
    assert "missing: memory: 141.4 GB needed in float16, 23.0 GB + 23.0 GB free on 2 GPUs" in lines


def test_a_drafter_of_another_kind_is_not_taken_for_the_draft_head_and_unpinned_ones_are_noted(tmp_path: Path) -> None:
    words = f"reproduce --figure 2 --dry-run --source bundled --model {TINY} --results {tmp_path} --head"
    assert "tiny: missing: nothing" in harness(words, TINY.parent / "medusa").out.splitlines()
    lines = harness("reproduce --figure 2 --dry-run --model vicuna-7b --results", tmp_path).out.splitlines()
    assert sum("note: double7/vicuna-68m is not pinned to a commit" in line for line in lines) == 1


def test_a_head_for_another_size_is_found_by_a_dry_run_before_any_weights_are_there() -> None:
    lines = dry("vicuna-7b", "--head", TINY.parent / "head")
    problem = "is for a target with hidden size 64 and 384 tokens; vicuna-7b has 4096 and 32000"
    assert sum(problem in line for line in lines if line.startswith("missing: a draft head that fits")) == 1


# ---- the hub --------------------------------------------------------------------------------------------------------


def test_weights_and_head_from_the_hub_are_fetched_once_and_their_commit_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = tiny_copy(
        tmp_path / "m", weights="{hub: org/target, revision: main}", head="{hub: org/head, revision: main, official: false}"
    )
    assert "missing: weights of tiny (org/target@main)" in "\n".join(dry(yaml))
    head = json.loads((yaml.parent / "head" / "config.json").read_text())
    del head["target_sha256"]  # published heads do not say
    (yaml.parent / "head" / "config.json").write_text(json.dumps(head))
    with stand_in(monkeypatch) as hub:
        hub.hold("org/target", yaml.parent / "target")
        hub.hold("org/head", yaml.parent / "head")
        assert f"draft head: {hub_folder('org/head', COMMIT)}" in harness("fetch --source bundled --model", yaml).out
    (record, *_) = measured(tmp_path / "out", "--method eagle2 --task gsm8k --no-baseline --model", yaml)  # nobody answers now
    assert record["target_sha"] == f"org/target@{COMMIT}" and record["trace"] is not None and sum(record["trace"]["accepted"])
    told = "\n".join(dry(yaml))
    assert "missing: nothing" in told and "note: org/head is not the official repository" in told


def test_half_a_download_is_not_taken_for_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    (tmp_path / "1.safetensors").write_text("")
    assert lacking(tmp_path) == tmp_path / "2.safetensors"
    (tmp_path / "2.safetensors").write_text("")
    assert lacking(tmp_path) is None


def test_gated_weights_without_a_token_or_a_licence_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--method vanilla --task gsm8k --dtype float16 --model llama3-instruct-8b"
    page = "https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct"
    refused(run(tmp_path / "out", words), "model llama3-instruct-8b is gated", "there is no token", page, "HF_TOKEN")
