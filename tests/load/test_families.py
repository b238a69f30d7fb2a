"""The paper's three families in their real file layouts with random weights (tests/make_families.py): the whole path runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import harness, ids, isolate, measured, refused, run
from make_families import LLAMA3_SPECIAL, YAMLS, make, sentencepiece_like, tokenizer_settings
from safetensors.torch import load_file, save_file

import methods
import tasks
from harness.ledger.ledger import RECORDS, read
from harness.ledger.record import ids_sha, text_sha, validate
from harness.load import chat
from harness.load.config import model_config
from harness.load.eagle_head import FREQUENT
from harness.load.model import Loaded, load
from harness.load.prompt_text import load_tokenizer

TURNS = [("user", "What is 2 + 2?"), ("assistant", "Four."), ("user", "And 3 + 3?")]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The YAML of each family's tiny member; tests copy what they spoil."""
    folder = tmp_path_factory.mktemp("families")
    return {family: make(folder / family, family) for family in YAMLS}


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> Any:
    def copy(family: str) -> Path:
        folder = tmp_path / f"copy-{family}"
        shutil.copytree(made[family].parent, folder)
        return folder / made[family].name

    return copy


def loaded(yaml: Path, dtype: str = "float32") -> Loaded:
    return load(model_config(str(yaml)), dtype=dtype)


# ---- the whole path -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", YAMLS)
def test_load_template_all_methods_both_temperatures_and_tables(copied: Any, tmp_path: Path, family: str) -> None:
    yaml, out = copied(family), tmp_path / "out"
    save_file({"tokens": torch.arange(100)}, yaml.parent / "head" / FREQUENT)  # what eagle2-fr needs besides
    command = f"--method all --method hf-generate --task gsm8k --task mt_bench --max-new-tokens 4 --dtype float16 --model {yaml}"
    run(out, command, "--temperature 0")
    records = measured(out, command, "--temperature 1")
    every = {m for m in methods.names(exact=True) if methods.get(m).drafter in (None, methods.EAGLE)} | {"hf-generate"}
    assert {r["method"] for r in records} == every and {r["temperature"] for r in records} == {0, 1}
    for record in read(out):
        validate(record)
    # every method was given the same prompts, and the second turn was built from vanilla's first
    config, (question,) = model_config(str(yaml)), tasks.load("mt_bench", source="bundled", limit=1).prompts
    first = next(r for r in records if r["method"] == "vanilla" and r["task"] == "mt_bench" and r["temperature"] == 0)
    dialogue = [("user", question.turns[0]), ("assistant", first["text"]), ("user", question.turns[1])]
    system = chat.PAPER_SYSTEM[config.template]
    by_hand = {"vicuna": chat.vicuna, "llama2": chat.llama2, "llama3": chat.llama3}[family]
    for r in (r for r in records if r["task"] == "mt_bench"):
        turns = dialogue[:1] if r["turn"] == 1 else dialogue
        assert r["prompt_sha"] == text_sha(by_hand(system, turns))
        assert r["turn1_sha"] == (None if r["turn"] == 1 else ids_sha(first["token_ids"]))
    (env,) = {path.read_text() for path in out.glob("env-*.json")}
    assert json.loads(env)["template"] == config.template and json.loads(env)["system"] == "paper"
    outcome = harness("table --results", out)
    assert outcome.code == 0, outcome.err
    assert all(name in (out / "tables" / "main.md").read_text() for name in every)


@pytest.mark.parametrize("family", YAMLS)
def test_every_method_gives_vanillas_tokens_in_float64(made: dict[str, Path], tmp_path: Path, family: str) -> None:
    command = f"--method all --task gsm8k --max-new-tokens 8 --dtype float64 --model {made[family]} --temperature"
    for temperature in (0, 1):
        by_name = ids(measured(tmp_path / str(temperature), command, str(temperature)))
        drawn = {k[0]: v for k, v in by_name.items()}
        if temperature:
            drawn.pop("eagle1")  # sampled drafts under rejection: the same law, other tokens
        assert len(drawn) >= 6 and len({tuple(v) for v in drawn.values()}) == 1, drawn


