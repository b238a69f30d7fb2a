"""What a number is made of is its identity: a changed input is measured anew, is never pooled with the old, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import counted, harness, isolate, measured, refused, run, tiny_copy
from places import ROOT, TINY

import methods
from harness.common.errors import UserError
from harness.ledger.ledger import RECORDS, Ledger, read
from harness.ledger.record import Record
from harness.load.config import model_config
from harness.load.identity import config_sha, drafter_id, template_sha, tokenizer_sha
from harness.metrics.cells import summarise
from harness.metrics.groups import labels
from harness.metrics.pairing import one_environment, variant_of


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def rope(values: dict[str, Any]) -> None:
    values.update(rope_parameters={"rope_theta": 500.0, "rope_type": "default"})


TARGET_EDITS: dict[str, Callable[[Path], Any]] = {
    "config": lambda model: edit(model / "target" / "config.json", lambda v: v.update(rms_norm_eps=0.1)),
    "config of rotary tables": lambda model: edit(model / "target" / "config.json", rope),
    "template": lambda model: (model / "target" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    ),
    "tokenizer": lambda model: edit(
        model / "target" / "tokenizer.json", lambda v: v["added_tokens"][0].update(lstrip=not v["added_tokens"][0]["lstrip"])
    ),
}


@pytest.mark.parametrize("part", TARGET_EDITS)
def test_an_edited_target_is_measured_anew_and_never_pooled_with_the_old(tmp_path: Path, part: str) -> None:
    yaml, out = tiny_copy(tmp_path / "model"), tmp_path / "out"
    command = f"--model {yaml} --method pld --task gsm8k"
    before = measured(out, command)
    TARGET_EDITS[part](tmp_path / "model")
    outcome = run(out, command)
    told = next(line for line in outcome.err.splitlines() if "holds records of another tiny (" in line)
    assert outcome.code == 0 and part.split()[0] in told, outcome.err
    after = counted(out)
    assert len(after) == 2 * len(before) and after[: len(before)] == before
    assert {r["target_sha"] for r in after} == {before[0]["target_sha"]} and len({r["target_id"] for r in after}) == 2
    assert len({s.setting for s in summarise(after)}) == 2
    with pytest.raises(UserError, match=rf"mixed environments: target_id \([a-z, ]*{part.split()[0]}[a-z, ]*\)"):
        one_environment(after, out)
    assert measured(out, command) == after


def test_a_template_that_differs_beyond_the_probes_is_another(tmp_path: Path) -> None:
    yaml, out, template = tiny_copy(tmp_path / "model"), tmp_path / "out", tmp_path / "model/target/chat_template.jinja"
    before = measured(out, f"--model {yaml} --method pld --task gsm8k")
    template.write_text("{% if messages[0]['content']|length > 60 %}the a 7 {% endif %}" + template.read_text())
    after = measured(out, f"--model {yaml} --method pld --task gsm8k")
    assert len(after) == 2 * len(before) and len({r["cell"] for r in after}) == 2 * len({r["cell"] for r in before})


def test_every_file_of_a_tokenizer_counts_whatever_it_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(TINY.parent / "target", folder)
    before = tokenizer_sha(folder)
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    with_two = tokenizer_sha(folder)
    (folder / "spiece.model").write_bytes(b"pieces")
    assert len({before, with_two, tokenizer_sha(folder)}) == 3
    (folder / "README.md").write_text("x")
    (folder / "model.safetensors").unlink()
    (folder / "spiece.model").unlink()
    assert tokenizer_sha(folder) == with_two


@pytest.mark.parametrize("folder", ["target", "head"])
def test_weights_of_a_name_that_the_config_gives_are_refused(tmp_path: Path, folder: str) -> None:
    yaml = tiny_copy(tmp_path / "model")
    shutil.copy(tmp_path / f"model/{folder}/model.safetensors", tmp_path / f"model/{folder}/other.safetensors")
    edit(tmp_path / f"model/{folder}/config.json", lambda v: v.update(transformers_weights="other.safetensors"))
    refused(run(tmp_path / "out", f"--model {yaml} --method eagle2 --task gsm8k"), "transformers_weights is 'other.safetensors'")


def test_settings_that_choose_other_kernels_are_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(tmp_path, "--method pld --task gsm8k")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    outcome = run(tmp_path, "--method pld --task gsm8k --limit 2")
    refused(outcome, "from another machine: kernels was None, here it is {'ATEN_CPU_CAPABILITY': 'default'}")


def test_what_says_nothing_of_the_computation_is_no_other_model(tmp_path: Path) -> None:
    yaml, out = tiny_copy(tmp_path / "model"), tmp_path / "out"
    before = measured(out, f"--model {yaml} --method pld --task gsm8k")
    edit(tmp_path / "model/target/config.json", lambda v: v.update(transformers_version="9.9", _name_or_path="elsewhere"))
    assert measured(out, f"--model {yaml} --method pld --task gsm8k") == before


def test_an_edited_head_is_measured_anew(tmp_path: Path) -> None:
    yaml, out = tiny_copy(tmp_path / "model"), tmp_path / "out"
    command = f"--model {yaml} --method eagle2 --task gsm8k"
    before = measured(out, command)
    edit(tmp_path / "model/head/config.json", lambda v: v.update(rms_norm_eps=0.5))
    after = measured(out, command)
    drafted = [r for r in after if r["method"] == "eagle2"]
    assert len(after) == len(before) + 1 and len({r["head_sha"] for r in drafted}) == 1 < len({r["head_id"] for r in drafted})
    assert len({variant_of(r) for r in drafted}) == 2
    with pytest.raises(UserError, match="mixed environments: head_id of eagle2"):
        one_environment(after, out)


def test_a_list_of_frequent_tokens_counts_only_where_it_is_used(tmp_path: Path) -> None:
    yaml, out = tiny_copy(tmp_path / "model"), tmp_path / "out"
    command = f"--model {yaml} --method eagle2 --method eagle2-fr --task gsm8k"
    measured(out, command)
    import torch
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model/head/frequent.safetensors"
    save_file({"tokens": load_file(file)["tokens"].flip(0).contiguous().to(torch.int32)}, file)
    made: dict[str, int] = {}
    for r in measured(out, command):
        made[r["method"]] = made.get(r["method"], 0) + 1
    assert made == {"vanilla": 1, "eagle2": 1, "eagle2-fr": 2}


def test_a_method_whose_file_was_edited_is_measured_anew_and_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "methods/pld.py").read_text().replace('"pld"', '"mine"')
    for text in (source, source + "\nCHANGED = 1\n"):
        monkeypatch.setattr(methods, "_METHODS", {k: v for k, v in methods._METHODS.items() if k != "mine"})
        folder = tmp_path / str(len(text))
        folder.mkdir()
        (folder / "mine.py").write_text(text)
        outcome = run(tmp_path / "out", "--method mine --task gsm8k --include", folder / "mine.py")
        assert outcome.code == 0, outcome.err
    own = [r for r in counted(tmp_path / "out") if r["method"] == "mine"]
    assert len({r["code_sha"] for r in own}) == 2 == len(own) and "measured with other code" in outcome.err
    names = set(labels(summarise(own)).values())
    assert len(names) == 2 and all(name.startswith("mine code ") for name in names)
    with pytest.raises(UserError, match="mixed environments: code_sha of mine"):
        one_environment(own, "there")


def test_outputs_are_paired_with_the_vanilla_they_were_measured_beside(tmp_path: Path) -> None:
    records = measured(tmp_path, "--method pld --task gsm8k")
    assert {r["baseline_sha"] for r in records} == {methods.code_sha("vanilla")}
    (mine,) = (r for r in records if r["method"] == "pld")
    other: list[Record] = [{**r, "baseline_sha": "other"} if r["method"] == "vanilla" else r for r in records]  # type: ignore[misc]
    speedups = [next(s.speedup for s in summarise(some) if s.method == "pld") for some in (records, other)]
    assert mine["status"] == "ok" and speedups[0] and speedups[1] is None


def test_a_ledger_of_the_old_schema_is_read_said_and_not_added_to(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results/hf-bfloat16", tmp_path / "old")
    import lzma

    packed = tmp_path / "old/records.jsonl.xz"
    (tmp_path / "old" / RECORDS).write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    records = read(tmp_path / "old")
    assert {r["schema"] for r in records} == {2} and {r["target_id"] for r in records} == {None}
    with pytest.raises(UserError, match="records of schema 2.*not added to"):
        Ledger(tmp_path / "old")
    outcome = harness("table --results", tmp_path / "old")
    assert outcome.code == 0 and "engine unknown: records of schema 2" in (tmp_path / "old/tables/main.md").read_text()
    new = [{**records[0], "schema": 3, "code_sha": "new"}]
    assert variant_of(records[0])[:4] == variant_of(new[0])[:4]  # type: ignore[arg-type]


def test_the_engines_hash_covers_every_file_of_it(tmp_path: Path) -> None:
    from harness.common.source_hash import Package, closure_sha

    copy = tmp_path / "methods"
    shutil.copytree(ROOT / "methods", copy, ignore=shutil.ignore_patterns("__pycache__"))

    def sha(folder: Path) -> str:
        return closure_sha(tuple(sorted((folder / "engine").rglob("*.py"))), Package("methods", folder))

    assert sha(copy) == methods.engine_sha()
    files = [file for file in sorted((copy / "engine").rglob("*.*")) if file.name != "__init__.py"]
    assert {file.suffix for file in files} == {".py", ".c", ".h"}
    for i, file in enumerate(files):
        edited = tmp_path / str(i) / "methods"  # files are read once a process
        shutil.copytree(copy, edited)
        (edited / file.relative_to(copy)).write_text(file.read_text() + "\nEDITED = 1\n")
        assert sha(edited) != methods.engine_sha(), file.name


def test_parts_of_an_identity(tmp_path: Path) -> None:
    folder = TINY.parent / "target"
    shutil.copytree(folder, tmp_path / "t")
    assert config_sha(folder) == config_sha(tmp_path / "t") and tokenizer_sha(folder) == tokenizer_sha(tmp_path / "t")
    (tmp_path / "t/config.json").write_text("[]")
    assert config_sha(tmp_path / "t") != config_sha(folder)
    assert drafter_id("a", folder) != drafter_id("b", folder) != drafter_id("b", tmp_path / "t")

    def picky(turns: list[tuple[str, str]]) -> str:
        if len(turns) > 1:
            raise ValueError
        return turns[0][1]

    one, other = template_sha(picky, lambda text: [len(text)]), template_sha(lambda t: t[0][1], lambda text: [len(text)])
    assert one != other != template_sha(lambda t: t[0][1], lambda text: [1 + len(text)])


def test_stop_ids_are_part_of_the_identity(tmp_path: Path) -> None:
    from harness.load.model import load

    config = model_config(str(TINY))
    ids = {
        load(replace_stop(config, stop), "float32", drafters=()).identity.id for stop in ([0, 2], [2, 0], [0, 2, 5], [0, 2, 6])
    }
    assert len(ids) == 3


def replace_stop(config: Any, stop_ids: list[int]) -> Any:
    return config.model_copy(update={"stop_ids": stop_ids})
