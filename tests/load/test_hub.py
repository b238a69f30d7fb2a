"""Weights from the hub: what a transfer, a cache, a token and a checkpoint can be, and what is said and mended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import harness, isolate, lines, measured, refused, run, tiny_copy
from hub_stand_in import COMMIT, Faults, StandIn, flipped, stand_in
from places import ROOT, TINY
from safetensors.torch import load_file, save_file

from harness.cli import KEPT
from harness.common import digests
from harness.common.errors import UserError
from harness.common.files import hub_folder
from harness.exchange.imported import token_counter
from harness.load import transfer
from harness.load.architecture import Architecture
from harness.load.config import model_config
from harness.load.declared import other_architecture
from harness.load.hub import from_hub
from harness.load.identity import tokenizer_sha
from harness.load.sources import HubRepo

REPO = "meta-llama/Llama-2-7b-chat-hf"
WEIGHTS = "model.safetensors"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """The hub, with the tiny model in two shards under a real repository's name."""
    folder = tmp_path / "on the hub"
    shutil.copytree(TINY.parent / "target", folder)
    tensors = load_file(folder / WEIGHTS)
    names, where = sorted(tensors), {}
    for shard, part in zip(SHARDS, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, folder / shard, {"format": "pt"})
        where |= dict.fromkeys(part, shard)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / WEIGHTS).unlink()
    with stand_in(monkeypatch) as running:
        running.hold(REPO, folder)
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The YAML of the tiny model whose weights are that repository."""
    return tiny_copy(tmp_path / "model", weights=f"{{hub: {REPO}, revision: {COMMIT}}}", head="null", drafters="{}")


def fetch(model: Path, *words: object) -> Any:
    return harness("fetch --source bundled --model", model, *words)


def fetched(model: Path) -> Path:
    """The snapshot's folder after a fetch that must end well."""
    outcome = fetch(model)
    assert outcome.code == 0, outcome.err
    return hub_folder(REPO, COMMIT)


def blob_of(file: Path) -> Path:
    return file.resolve()


def vanilla(out: Path, model: Path) -> Any:
    return run(out, "--method vanilla --task gsm8k --no-baseline --model", model)


# ---- a transfer -----------------------------------------------------------------------------------------------------


