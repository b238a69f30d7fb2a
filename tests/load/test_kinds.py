"""A kind of drafter is one entry: one made up here is read, sized and drafted with, and no other file knows of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import harness, isolate, measured, refused
from places import TINY
from safetensors.torch import save_file
from tiny_model import TinyModel

import methods
from harness.common.errors import UserError
from harness.load import preflight
from harness.load.config import model_config, read_model
from harness.load.kinds import KINDS, drafter_kind, kind_of
from harness.load.model import load
from harness.load.weights import drafter_folders
from methods.base import SamplerParams

MINE = '''
"""A drafter that knows one thing: which token came after which."""

import torch

from harness.load.drafters import check_sizes, read_config, read_state
from harness.load.kinds import DrafterKind, ReadDrafter, add_kind
from methods import method
from methods.engine.grow import paths_of, static_tree
from methods.engine.loop import speculative


class Bigrams:
    """Implements methods.base.Drafter. logits: [vocab, vocab]."""

    forward_s = 0.0

    def __init__(self, logits):
        self.logits, self.last = logits, 0

    def start(self, room, frequent=None, first=None):
        pass

    def observe(self, tokens, features):
        self.last = tokens[-1]

    def named(self, columns):
        return columns

    def root_logits(self):
        return self.logits[self.last][None]

    def expand(self, tokens, parents, sees):
        return self.logits[tokens]


def read(folder, target):
    values = read_config(folder, "bigrams", target.model)
    check_sizes(folder, values, "bigrams", target)
    state, sha = read_state(folder, values)
    return ReadDrafter(lambda t: Bigrams(state["logits"].to(t.dtype)), sha)


add_kind(DrafterKind(
    "bigrams", "table of bigrams", read,
    memory_bytes=lambda folder, sizes, dtype, context: 7_000_000_000,
    download_bytes=lambda sizes: 10**15,
    architectures=("Bigrams",),
))


@method("follow", line="a chain by a table of bigrams", drafter="bigrams", small={"shape": "0 00"})
def follow(shape: str = "0 00 000"):
    return speculative(static_tree(paths_of(shape), sampled=False))
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the made-up kind and of a method that drafts with it; both are forgotten after the test."""
    isolate(monkeypatch, tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    yield tmp_path / "mine.py"
    for registry, name in ((KINDS, "bigrams"), (methods.DRAFTERS, "bigrams"), (methods._METHODS, "follow")):
        registry.pop(name, None)  # type: ignore[attr-defined]


def table(folder: Path, texts: list[list[int]], vocab: int = 384) -> Path:
    """A folder with what follows what in `texts`."""
    folder.mkdir()
    logits = torch.zeros(vocab, vocab)
    for text in texts:
        for one, after in zip(text, text[1:], strict=False):
            logits[one, after] += 1
    save_file({"logits": logits}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["Bigrams"], "vocab_size": vocab}))
    return folder


def test_a_made_up_kind_is_read_and_drafts_without_loss(mine: Path, tmp_path: Path, tiny: TinyModel) -> None:
    params, prompt = SamplerParams(24, frozenset({0, 2})), tiny.prompts[0]
    answer = tiny.vanilla(prompt, params).token_ids
    folder = table(tmp_path / "bigrams", [[*prompt, *answer]])
    assert methods.include(mine) == ["follow"] and methods.get("follow").drafter == "bigrams"
    assert drafter_kind(folder) == "bigrams"
    config = model_config(str(TINY)).model_copy(update={"drafters": {"bigrams": str(folder)}})
    assert drafter_folders(config)["bigrams"] == folder
    own = TinyModel(load(config, "float64", drafters=["bigrams"]))
    assert set(own.loaded.drafters) == {"bigrams"} and own.loaded.head_sha is None
    made = own.decode("follow", prompt, params)
    assert made.token_ids == answer and made.trace is not None and sum(made.trace.accepted) > 0
    other = own.decode("follow", own.prompts[1], params)  # a text that the table knows nothing of
    assert other.token_ids == own.vanilla(own.prompts[1], params).token_ids


def test_the_bytes_of_a_made_up_kind_count_in_a_dry_run(mine: Path, tmp_path: Path) -> None:
    methods.include(mine)
    table(tmp_path / "bigrams", [])
    yaml = tmp_path / "tiny.yaml"
    text = TINY.read_text().replace("{path: target", f"{{path: {TINY.parent / 'target'}")
    yaml.write_text(text.replace("drafters: {", f"drafters: {{bigrams: {tmp_path / 'bigrams'}, "))

    def lines(kinds: list[str]) -> str:
        return "\n".join(preflight.report(read_model(yaml), kinds=kinds, head=None, dtype="float32"))

    assert "about 0.0 GB" in lines([]) and "about 7.0 GB" in lines(["bigrams"]) and "missing: nothing" in lines(["bigrams"])
    (tmp_path / "bigrams" / "model.safetensors").unlink()
    assert f"missing: {tmp_path / 'bigrams' / 'model.safetensors'}" in lines(["bigrams"])
    (tmp_path / "bigrams" / "config.json").unlink()
    assert f"missing: table of bigrams in {tmp_path / 'bigrams'}" in lines(["bigrams"])
    yaml.write_text(text.replace("drafters: {", "drafters: {bigrams: {hub: org/bigrams, revision: main}, "))
    hub = lines(["bigrams"])
    assert "missing: table of bigrams of tiny (org/bigrams@main)" in hub and "disk: up to 1000000.0 GB to fetch" in hub