# ---- prompts to tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", YAMLS)
def test_a_prompt_begins_with_one_bos_and_is_otherwise_its_text(made: dict[str, Path], family: str) -> None:
    model = loaded(made[family])
    bos = model.tokenizer.bos_token_id
    for turns in (TURNS[:1], TURNS):
        prompt = model.encode(model.render(turns))
        assert prompt[0] == bos and prompt[1] != bos
        # LLaMA-2 alone begins an answered turn anew
        assert prompt.count(bos) == (1 + len(turns) // 2 if family == "llama2" else 1)
    assert bos not in model.encode_text("plain text") and model.decode(model.encode_text("plain é 😀 text")) == "plain é 😀 text"


def test_sentencepiece_tokens_fall_back_to_bytes_and_words_begin_anew_after_a_mark_only_where_they_did(
    made: dict[str, Path],
) -> None:
    """Vicuna's settings say nothing of `legacy`, and its scripts' tokenizer put a word's beginning after `</s>`."""
    for family, begins in (("vicuna", True), ("llama2", False)):
        tokenizer = load_tokenizer(made[family].parent / "target")
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("😀 a</s>b", add_special_tokens=False).input_ids)
        assert tokens[:5] == ["▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
        assert (tokens[tokens.index("</s>") + 1][0] == "▁") is begins


def test_the_two_sentencepiece_families_differ_in_their_settings_alone() -> None:
    assert sentencepiece_like().get_vocab_size() == 560
    assert "legacy" not in tokenizer_settings("vicuna") and tokenizer_settings("llama2")["legacy"] is False


@pytest.mark.parametrize(
    ("system", "said"),
    [("paper", chat.LLAMA_SYSTEM), ("none", None), ("Be brief.", "Be brief.")],
)
def test_the_system_prompt_is_a_setting_and_other_ones_are_other_cells(
    copied: Any, tmp_path: Path, system: str, said: str | None
) -> None:
    yaml = copied("llama3")
    command = f"--method pld --task gsm8k --max-new-tokens 2 --model {yaml}"
    paper = {r["cell"] for r in measured(tmp_path / "out", command)}
    yaml.write_text(yaml.read_text().replace("system: paper", f"system: {system}"))
    rendered = loaded(yaml).render(TURNS[:1])
    assert rendered == chat.llama3(said or "", TURNS[:1]) and ("<|start_header_id|>system" in rendered) is (said is not None)
    cells = {r["cell"] for r in measured(tmp_path / "out", command)}
    assert (cells == paper) is (system == "paper")


def test_another_chat_template_than_llama3s_is_refused(copied: Any, tmp_path: Path) -> None:
    yaml = copied("llama3")
    settings = yaml.parent / "target" / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    template = values["chat_template"]
    for other, shown in (
        ("Today is Monday. " + template, "renders 'Today is Monday."),
        (template.replace(" | trim", ""), "renders ' One?\\n<|eot_id|>"),
    ):
        settings.write_text(json.dumps(values | {"chat_template": other}))
        refused(run(tmp_path / "out", VANILLA, yaml), "the chat template in", shown)
    yaml.write_text(yaml.read_text().replace("template: llama-3", "template: tokenizer").replace("paper", "Be brief.", 1))
    settings.write_text(json.dumps(values | {"chat_template": "{{ raise_exception('System role not supported') }}"}))
    refused(run(tmp_path / "out", VANILLA, yaml), "cannot render a dialogue: System role not supported")


# ---- files ----------------------------------------------------------------------------------------------------------

VANILLA = "--method vanilla --task gsm8k --model"
EAGLE2 = "--method eagle2 --task gsm8k --no-baseline --model"


@pytest.mark.parametrize(
    ("family", "index", "shard"),
    [("vicuna", "pytorch_model.bin.index.json", "pytorch_model-00002-of-00003.bin"),
     ("llama2", "model.safetensors.index.json", "model-00002-of-00003.safetensors")],
)  # fmt: skip
def test_a_sharded_target_that_is_not_whole_is_refused(copied: Any, tmp_path: Path, family: str, index: str, shard: str) -> None:
    yaml, out = copied(family), tmp_path / "out"
    target = yaml.parent / "target"
    whole = (target / shard).read_bytes()
    (target / shard).unlink()
    refused(run(out, VANILLA, yaml), f"no {shard} in {target}")
    assert f"missing: {target / shard}" in run(out, "--dry-run", VANILLA, yaml).out
    (target / shard).write_bytes(whole[:-500])
    refused(
        run(out, VANILLA, yaml),
        "cannot load model" if shard.endswith(".bin") else f"{shard} has {len(whole) - 500} bytes, by its header",
    )
    (target / shard).write_bytes(whole)
    (target / index).write_text('{"weight_map": ')
    refused(run(out, VANILLA, yaml), f"{index} is truncated or altered")
    assert (out / RECORDS).read_bytes() == b""


def test_shards_are_pinned_by_the_hashes_of_all(copied: Any, tmp_path: Path) -> None:
    yaml = copied("llama2")
    (record,) = measured(tmp_path / "out", VANILLA, yaml)
    pinned = yaml.read_text().replace("  path: target", f"  path: target\n  sha256: {record['target_sha']}")
    yaml.write_text(pinned)
    assert measured(tmp_path / "pinned", VANILLA, yaml)
    shard = yaml.parent / "target" / "model-00003-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    refused(run(tmp_path / "altered", VANILLA, yaml), "truncated or altered", record["target_sha"])


@pytest.mark.parametrize("family", YAMLS)
def test_a_head_holds_what_its_file_does(made: dict[str, Path], family: str) -> None:
    head = made[family].parent / "head"
    stored = load_file(head / "model.safetensors") if family == "llama3" else torch.load(head / "pytorch_model.bin")
    drafter = loaded(made[family]).drafter
    assert drafter is not None and drafter.head.config.bias is (family != "llama3")
    state = drafter.head.state_dict()
    assert set(state) == set(stored) - {"embed_tokens.weight"}
    assert all(torch.equal(value, stored[key].float()) for key, value in state.items())


def test_a_pickled_head_is_converted_once_with_its_copy_of_the_embedding(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loaded(made["vicuna"])
    (kept,) = (tmp_path / "cache" / "heads").glob("*.safetensors")
    assert "embed_tokens.weight" in load_file(kept)  # which is compared with the target's
    read_pickle = torch.load
    head = made["vicuna"].parent / "head" / "pytorch_model.bin"

    def not_again(file: Any, *args: Any, **kwargs: Any) -> Any:
        assert Path(file) != head, "unpickled a second time"
        return read_pickle(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", not_again)
    second = loaded(made["vicuna"])
    assert first.drafter is not None and second.drafter is not None and first.head_sha == second.head_sha
    assert all(torch.equal(a, b) for a, b in zip(first.drafter.head.parameters(), second.drafter.head.parameters(), strict=True))


class Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not(
    copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    yaml = copied("vicuna")
    file = yaml.parent / "head" / "pytorch_model.bin"
    for write in (lambda: torch.save({"fc.weight": Payload()}, file), lambda: file.write_bytes(pickle.dumps(Payload()))):
        write()
        refused(run(tmp_path / "out", EAGLE2, yaml), "pytorch_model.bin is truncated or altered")
    torch.save([torch.zeros(1)], file)
    refused(run(tmp_path / "out", EAGLE2, yaml), "something else than tensors by name")
    assert not (tmp_path / "ran").exists() and not list((tmp_path / "cache" / "heads").glob("*.safetensors"))


def test_a_head_of_another_family_is_refused_before_the_target_is_read(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def read(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the target was read first")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    other = made["llama3"].parent / "head"
    words = EAGLE2, made["llama2"], "--head", other
    n = 512 + len(LLAMA3_SPECIAL)
    problem = f"the head in {other} is for a target with hidden size 32 and {n} tokens; tiny-llama2 has 32 and 560"
    refused(run(tmp_path / "out", *words), problem)
    assert f"missing: a draft head that fits: {problem}" in run(tmp_path / "out", "--dry-run", *words).out
    assert (tmp_path / "out" / RECORDS).read_bytes() == b""


def test_packages_that_a_tokenizer_needs_are_named_before_anything_is_loaded(copied: Any, tmp_path: Path) -> None:
    yaml = copied("vicuna")
    yaml.write_text(yaml.read_text() + "packages: [no_such_reader]\n")
    refused(run(tmp_path / "out", VANILLA, yaml), "tiny-vicuna needs no_such_reader: `pip install no_such_reader`")
    assert "missing: package no_such_reader" in run(tmp_path / "out", "--dry-run", VANILLA, yaml).out