def test_what_is_fetched_lies_as_the_hubs_own_client_has_it_and_is_measured_under_its_commit(
    hub: StandIn, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(transfer, "AT_ONCE", 4)
    folder = fetched(model)
    for path, data in hub.repositories[REPO].items():
        assert (folder / path).read_bytes() == data and (folder / path).is_symlink()
        assert huggingface_hub.try_to_load_from_cache(REPO, path, revision=COMMIT) == str(folder / path)
    assert {file.path for file in huggingface_hub.get_cached_repo_tree(REPO, revision=COMMIT)} == set(hub.repositories[REPO])
    asked = len(hub.asked)
    (record,) = measured(tmp_path / "out", "--method vanilla --task gsm8k --no-baseline --model", model)
    assert record["target_sha"] == f"{REPO}@{COMMIT}" and len(hub.asked) == asked


def test_a_bit_flipped_in_transit_is_fetched_again_and_twice_is_refused(hub: StandIn, model: Path) -> None:
    hub.faults["config.json"] = Faults(flip=1)
    hub.faults[SHARDS[0]] = Faults(flip=2)
    outcome = fetch(model)
    refused(outcome, f"{SHARDS[0]} arrived altered", "twice: something between")
    assert "config.json arrived altered" in outcome.err and "fetching it once more" in outcome.err
    for path in ("config.json", SHARDS[0]):
        assert (fetched(model) / path).read_bytes() == hub.repositories[REPO][path]


def test_a_broken_transfer_goes_on_where_it_was_in_the_next_run_too(
    hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    hub.faults[SHARDS[1]] = Faults(stop_after=[1000, 500])
    refused(
        fetch(model), SHARDS[1], f"1500 of {len(hub.repositories[REPO][SHARDS[1]])} bytes are here and kept", "2 times in a row"
    )
    assert hub.starts(SHARDS[1]) == [0, 1000]
    hub.faults[SHARDS[1]] = Faults(stop_after=[100])
    fetched(model)
    assert hub.starts(SHARDS[1]) == [0, 1000, 1500, 1600] and hub.starts(SHARDS[0]) == [0]


def test_a_server_that_takes_no_ranges_sends_the_whole_file_again(hub: StandIn, model: Path) -> None:
    hub.takes_ranges = False
    hub.faults[SHARDS[1]] = Faults(stop_after=[1000])
    assert (fetched(model) / SHARDS[1]).read_bytes() == hub.repositories[REPO][SHARDS[1]]
    assert hub.starts(SHARDS[1]) == [0, 1000]


def test_a_part_that_was_altered_between_two_runs_is_noticed(hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    hub.faults[SHARDS[1]] = Faults(stop_after=[1000])
    assert fetch(model).code == 2
    part = max((hub_folder(REPO, COMMIT).parents[1] / "blobs").glob("*.part"), key=lambda file: file.stat().st_size)
    part.write_bytes(flipped(part.read_bytes()))
    outcome = fetch(model)
    assert outcome.code == 0 and f"{SHARDS[1]} arrived altered" in outcome.err
    assert hub.starts(SHARDS[1]) == [0, 1000, 0]


def test_a_transfer_that_stalls_for_good_ends_in_one_line(hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    hub.faults[SHARDS[0]] = Faults(stall_after=[700, 0])
    refused(fetch(model), SHARDS[0], "no answer in 0.3 s", "HF_HUB_DOWNLOAD_TIMEOUT", "700 of", "try again")
    fetched(model)
    assert hub.starts(SHARDS[0]) == [0, 700, 700]


def test_a_transfer_that_only_drips_is_a_stall(hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    monkeypatch.setattr(transfer, "SLOW_S", -1.0)  # any time is too long
    monkeypatch.setattr(transfer, "SLOW_BYTES", 1 << 40)
    refused(fetch(model), "bytes came in -1 s", "1 time in a row")


def test_a_server_that_never_answers_is_left_after_a_few_limits(hub: StandIn, model: Path) -> None:
    hub.silent = True
    began = time.monotonic()
    refused(fetch(model), f"cannot fetch {REPO}@c0ffeec0", "no answer in 0.3 s", "3 times in a row", "--model smollm2-135m")
    assert time.monotonic() - began < 30 * 0.3  # a multiple of the limit, whatever that is


def test_ctrl_c_ends_a_fetch_that_hangs_in_a_read_or_waits_for_its_next_try(hub: StandIn, model: Path, tmp_path: Path) -> None:
    """In a process of its own. A read may take 10 minutes, which nobody waits for."""
    hub.faults[SHARDS[0]] = Faults(stall_after=[700])
    hub.faults[SHARDS[1]] = Faults(status=[(503, {})] * 5)
    words = ["fetch", "--source", "bundled", "--model", str(model)]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DOWNLOAD_TIMEOUT": "600",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "harness", *words], cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE
    ) as process:
        try:
            while not (hub.starts(SHARDS[0]) and len(hub.starts(SHARDS[1])) > 1) and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=15)  # the server ends its answer after 30 s
        finally:
            process.kill()
    assert process.returncode == 130 and said.endswith(f"interrupted: {KEPT['fetch']}\n"), said


def test_nothing_is_tried_or_waited_for_after_a_stop(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_S", 3600)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    tries = transfer.Tries("it", stop=stop)
    for _ in "ab":
        with pytest.raises(transfer.GaveUp, match="it: stopped"):
            tries.again("no answer")


def test_a_range_that_the_server_does_not_have_begins_the_file_anew_once(
    hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 3)
    hub.no_ranges = 1
    hub.faults[SHARDS[1]] = Faults(stop_after=[1000])
    assert (fetched(model) / SHARDS[1]).read_bytes() == hub.repositories[REPO][SHARDS[1]]
    assert hub.starts(SHARDS[1]) == [0, 1000, 0]
    shutil.rmtree(hub_folder(REPO, COMMIT).parents[1])
    hub.no_ranges = 9
    hub.faults[SHARDS[1]] = Faults(stop_after=[1000, 900])
    refused(fetch(model), SHARDS[1], "HTTP 416 from byte 900 on")


def test_what_arrived_is_said_to_be_kept_only_where_something_did(hub: StandIn, model: Path) -> None:
    hub.silent = True
    outcome = fetch(model)
    refused(outcome, "no answer", "try again")
    assert "arrived" not in outcome.err
    hub.silent = False
    hub.faults[SHARDS[0]] = Faults(status=[(503, {})] * 5)
    refused(fetch(model), "HTTP 503", "what arrived whole or in part is kept")


def test_a_file_in_a_folder_too_deep_is_left_out_as_are_other_odd_names(hub: StandIn, model: Path) -> None:
    deep = "/".join("abcdefgh") + "/deep.json"
    hub.repositories[REPO][deep] = b"{}"
    fetched(model)
    assert not any(asked.path.endswith("deep.json") for asked in hub.asked)


def test_a_web_page_in_place_of_json_or_of_a_file_is_one_line(hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    hub.page_for_listing = True
    refused(fetch(model), f"cannot fetch {REPO}@c0ffeec0", "a web page came in place of it")
    hub.page_for_listing = False
    hub.faults["config.json"] = Faults(html=2)
    refused(fetch(model), "config.json: a web page came in place of it")
    hub.faults["config.json"] = Faults(status=[(503, {})])
    assert (fetched(model) / "config.json").read_bytes() == hub.repositories[REPO]["config.json"]


def test_an_answer_that_lists_no_files_is_one_line(hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in ({"error": "busy"}, [], {"sha": "../..", "siblings": []}, {"sha": COMMIT, "siblings": [{"rfilename": "a"}]}):
        monkeypatch.setattr(transfer, "ask", lambda *_, answer=answer, **__: answer)
        refused(fetch(model), f"cannot fetch {REPO}@c0ffeec0", "no list of a repository's files")


def test_offline_is_one_line(hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(fetch(model), f"cannot fetch {REPO}@c0ffeec0", "offline mode is enabled", "copy the hub cache")


# ---- a refusal ------------------------------------------------------------------------------------------------------

EXPIRED = {"X-Error-Message": 'User Access Token "mine" is expired'}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"}


@pytest.mark.parametrize(
    ("status", "headers", "token", "parts", "never"),
    [
        (401, EXPIRED, "hf_x", ["does not take the token", '"mine" is expired', "hf auth login"], "licence"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "hf_x", ["does not take the token"], "licence"),
        (401, {**EXPIRED, "X-Error-Code": "GatedRepo"}, "hf_x", ["does not take the token", "expired"], "licence"),
        (403, GATED, "hf_x", ["is gated", "token in use may not read", f"licence at https://huggingface.co/{REPO}"], "expired"),
        (401, GATED, None, ["is gated", "there is no token", "HF_TOKEN"], "expired"),
        (403, {"X-Error-Message": "enable access to gated ones"}, "hf_x", ["rights are set", "enable access"], "expired"),
        (404, {"X-Error-Code": "RepoNotFound"}, "hf_x", [f"no repository {REPO}", "private"], "expired"),
        (401, {"X-Error-Message": "Invalid username or password."}, None, [f"no repository {REPO}", "takes a token"], "expired"),
        (404, {"X-Error-Code": "RevisionNotFound"}, None, ["has no revision"], "expired"),
        (418, {}, None, ["the hub refuses", "HTTP 418"], "expired"),
    ],
    ids=["expired", "invalid", "expired-gated", "licence", "no-token", "rights", "no-such", "anonymous", "revision", "other"],
)  # fmt: skip
def test_what_the_hub_refuses_is_told_apart(
    hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], token: str | None,
    parts: list[str], never: str,
) -> None:  # fmt: skip
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.refusal = (status, headers)
    outcome = fetch(model)
    refused(outcome, "model tiny", *parts)
    assert never not in outcome.err and "hf_x" not in outcome.err and len(hub.asked) == 1


# ---- a cache --------------------------------------------------------------------------------------------------------


def test_a_bit_flipped_in_the_cache_is_refused_with_the_file_to_delete_and_fetch_mends_it(
    hub: StandIn, model: Path, tmp_path: Path
) -> None:
    folder = fetched(model)
    for name in (SHARDS[1], "tokenizer.json"):
        blob = blob_of(folder / name)
        blob.write_bytes(flipped(blob.read_bytes()))
        refused(vanilla(tmp_path / "out", model), str(blob), f"expected {blob.name}", f"`harness fetch --model {model}`")
        assert not lines(tmp_path / "out") and blob.exists()
        outcome = fetch(model)
        assert outcome.code == 0 and "deleted, and fetched anew" in outcome.err
        assert (folder / name).read_bytes() == hub.repositories[REPO][name]
    assert vanilla(tmp_path / "out", model).code == 0


def test_a_truncated_shard_is_named_with_its_sizes_at_load_and_in_a_dry_run(hub: StandIn, model: Path, tmp_path: Path) -> None:
    folder = fetched(model)
    blob = blob_of(folder / SHARDS[0])
    whole = len(hub.repositories[REPO][SHARDS[0]])
    blob.write_bytes(blob.read_bytes()[:-7])
    says = f"{blob} has {whole - 7} bytes, expected {whole}: truncated or altered; `harness fetch --model {model}` deletes it"
    refused(vanilla(tmp_path / "out", model), says)
    assert f"missing: {says}" in run(tmp_path / "out", "--method vanilla --task gsm8k --dry-run --model", model).out
    fetched(model)
    assert blob.stat().st_size == whole
    blob.unlink()  # the other way to mend it
    fetched(model)
    assert blob.stat().st_size == whole


def test_a_cache_of_the_hubs_own_client_is_checked_by_the_names_of_its_blobs(hub: StandIn, model: Path, tmp_path: Path) -> None:
    folder = fetched(model)
    shutil.rmtree(folder.parents[1] / "trees")
    shutil.rmtree(tmp_path / "cache")
    assert vanilla(tmp_path / "out", model).code == 0
    blob = blob_of(folder / SHARDS[1])
    blob.write_bytes(flipped(blob.read_bytes()))
    refused(vanilla(tmp_path / "out", model), f"{blob} has sha256 ", f"expected {blob.name}")


def test_weights_are_read_for_their_hash_once(hub: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = fetched(model)
    read: list[str] = []
    monkeypatch.setattr(digests, "hasher", lambda kind, size, real=digests.hasher: (read.append(kind), real(kind, size))[1])
    repo = HubRepo(hub=REPO, revision=COMMIT)
    from_hub(repo, "it")
    assert read == []  # their hashes were made while they arrived
    shutil.rmtree(tmp_path / "cache")
    from_hub(repo, "it")
    assert len(read) == len([*folder.iterdir()])
    (tmp_path / "cache" / "digests.json").write_text("{not JSON")
    from_hub(repo, "it")
    from_hub(repo, "it")
    assert len(read) == 2 * len([*folder.iterdir()])


def test_a_copied_snapshot_is_checked_by_its_list_or_called_unchecked(hub: StandIn, model: Path, tmp_path: Path) -> None:
    folder = fetched(model)
    flat = tmp_path / "flat"
    shutil.copytree(folder, flat)  # follows the links
    shutil.rmtree(folder)
    shutil.rmtree(folder.parents[1] / "blobs")
    shutil.copytree(flat, folder)
    (record,) = measured(tmp_path / "listed", "--method vanilla --task gsm8k --no-baseline --model", model)
    assert record["target_sha"] == f"{REPO}@{COMMIT}"
    shutil.rmtree(folder.parents[1] / "trees")
    outcome = vanilla(tmp_path / "unlisted", model)
    assert outcome.code == 0 and "records call these weights unchecked" in outcome.err
    assert harness("table --results", tmp_path / "unlisted").code == 0
    shown = (tmp_path / "unlisted" / "tables" / "cells.md").read_text()
    assert f"Weights: target {REPO}@c0ffeec0 unchecked " in shown
    file = folder / SHARDS[0]
    file.write_bytes(file.read_bytes()[:-1])
    refused(vanilla(tmp_path / "cut", model), f"{file} has", "by its header")
    outcome = fetch(model)  # asks for the list, and mends by it
    assert outcome.code == 0 and file.read_bytes() == hub.repositories[REPO][SHARDS[0]], outcome.err
    (record,) = measured(tmp_path / "again", "--method vanilla --task gsm8k --no-baseline --model", model)
    assert record["target_sha"] == f"{REPO}@{COMMIT}"


def list_of(folder: Path) -> Path:
    return folder.parents[1] / "trees" / f"{COMMIT}.json"


def without_links(folder: Path) -> None:
    """A snapshot as a copy that followed the links has it."""
    flat = folder.with_name("flat")
    shutil.copytree(folder, flat)
    shutil.rmtree(folder)
    shutil.rmtree(folder.parents[1] / "blobs")
    flat.rename(folder)


@pytest.mark.parametrize("wrong", ["hash", "size", "types"])
@pytest.mark.parametrize("has_links", [True, False], ids=["links", "copied"])
def test_a_list_that_is_wrong_is_replaced_by_the_hubs_and_no_whole_file_is_deleted(
    hub: StandIn, model: Path, tmp_path: Path, wrong: str, has_links: bool
) -> None:
    folder = fetched(model)
    if not has_links:
        without_links(folder)
    listed = json.loads(list_of(folder).read_text())
    for row in listed["files"].values():
        row |= {"hash": {"blob_id": "0" * 40}, "size": {"size": row["size"] + 1}, "types": {"size": None, "blob_id": 3}}[wrong]
        for key, value in (("lfs_sha256", "1" * 64), ("lfs_size", row["size"])):
            if key in row:
                row[key] = {"types": [None]}.get(wrong, value)
    list_of(folder).write_text(json.dumps(listed))
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    if wrong == "hash":
        refused(vanilla(tmp_path / "out", model), f"`harness fetch --model {model}`")
    outcome = fetch(model)
    assert outcome.code == 0 and "deleted" not in outcome.err, outcome.err
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before
    assert fetch(model, "--check").code == 0 and vanilla(tmp_path / "out", model).code == 0
    assert "1" * 64 not in list_of(folder).read_text() and "null" not in list_of(folder).read_text()


def test_a_link_to_another_whole_file_is_refused_and_fetch_mends_the_link_only(hub: StandIn, model: Path, tmp_path: Path) -> None:
    folder = fetched(model)
    blobs = [(folder / shard).resolve() for shard in SHARDS]
    (folder / SHARDS[0]).unlink()
    (folder / SHARDS[0]).symlink_to(blobs[1])
    refused(vanilla(tmp_path / "out", model), f"{blobs[1]} is what its name says", "asks the hub, and mends it")
    asked = hub.starts(SHARDS[1])
    outcome = fetch(model)
    assert outcome.code == 0 and "the link to it is taken away" in outcome.err, outcome.err
    assert [(folder / shard).resolve() for shard in SHARDS] == blobs and hub.starts(SHARDS[1]) == asked


@pytest.mark.parametrize("text", ["{cut", '{"files":' * 3000, '{"files": []}', "[]"], ids=["cut", "deep", "list", "empty"])
def test_a_list_that_cannot_be_read_is_asked_for_anew_and_a_flipped_bit_is_found(hub: StandIn, model: Path, text: str) -> None:
    folder = fetched(model)
    without_links(folder)
    list_of(folder).write_text(text)
    for name in (SHARDS[0], f"{WEIGHTS}.index.json"):
        (folder / name).write_bytes(flipped((folder / name).read_bytes(), 0))
    outcome = fetch(model)
    assert outcome.code == 0, outcome.err
    assert all((folder / name).read_bytes() == data for name, data in hub.repositories[REPO].items())
    assert json.loads(list_of(folder).read_text())["files"].keys() == hub.repositories[REPO].keys()


def test_nothing_is_deleted_where_the_hub_cannot_be_asked(hub: StandIn, model: Path) -> None:
    folder = fetched(model)
    blob = blob_of(folder / SHARDS[0])
    blob.write_bytes(flipped(blob.read_bytes()))
    hub.refusal = (418, {})
    refused(fetch(model), "the hub refuses")
    assert blob.exists()


def test_a_users_file_outside_the_cache_is_never_deleted(hub: StandIn, model: Path, tmp_path: Path) -> None:
    folder = fetched(model)
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("config.json", SHARDS[0]):
        (mine / name).write_bytes(b"{} of mine")
        (folder / name).unlink()
        (folder / name).symlink_to(mine / name)
    outcome = fetch(model)
    assert outcome.code == 0 and "the link to it is taken away" in outcome.err, outcome.err
    assert all((mine / name).read_bytes() == b"{} of mine" for name in ("config.json", SHARDS[0]))
    assert (folder / SHARDS[0]).read_bytes() == hub.repositories[REPO][SHARDS[0]]
    shutil.rmtree(mine)
    folder.rename(mine)  # the whole snapshot is a link to it
    folder.symlink_to(mine)
    (mine / "config.json").unlink()
    (mine / "config.json").write_bytes(b"{} of mine")
    refused(fetch(model), f"{mine / 'config.json'} has", "lies outside the cache", "delete it yourself")
    assert (mine / "config.json").read_bytes() == b"{} of mine"


def test_names_that_lead_out_of_the_cache_are_not_fetched(hub: StandIn, model: Path, tmp_path: Path) -> None:
    hub.repositories[REPO]["../../../../evil.json"] = b"{}"
    fetched(model)
    assert not list(tmp_path.rglob("evil*")) and not any("evil" in asked.path for asked in hub.asked)


def test_a_branch_is_remembered_with_its_commit(hub: StandIn) -> None:
    folder = from_hub(HubRepo(hub=REPO, revision="main"), "it")
    assert folder == hub_folder(REPO, "main") == hub_folder(REPO, COMMIT)
    asked = len(hub.asked)
    assert from_hub(HubRepo(hub=REPO, revision="main"), "it") == folder and len(hub.asked) == asked


def test_pickles_are_fetched_only_where_there_are_no_safetensors(hub: StandIn) -> None:
    both = {name: b"{}" for name in ("config.json", "tokenizer.model", "pytorch_model.bin", "consolidated.00.pth")}
    hub.repositories |= {"a/old": both, "a/both": {**both, WEIGHTS: b"{}"}, "a/none": {"config.json": b"{}"}}
    folder = from_hub(HubRepo(hub="a/both", revision=COMMIT), "both")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", WEIGHTS, "tokenizer.model"]
    assert (from_hub(HubRepo(hub="a/old", revision=COMMIT), "old") / "pytorch_model.bin").exists()
    with pytest.raises(UserError, match=f"none: a/none@{COMMIT} has no .*model.safetensors"):
        from_hub(HubRepo(hub="a/none", revision=COMMIT), "none")
    assert not any("consolidated" in asked.path for asked in hub.asked)


def test_a_tokenizer_for_answers_of_others_is_fetched_and_checked_in_the_same_way(hub: StandIn) -> None:
    counts = token_counter(REPO)
    assert counts("a b c")[0] > 0 and not any(asked.path.endswith(tuple(SHARDS)) for asked in hub.asked)
    blob = blob_of(hub_folder(REPO, "main") / "tokenizer.json")
    blob.write_bytes(flipped(blob.read_bytes()))
    with pytest.raises(UserError, match="no tokenizer there .*truncated or altered"):
        token_counter(REPO)
    with pytest.raises(UserError, match="no tokenizer there .*no repository a/nothing"):
        token_counter("a/nothing")
    with pytest.raises(UserError, match="no tokenizer there .*is no repository of the hub"):
        token_counter("neither one nor other")


def test_what_the_hubs_own_client_brings_beside_a_tokenizer_makes_no_other_target(hub: StandIn) -> None:
    ours = from_hub(HubRepo(hub=REPO, revision=COMMIT), "it")
    before = tokenizer_sha(ours)
    for name in (
        ".gitattributes",
        "LICENSE.txt",
        "README.md",
        "USE_POLICY.md",
        "original/tokenizer.model",
        "original/params.json",
    ):
        (ours / name).parent.mkdir(exist_ok=True)
        (ours / name).write_text("x")
    assert tokenizer_sha(ours) == before
    for name in ("vocab.txt", "merges.txt", "qwen.tiktoken", "spiece.model", "additional_chat_templates/tools.jinja"):
        (ours / name).parent.mkdir(exist_ok=True)
        (ours / name).write_text("x")
        assert tokenizer_sha(ours) != before
        before = tokenizer_sha(ours)


def test_every_file_that_a_tokenizer_of_transformers_is_read_from_counts(tmp_path: Path) -> None:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    names = {"chat_template.json"}
    for kinds in TOKENIZER_MAPPING.values():
        for kind in kinds if isinstance(kinds, tuple) else (kinds,):
            names |= {name for name in (getattr(kind, "vocab_files_names", None) or {}).values() if isinstance(name, str)}
    assert {"tokenizer.model", "merges.txt", "vocab.json"} < names
    before = tokenizer_sha(tmp_path)
    for name in sorted(names):
        (tmp_path / name).write_text(name)
        assert tokenizer_sha(tmp_path) != before, name
        before = tokenizer_sha(tmp_path)


def test_the_tokenizer_of_the_tiny_model_is_what_it_was() -> None:
    """Records of today stay records of the same target."""
    assert tokenizer_sha(TINY.parent / "target") == "f59f8923e38c714b"


# ---- fetch --check --------------------------------------------------------------------------------------------------


def rows(out: str) -> dict[str, str]:
    """What `fetch --check` says, by the file's name, in single spaces."""
    return {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if " pinned: " in line}


def test_check_says_of_every_file_whether_it_is_pinned_present_and_intact_and_fetches_nothing(hub: StandIn, model: Path) -> None:
    refused(fetch(model, "--check"), "1 file: 1 not present", f"`harness fetch --model {model}`")
    assert hub.asked == []
    folder = fetched(model)
    asked = len(hub.asked)
    outcome = fetch(model, "--check")
    assert outcome.code == 0 and "8 files, all present and intact, all pinned\n" in outcome.out, outcome
    said = rows(outcome.out)
    assert set(said) == set(hub.repositories[REPO]) and all(
        "bytes pinned: commit present: yes intact: yes" in x for x in said.values()
    )
    blob = blob_of(folder / SHARDS[0])
    stat = blob.stat()
    blob.write_bytes(flipped(blob.read_bytes()))
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a disk that loses a bit: nothing else shows it
    (folder / "tokenizer.json").unlink()
    outcome = fetch(model, "--check")
    refused(outcome, "8 files: 1 not present, 1 not intact")
    said = rows(outcome.out)
    assert "present: no" in said["tokenizer.json"] and f"intact: no: {blob} has sha256" in said[SHARDS[0]]
    assert len(hub.asked) == asked


def test_check_names_a_branch_a_folder_without_a_sha256_and_a_drafter_that_was_altered(hub: StandIn, tmp_path: Path) -> None:
    hub.hold("org/head", TINY.parent / "head")
    yaml = tiny_copy(tmp_path / "m", head="{hub: org/head, revision: main}")
    fetched_head = harness("fetch --source bundled --model", yaml)
    assert fetched_head.code == 0, fetched_head.err
    outcome = fetch(yaml, "--check")
    refused(outcome, "not pinned", "a commit or a sha256 in the model's YAML pins")
    assert f"pinned: no: main may change; here it is {COMMIT}   present: yes   intact: yes" in outcome.out
    assert f"target: {yaml.parent / 'target'}" in outcome.out and "pinned: no: no sha256 is named; it is 8928" in outcome.out
    assert "pinned: own file" in outcome.out
    weights = yaml.parent / "hydra" / "model.safetensors"
    weights.write_bytes(flipped(weights.read_bytes()))
    after = fetch(yaml, "--check").out.partition(f"set of Hydra heads: {weights.parent}\n")[2]
    assert after.splitlines()[0].split()[0] == WEIGHTS and "intact: no: sha256" in after.splitlines()[0]


def test_check_of_a_model_whose_files_are_all_pinned_ends_well() -> None:
    outcome = harness("fetch --check --model", TINY)
    assert outcome.code == 0 and "all present and intact, all pinned but " in outcome.out, outcome
    refused(harness("fetch --check --model smollm2-135m"), "not present")


def test_check_refuses_an_index_that_names_a_shard_outside_the_folder(hub: StandIn, model: Path) -> None:
    index = f"{WEIGHTS}.index.json"
    fetched(model)
    for text, says in (
        ('{"weight_map": {"a": "../../../evil.safetensors"}}', "shard name '../../../evil.safetensors' is no plain name"),
        ('{"weight_map": 3}', "is truncated or altered"),
    ):
        hub.repositories[REPO][index] = text.encode()
        shutil.rmtree(hub_folder(REPO, COMMIT).parents[1])
        refused(fetch(model), f"model tiny: {hub_folder(REPO, COMMIT) / index}", says)
        outcome = fetch(model, "--check")
        refused(outcome, "model tiny", "1 not intact")
        said = rows(outcome.out)[index]
        assert f"intact: no: {hub_folder(REPO, COMMIT) / index}" in said and says in said


# ---- another model than the YAML's ----------------------------------------------------------------------------------

SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 384, "tie_word_embeddings": True}  # fmt: skip


def own_sizes() -> dict[str, Any]:
    values = json.loads((TINY.parent / "target" / "config.json").read_text())
    return {key: values[key] for key in SIZES if key in values}


def test_a_checkpoint_of_another_architecture_than_the_yamls_is_refused_with_both(hub: StandIn, tmp_path: Path) -> None:
    sizes = own_sizes()
    for weights in ("{path: target}", f"{{hub: {REPO}, revision: {COMMIT}}}"):
        folder = tmp_path / weights[1:4]
        right = tiny_copy(folder / "right", weights=weights, architecture=json.dumps(sizes))
        assert vanilla(folder / "out", right).code == 0
        other = sizes | {"num_hidden_layers": 32, "intermediate_size": 11008}
        wrong = tiny_copy(folder / "wrong", weights=weights, architecture=json.dumps(other))
        says = (
            f"num_hidden_layers {sizes['num_hidden_layers']} (not 32)",
            f"intermediate_size {sizes['intermediate_size']} (not 11008)",
        )
        refused(vanilla(folder / "none", wrong), "config.json is of another model than its YAML's `architecture` says", *says)
        assert not lines(folder / "none")
        dry = run(folder / "none", "--method vanilla --task gsm8k --dry-run --model", wrong)
        assert any(line.startswith("missing: model tiny: ") and says[0] in line for line in dry.out.splitlines())


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("vocab_size", 384.0, "384.0"), ("hidden_size", "64", "'64'"), ("num_hidden_layers", None, ""), ("rope_parameters", 3, "")],
)  # fmt: skip
def test_a_size_of_another_type_is_one_line(tmp_path: Path, key: str, value: object, says: str) -> None:
    yaml = tiny_copy(tmp_path / "m")
    file = yaml.parent / "target" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    refused(vanilla(tmp_path / "out", yaml), "model tiny", str(file.parent), "config.json", key if says else "", says)


def test_heads_that_are_null_are_as_many_as_there_are_of_attention(tmp_path: Path) -> None:
    sizes = own_sizes() | {"num_key_value_heads": 4}
    yaml = tiny_copy(tmp_path / "m", architecture=json.dumps(sizes))
    file = yaml.parent / "target" / "config.json"
    values = json.loads(file.read_text()) | {"num_key_value_heads": None}
    file.write_text(json.dumps(values))
    assert other_architecture(model_config(str(yaml)), file.parent) is None
    sizes = Architecture.of(file.parent)
    assert sizes is not None and sizes.num_key_value_heads == values["num_attention_heads"] == 4


def test_a_truncated_local_file_is_named(tmp_path: Path) -> None:
    yaml = tiny_copy(tmp_path / "m")
    file = yaml.parent / "target" / WEIGHTS
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-4])
    refused(vanilla(tmp_path / "out", yaml), f"{file} has {size - 4} bytes, by its header {size}: truncated")
    file.write_bytes(b"")
    refused(vanilla(tmp_path / "out", yaml), f"{file} has 0 bytes and no whole header")