def test_a_made_up_kind_is_measured_from_the_command_line(mine: Path, tmp_path: Path) -> None:
    folder = table(tmp_path / "bigrams", [])
    words = f"--method follow --task gsm8k --no-baseline --include {mine} --head {folder} --model {TINY}"
    (record, *_) = measured(tmp_path / "out", words)
    assert record["method"] == "follow" and record["head_sha"] and record["trace"] is not None
    refused(
        harness(f"run --source bundled --dry-run --method eagle2 --task gsm8k --head {folder} --model {TINY}"),
        "holds a table of bigrams, and none of eagle2 drafts with one",
    )
    refused(
        harness(f"run --source bundled --dry-run --method follow --task gsm8k --model {TINY}"),
        "method follow needs a table of bigrams and model tiny has none: give its folder with --head",
    )


def test_a_model_and_the_kind_of_its_drafter_are_included_as_one_folder(mine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    table(folder / "bigrams", [])
    (folder / "mine.py").write_text(MINE)
    text = TINY.read_text().replace("{path: target", f"{{path: {TINY.parent / 'target'}").replace("name: tiny", "name: own")
    (folder / "own.yaml").write_text(text.replace("head: head\n", "").replace("drafters: {", "drafters: {bigrams: bigrams, "))
    done = harness(f"run --source bundled --dry-run --method follow --task gsm8k --include {folder} --model own")
    assert done.code == 0 and "missing: nothing" in done.out, done.err


def test_a_folder_of_another_target_or_kind_is_refused_by_name(mine: Path, tmp_path: Path) -> None:
    methods.include(mine)
    config = model_config(str(TINY))
    with pytest.raises(UserError, match="the table of bigrams in .* is for a target with vocab_size 9; tiny has 384"):
        load(config, "float32", head=table(tmp_path / "small", [], 9), drafters=["bigrams"])
    wrong = config.model_copy(update={"drafters": {"bigrams": str(TINY.parent / "hydra")}})
    with pytest.raises(UserError, match="holds a set of Hydra heads, where tiny should have a table of bigrams"):
        load(wrong, "float32", drafters=["bigrams"])


def test_an_unknown_kind_is_refused_with_the_kinds_there_are() -> None:
    with pytest.raises(UserError, match="unknown kind of drafter 'medsua'; did you mean 'medusa'"):
        load(model_config(str(TINY)), "float32", drafters=["medsua"])
    with pytest.raises(UserError, match="unknown drafter 'medsua'; did you mean 'medusa'"):
        methods.method("mine", line="", drafter="medsua")(lambda: None)  # type: ignore[arg-type, return-value]


def test_every_kind_has_an_engine_file_and_what_it_is_trained_by() -> None:
    from harness.train.trainers import TRAINERS

    assert {kind.train_command: name for name, kind in KINDS.items()} == {
        command: trainer.kind for command, trainer in TRAINERS.items()
    }
    for name, kind in KINDS.items():
        assert methods.engine_file(name) is not None and kind_of(name) is kind and methods.DRAFTERS[name] == kind.title


def test_what_a_method_drafts_with_is_known_by_its_name_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: methods.get(name).drafter for name in methods.names()}
    monkeypatch.setattr(methods, "_METHODS", {})
    assert {name: methods.drafter_of(name) for name in wanted} == wanted
    assert wanted["eagle1"] == wanted["eagle2-fr"] == "eagle" and wanted["hf-assisted"] == "lm" and wanted["pld"] is None
    assert methods.drafter_of("of another repository") is None


def test_an_eagle_head_may_stand_among_the_drafters_but_not_twice(tmp_path: Path) -> None:
    yaml = tmp_path / "tiny.yaml"
    text = TINY.read_text().replace("{path: target", f"{{path: {TINY.parent / 'target'}")
    head = TINY.parent / "head"
    yaml.write_text(text.replace("head: head\n", "").replace("drafters: {", f"drafters: {{eagle: {head}, "))
    assert read_model(yaml).head_folder == head and "eagle" in drafter_folders(read_model(yaml))
    yaml.write_text(text.replace("drafters: {", f"drafters: {{eagle: {head}, "))
    with pytest.raises(UserError, match="head and drafters: eagle are the same drafter; give one of them"):
        read_model(yaml)
    yaml.write_text(text.replace("drafters: {", "drafters: {clover: x, "))
    with pytest.raises(UserError, match="drafters: .*unknown kind of drafter 'clover'; known: eagle, eagle3, hydra, lm, medusa"):
        read_model(yaml)
